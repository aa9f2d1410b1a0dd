"""Compiles the Triton kernels for a GPU as `fused_launch` launches them; needs Triton, and no GPU.

The argument is the compute capability: 90 for an H100.

Prints a line for each: name, bytes of shared memory, bytes of stack (registers that spilled), and the case.
"""

import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from conditioned_attention.attention.fused import launch as fused_launch
from conditioned_attention.attention.fused.launch import Inputs, Options

half, single = torch.bfloat16, torch.float32
BIAS, BIAS_OF_ALL = torch.empty(1, 3, 49, 49, dtype=half), torch.empty(1, 1, 1, 512, dtype=half)
OF_PAIRS, ALLOWED = torch.empty(2, 1, 512, 512), torch.empty(2, 1, 512, 512, dtype=torch.bool)  # the first in float32
OF_HEADS = torch.empty(1, 64, 1, 4096)
PADDING = torch.empty(8, 1, 1, 128, dtype=torch.bool)
plain = Options(False, 0.1, 0.0, 0, 1e-6, "output", "stopped")
causal = plain._replace(is_causal=True)
through = causal._replace(gradient="through")
CASES = {  # query (B, H, N, D), key heads, keys, value width, dtype, mask, options
    "GPT": ((2, 12, 1024, 64), 12, 1024, 64, half, None, causal),
    "ViT": ((2, 12, 197, 64), 12, 197, 64, half, None, plain),
    "grouped, 128 wide": ((2, 12, 1024, 128), 4, 1024, 128, half, None, causal),
    "256 wide": ((2, 12, 1024, 256), 4, 1024, 256, half, None, causal),
    "one query": ((1, 1, 1, 64), 1, 1, 64, half, None, plain),  # sizes of 1 are compiled in
    "Swin": ((512, 3, 49, 32), 3, 49, 32, half, BIAS, plain),
    "mask of pairs": ((2, 4, 512, 64), 2, 512, 64, half, OF_PAIRS, causal),
    "mask of pairs, 128 wide": ((2, 4, 512, 128), 2, 512, 128, half, OF_PAIRS, causal),
    "pairs, 128 wide, weights, dropout": (
        (2, 4, 512, 128), 2, 512, 128, half, ALLOWED,
        plain._replace(rows="weights", gradient="through", dropout_p=0.1),
    ),
    "padding, odd widths, float16": ((8, 12, 128, 60), 12, 128, 40, torch.float16, PADDING, through),
    "float32": ((2, 12, 1024, 64), 12, 1024, 64, single, None, plain),
    "float32, 128 wide": ((2, 12, 197, 128), 12, 197, 128, single, None, through),
    "float32, 256 wide": ((2, 12, 197, 256), 12, 197, 256, single, None, causal),
    "dropout": ((2, 12, 1024, 64), 12, 1024, 64, half, None, causal._replace(dropout_p=0.1)),
    "dropout, 128 wide": ((2, 4, 512, 128), 4, 512, 128, half, None, causal._replace(dropout_p=0.1)),
    "window": ((2, 12, 4096, 128), 4, 4096, 128, half, None, causal._replace(window=1024)),
    "weights": ((2, 12, 197, 64), 12, 197, 64, half, None, plain._replace(rows="weights", gradient="through")),
    "decode": ((2, 32, 1, 128), 8, 8192, 128, half, None, plain),
    "decode, masked, weights, dropout": (
        (2, 4, 3, 64), 2, 512, 64, half, BIAS_OF_ALL, plain._replace(rows="weights", dropout_p=0.1),
    ),
    "decode, 64 heads share keys": ((1, 64, 1, 128), 1, 4096, 128, half, OF_HEADS, plain),
    "packed": ((1, 12, 5000, 64), 12, 5000, 64, half, None, causal._replace(longest_queries=900, longest_keys=900)),
    "packed, everything": (
        (1, 12, 5000, 128), 4, 5000, 128, half, None,
        Options(True, 0.1, 0.1, 256, 1e-6, "weights", "through", 900, 900),
    ),
}  # fmt: skip


class NoDevice:
    """What Triton asks its driver for before it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def only_compiling(found, capability):
    """Whatever is launched is compiled instead, by Triton's own launcher, and what came of it noted."""

    def compile_only(kernel, grid):
        def launch(*args, **kwargs):
            found.append((kernel.__name__, kernel.warmup(*args, grid=grid, **kwargs)))

        return launch

    driver.set_active(NoDevice(capability))
    launched, JITFunction.__getitem__ = JITFunction.__getitem__, compile_only
    try:
        yield
    finally:
        JITFunction.__getitem__ = launched


def stack(binary):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", usage.stdout).group(1))


def run(query, key_heads, keys, value_width, dtype, mask, options):
    """Forward and backward, as `fused` calls them."""
    b, h, n, d = query
    sizes = ((n, h, d), (keys, key_heads, d), (keys, key_heads, value_width))
    q, k, v = (torch.empty(b, *size, dtype=dtype).transpose(1, 2) for size in sizes)
    seed = torch.zeros(1, dtype=torch.int64) if options.dropout_p else None
    firsts = torch.zeros(9, dtype=torch.int32) if options.longest_queries else None
    inputs = Inputs(q, k, v, mask, seed, firsts, firsts)
    y, norm, lse = fused_launch.forward(inputs, options)
    fused_launch.backward(y, inputs, y, norm, lse, options, mask is not None and mask.is_floating_point())


def main():
    for name, case in CASES.items():
        found = []
        with only_compiling(found, int(sys.argv[1])):
            run(*case)
        for kernel, done in found:
            print(kernel, done.metadata.shared, stack(done.asm["cubin"]), name, flush=True)


if __name__ == "__main__":
    main()
