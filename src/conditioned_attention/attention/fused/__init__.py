"""Attention in Triton kernels of our own, with C in their last step: for CUDA."""
