"""What is derived from the measured rows: work, rates, the fastest backend, targets met and missed."""

import torch

from conditioned_attention.bench.cases import CASES, GPU_CASES, Case
from conditioned_attention.bench.gpu_tables import _rates, print_gpu_case
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.step import StepRow
from conditioned_attention.bench.targets import fastest_backend, over_fastest, rule_lines, target_lines
from conditioned_attention.bench.work import Limits, flops, least_bytes, measure_limits

LIMITS = Limits(flops_per_second=1e15, bytes_per_second=4e12)


def test_work_counted_by_hand():
    """Five queries of three keys: 1 + 2 + 3 + 3 + 3 pairs are attended to if causal, 2 products of 4 wide rows each."""
    full, causal = (Case("", (2, 6, 5, 4), "", keys=3, key_heads=2, causal=causal) for causal in (False, True))
    assert flops(full, "forward") == 2 * 6 * 15 * 2 * (2 * 4)
    assert flops(causal, "forward") == 2 * 6 * 12 * 2 * (2 * 4)
    assert (
        flops(causal, "both") == flops(causal, "forward") + flops(causal, "backward") == 3.5 * flops(causal, "forward")
    )
    wide = Case("", (1, 1, 3, 4), "", keys=5, causal=True)
    assert flops(wide, "forward") == (1 + 2 + 3) * 2 * (2 * 4)
    q, k = 2 * 6 * 5 * 4, 2 * 2 * 3 * 4  # numbers; v has as many as k, and o as q
    assert least_bytes(full, "forward", 2) == 2 * (q + k + k + q)
    assert least_bytes(full, "backward", 2) == 2 * (q + k + k + q + q + q + k + k)
    assert least_bytes(full, "both", 2) == least_bytes(full, "forward", 2) + least_bytes(full, "backward", 2)
    plain, bias, padding = (Case("", (2, 3, 5, 4), "", mask=mask) for mask in ("none", "bias", "padding"))
    assert least_bytes(bias, "both", 2) - least_bytes(plain, "both", 2) == 3 * 2 * (3 * 5 * 5)
    assert least_bytes(padding, "both", 2) - least_bytes(plain, "both", 2) == 2 * (2 * 5)


def test_limits_are_those_of_the_fastest_sample(monkeypatch):
    seconds = iter([9.0, 3.0, 2.0, 4.0, 5.0, 6.0, 9.0, 30.0, 20.0, 40.0, 50.0, 60.0])
    monkeypatch.setattr("conditioned_attention.bench.work.seconds_of", lambda work, device: next(seconds))
    limits = measure_limits(torch.device("cpu"), torch.bfloat16, size=8, megabytes=1)
    assert limits == Limits(2 * 8**3 / 0.2, 2 * 2**20 / 2.0)


def timed(case, contestant, milliseconds, mode="both", floats=1.0):
    rounds = [float(number) for number in milliseconds]
    middle, shape = sorted(rounds)[len(rounds) // 2], (GPU_CASES | CASES)[case].shape
    return OperatorRow(
        case, shape, mode, contestant, "measured", "", 1.0, 1.0, 1.0, middle,
        extra_floats_a_row=floats, rounds_milliseconds=rounds,
    )  # fmt: skip


def test_over_the_fastest_backend_round_by_round():
    rows = [timed("d64_n197", "plain", [1, 1, 1]), timed("d64_n197", "flash", [4, 2, 8])]
    rows += [timed("d64_n197", "cuDNN", [5, 5, 5]), timed("d64_n197", "flash", [9, 9, 9], "forward")]
    rows += [timed("d64_n197", "fused", [8, 3, 12]), timed("d64_n1024", "efficient", [1, 1, 1])]
    assert fastest_backend(rows, "d64_n197", "both").contestant == "flash"
    assert over_fastest(rows[4], rows).median == 1.5  # of 2, 1.5 and 1.5; plain attention is whichever it picks
    assert fastest_backend(rows[:1], "d64_n197", "both").contestant == "plain"
    assert fastest_backend(rows, "d64_n197", "backward") is None
    assert over_fastest(OperatorRow("d64_n197", "", "both", "lean", "refused", ""), rows) is None


def step(variant, ratio, peak):
    return StepRow("vit_b", "", variant, "", ratio, ratio, ratio, 50.0, 1, 1.0, 1, peak)


def test_targets_are_met_or_missed():
    rows = [timed(case, "flash", [10.0]) for case in GPU_CASES]
    fused = {case: timed(case, "fused", [10.2], floats=1.005) for case in GPU_CASES}  # flash keeps a seed
    steps = [
        step("baseline", 1.0, 1.0),
        step("preconditioned", 1.009, 1.001),
        step("preconditioned, fused", 1.011, 1.0),
    ]
    time, floats, step_time, step_memory = target_lines([*rows, *fused.values()], steps)
    assert time.endswith("SDPA backend, at most 1.02: met, by 16 of 16; the worst is 1.02, d64_n197")
    assert floats.endswith("at most 1: met, by 16 of 16; the worst is 1.005, d64_n197")
    assert step_time.endswith("at most 1.01: missed, by 1 of 2; the worst is 1.011, preconditioned, fused")
    assert step_memory.endswith("at most 1.002: met, by 2 of 2; the worst is 1.001, preconditioned")
    fused["d128_n4096"] = timed("d128_n4096", "fused", [13.1], floats=129.0)
    del fused["d64_n1024"]
    time, floats, *_ = target_lines([*rows, *fused.values()], [])
    assert time.endswith("missed, by 14 of 15; the worst is 1.31, d128_n4096; not measured: d64_n1024")
    assert "missed, by 14 of 15; the worst is 129, d128_n4096" in floats
    time, *_, memory = target_lines([*rows, fused["d64_n197"]], [])
    assert "met, as far as measured, by 1 of 1" in time
    assert memory.endswith("at most 1.002: not measured")


def test_the_rule_names_the_fastest_first():
    rows = [timed("bert", "composed", [3.0]), timed("bert", "fused", [2.0]), timed("bert", "plain", [1.0])]
    rows += [OperatorRow("bert", "", "both", "lean", "refused", "")]
    rows += [timed("d64_n197", "composed", [1.0]), timed("bert", "composed", [0.1], "forward")]
    assert rule_lines(rows) == [
        "d64_n197: composed 1 ms (1.00)",
        "bert: fused 2 ms (1.00), composed 3 ms (1.50), lean refused",
    ]


def test_rates_beside_the_limits(capsys):
    """ViT-B's heads forward: 7.63 GFLOP and 77.5 MB, in a millisecond."""
    row = timed("d64_n197", "fused", [1.0], "forward")
    assert _rates(row, LIMITS) == ["7.63 (1%)", "77.5 (2%)"]
    assert _rates(timed("d64_n197", "fused", [1.0]), LIMITS) == ["26.7 (3%)", "232 (6%)"]
    other_size = OperatorRow("d64_n197", "1×2×3×4", "both", "fused", "measured", "", milliseconds=1.0)
    assert _rates(other_size, LIMITS) == ["-", "-"]
    refused = OperatorRow("d64_n197", row.shape, "forward", "lean", "refused", "no reason")
    print_gpu_case([timed("d64_n197", "flash", [0.5], "forward"), row, refused], LIMITS)
    fused, lean = capsys.readouterr().out.splitlines()[-2:]
    assert fused.split()[:7] == ["fused", "1.000", "2.000", "1", "7.63", "(1%)", "77.5"]
    assert lean == "lean refused: no reason"


def test_cases_are_of_the_usual_amount_of_work():
    for batch, heads, n, width in (case.query for case in GPU_CASES.values()):
        assert batch * n == (64 * 197 if n == 197 else 16384)
        assert heads * width == (12 * width if n == 197 else 2048)
