"""Triton kernels for flash attention whose rows have unit length, and for its backward.

There are only kernels here; `fused` and `lean` check the arguments and launch them.  The launchers import these files
only when they launch, because triton is imported at the top.

`forward` goes through the keys block by block with an online softmax in base 2: a running maximum, a running
denominator l and a running sum acc.  A row of attention is acc / l, so C costs one norm and one division per row at
the end; 1/C is kept beside the log-sum-exp.  `decode` does the same for few queries, with the keys in parts that are
merged before C.  `backward` computes the gradients and says how.  Nothing is summed by atomic operations, so the same
call gives the same bits.

Shapes: B batch, H heads (G key heads; REPEATS = H / G query heads share one), N queries, M keys, D head width, E value
width.  BLOCK_D and BLOCK_E are the powers of two that hold D and E.  Strides come as tuples in the order of the
dimensions; offsets are 64-bit.  Packed sequences come as B = 1 with all their tokens, and the index of the first token
of each.
"""
