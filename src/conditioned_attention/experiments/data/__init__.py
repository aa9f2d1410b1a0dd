"""One file a data set: what is on disk or in a package -> tensors."""
