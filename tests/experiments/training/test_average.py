"""A moving average beside the weights: timm's, evaluated too, and without a trace in the run that has it."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.start import StartWeights
from conditioned_attention.experiments.training.step import new_average
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments import ranks
from tests.experiments.tiny import OFTEN, SELDOM, ShakenDigits
from tests.processes import Forked, torchruns_variables

BOTH = VARIANTS["preconditioned+spectral"]  # W + λ I is a parametrisation, C a class of its own
WITHOUT = Training(epochs=1, batch_size=30, evaluate_every=0.5, monitor_every=0.5)
WITH = dataclasses.replace(WITHOUT, ema_beside=0.9)


class Normed(nn.Sequential):
    """With batch norm, whose statistics are buffers, and one of which is a whole number."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.BatchNorm1d(4))


def rows(folder, settings, launch=SELDOM):
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in train(ShakenDigits(), settings, BOTH, 0, folder, launch)
    ]


def read(folder):
    newest = checkpoints_in(folder)[-1]
    extra = newest / "extra.pt"
    return load_file(newest / "model.safetensors"), torch.load(extra, weights_only=True) if extra.exists() else {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, rows(folder, WITH)


def test_it_is_that_of_timm():
    torch.manual_seed(0)
    model = Normed()
    ours, theirs = new_average(model, WITH), ModelEmaV3(model, decay=0.9)
    for _ in range(3):
        model(torch.randn(8, 4))
        with torch.no_grad():
            model[0].weight.add_(1.0)
        ours.update_parameters(model)
        theirs.update(model)
    expected = theirs.module.state_dict()
    assert expected["1.num_batches_tracked"] == 3
    assert not torch.equal(expected["1.running_mean"], model[1].running_mean)
    found = ours.module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_it_changes_nothing_of_the_run(tmp_path, whole):
    folder, beside = whole
    plain = rows(tmp_path, WITHOUT)
    assert [{k: v for k, v in row.items() if not k.startswith("ema_")} for row in beside] == plain
    for row in beside:
        assert {"ema_score", "ema_eval_loss"} <= row.keys()
        assert row["ema_eval_loss"] != row["eval_loss"]
    logs = [[row["loss"] for row in JsonLines(place / "train.jsonl").read()] for place in (tmp_path, folder)]
    assert logs[0] == logs[1] != []
    (weights, nothing), (same, extra) = read(tmp_path), read(folder)
    assert nothing == {}
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["head.weight"], extra["beside"]["module.head.weight"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_it(tmp_path, whole):
    folder, expected = whole
    going = train(ShakenDigits(), WITH, BOTH, 0, tmp_path, OFTEN)
    next(going)
    going.close()
    assert rows(tmp_path, WITH) == expected
    (_, ours), (_, theirs) = read(tmp_path), read(folder)
    assert all(torch.equal(tensor, ours["beside"][name]) for name, tensor in theirs["beside"].items())


def test_what_starts_from_such_a_run_starts_with_its_weights(whole):
    start = StartWeights.of(str(whole[0]), BOTH, 0)
    assert torch.equal(start.weights["head.weight"], read(whole[0])[0]["head.weight"])


def test_one_average_and_decays_that_are_some():
    with pytest.raises(ValueError, match=r"ema_beside must be between 0 and 1, or None, got 1\.0"):
        Training(ema_beside=1.0)
    with pytest.raises(ValueError, match=r"ema=0\.9 is evaluated instead of the weights, ema_beside=0\.99 beside"):
        Training(ema=0.9, ema_beside=0.99)


@pytest.mark.slow
def test_it_is_the_same_on_every_rank(tmp_path, monkeypatch):
    processes = []
    for variables in torchruns_variables(2):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        said = tmp_path.with_suffix(f".{variables['RANK']}")
        processes.append(Forked(said, ranks.main, tmp_path, "normed", "ddp"))
    assert [process.wait() for process in processes] == [0, 0], processes[0].said.read_text()
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0][0] != seen[0][-1]
    assert seen[0] == seen[1]
