"""Conversion of models, undoing it, and what of it is remembered."""
