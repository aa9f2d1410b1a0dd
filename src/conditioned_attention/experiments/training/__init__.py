"""Training of one run: settings, order of the data, optimizer step, schedule, checkpoints."""
