"""What the tests of the Triton kernels share: they run on a GPU where there is one, else in Triton's interpreter.

The interpreter multiplies bfloat16 wrongly, so there the kernels turn it into float32 first, and it cuts digits off
instead of rounding; what the compiler of a GPU makes of a kernel it does not show.
"""

import math

import pytest
import torch

from conditioned_attention import preconditioned_attention
from tests.judge import assert_as_good_as_plain
from tests.triton_interpreter import KERNELS_RUN, VARIABLE

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_kernels = pytest.mark.skipif(not KERNELS_RUN, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if not GPU:
        monkeypatch.setenv(VARIABLE, "1")


@pytest.fixture(autouse=True)
def poison_more_memory(monkeypatch):
    """As in `tests.plugin`, for the other ways to get memory that the launcher uses."""
    like, new = torch.empty_like, torch.Tensor.new_empty

    def poisoned(make):
        def function(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return function

    monkeypatch.setattr(torch, "empty_like", poisoned(like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(new))


def fused_(*args, **kwargs):
    return preconditioned_attention(*args, impl="fused", **kwargs)


def assert_good(ours, plains, oracle, name):
    for what, a, b, c in zip(("output", "dq", "dk", "dv", "dmask"), ours, plains, oracle, strict=False):
        assert a.isfinite().all()
        assert_as_good_as_plain(a, b, c, 2 if what == "output" else 3, f"{name}, {what}")
