"""The results of runs: scores, statistics, tables and verdicts."""
