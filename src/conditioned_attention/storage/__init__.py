"""Stores data in files and folders, which are written whole or not at all."""
