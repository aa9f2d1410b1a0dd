"""PyTorch's flash operators with C built in, which keep one float per row more for backward than plain attention."""
