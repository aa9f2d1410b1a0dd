"""How much a case computes and moves, whatever the implementation, and the limits of a device for both.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from conditioned_attention.bench.cases import Case
from conditioned_attention.profiling.clock import seconds_of

# Forward has two matrix products and backward five, as flash attention counts: logits are computed again.
_OVER_FORWARD = {"forward": 1.0, "backward": 2.5, "both": 3.5}


def flops(case: Case, mode: str) -> float:
    """Floating-point operations of attention: 4 · B · H · D for each pair of a query and a key that it attends to.

    Backward counts 2.5 times, both 3.5 times as many.  Under a causal mask query i attends to keys 0..i; pairs that
    another mask hides count, because kernels do not skip them.

    >>> flops(Case("", (1, 2, 10, 8), "", keys=6), "forward") == 4 * 2 * 8 * 60
    True
    """
    batch, heads, n, width = case.query
    m = case.keys or n
    triangle = min(n, m)
    pairs = triangle * (triangle + 1) // 2 + (n - triangle) * m if case.causal else n * m
    return _OVER_FORWARD[mode] * 4 * batch * heads * width * pairs


def least_bytes(case: Case, mode: str, number: int) -> int:
    """The bytes that must at least move through memory: every tensor once, with numbers of ``number`` bytes.

    Forward reads q, k and v and writes o; backward reads q, k, v, o and do and writes dq, dk and dv; a mask is read
    both times, and the gradient of a learned one is written.  The statistics of the rows, 4 bytes each, are left out.
    """
    batch, heads, n, width = case.query
    m, groups = case.keys or n, case.key_heads or heads
    query, key = (number * batch * h * length * width for h, length in ((heads, n), (groups, m)))
    mask = {"none": 0, "bias": number * heads * n * m, "padding": batch * m}[case.mask]
    forward = 2 * query + 2 * key + mask
    backward = 4 * query + 4 * key + mask * (2 if case.mask == "bias" else 1)
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


@dataclass(frozen=True)
class Limits:
    """The measured limits of a device.

    Attributes:
        flops_per_second: in a product of two square matrices in the benchmark's dtype.
        bytes_per_second: in a copy from the device to itself, read and written bytes together.
    """

    flops_per_second: float
    bytes_per_second: float


def measure_limits(device: torch.device, dtype: torch.dtype, size: int = 8192, megabytes: int = 1024) -> Limits:
    """Times products of ``size`` × ``size`` matrices, and copies of so many MiB, all random: the fastest of 5 times."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    product, copy = partial(torch.mm, a, b), partial(target.copy_, source)
    return Limits(2 * size**3 / _fastest(product, device), 2 * megabytes * 2**20 / _fastest(copy, device))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds per call in the fastest sample of 10 calls in a row; the first sample does not count."""

    def sample() -> None:
        for _ in range(10):
            work()

    return min([seconds_of(sample, device) / 10 for _ in range(6)][1:])
