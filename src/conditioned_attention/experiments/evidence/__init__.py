"""What runs have found: scores, statistics, tables and verdicts."""
