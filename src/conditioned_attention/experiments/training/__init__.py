"""One run: settings, order of the data, optimizer step, schedule, checkpoints."""
