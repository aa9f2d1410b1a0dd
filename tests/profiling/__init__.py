"""How long something takes, and how much memory."""
