"""PyTorch's flash operators with C worked in: one float a row more for backward than plain attention."""
