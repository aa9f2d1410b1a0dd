"""Every variant on real tasks, what the less obvious ones do, and the rows that a run writes about its projections."""

import dataclasses
import json
import math
import statistics

import pytest
import torch
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.efficientvit_mit import LiteMLA
from timm.models.volo import OutlookAttention
from torch import nn

from conditioned_attention import calibrate, conditioning, restore
from conditioned_attention.controls import PowerNorm
from conditioned_attention.conversion import convert
from conditioned_attention.d_optimal import DOptimal
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.data.text.windows import split_windows, standard_library_text
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.tasks.next_token import NextToken
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS, descriptions, find_variant, find_variants
from conditioned_attention.experiments.variants.changes import (
    ClippedLogits,
    Heads,
    MeanOfC,
    OrthogonalStart,
    Spectral,
    SpectralStart,
)
from conditioned_attention.experiments.variants.initialise import conditioned_projections, orthogonal_projections
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.measure.probing.projections import projection_records, role_matrices
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import find_projections, find_sites
from conditioned_attention.sites.site import transform_of
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments.tiny import OFTEN, ShakenDigits, TinyDigits
from tests.experiments.training.test_resume import Killed, assert_same_run, kill_at, without_time
from tests.models import build, inputs, output

each_variant = pytest.mark.parametrize("name", VARIANTS)
NOT_CAUSAL = ["d_optimal"]
pytestmark = pytest.mark.filterwarnings("ignore:strength=10 adds about:UserWarning")


@pytest.fixture(scope="module")
def text():
    return split_windows(standard_library_text()[:30_000], 32)


# All of them


def assert_trains_a_step(task, name, folder):
    seldom = Launch(checkpoint_seconds=1e9, log_every=1)
    settings = Training(epochs=1, batch_size=200, accumulation=4)
    (row,) = train(task, settings, VARIANTS[name], 0, folder, seldom)
    assert row["step"] == 1
    for key in ("score", "train_loss", "log10_kappa_weights", "value_growth"):
        assert math.isfinite(row[key]), key
    assert row["value_growth"] != 1.0, "W_V was trained"
    measured = JsonLines(folder / "projections.jsonl").read()
    assert [line["step"] for line in measured] == [0] * 6 + [1] * 6, "2 layers, 3 roles"
    (log,) = JsonLines(folder / "train.jsonl").read()
    assert log["grad_norm"] > 0
    assert row["value_growth"] == pytest.approx(growth(measured, 1), rel=1e-6)


def growth(measured, step):
    """‖W_V‖ over all layers, against that before training."""
    squares = {s: sum(x["norm"] ** 2 for x in measured if (x["step"], x["role"]) == (s, "value")) for s in (0, step)}
    return math.sqrt(squares[step] / squares[0])


@pytest.mark.one_in(12)
@each_variant
def test_it_trains_a_vision_transformer_on_digits(name, tmp_path):
    assert_trains_a_step(TinyDigits(), name, tmp_path)


def next_byte(text):
    windows = type(text[0])(text[0].windows[:200])
    return NextToken((windows, text[1]), GPT(context=32, hidden_size=32, layers=2, heads=2, dropout=0.1), 16)


@pytest.mark.one_in(16)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NOT_CAUSAL])
def test_it_trains_a_gpt_on_text(name, tmp_path, text):
    assert_trains_a_step(next_byte(text), name, tmp_path)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_what_mixes_rows_is_refused_on_text(name, tmp_path, text):
    """By the task, before anything is built; and by the model."""
    words = f"variant '{name}' is not for a causal task"
    task, settings = next_byte(text), Training(epochs=1, batch_size=200, tokens=1000)
    recipe = NextByteRecipe(model=GPT(context=32, hidden_size=32, layers=1, heads=2), training=settings)
    with pytest.raises(ValueError, match=words):
        next(train(task, settings, VARIANTS[name], 0, tmp_path))
    with pytest.raises(ValueError, match=words):
        compare_recipe(recipe, ["baseline", name], 1, tmp_path)
    with pytest.raises(ValueError, match=words):
        estimate(task, settings, [name])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="it is causal, and DOptimal"):
        VARIANTS[name].apply(task.build_model())


@pytest.mark.one_in(4)
@each_variant
def test_its_structure_on_meta(name):
    """The classes, parameters and kinds of a real model, without any numbers."""
    real, task = build("timm_vit"), TinyDigits()
    VARIANTS[name].apply(real, task.probe())
    model = build("timm_vit").to("meta")
    report = VARIANTS[name].apply_structure(model)
    assert (report is None) is (name in ("baseline", "orthogonal_init", "conditioned_init"))
    assert [type(module) for module in model.modules()] == [type(module) for module in real.modules()]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    kinds = [[entry["kind"] for entry in conditioning(m)["transforms"]] for m in (model, real)]
    assert set(kinds[0]) == set(kinds[1])
    if name != "preconditioned_weights":  # which asks for autocast, and that knows no meta device
        assert output(model, x=inputs(model)["x"].to("meta")).shape == (2, 10)


def test_they_differ():
    """Of the same weights each makes another model; only those that begin as the plain one do not."""
    task, results = TinyDigits(), {}
    for name, variant in VARIANTS.items():
        model = build("timm_vit")
        variant.apply(model, task.probe())
        results[name] = output(model).detach()
    plain = results.pop("baseline")
    for name in ("sigmoid_gate", "preconditioned_learned", "qk_clip"):
        assert torch.allclose(results.pop(name), plain, rtol=1e-4, atol=1e-4)
    same = {("preconditioned", "head_l2"), ("spectral", "identity_init"), ("qk_norm", "qk_norm_temperature")}
    same |= set(pairs_of_rmsnorm())
    found = {(a, b) for a in results for b in results if a < b and torch.allclose(results[a], results[b], 1e-3, 1e-3)}
    assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in same}
    assert not any(torch.allclose(result, plain, 1e-3, 1e-3) for result in results.values())


def pairs_of_rmsnorm():
    names = ("preconditioned_scaled", "head_rmsnorm", "head_rmsnorm_gain")
    return [(a, b) for a in names for b in names if a < b]


# Names and numbers


def test_numbers_in_names():
    assert find_variant("spectral") is VARIANTS["spectral"]
    assert find_variant("spectral=0.3").changes == (Spectral(0.3),)
    assert find_variant("spectral=1.0") == find_variant("spectral=1") == find_variant("spectral=10e-1")
    assert [find_variant(f"spectral={n}").name for n in ("1.0", "0.30", "1e-5")] == [
        "spectral=1", "spectral=0.3", "spectral=1e-05",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="all different"):
        find_variants(["spectral=1", "spectral=1.0"])
    assert find_variant("spectral=0.3").about == "W + λ I for queries, keys, values (2603.07162), λ = 0.3"
    assert find_variant("spectral_polar=2").changes == (Spectral(2.0, "polar"),)
    on_logits = find_variant("spectral_qk=0.3")
    assert on_logits.changes == (Spectral(0.3, roles="qk"),)
    assert on_logits.about == "W + λ I for queries and keys alone, λ = 0.3"
    both = find_variant("preconditioned+spectral=1e-1")
    assert (both.name, both.changes) == ("preconditioned+spectral=0.1", (Spectral(0.1), Heads(RowNorm())))
    power = find_variant("preconditioned_power=0.25")
    assert (power.changes, power.about) == ((Heads(PowerNorm(0.25)),), "C^0.25")
    clipped = find_variant("qk_clip=30")
    assert (clipped.changes, clipped.about.partition("when ")[2]) == (
        (ClippedLogits(30.0),), "a logit passes 30 (Kimi K2)"
    )  # fmt: skip
    assert find_variant("d_optimal=10").changes == (Heads(DOptimal(10)),) != VARIANTS["d_optimal"].changes
    assert VARIANTS["spectral"].changes == (Spectral("auto"),), "the variant itself is what it was"
    model = build("timm_vit")
    find_variant("spectral=0.3").apply(model)
    assert conditioning(model)["transforms"][0]["strength"] == 0.3
    known = descriptions(["baseline", "spectral=0.3", "of another version"])
    assert list(known) == ["baseline", "spectral=0.3"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("magic", "variant 'magic' is unknown; valid are baseline, preconditioned, "),
        ("magic=1", "variant 'magic=1' is unknown; valid are"),
        ("=1", "variant '=1' is unknown"),
        ("spectral=", "variant 'spectral=': '' is not a number"),
        ("spectral=much", "variant 'spectral=much': 'much' is not a number"),
        ("spectral=1=2", "'1=2' is not a number"),
        (
            "baseline=2",
            r"variant 'baseline=2': baseline takes no number; d_optimal, preconditioned_power, spectral, .* do",
        ),
        ("spectral_published=2", "spectral_published takes no number"),
        ("spectral=-1", "strength must be positive and finite, got -1"),
        ("spectral_polar=nan", "strength must be positive and finite, got nan"),
        ("preconditioned+spectral=inf", "strength must be positive and finite, got inf"),
        ("preconditioned_power=1.5", r"alpha must be in \(0, 1\], got 1.5"),
        ("qk_clip=0", r"threshold must be positive and finite, got 0\.0"),
        ("d_optimal=0.5", r"variant 'd_optimal' takes a whole number of steps, got 0.5"),
        ("d_optimal=-1", "steps must be at least 0, got -1"),
    ],
)
def test_wrong_names(name, words):
    with pytest.raises(ValueError, match=words):
        find_variant(name)
    with pytest.raises(ValueError, match=words):
        find_variants(["baseline", name])


@pytest.mark.parametrize("names", [[], ["spectral=1", "baseline", "spectral=1"]])
def test_none_or_one_twice(names):
    with pytest.raises(ValueError, match="variants must be at least one and all different, got"):
        find_variants(names)


def test_a_name_that_is_no_folder():
    with pytest.raises(ValueError, match=r"letters, digits and _ . \+ - = only, got '../up'"):
        Variant("../up")


# The controls that are more than a transform


def test_constant_gains_are_the_mean_of_c_by_hand():
    model, probe, rows = build("timm_vit"), TinyDigits().probe(), []

    def measure(qkv, args, projected):
        q, k, v = projected.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        rows.append((q @ k.mT / 8**0.5).softmax(-1) @ v)

    handles = [block.attn.qkv.register_forward_hook(measure) for block in model.blocks]
    with torch.no_grad():
        model(**probe) if isinstance(probe, dict) else model(probe)
    for handle in handles:
        handle.remove()
    report = VARIANTS["constant_gain"].apply(model, probe)
    assert report.converted == ["blocks.0.attn", "blocks.1.attn"]
    gains = [transform_of(block.attn).gain for block in model.blocks]
    assert gains == pytest.approx([(1 / heads.norm(dim=-1)).mean().item() for heads in rows], rel=1e-5)
    assert gains[0] != pytest.approx(gains[1], rel=1e-3)


def test_constant_gains_of_a_bare_module_and_without_a_batch():
    x = torch.randn(2, 7, 32)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    assert VARIANTS["constant_gain"].apply(attention, (x, x, x)).converted == [""]
    with pytest.raises(ValueError, match=r"the mean of C is computed from inputs: call apply\(model, batch\)"):
        VARIANTS["constant_gain"].apply(build("timm_vit"))


def test_a_layer_that_the_batch_does_not_reach_has_no_mean():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = (nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2))

        def forward(self, x):
            return self.used(x, x, x)[0]

    model = Half()
    with pytest.raises(ValueError, match="no mean of C could be computed for\nidle: the batch does not reach it"):
        VARIANTS["constant_gain"].apply(model, torch.randn(2, 7, 32))
    model.idle = LiteMLA(32, 32)
    with pytest.raises(ValueError, match="no mean of C could be computed for\nidle: LiteMLA is linear attention"):
        VARIANTS["constant_gain"].apply(model, torch.randn(2, 7, 32))
    assert conditioning(model)["transforms"] == []


def test_constant_gains_leave_pools_alone_as_all_variants_do():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.pool = Attention(32, 4), AttentionPoolLatent(32, num_heads=4)

        def forward(self, x):
            return self.pool(self.attention(x))

    for name in ("preconditioned", "constant_gain"):
        assert VARIANTS[name].apply(Pooled(), torch.randn(2, 7, 32)).converted == ["attention"]


def test_calibrated_starts_scale_the_output_projections_alone():
    probe = inputs(build("gpt2"))
    plain, ours, by_hand = (build("gpt2") for _ in range(3))
    assert VARIANTS["preconditioned_power_calibrated"].apply(ours, probe).converted == [
        "transformer.h.0.attn", "transformer.h.1.attn",
    ]  # fmt: skip
    convert(by_hand, PowerNorm(0.5))
    calibrate(by_hand, probe)
    before, after, expected = (model.state_dict() for model in (plain, ours, by_hand))
    assert all(torch.equal(after[key], expected[key]) for key in before)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == [f"transformer.h.{i}.attn.c_proj.weight" for i in (0, 1)]
    assert conditioning(ours) == conditioning(by_hand)
    again = build("gpt2")
    VARIANTS["preconditioned_calibrated"].apply(again, initialise=False)
    assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"scales of the heads are computed from inputs: call apply\(model, batch\)"):
        VARIANTS["preconditioned_calibrated"].apply(plain)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_identity_init_is_spectral_but_for_weight_decay(decay, tmp_path):
    settings = Training(epochs=2, batch_size=42, lr=5e-3, weight_decay=decay, schedule="constant")
    runs = {
        name: list(train(TinyDigits(0.0), settings, VARIANTS[name], 0, tmp_path / name))
        for name in ("spectral", "identity_init", "baseline")
    }
    losses = {name: [row["train_loss"] for row in rows] for name, rows in runs.items()}
    same = losses["identity_init"] == pytest.approx(losses["spectral"], rel=1e-4)
    assert same is (decay == 0.0)
    assert losses["baseline"] != pytest.approx(losses["spectral"], rel=2e-3)


def test_qk_clip_acts_after_every_step_on_large_logits_alone(tmp_path):
    """With a threshold that nothing reaches it trains as the baseline does, to the bit."""
    settings = Training(epochs=1, batch_size=42, lr=5e-3, ema=0.5, schedule="constant", monitor_every=0)
    runs = {
        name: without_time(list(train(TinyDigits(), settings, find_variant(name), 0, tmp_path / name)))
        for name in ("baseline", "qk_clip", "qk_clip=0.01")
    }
    assert runs["qk_clip"] == runs["baseline"] != runs["qk_clip=0.01"]
    model, variant = TinyDigits(0.0).build_model().train(), find_variant("qk_clip=0.01")
    variant.apply(model)
    model(TinyDigits().probe())
    seen = [block.attn._largest_logits.max().item() for block in model.blocks]
    assert min(seen) > 0.01
    variant.after_step(model)
    model(TinyDigits().probe())
    assert model.blocks[0].attn._largest_logits.max().item() == pytest.approx(0.01, rel=1e-4)
    VARIANTS["preconditioned"].after_step(model)
    assert model.blocks[0].attn._largest_logits is not None, "other variants have nothing to do"


@pytest.mark.parametrize("name", ["timm_vit", "gpt2", "llama", "torch_mha"])
def test_orthogonal_init(name):
    model = build(name)
    before = projection_records(model)
    others = {k: v.clone() for k, v in model.state_dict().items()}
    orthogonal_projections(model)
    for old, new in zip(before, projection_records(model), strict=True):
        assert new.kappa == pytest.approx(1.0, rel=1e-5) != old.kappa
        assert new.norm == pytest.approx(old.norm, rel=1e-5)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, others[key])}
    of_attention = ("qkv.weight", "c_attn.weight", "q_proj", "k_proj", "v_proj")
    assert changed
    assert all(any(part in key for part in of_attention) for key in changed), changed


@pytest.mark.parametrize("name", ["timm_vit", "vit", "gpt2", "torch_mha"])
def test_conditioned_init_by_hand(name):
    """4 heads of 8."""
    model = build(name)
    biases = {key: p.clone() for key, p in model.named_parameters() if p.dim() == 1}
    others = {key: p.clone() for key, p in model.named_parameters() if p.dim() != 1}
    conditioned_projections(model)
    for site in find_sites(model):
        for role, matrix in role_matrices(site.module, find_projections(site.module)).items():
            if role == "v":
                assert torch.equal(matrix, torch.eye(*matrix.shape))
                continue
            heads = matrix.unflatten(0, (4, 8))
            torch.testing.assert_close(heads @ heads.mT, torch.eye(8).expand(4, 8, 8))
            between = heads.flatten(0, 1) @ heads.flatten(0, 1).T
            assert (between - torch.block_diag(*[torch.eye(8)] * 4)).abs().max() > 0.1, "heads are independent"
    attention = find_sites(model)[0].module
    queries, keys = (role_matrices(attention, find_projections(attention))[role] for role in "qk")
    assert queries.shape != keys.shape or (queries @ keys.T).abs().max() < 0.99, "and so are queries and keys"
    assert all(torch.equal(biases[key], p) for key, p in model.named_parameters() if key in biases)
    changed = {key for key, p in model.named_parameters() if key in others and not torch.equal(p, others[key])}
    assert all(any(part in key for part in ("qkv", "c_attn", "q_proj", "k_proj", "v_proj")) for key in changed), changed


def test_conditioned_init_of_grouped_queries():
    """2 key heads for 4 query heads: W_K of each once, W_V the first 16 columns."""
    model = build("llama")
    conditioned_projections(model)
    attention = model.model.layers[0].self_attn
    assert torch.equal(attention.v_proj.weight, torch.eye(16, 32))
    keys = attention.k_proj.weight.unflatten(0, (2, 8))
    torch.testing.assert_close(keys @ keys.mT, torch.eye(8).expand(2, 8, 8))
    again = build("llama")
    torch.manual_seed(99)
    conditioned_projections(again)
    assert not torch.equal(again.model.layers[0].self_attn.k_proj.weight, attention.k_proj.weight)


def test_conditioned_init_of_more_rows_than_columns():
    """The identity begins again: every head keeps κ = 1."""
    attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=24)
    conditioned_projections(attention)
    assert torch.equal(attention.v_proj_weight, torch.eye(24)[torch.arange(32) % 24])
    for head in attention.v_proj_weight.unflatten(0, (4, 8)):
        torch.testing.assert_close(head @ head.T, torch.eye(8))


def test_orthogonal_init_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="Linear holds no attention whose projections are known"):
        orthogonal_projections(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="0: OutlookAttention makes its attention weights from queries alone"):
        orthogonal_projections(nn.Sequential(OutlookAttention(32, 4)))
    with pytest.raises(ValueError, match="Linear holds no attention whose projections are known"):
        conditioned_projections(nn.Linear(2, 2))


# Some of the modules


def test_a_change_of_some_modules_leaves_the_others_plain():
    first, second = ("blocks.0.*",), ("blocks.1.*",)
    changes = (OrthogonalStart(include=second), Spectral(0.5, include=first), Heads(exclude=first))
    model, plain = build("timm_vit"), build("timm_vit")
    Variant("some", changes).apply(model)
    assert transform_of(model.blocks[0].attn) is None
    assert transform_of(model.blocks[1].attn) == RowNorm()
    record = conditioning(model)["transforms"]
    assert {tuple(entry["modules"]) for entry in record} == {("blocks.0.attn",), ("blocks.1.attn",)}
    restore(model)
    for i, same in enumerate((True, False)):
        weights = model.blocks[i].attn.qkv.weight, plain.blocks[i].attn.qkv.weight
        assert torch.equal(*weights) is same
    gains = Variant("gains", (MeanOfC(include=second), Heads(exclude=second)))
    assert gains.apply(model, TinyDigits().probe()).converted == ["blocks.0.attn"]
    assert transform_of(model.blocks[1].attn).gain > 0
    with pytest.raises(ValueError, match=r"include='blocks\.7\.\*' matches no attention module"):
        Variant("none", (Heads(include=("blocks.7.*",)),)).apply(build("timm_vit"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((Heads(), MeanOfC()), "Heads and MeanOfC both change the heads of the same modules"),
        ((Heads(include="a*"), MeanOfC(include="a*")), "both change the heads"),
        ((Heads(exclude="a*"), MeanOfC()), "both change the heads"),
        ((SpectralStart(0.5), Heads(), Spectral(0.5)), "SpectralStart and Spectral both change the projections"),
        ((OrthogonalStart(), OrthogonalStart()), "both change the first weights"),
        ((Spectral(0.5, include="a*"), SpectralStart(0.5, include="b*")), "are the wrong way round: what changes the"),
        ((Spectral(0.5, "polar"), OrthogonalStart()), "are the wrong way round"),
    ],
)
def test_changes_that_exclude_each_other(changes, words):
    with pytest.raises(ValueError, match=rf"variant 'two': .*{words}"):
        Variant("two", changes)


def test_changes_that_may_meet_are_left_to_the_model():
    """Patterns that leave each other room, or mean what is converted on request only; the model refuses what meets."""
    Variant("parts", (SpectralStart(0.5, include="a*"), Spectral(0.5), Heads(exclude="a*"), MeanOfC(exclude="b*")))
    both = Variant("both", (Heads(), Heads(PowerNorm(0.5), include="blocks.1.*")))
    with pytest.raises(ValueError, match=r"blocks\.1\.attn is already converted, with RowNorm"):
        both.apply(build("timm_vit"))


@pytest.mark.parametrize("changes", [Heads(), [Heads()], (RowNorm(),)], ids=repr)
def test_what_is_no_tuple_of_changes(changes):
    with pytest.raises(TypeError, match=r"changes must be a tuple of changes, such as \(Heads\(\),\), got"):
        Variant("one", changes)


def test_a_change_checks_its_numbers_when_it_is_made():
    with pytest.raises(ValueError, match="strength must be positive"):
        Spectral(-1.0)
    with pytest.raises(ValueError, match="correction='square' is unknown; valid are"):
        Spectral(correction="square")


def test_a_start_leaves_the_corrections_of_other_modules_unfolded():
    model = build("timm_vit")
    Variant("parts", (SpectralStart(0.5, include="blocks.0.*"), Spectral(0.5, include="blocks.1.*"))).apply(model)
    entries = {entry["modules"][0]: entry["folded"] for entry in conditioning(model)["transforms"]}
    assert entries == {"blocks.0.attn": True, "blocks.1.attn": False}


# Killed and started again


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("constant_gain", "preconditioned+spectral=0.3")]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["spectral_polar", "sigmoid_gate", "qk_clip=0.01", *SLOW])
def test_a_killed_run_goes_on_exactly(name, tmp_path, monkeypatch):
    settings = Training(epochs=1, batch_size=42, accumulation=2, ema=0.9, evaluate_every=0.4, monitor_every=0.4)

    def run(folder):
        return list(train(ShakenDigits(), settings, find_variant(name), 0, folder, OFTEN))

    expected = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, "after an evaluation", 2)
        with pytest.raises(Killed):
            run(tmp_path / "broken")
    assert len(JsonLines(tmp_path / "broken" / "projections.jsonl").read()) == 18, "at steps 0, 2 and 4"
    assert without_time(run(tmp_path / "broken")) == without_time(expected)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    measured = JsonLines(tmp_path / "broken" / "projections.jsonl").read()
    assert sorted({row["step"] for row in measured}) == [0, 2, 4, 5]
    assert [row["value_growth"] for row in expected] == pytest.approx([growth(measured, step) for step in (2, 4, 5)])
    for row in expected:
        kappas = [line["kappa_corrected"] for line in measured if line["step"] == row["step"]]
        assert row["log10_kappa_weights"] == pytest.approx(statistics.median(math.log10(kappa) for kappa in kappas))


def test_without_a_monitor_nothing_is_written_about_projections(tmp_path):
    settings = dataclasses.replace(Training(epochs=1, batch_size=210), monitor_every=0)
    (row,) = train(TinyDigits(), settings, VARIANTS["spectral"], 0, tmp_path)
    assert not {"value_growth", "log10_kappa_weights"} & row.keys()
    assert JsonLines(tmp_path / "projections.jsonl").read() == []
    assert json.loads(json.dumps(row)) == row


@pytest.mark.filterwarnings("ignore:strength=10 adds")
def test_the_published_strength_stays_ten():
    """Whatever `spectral_condition` takes by itself; runs are resumed by the name."""
    for name, strength in (("spectral_published", 10), ("spectral_polar", 1), ("spectral", 8**-0.25)):
        model = build("timm_vit")
        VARIANTS[name].apply(model)
        assert conditioning(model)["transforms"][0]["strength"] == pytest.approx(strength), name
