"""Estimates of what a run will take, and of what a variant costs, before anything is trained."""
