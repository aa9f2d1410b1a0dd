"""The benchmark of training steps, on a block that takes no time."""

import dataclasses

import pytest
import torch

from conditioned_attention import functional
from conditioned_attention.bench import step as step_module
from conditioned_attention.bench.models import MODELS, find_models
from conditioned_attention.bench.results import read_rows
from conditioned_attention.bench.step import StepRow, StepSettings, measure_model, run_step
from conditioned_attention.experiments.variants.catalogue import find_variants
from tests.bench.tiny import MODEL

QUICK = StepSettings(rounds=2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run of one model: its rows, and the folder with its file."""
    folder = tmp_path_factory.mktemp("bench")
    (rows,) = run_step([MODEL], QUICK, folder)
    return rows, folder


@pytest.mark.slow
def test_a_model_and_its_conversions(measured):
    rows, folder = measured
    assert [row.variant for row in rows] == ["baseline", "preconditioned", "head_rmsnorm"]
    assert [row.note for row in rows[1:]] == ["1 of 1 attention modules converted"] * 2
    for row, read in zip(rows, read_rows(folder / "step.csv", StepRow)):
        ratios = [mine / base for mine, base in zip(row.rounds_milliseconds, rows[0].rounds_milliseconds)]
        assert (row.p20, row.p80) == (min(ratios), max(ratios))
        assert read.ratio == pytest.approx(row.ratio, rel=1e-4)
        assert (read.held_bytes, read.peak_bytes) == (row.held_bytes, row.peak_bytes)
    assert rows[0].ratio == rows[0].held_ratio == rows[0].peak_ratio == 1


def test_held_memory_is_what_the_conversion_adds(measured):
    """RMSNorm after attention holds the output once more, and one float a row: 197 rows of 12 heads of 64."""
    rows = {row.variant: row for row in measured[0]}
    assert rows["head_rmsnorm"].held_bytes - rows["baseline"].held_bytes == 4 * 197 * 12 * (64 + 1)


@pytest.mark.slow
def test_batch_and_layers_can_be_chosen():
    only = ("baseline", "preconditioned")
    row = measure_model(MODEL, dataclasses.replace(QUICK, rounds=1, batch_size=2, layers=2, variants=only))[1]
    assert row.shape == "a thin block, batch 2, 2 layers"
    assert row.note == "2 of 2 attention modules converted"


@pytest.mark.slow
def test_an_implementation_that_fails_leaves_the_others_their_numbers(monkeypatch):
    """One that refuses is an error of whoever asked for it."""
    real = step_module._with_implementation

    def fails(each, impl):
        if impl == "lean":
            raise RuntimeError("PassManager::run failed\nsomewhere")
        return real(each, impl)

    monkeypatch.setattr(step_module, "_with_implementation", fails)
    quick = dataclasses.replace(QUICK, rounds=1, variants=("baseline",), implementations=("lean", "composed"))
    plain, composed = measure_model(MODEL, quick)
    assert plain.note == "lean failed: RuntimeError: PassManager::run failed"
    assert composed.variant == "preconditioned, composed"
    with pytest.raises(ValueError, match="fused"):
        measure_model(MODEL, dataclasses.replace(quick, implementations=("fused",)))


@pytest.mark.slow
def test_an_implementation_can_be_asked_for_and_runs():
    """What composed holds beside lean is the output once more: 197 rows of 12 heads of 64."""
    rules = functional._AUTO
    quick = dataclasses.replace(QUICK, rounds=1, variants=("baseline",), implementations=("composed", "lean"))
    plain, composed, lean = measure_model(MODEL, quick)
    assert [composed.variant, lean.variant] == ["preconditioned, composed", "preconditioned, lean"]
    assert lean.held_bytes - plain.held_bytes == 4 * 197 * 12
    assert composed.held_bytes - lean.held_bytes == 4 * 197 * 12 * 64
    assert functional._AUTO is rules
    with pytest.raises(ValueError, match="impl='fused' cannot run here"):
        measure_model(MODEL, dataclasses.replace(quick, implementations=("fused",)))
    assert functional._AUTO is rules


def test_finished_models_are_not_measured_again(measured, monkeypatch):
    rows, folder = measured
    monkeypatch.setattr(step_module, "measure_model", pytest.fail)
    (again,) = run_step([MODEL], QUICK, folder)
    assert [row.variant for row in again] == [row.variant for row in rows]
    with pytest.raises(ValueError, match=r"settings\.layers: None there, 2 now"):
        list(run_step([MODEL], dataclasses.replace(QUICK, layers=2), folder))


def test_models_by_name_and_sizes_that_are_none(tmp_path):
    assert find_models([]) == list(MODELS.values())
    with pytest.raises(ValueError, match="'bert' is unknown; valid are vit_b"):
        find_models(["bert"])
    with pytest.raises(ValueError, match="at least 1"):
        list(run_step([MODEL], StepSettings(layers=0), tmp_path))
    with pytest.raises(ValueError, match="'fast' is unknown; valid are composed"):
        list(run_step([MODEL], StepSettings(implementations=("fast",)), tmp_path))


PAPER = {
    "vit_b": 1, "deit_b": 1, "swin_b": 7, "xcit_m24": 3, "davit_b": 8, "volo_d1": 9, "lra_listops": 1, "lra_text": 1,
    "lra_retrieval": 1, "lra_image": 1, "lra_pathfinder": 1,
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", PAPER)
def test_both_methods_reach_all_of_a_model_of_the_paper(name):
    model = MODELS[name]
    for variant in find_variants(("preconditioned", "spectral")):
        with torch.device("meta"):
            network = model.build(1)
        report = variant.leaving(model.left_alone).apply_structure(network)
        assert len(report.converted) == PAPER[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_real_models_train_with_one_layer(name):
    variants = ("baseline", "preconditioned", "spectral")
    rows = measure_model(MODELS[name], StepSettings(rounds=1, batch_size=1, layers=1, variants=variants))
    assert rows[1].held_bytes > rows[0].held_bytes
    assert rows[2].note == rows[1].note


def test_pairs_with_padding():
    """Two texts and a label, of which at least a quarter is tokens, and not all."""
    first, second, labels = MODELS["lra_retrieval"].batch(8)
    assert first.shape == second.shape == (8, 4096)
    assert labels.shape == (8,)
    seen = first != 0
    assert (seen[:, :1024]).all()
    assert (~seen).sum() > 0
    assert (seen[:, 1:] <= seen[:, :-1]).all(), "behind"
