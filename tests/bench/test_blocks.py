"""Block shapes, timed in Triton's interpreter: what is measured, what fails, what is wrong; not how fast it is."""

import pytest
import torch

from conditioned_attention.attention.fused import launch as fused_launch
from conditioned_attention.attention.fused.launch import Blocks
from conditioned_attention.bench import blocks
from conditioned_attention.bench.blocks import BlocksSettings, find_blocks_cases, measure_blocks, run_blocks
from conditioned_attention.bench.cases import GPU_CASES, Case
from conditioned_attention.bench.tables import print_blocks
from tests.attention.kernels import GPU, interpreted, needs_kernels  # noqa: F401

pytestmark = needs_kernels

DEVICE = "cuda" if GPU else "cpu"
SETTINGS = BlocksSettings(rounds=1, calls=1, device=DEVICE, dtype="float16")
TINY = Case("tiny", (1, 1, 20, 16), "", causal=True)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kernel", blocks.KERNELS)
def test_each_shape_takes_its_turn_and_the_table_is_left_as_it_was(kernel, monkeypatch):
    before, launched = dict(fused_launch._HALF), []
    compiled_for = fused_launch._compiled_for
    monkeypatch.setattr(
        fused_launch, "_compiled_for", lambda i, o, b, *rest: launched.append(b[:2]) or compiled_for(i, o, b, *rest)
    )
    rows = measure_blocks(TINY, kernel, [Blocks(16, 32, 4, 1), Blocks(24, 32, 4, 1)], SETTINGS)
    assert [row.status for row in rows] == ["measured", "measured", "failed"]
    assert (rows[0].ratio, rows[2].ratio) == (1.0, None)
    assert "power of 2" in rows[2].note
    assert (16, 32) in launched
    assert before == fused_launch._HALF


def test_wrong_numbers_are_not_timed(monkeypatch):
    forward = fused_launch.forward

    def wrong_in_small_blocks(inputs, options):
        y, norm, lse = forward(inputs, options)
        return (y * torch.nan if fused_launch._HALF[64][0].queries == 16 else y), norm, lse

    monkeypatch.setattr(fused_launch, "forward", wrong_in_small_blocks)
    rows = measure_blocks(TINY, "attend", [Blocks(16, 32, 4, 1)], SETTINGS)
    assert [row.status for row in rows] == ["measured", "wrong"]
    assert rows[1].milliseconds is None


@pytest.mark.slow
def test_a_second_run_measures_nothing_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "CANDIDATES", dict.fromkeys(blocks.KERNELS, (Blocks(32, 32, 4, 1),)))
    first = [row for rows in run_blocks([TINY], SETTINGS, tmp_path) for row in rows]
    assert [row.kernel for row in first] == [kernel for kernel in blocks.KERNELS for _ in range(2)]
    monkeypatch.setattr(blocks, "measure_blocks", pytest.fail)
    again = list(run_blocks([TINY], SETTINGS, tmp_path))
    assert [row.ratio for rows in again for row in rows] == pytest.approx([row.ratio for row in first], rel=1e-5)
    print_blocks(again[0])
    assert "32 × 32, 4 warps, 1 stages" in capsys.readouterr().out


def test_wrong_settings(monkeypatch):
    with pytest.raises(ValueError, match="rounds and calls must be at least 1"):
        BlocksSettings(rounds=0).check()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        BlocksSettings(device="cpu").check()
    if not GPU:
        with pytest.raises(ValueError, match="no CUDA device"):
            BlocksSettings().check()
    with pytest.raises(ValueError, match="case 'vit' is unknown"):
        find_blocks_cases(["vit"])
    assert {case.name for case in find_blocks_cases([])} <= set(GPU_CASES)
