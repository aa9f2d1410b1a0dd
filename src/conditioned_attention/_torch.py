"""Imports torch, without its warning where numpy is not installed: nothing here needs numpy; and what old ones lack."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    import torch

# Before torch 2.7 an export says of itself that it compiles, as torch.compile does, and no more.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
