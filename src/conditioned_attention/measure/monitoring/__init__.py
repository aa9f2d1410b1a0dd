"""Watching a model while it trains: measure, write, raise an alarm."""
