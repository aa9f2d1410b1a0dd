"""PyTorch's backends one by one: those that cannot run say why, and no other runs in their place."""

import contextlib
import dataclasses

import pytest
import torch

from conditioned_attention import functional
from conditioned_attention.bench.cases import Case
from conditioned_attention.bench.contestants import BACKENDS, Contestant, _only, _reasons, contestants
from conditioned_attention.bench.operator import measure_case
from tests.bench.tiny import CASE, QUICK

GPU = dataclasses.replace(QUICK, contestants="gpu", modes=("both",), rounds=1)


def test_everyone_takes_part():
    rows = {row.contestant: row for row in measure_case(CASE, GPU)}
    assert list(rows) == ["plain", "flash", "cuDNN", "efficient", "three lines", *functional.IMPLEMENTATIONS, "auto"]
    assert contestants(CASE, compiled=True, gpu=True)[-1].name == "three lines, compiled"
    assert {name for name, row in rows.items() if row.status != "measured"} == {"cuDNN", "efficient", "fused"}
    assert "No viable backend" in rows["cuDNN"].note, "a CPU has flash attention only"


def test_a_backend_does_not_fall_back():
    """Flash attention on a CPU sends no gradient to a mask, and plain attention then computes otherwise."""
    rows = {row.contestant: row for row in measure_case(Case("bias", (1, 2, 5, 4), "", mask="bias"), GPU)}
    assert rows["plain"].status == "measured"
    assert rows["flash"].status == "refused"


def test_whatever_is_timed_runs_in_its_surroundings():
    inside = []

    @contextlib.contextmanager
    def surroundings():
        inside.append(True)
        yield
        inside.pop()

    def attend(*arguments):
        assert inside
        return usual[0].attend(*arguments)

    usual = contestants(CASE, compiled=False, gpu=True)
    other = Contestant("other", attend, usual[0].oracle, surroundings=surroundings)
    rows = measure_case(CASE, dataclasses.replace(QUICK, rounds=1), [usual[0], other])
    assert [row.status for row in rows] == ["measured"] * 6


def test_other_errors_are_no_refusals():
    with pytest.raises(RuntimeError, match="out of luck"), _only("flash"):
        raise RuntimeError("out of luck")
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_lean_takes_no_part_in_the_choice_of_cudnn():
    lean = next(one for one in contestants(CASE, compiled=False, gpu=True) if one.name == "lean")
    with lean.surroundings():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()


def test_reasons_are_those_of_the_backend():
    """As PyTorch prints them on CUDA."""
    where = " (Triggered internally at ../aten/src/ATen/native/transformers/cuda/sdp_utils.cpp:607.)"
    said = [
        "Memory efficient kernel not used because:",
        "Memory Efficient attention has been runtime disabled.",
        "Flash attention kernel not used because:",
        "Expected query, key and value to all be of dtype: {Half, BFloat16}.",
        "Both fused kernels do not support non-null attn_mask.",
        "CuDNN attention kernel not used because:",
        "CuDNN attention has been runtime disabled.",
    ]
    reasons = {name: _reasons(called, [line + where for line in said]) for name, (_, called) in BACKENDS.items()}
    assert reasons == {"flash": " ".join(said[3:5]).replace("}. ", "}.; "), "cuDNN": said[6], "efficient": said[1]}
