"""Texts: what is on disk or in a package -> windows of bytes."""
