"""Attention in this library's own Triton kernels, which apply C in their last step; for CUDA."""
