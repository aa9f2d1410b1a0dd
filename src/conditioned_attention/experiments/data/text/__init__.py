"""Texts, read from disk or from packages, as bytes or tokens."""
