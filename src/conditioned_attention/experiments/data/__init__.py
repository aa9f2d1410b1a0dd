"""Data sets, one file each: they turn what is on disk or in a package into tensors."""
