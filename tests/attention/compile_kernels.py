"""Compiles the Triton kernels for an H100 as `fused_launch` would launch them; needs Triton, and no GPU.

Prints a line for each: name, bytes of shared memory, bytes of stack (registers that spilled), and the case.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from conditioned_attention.attention import fused_launch, triton_kernels

KERNELS = ("attend", "prepare", "keys_and_values", "queries", "additive_mask")
H100 = GPUTarget("cuda", 90, 32)
DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8"}

half, single = torch.bfloat16, torch.float32
CASES = {  # query (B, H, N, D), key heads, value width, dtype, mask, causal, gradient
    "GPT": ((2, 12, 1024, 64), 12, 64, half, None, True, "stopped"),
    "ViT": ((2, 12, 197, 64), 12, 64, half, None, False, "stopped"),
    "grouped, 128 wide": ((2, 12, 1024, 128), 4, 128, half, None, True, "stopped"),
    "256 wide": ((2, 12, 1024, 256), 4, 256, half, None, True, "stopped"),
    "one query": ((1, 1, 1, 64), 1, 64, half, None, False, "stopped"),  # sizes of 1 are compiled in
    "Swin": ((512, 3, 49, 32), 3, 32, half, torch.empty(1, 3, 49, 49, dtype=half), False, "stopped"),
    "padding, odd widths, float16": (
        (8, 12, 128, 60), 12, 40, torch.float16, torch.empty(8, 1, 1, 128, dtype=torch.bool), True, "through",
    ),
    "float32": ((2, 12, 1024, 64), 12, 64, single, None, False, "stopped"),
    "float32, 128 wide": ((2, 12, 197, 128), 12, 128, single, None, True, "through"),
    "float32, 256 wide": ((2, 12, 197, 256), 12, 256, single, None, True, "stopped"),
}  # fmt: skip


class Recorder:
    """Stands for a kernel, and notes what it is launched with."""

    def __init__(self, kernel, calls):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.calls.append((self.kernel, dict(zip(self.kernel.arg_names, args)) | kwargs))


def describe(value):
    """(type, the value if it is compiled in, attributes), as Triton's own launcher specialises arguments."""
    if value is None:
        return "constexpr", True, []
    if isinstance(value, torch.Tensor):
        return DTYPES[value.dtype], False, [["tt.divisibility", 16]]
    if isinstance(value, float):
        return "fp32", False, []
    kind = "constexpr" if value == 1 else "i32" if value < 2**31 else "i64"
    return kind, value == 1, [["tt.divisibility", 16]] if value % 16 == 0 else []


def compiled(kernel, arguments):
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    signature, constants, attributes = {}, {}, {}
    compiled_in = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    for i, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if name in compiled_in:
            signature[name], constants[i,] = "constexpr", value
            continue
        parts = value if isinstance(value, tuple) else (value,)
        kinds = []
        for j, part in enumerate(parts):
            path = (i, j) if isinstance(value, tuple) else (i,)
            kind, constant, attribute = describe(part)
            kinds.append(kind)
            if constant:
                constants[path] = part
            elif attribute:
                attributes[path] = attribute
        signature[name] = tuple(kinds) if isinstance(value, tuple) else kinds[0]
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=H100, options=options)


def stack(binary):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", usage.stdout).group(1))


def main():
    calls = []
    for name in KERNELS:
        setattr(triton_kernels, name, Recorder(getattr(triton_kernels, name), calls))
    for name, ((b, h, n, d), g, e, dtype, mask, causal, gradient) in CASES.items():
        calls.clear()
        q, k, v = (torch.empty(b, n, *size, dtype=dtype).transpose(1, 2) for size in ((h, d), (g, d), (g, e)))
        y, norm, lse = fused_launch.forward(q, k, v, mask, causal, 0.1, 1e-6)
        of_mask = mask is not None and mask.is_floating_point()
        fused_launch.backward(y, q, k, v, mask, y, norm, lse, causal, 0.1, 1e-6, gradient, of_mask)
        for kernel, arguments in calls:
            done = compiled(kernel, arguments)
            print(kernel.__name__, done.metadata.shared, stack(done.asm["cubin"]), name, flush=True)


if __name__ == "__main__":
    main()
