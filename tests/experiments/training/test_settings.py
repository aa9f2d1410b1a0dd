"""What a training can say, and what it refuses to be told."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from conditioned_attention.experiments.training.optimizer import MuonAndAdamW, build_optimizer
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import plain
from tests.models import timm_vit


def rates(ticks, steps=None, **settings):
    """The learning rate of every tick, and the one after the last."""
    settings = Training(**{"lr": 1.0, "warmup": 0.0, "final_lr": 0.0, **settings})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule, found = build_schedule(optimizer, settings, ticks, steps), []
    for _ in range(ticks):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_a_triangle_of_crammed_berts():
    """Its published form: min(0.25 + t, 4 - 4 t) of the peak at the share t of the run."""
    found = rates(100, schedule="triangle", warmup=0.75, warmup_from=0.25)
    assert found == pytest.approx([min(0.25 + t / 100, 4 - 4 * t / 100) for t in range(101)], abs=1e-9)


def test_milestones_after_a_warmup_in_steps_from_a_ratio():
    """XCiT's detection: 36 epochs, a tenth after 27 and 33, and 500 steps of warm-up from a thousandth."""
    found = rates(3600, schedule="milestones", milestones=(27 / 36, 33 / 36), warmup_steps=500, warmup_from=1e-3)
    assert found[0] == pytest.approx(1e-3)
    assert found[250] == pytest.approx(0.5005)
    assert found[500] == found[2699] == 1.0
    assert found[2700] == found[3299] == pytest.approx(0.1)
    assert found[3300] == found[3599] == pytest.approx(0.01)


def test_a_cosine_from_a_given_rate():
    """DeiT's: 5 of 300 epochs up from 1e-6, down to 1e-5, one rate an epoch."""
    found = rates(300, lr=1e-3, warmup=5 / 300, warmup_from=1e-6, final_lr=0.01)
    assert found[0] == pytest.approx(1e-6)
    assert found[5] == pytest.approx(1e-3)
    assert found[1] - found[0] == pytest.approx((1e-3 - 1e-6) / 5)
    half = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 148 / 295)) / 2
    assert found[153] == pytest.approx(half)
    assert found[300] == pytest.approx(1e-5)


def test_warmup_in_steps_where_the_schedule_counts_otherwise():
    assert rates(10_000, steps=100, warmup_steps=10)[1000] == pytest.approx(1.0)
    stream = Training(order="streamed", seconds=5.0)
    with pytest.raises(ValueError, match=r"warmup_steps=10 needs the number of steps.*: give warmup"):
        rates(10_000, steps=stream.steps(None), warmup_steps=10)


def test_what_a_model_keeps_from_decaying_does_not_decay():
    """timm's cls_token and pos_embed are matrices; Swin's tables of biases too, and their names are those of blocks."""
    from timm.models.swin_transformer import SwinTransformer

    def still(model, **kwargs):
        decaying, others = build_optimizer(model, Training(), **kwargs).param_groups
        assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
        names = {id(p): name for name, p in model.named_parameters()}
        assert len(decaying["params"]) + len(others["params"]) == len(names)
        return {names[id(p)] for p in others["params"] if p.dim() > 1}

    assert still(timm_vit()) == {"cls_token", "pos_embed"}
    swin = SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2))
    tables = {name for name, _ in swin.named_parameters() if name.endswith("relative_position_bias_table")}
    assert still(swin) == tables != set()
    wrapped = nn.Sequential(timm_vit())
    assert still(wrapped) == {"0.cls_token", "0.pos_embed"}, "named by the module that holds them"
    assert still(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)), no_weight_decay=["1.*"]) == {"1.weight"}


@pytest.mark.parametrize(
    "settings",
    [
        Training(betas=(0.8, 0.9), eps=1e-3),
        Training(optimizer="sgd", momentum=0.5),
        Training(optimizer="muon"),
        Training(optimizer="timm", timm_optimizer="lamb"),
    ],
    ids=lambda settings: settings.optimizer,
)
def test_an_optimizer_goes_on_from_its_state(settings):
    """Two steps, a state_dict through weights_only, two more: as four without."""

    def steps(model, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            model(torch.randn(2, 1, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(0)
        model = timm_vit().eval()
        return model, build_optimizer(model, settings)

    whole, optimizer = fresh()
    before = {name: p.clone() for name, p in whole.named_parameters()}
    steps(whole, optimizer, range(4))
    assert all(not torch.equal(before[name], p) for name, p in whole.named_parameters())
    broken, optimizer = fresh()
    steps(broken, optimizer, range(2))
    state = optimizer.state_dict()
    optimizer = build_optimizer(broken, settings)
    optimizer.load_state_dict(state)
    steps(broken, optimizer, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters()))


def test_muon_has_the_matrices_inside_and_adamw_the_rest():
    model = timm_vit()
    optimizer = build_optimizer(model, Training(optimizer="muon"))
    assert isinstance(optimizer, MuonAndAdamW)
    muon, adamw = optimizer._parts
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert matrices == {n for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("head.")}
    optimizer.param_groups[0]["lr"] = 0.5
    assert muon.param_groups[0]["lr"] == 0.5, "a schedule moves the rates of both"
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.05}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "sgd", "betas": (0.9, 0.9)}, r"betas=\(0.9, 0.9\) is set, but optimizer='sgd' has none"),
        ({"momentum": 0.9}, "momentum=0.9 is set, but optimizer='adamw' has none"),
        ({"optimizer": "sgd", "momentum": 1}, r"momentum must be in \[0, 1\), got 1"),
        ({"lr": 1e-4, "warmup_from": 1e-3}, r"warmup_from=0\.001 must be at most the highest rate, lr=0\.0001"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
        ({"optimizer": "timm"}, "timm_optimizer goes with optimizer='timm'"),
        ({"timm_optimizer": "lamb"}, "timm_optimizer goes with optimizer='timm'"),
        ({"schedule": "milestones"}, "needs at least one"),
        ({"milestones": (0.5,)}, "milestones go with schedule='milestones'"),
        ({"schedule": "milestones", "milestones": (0.9, 0.5)}, "ascending"),
        ({"schedule": "constant", "warmup_from": 1e-6}, "schedule='constant' has none"),
        ({"schedule_per": "epoch", "warmup_steps": 5}, "give warmup instead"),
        ({"schedule_per": "epoch", "seconds": 5.0}, r"seconds=5\.0 may end .*: give schedule_per='step'"),
        ({"ramp": 0.5}, "ramp=0.5 needs accumulation above 1"),
        ({"ramp": 1.5, "accumulation": 2}, r"ramp must be in \[0, 1\]"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"evaluate_batches": 0}, "evaluate_batches must be at least 1"),
        ({"order": "streamed"}, "may have no end"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Training(**changes)


def test_timm_is_asked_whether_it_has_an_optimizer():
    with pytest.raises(ValueError, match=r"timm_optimizer='nonsense' is unknown to timm; valid are .*lamb"):
        build_optimizer(timm_vit(), Training(optimizer="timm", timm_optimizer="nonsense"))


def test_settings_of_earlier_versions_are_the_same_settings():
    """What a run of version 0.1 wrote down, to the letter: its folders go on."""
    of_old = {
        "epochs": 24, "tokens": None, "seconds": None, "batch_size": 64, "accumulation": 1, "lr": 0.001,
        "schedule": "cosine", "warmup": 0.1, "final_lr": 0.01, "weight_decay": 0.05, "clip": 1.0, "precision": "no",
        "ema": None, "evaluate_every": 1, "monitor_every": 1,
    }  # fmt: skip
    assert plain(Training(epochs=24)) == of_old
    assert plain(Training(epochs=24, betas=(0.9, 0.98))) == {**of_old, "betas": [0.9, 0.98]}


def test_batches_that_grow_take_as_many_samples():
    """From one micro-batch to eight over the first half of the run."""
    settings = Training(epochs=2, batch_size=64, accumulation=8, ramp=0.5)
    samples = 64 * 10
    taken, counts = 0, []
    while taken < 160:
        counts.append(min(settings.micro_batches(taken / 160), 160 - taken))
        taken += counts[-1]
    assert counts[0] == 1
    assert counts == sorted(counts[:-1]) + counts[-1:]
    assert settings.full_steps(samples) == 20
    assert settings.steps(samples) == len(counts) > 20
    assert dataclasses.replace(settings, ramp=0.0).steps(samples) == 20
