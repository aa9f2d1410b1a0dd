"""Watches a model while it trains: measures, writes records and raises alarms."""
