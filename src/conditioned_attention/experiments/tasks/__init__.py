"""Learning problems, each with its data, model, loss and score."""
