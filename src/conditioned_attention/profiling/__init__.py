"""Measures how much time and memory a computation takes."""
