"""The benchmark of the operator: judged before it is timed, numbers that can be checked, runs that can be resumed."""

import dataclasses
import json
import statistics

import pytest
import torch
import torch.nn.functional as F

from conditioned_attention import functional
from conditioned_attention.bench import contestants as contestants_module
from conditioned_attention.bench import judge as judge_module
from conditioned_attention.bench import operator as operator_module
from conditioned_attention.bench.cases import CASES, Case, find_cases
from conditioned_attention.bench.contestants import Contestant, contestants
from conditioned_attention.bench.operator import OperatorRow, OperatorSettings, measure_case, run_operator
from conditioned_attention.bench.results import read_rows
from tests.bench.tiny import CASE, QUICK, three_lines


def by_name(rows, mode="both"):
    return {row.contestant: row for row in rows if row.mode == mode}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run of one case, as its CSV says."""
    folder = tmp_path_factory.mktemp("bench")
    list(run_operator([CASE], QUICK, folder))
    return read_rows(folder / "operator.csv", OperatorRow)


def test_everyone_takes_part_in_every_mode(measured):
    expected = ["plain", "three lines", "rms_norm", *functional.IMPLEMENTATIONS, "auto"]
    for mode in ("forward", "backward", "both"):
        assert list(by_name(measured, mode)) == expected
    assert by_name(measured)["auto"].note.startswith("runs ")


def test_ratios_can_be_computed_again_from_the_file(measured):
    timed = [row for row in measured if row.status == "measured"]
    assert timed
    for row in timed:
        plain = by_name(measured, row.mode)["plain"].rounds_milliseconds
        ratios = [mine / other for mine, other in zip(row.rounds_milliseconds, plain)]
        assert len(ratios) == 2
        assert row.ratio == pytest.approx(statistics.median(ratios), rel=1e-4)
        assert (row.p20, row.p80) == pytest.approx((min(ratios), max(ratios)), rel=1e-4)
        assert row.milliseconds == pytest.approx(statistics.median(row.rounds_milliseconds), rel=1e-4)


def test_memory_of_what_is_known(measured):
    """Plain attention holds its output and one float a row; three lines hold the norm's result instead as well."""
    rows, output = by_name(measured), 4 * 2 * 3 * 5 * 4
    assert rows["plain"].held_bytes == output + 4 * 2 * 3 * 5
    assert rows["three lines"].held_bytes == rows["plain"].held_bytes + output + 4 * 2 * 3 * 5
    assert rows["three lines"].extra_floats_a_row == 4 + 1
    assert rows["three lines"].held_ratio == pytest.approx(2.0)
    assert rows["plain"].peak_bytes > rows["plain"].held_bytes
    assert rows["rms_norm"].peak_bytes >= rows["plain"].peak_bytes


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_is_right_at_a_small_size(case):
    _, heads, n, width = case.query
    small = dataclasses.replace(case, query=(1, heads, min(n, 9), min(width, 12)))
    rows = measure_case(small, dataclasses.replace(QUICK, rounds=1, modes=("forward",)))
    assert {row.status for row in rows} <= {"measured", "refused"}
    assert by_name(rows, "forward")["auto"].status == "measured"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_judged_by_its_own_rounding(dtype):
    rows = measure_case(CASE, dataclasses.replace(QUICK, rounds=1, modes=("forward",), dtype=dtype))
    assert all(row.status in ("measured", "refused") for row in rows)


def wrong_output(query, key, value, mask):
    return three_lines(query, key, value, mask) * 1.001


def wrong_gradient(query, key, value, mask):
    """The norm's gradient is not stopped: the same numbers, another method."""
    return F.normalize(F.scaled_dot_product_attention(query, key, value, mask), dim=-1)


def not_a_number(query, key, value, mask):
    return three_lines(query, key, value, mask) * float("nan")


def refusing(query, key, value, mask):
    raise ValueError("impl='refusing' takes no queries")


def crashing(query, key, value, mask):
    raise OSError("no compiler\nand a long story")


@pytest.mark.parametrize(
    ("attend", "status", "words"),
    [
        (three_lines, "measured", ""),
        (wrong_output, "wrong", "output off by 1.0e-03"),
        (wrong_gradient, "wrong", "gradients by"),
        (not_a_number, "wrong", "output off by inf"),
        (refusing, "refused", "takes no queries"),
        (crashing, "failed", "OSError: no compiler"),
    ],
)
def test_who_is_wrong_or_cannot_is_shown_and_not_timed(attend, status, words):
    usual = contestants(CASE, compiled=False)
    rows = measure_case(CASE, QUICK, [*usual, Contestant("other", attend, usual[1].oracle)])
    other = by_name(rows)["other"]
    assert other.status == status
    assert words in other.note
    assert "story" not in other.note
    assert (other.ratio is not None) == (other.held_bytes is not None) == (status == "measured")
    assert by_name(rows)["three lines"].status == "measured"


def test_nothing_is_measured_against_a_wrong_plain_attention():
    usual = contestants(CASE, compiled=False)
    broken = dataclasses.replace(usual[0], attend=not_a_number)
    with pytest.raises(RuntimeError, match="plain attention cannot be measured here"):
        measure_case(CASE, QUICK, [broken, *usual[1:]])


def test_who_breaks_the_device_is_named(monkeypatch):
    """Whoever comes after it would be said to have failed."""
    monkeypatch.setattr(judge_module, "answers", lambda device: False)
    usual = contestants(CASE, compiled=False)
    with pytest.raises(RuntimeError, match="other broke the device: no compiler"):
        measure_case(CASE, QUICK, [*usual, Contestant("other", crashing, usual[1].oracle)])


def test_backward_is_timed_after_its_forwards(monkeypatch):
    """The clock runs over backwards alone, and starts on a device that has nothing left to do."""
    inputs, order = CASE.inputs(torch.device("cpu"), torch.float32), []

    class Watch:
        def __getattr__(self, name):
            return lambda: order.append(name)

    def attend(*arguments):
        order.append("forward")
        return "an output"

    monkeypatch.setattr(torch.autograd, "grad", lambda *arguments: order.append("backward"))
    operator_module._repeat_backward(attend, inputs, 5, Watch(), graphs=3)
    assert order == [
        *["forward"] * 3, "wait", "start", *["backward"] * 3, "stop",
        *["forward"] * 2, "wait", "start", *["backward"] * 2, "stop",
    ]  # fmt: skip


def test_an_added_implementation_takes_part_and_may_refuse(monkeypatch):
    """As when `functional` learns a new name: nothing here has to change."""
    monkeypatch.setattr(contestants_module, "IMPLEMENTATIONS", ("composed", "picky"))
    original = contestants_module.preconditioned_attention

    def with_picky(*arguments, impl, **options):
        if impl == "picky":
            raise ValueError("impl='picky' needs a head width that is a multiple of 8, got 4")
        return original(*arguments, impl=impl, **options)

    monkeypatch.setattr(contestants_module, "preconditioned_attention", with_picky)
    picky = by_name(measure_case(CASE, QUICK))["picky"]
    assert (picky.status, picky.ratio) == ("refused", None)
    assert "multiple of 8" in picky.note


def test_a_compiler_that_is_missing_is_a_row(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: crashing)
    rows = by_name(measure_case(CASE, dataclasses.replace(QUICK, compiled=True)))
    assert rows["ours, compiled"].status == rows["three lines, compiled"].status == "failed"
    assert rows["auto"].status == "measured"


@pytest.mark.slow
def test_compiled_contestants():
    rows = by_name(measure_case(CASE, dataclasses.replace(QUICK, compiled=True)))
    assert {row.status for row in rows.values()} <= {"measured", "refused"}
    assert rows["ours, compiled"].held_bytes > 0


def test_a_stopped_run_keeps_its_cases_and_goes_on(tmp_path, monkeypatch):
    first, second = CASE, Case("other", (1, 1, 4, 4), "nowhere")
    asked = []

    def stopping(case, settings):
        asked.append(case.name)
        if asked == ["tiny", "other"]:
            raise KeyboardInterrupt
        return measure_case(case, settings)

    monkeypatch.setattr(operator_module, "measure_case", stopping)
    with pytest.raises(KeyboardInterrupt):
        list(run_operator([first, second], QUICK, tmp_path))
    kept = (tmp_path / "operator.csv").read_text()
    assert {row.case for row in read_rows(tmp_path / "operator.csv", OperatorRow)} == {"tiny"}
    groups = list(run_operator([first, second], QUICK, tmp_path))
    assert asked == ["tiny", "other", "other"]
    assert [rows[0].case for rows in groups] == ["tiny", "other"]
    assert (tmp_path / "operator.csv").read_text().startswith(kept)
    assert not list(tmp_path.glob("*.tmp"))


def test_other_settings_do_not_mix_into_a_file(tmp_path):
    list(run_operator([CASE], QUICK, tmp_path))
    before = (tmp_path / "operator.csv").read_text()
    with pytest.raises(ValueError, match=r"settings\.rounds: 2 there, 3 now"):
        list(run_operator([CASE], dataclasses.replace(QUICK, rounds=3), tmp_path))
    about = json.loads((tmp_path / "operator.json").read_text())
    about["environment"]["torch"] = "1.0"
    (tmp_path / "operator.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"environment\.torch: 1\.0 there"):
        list(run_operator([CASE], QUICK, tmp_path))
    assert (tmp_path / "operator.csv").read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"sample_milliseconds": 0.0}, "positive and finite"),
        ({"modes": ()}, "at least one"),
        ({"modes": ("both", "both")}, "all different"),
    ],
)
def test_settings_that_measure_nothing(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        list(run_operator([CASE], dataclasses.replace(QUICK, **change), tmp_path))
    assert not list(tmp_path.iterdir())


def test_cases_by_name():
    assert find_cases([]) == list(CASES.values())
    assert [case.name for case in find_cases(["gpt", "vit_b", "gpt"])] == ["gpt", "vit_b"]
    with pytest.raises(ValueError, match="'vit_z' is unknown; valid are vit_b, vit_s"):
        find_cases(["vit_z"])


def test_inputs_are_laid_out_as_models_lay_them_out():
    device = torch.device("cpu")
    query = CASE.inputs(device, torch.float32).query
    assert query.transpose(1, 2).is_contiguous()
    channels = dataclasses.replace(CASES["xcit"], query=(1, 2, 4, 6)).inputs(device, torch.float32)
    assert channels.query.stride(-1) != 1
    torch.testing.assert_close(channels.query.norm(dim=-1), torch.ones(1, 2, 4))
    bias = dataclasses.replace(CASES["swin_bias"], query=(2, 3, 4, 5)).inputs(device, torch.float32)
    assert bias.mask.shape == (1, 3, 4, 4)
    assert [leaf is bias.mask for leaf in bias.leaves] == [False, False, False, True]
    assert OperatorSettings().modes == ("forward", "backward", "both")
