"""What a model's heads and projections are on given inputs."""
