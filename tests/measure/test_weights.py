"""Singular values of W_Q, W_K, W_V, against numpy on weights that are cut out of the models by hand."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from conditioned_attention import fold, precondition, spectral_condition, unfold
from conditioned_attention.measure.probing.projections import projection_records, value_norm
from tests.models import build, gpt2, timm_vit

ROLES = ("query", "key", "value")


def thirds_of(weight):
    return dict(zip(ROLES, np.split(weight.detach().double().numpy(), 3)))


def of_timm(model):
    return {f"blocks.{i}.attn": thirds_of(block.attn.qkv.weight) for i, block in enumerate(model.blocks)}


def of_gpt2(model):
    """Conv1D holds (in, out)."""
    layers = enumerate(model.transformer.h)
    return {f"transformer.h.{i}.attn": thirds_of(layer.attn.c_attn.weight.T) for i, layer in layers}


def of_llama(model):
    found = {}
    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        weights = [p.weight.detach().double().numpy() for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert [w.shape for w in weights] == [(32, 32), (16, 32), (16, 32)], "4 query heads on 2 key heads"
        found[f"model.layers.{i}.self_attn"] = dict(zip(ROLES, weights))
    return found


def of_mha(model):
    """Keys of 24 features and values of 40 have weights of their own."""
    weights = (model.q_proj_weight, model.k_proj_weight, model.v_proj_weight)
    return {"": {role: w.detach().double().numpy() for role, w in zip(ROLES, weights)}}


BY_HAND = {"timm_vit": of_timm, "gpt2": of_gpt2, "llama": of_llama, "torch_mha": of_mha}
each_model = pytest.mark.parametrize("name", BY_HAND)


def rectangular_identity(matrix):
    return 0.7 * np.eye(*matrix.shape)


def polar(matrix):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return s[0] * u @ vh


def nothing(matrix):
    return 0.0 * matrix


def assert_records(records, weights, correction):
    assert [(r.module, r.role) for r in records] == [(module, role) for module in weights for role in ROLES]
    for record in records:
        matrix = weights[record.module][record.role]
        s, corrected = (np.linalg.svd(m, compute_uv=False) for m in (matrix, matrix + correction(matrix)))
        assert record.shape == matrix.shape
        assert record.norm == pytest.approx(np.sqrt((matrix**2).sum()), rel=1e-10)
        assert (record.kappa, record.smallest) == pytest.approx((s[0] / s[-1], s[-1]), rel=1e-6)
        expected = corrected[0] / corrected[-1], corrected[-1]
        assert (record.kappa_corrected, record.smallest_corrected) == pytest.approx(expected, rel=1e-4)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(
    ("options", "correction"), [({"strength": 0.7}, rectangular_identity), ({"correction": "polar"}, polar)]
)
@each_model
def test_they_are_those_of_numpy(name, options, correction, preconditioned):
    model = build(name)
    weights = BY_HAND[name](model)
    norm = math.sqrt(np.mean([(roles["value"] ** 2).sum() for roles in weights.values()]))
    if preconditioned:
        precondition(model)
    assert_records(projection_records(model), weights, nothing)
    spectral_condition(model, **options)
    assert_records(projection_records(model), weights, correction)
    assert value_norm(model) == pytest.approx(norm, rel=1e-10), "W as it is trained, without C"

    fold(model)  # what is trained from now on is W + C
    folded = {m: {r: w + correction(w) for r, w in roles.items()} for m, roles in weights.items()}
    for record in projection_records(model):
        s = np.linalg.svd(folded[record.module][record.role], compute_uv=False)
        assert (record.kappa, record.kappa_corrected) == pytest.approx((s[0] / s[-1],) * 2, rel=1e-4)
    norm = math.sqrt(np.mean([(roles["value"] ** 2).sum() for roles in folded.values()]))
    assert value_norm(model) == pytest.approx(norm, rel=1e-5)
    unfold(model)
    assert value_norm(model) == pytest.approx(value_norm(build(name)), rel=1e-5)


@each_model
def test_measuring_changes_nothing(name):
    model = build(name)
    spectral_condition(model, 0.7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [set(vars(module)) for module in model.modules()]
    projection_records(model), value_norm(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [set(vars(module)) for module in model.modules()] == attributes


def test_the_identity_of_the_paper_conditions_fresh_weights():
    """Theorem 3.8 wants λ ≥ 2 and gives κ(W + λ I) < κ(W); λ = 10 leaves a σ_min of nearly 10."""
    for model in (timm_vit(), gpt2(), nn.MultiheadAttention(64, 4)):
        with pytest.warns(UserWarning, match="adds about"):
            spectral_condition(model, 10.0)
        for record in projection_records(model):
            assert record.kappa_corrected < 1.5 < record.kappa
            assert record.smallest < 1 < 8 < record.smallest_corrected < 11


def test_the_polar_correction_keeps_kappa_below_two():
    for model in (timm_vit(), gpt2(), build("llama"), build("torch_mha")):
        spectral_condition(model, correction="polar")
        for record in projection_records(model):
            assert record.kappa_corrected <= 2 < record.kappa
            largest = record.kappa * record.smallest
            assert largest <= record.smallest_corrected <= 2 * largest, "[σ_max, 2 σ_max] of Theorem 3.5"


def test_a_singular_weight_is_null_in_json():
    model = nn.MultiheadAttention(8, 2)
    nn.init.zeros_(model.in_proj_weight)
    spectral_condition(model, 1.0)
    data = json.loads(json.dumps([record.to_json() for record in projection_records(model)]))
    assert all(row["kappa"] is None and row["kappa_corrected"] == pytest.approx(1) for row in data)
    assert data[0] == {
        "module": "", "role": "query", "shape": [8, 8], "kappa": None, "smallest": 0.0, "norm": 0.0,
        "kappa_corrected": 1.0, "smallest_corrected": 1.0,
    }  # fmt: skip


def test_without_known_projections():
    assert projection_records(nn.Linear(2, 2)) == []
    assert math.isnan(value_norm(nn.Linear(2, 2)))
