"""Measures what conditioning, and this library around it, costs; always as ratios within one run."""
