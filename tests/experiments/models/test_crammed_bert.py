"""Crammed BERT: as large as the authors', the published equations, and a Hugging Face model like any other."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from conditioned_attention import apply_conditioning, conditioning, precondition, restore, spectral_condition
from conditioned_attention.experiments.models.built import build_again, built_of
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.models.crammed_bert_network import (
    CrammedBertConfig,
    CrammedBertForMaskedLM,
    CrammedBertForSequenceClassification,
)

TINY = CrammedBert(context=12, hidden_size=16, layers=2, heads=2, mlp_size=24)
CLASSES = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}


def build(seed=0):
    """In float64, with weights that are no start's, so that attention is far from uniform."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = TINY.build(20).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def ids(seed=1):
    return torch.randint(1, 20, (2, 12), generator=torch.Generator().manual_seed(seed))


def oracle(model, tokens, keep=None, *, preconditioned=False):
    """The paper's equations in numpy, from the names of the weights alone."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return x * w[f"model.{name}.weight"] + w[f"model.{name}.bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], 2, 8).swapaxes(1, 2)

    x = w["model.embeddings.word_embeddings.weight"][tokens.numpy()]
    where = [
        [(math.cos if j % 2 else math.sin)(i / 10_000 ** ((j - j % 2) / 16)) for j in range(16)]
        for i in range(x.shape[1])
    ]
    x = norm(x + w["model.embeddings.position_scale"] * np.array(where), "embeddings.norm")
    for i in range(2):
        h, at = norm(x, f"layers.{i}.norm1"), f"model.layers.{i}"
        q, k, v = (heads(h @ w[f"{at}.attention.{role}_proj.weight"].T) for role in "qkv")
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(8)
        if keep is not None:
            scores = np.where(keep.numpy()[:, None, None], scores, -np.inf)
        out = softmax(scores, -1) @ v
        if preconditioned:
            out = out / np.sqrt((out**2).sum(-1, keepdims=True))
        x = x + out.swapaxes(1, 2).reshape(x.shape) @ w[f"{at}.attention.o_proj.weight"].T
        values, gate = np.split(norm(x, f"layers.{i}.norm2") @ w[f"{at}.mlp.fc1.weight"].T, 2, -1)
        x = x + (values * gate * (1 + erf(gate / math.sqrt(2))) / 2) @ w[f"{at}.mlp.fc2.weight"].T
    return torch.from_numpy(norm(x, "norm") @ w["model.embeddings.word_embeddings.weight"].T)


def test_as_many_parameters_as_the_authors_model():
    with torch.device("meta"):
        model = CrammedBert().build()
    assert sum(p.numel() for p in model.parameters()) == 119_589_889
    assert not [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.bias is not None]


def test_first_weights():
    torch.manual_seed(0)
    for settings in (TINY, CrammedBert(12, 16, 2, 2, 24, init=0.5, residual_scale="depth")):
        model = settings.build(20)
        words = model.model.embeddings.word_embeddings.weight
        std = settings.std(16)
        assert model.decoder.weight is words
        assert words[0].eq(0).all()
        assert words[1:].std().item() == pytest.approx(std, rel=0.2)
        assert model.model.embeddings.position_scale.item() == pytest.approx(1 / 4)
        depth = 0.5 if settings.residual_scale == "depth" else 1.0
        assert model.model.layers[1].mlp.fc2.weight.std().item() == pytest.approx(std * depth, rel=0.2)
    assert build_again(built_of(model)).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_published_equations(attention, preconditioned):
    model, x = build(), ids()
    model.set_attn_implementation(attention)
    if preconditioned:
        assert precondition(model).converted == [f"model.layers.{i}.attention" for i in range(2)]
    keep = torch.ones_like(x)
    keep[0, 7:] = 0
    for mask in (None, keep):
        expected = oracle(model, x, None if mask is None else mask.bool(), preconditioned=preconditioned)
        torch.testing.assert_close(model(x, mask).logits, expected)
    restore(model)
    torch.testing.assert_close(model(x).logits, oracle(model, x))


def test_only_masked_positions_are_predicted():
    """The same loss and gradients as of all positions, and no logit anywhere else."""
    model, x = build(), ids()
    positions = torch.tensor([[1, 5, 9], [0, 2, 11]])
    answers = ids(2).gather(1, positions)
    sparse = model(x, masked_positions=positions, labels=answers)
    labels = torch.full_like(x, -100).scatter(1, positions, answers)
    full = model(x, labels=labels)
    assert sparse.logits.shape == (2, 3, 20)
    torch.testing.assert_close(sparse.loss, full.loss, rtol=1e-6, atol=0)  # in float32, as under mixed precision
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(out.loss, parameters) for out in (sparse, full)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_saved_loaded_and_spectrally_corrected(tmp_path):
    model, x = build(), ids()
    spectral_condition(model)
    precondition(model)
    expected = model(x).logits
    assert not torch.allclose(expected, oracle(model, x, preconditioned=True))  # λ x is added to q, k and v
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(loaded, CrammedBertForMaskedLM)
    apply_conditioning(loaded)
    torch.testing.assert_close(loaded(x).logits, expected)
    assert set(conditioning(loaded)) == set(conditioning(model))
    restore(loaded)
    plain = AutoModel.from_config(loaded.config).double()
    plain.load_state_dict(loaded.model.state_dict())
    torch.testing.assert_close(plain(x).last_hidden_state, loaded.model(x).last_hidden_state)


@pytest.mark.slow
def test_compiled_and_checkpointed():
    model, x = build(), ids()
    precondition(model)
    expected = oracle(model, x, preconditioned=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).logits, expected)
    model.gradient_checkpointing_enable()
    model.train()
    loss = model(x, labels=x).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    weights = model(x, output_attentions=True, output_hidden_states=True)
    assert len(weights.hidden_states) == 3


@pytest.mark.parametrize("classes", [1, 3])
def test_classifier_reads_the_first_token(classes):
    model = CrammedBertForSequenceClassification(CrammedBertConfig(20, num_labels=classes, **CLASSES)).eval()
    assert model.pooler.weight.shape == (1024, 16)
    assert model.pooler.bias is not None
    x = ids()
    labels = torch.tensor([0.5, 2.0]) if classes == 1 else torch.tensor([0, 2])
    found = model(x, labels=labels)
    first = model.model(x).last_hidden_state[:, 0]
    logits = model.classifier(torch.tanh(model.pooler(first)))
    torch.testing.assert_close(found.logits, logits)
    by_hand = nn.MSELoss()(logits[:, 0], labels) if classes == 1 else nn.CrossEntropyLoss()(logits, labels)
    torch.testing.assert_close(found.loss, by_hand)
    assert isinstance(AutoModelForSequenceClassification.from_config(model.config), type(model))


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="heads divide hidden_size"):
        CrammedBert(heads=5)
    with pytest.raises(ValueError, match="num_attention_heads must divide hidden_size"):
        CrammedBertConfig(num_attention_heads=5)
    with pytest.raises(ValueError, match="dropout"):
        CrammedBert(dropout=1.0)
    with pytest.raises(ValueError, match="max_position_embeddings=12 tokens, got 13"):
        build()(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        build()()
