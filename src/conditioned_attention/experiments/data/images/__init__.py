"""Labelled pictures, read from disk or from packages."""
