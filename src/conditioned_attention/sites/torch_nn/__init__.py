"""Where the heads and the projections of torch.nn.MultiheadAttention are."""
