"""What differs between learning problems: data, model, loss, score."""
