"""Imports torch without the warning that it gives if numpy is not installed: nothing here needs numpy."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    import torch  # noqa: F401
