"""Numbers from tensors: condition numbers, spectra, Jacobians and their bounds."""
