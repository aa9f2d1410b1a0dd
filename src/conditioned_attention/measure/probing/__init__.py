"""Measures a model's heads and projections on given inputs."""
