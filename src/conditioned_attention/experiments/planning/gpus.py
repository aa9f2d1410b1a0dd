"""Peak rates of GPUs by their data sheets, on which the estimates before a run are based."""

from __future__ import annotations

from dataclasses import dataclass

from conditioned_attention.experiments.training.settings import Precision


@dataclass(frozen=True)
class GPU:
    """One GPU's peak rates, dense (without structured sparsity) and with products summed in float32, as in PyTorch.

    Attributes:
        bf16, fp16: rate of the tensor cores, TFLOP/s; None if they do not support the type.
        fp32: rate outside the tensor cores, TFLOP/s.  PyTorch computes float32 there unless TF32 is switched on.
        memory: GB on the card, as the data sheet counts them.
        bandwidth: bandwidth of that memory, GB/s.
    """

    bf16: float | None
    fp16: float
    fp32: float
    memory: int
    bandwidth: int

    @property
    def usable_bytes(self) -> float:
        """Nine tenths of the memory; the rest is for the CUDA context, workspaces and fragmentation."""
        return 0.9e9 * self.memory

    def flops_a_second(self, precision: Precision) -> float | None:
        """Returns the peak rate of matrix products in a precision; None if the GPU has no hardware for it."""
        rate = {"no": self.fp32, "bf16": self.bf16, "fp16": self.fp16}[precision]
        return None if rate is None else 1e12 * rate


# NVIDIA's data sheets and architecture white papers; V100, A100, H100, H200 and B200 are the SXM modules (B200 in an
# HGX board), V100 with 32 GB.
GPUS = {
    "T4": GPU(None, 65, 8.1, 16, 320),
    "V100": GPU(None, 125, 15.7, 32, 900),
    "RTX 3090": GPU(71, 71, 35.6, 24, 936),
    "A10": GPU(125, 125, 31.2, 24, 600),
    "A100-40": GPU(312, 312, 19.5, 40, 1555),
    "A100-80": GPU(312, 312, 19.5, 80, 2039),
    "RTX 4090": GPU(165.2, 165.2, 82.6, 24, 1008),
    "L4": GPU(121, 121, 30.3, 24, 300),
    "L40S": GPU(362, 362, 91.6, 48, 864),
    "H100": GPU(989, 989, 67, 80, 3350),
    "H200": GPU(989, 989, 67, 141, 4800),
    "B200": GPU(2250, 2250, 75, 180, 7700),
}

_ALIASES = {"a100": "a10080"}


def find_gpu(name: str) -> str:
    """Returns the key of `GPUS` that is meant: case, spaces and hyphens do not matter, and A100 is that with 80 GB.

    Raises:
        ValueError: no such GPU.

    >>> find_gpu("rtx4090"), find_gpu("a100")
    ('RTX 4090', 'A100-80')
    """
    letters = _letters(name)
    found = [key for key in GPUS if _letters(key) == _ALIASES.get(letters, letters)]
    if not found:
        raise ValueError(f"GPU {name!r} is unknown; valid are {', '.join(GPUS)}")
    return found[0]


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
