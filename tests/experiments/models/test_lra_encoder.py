"""The Long Range Arena's model, beside an oracle in numpy and Hugging Face's class where that computes the same."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from conditioned_attention import (
    apply_conditioning,
    condition_number,
    conditioning,
    precondition,
    restore,
    spectral_condition,
)
from conditioned_attention.controls import QKNorm
from conditioned_attention.d_optimal import DOptimal
from conditioned_attention.experiments.models.lra_attention import NystromAttention
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.models.nystrom import first_inverse
from conditioned_attention.experiments.variants.catalogue import find_variant
from conditioned_attention.measure.probing.attention_weights import attention_weights_spectra
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.sites import find_sites, install
from conditioned_attention.sites.low_rank import norms_of_product
from tests.experiments.models import lra_oracle

TINY = LRAEncoder(length=40, hidden_size=16, mlp_size=12, heads=2, landmarks=5, convolution=7, dropout=0.0)
SOFTMAX = dataclasses.replace(TINY, attention="softmax", attention_dropout=0.0)
both = pytest.mark.parametrize("settings", [TINY, SOFTMAX], ids=["nystrom", "softmax"])


def build(settings=TINY, **options):
    """In float64, with weights that are no start's, so that attention is far from uniform."""
    torch.manual_seed(0)
    model = settings.build(20, 3, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def ids(padded=True, seed=1, number=2):
    found = torch.randint(1, 20, (number, 40), generator=torch.Generator().manual_seed(seed))
    if padded:
        found[0, 23:], found[1, 36:] = 0, 0
    return found


def by_hand(model, settings, x, **options):
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    landmarks = settings.landmarks if settings.attention == "nystrom" else None
    return torch.from_numpy(lra_oracle.logits(weights, x.numpy(), heads=2, landmarks=landmarks, **options))


@pytest.mark.parametrize("attention", ["nystrom", "softmax"])
@pytest.mark.parametrize(
    ("vocabulary", "length", "classes", "pairs", "count"),
    [
        (32, 2048, 10, False, 209_942),
        (512, 4096, 2, False, 370_702),
        (512, 4096, 2, True, 395_278),
        (512, 1024, 10, False, 175_126),
        (512, 1024, 2, False, 174_094),
    ],
    ids=["listops", "text", "retrieval", "image", "pathfinder32"],
)
def test_as_many_parameters_as_the_authors_model(vocabulary, length, classes, pairs, count, attention):
    model = LRAEncoder(length=length, attention=attention).build(vocabulary, classes, pairs=pairs)
    without_convolution = 2 * 2 * 35 if attention == "softmax" else 0
    assert sum(p.numel() for p in model.parameters()) == count - without_convolution


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("start", ["batch_columns", "batch_columns_and_rows", "head_columns"])
def test_nystrom_is_the_published_equations(start, padded):
    settings = dataclasses.replace(TINY, inverse_start=start)
    model, x = build(settings), ids(padded)
    torch.testing.assert_close(model(x), by_hand(model, settings, x, start=start))


def test_softmax_is_the_published_equations():
    model = build(SOFTMAX)
    torch.testing.assert_close(model(ids()), by_hand(model, SOFTMAX, ids()))


def test_starts_of_the_inverse():
    """Before and after b646b0e the same, since rows sum to 1; a head's own is larger, and of no other example."""
    matrices = torch.randn(3, 2, 5, 5, dtype=torch.float64).mul(2).softmax(-1)
    after, before, own = (
        first_inverse(matrices, start) for start in ("batch_columns", "batch_columns_and_rows", "head_columns")
    )
    torch.testing.assert_close(before, after)
    assert (own - after).abs().max() > 1e-3
    model, x = build(dataclasses.replace(TINY, inverse_start="head_columns")), ids()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    coupled = build()
    assert (coupled(x)[:1] - coupled(x[:1])).abs().max() > 1e-6, "an example depends on its batch, as published"


def test_two_texts_are_compared_by_four_features():
    model, a, b = build(pairs=True), ids(), ids(seed=2)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    expected = lra_oracle.pair_logits(weights, a.numpy(), b.numpy(), heads=2, landmarks=5)
    torch.testing.assert_close(model(a, b), torch.from_numpy(expected))
    assert (model(b, a) - model(a, b)).abs().max() > 1e-3


def test_the_unmasked_core_is_that_of_hugging_face():
    ours = build().encoder.blocks[0].attention
    config = NystromformerConfig(
        hidden_size=16, num_attention_heads=2, num_landmarks=5, segment_means_seq_len=40, conv_kernel_size=7,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = NystromformerSelfAttention(config).double()
    for name, module in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("conv", "convolution")):
        getattr(theirs, name).load_state_dict(getattr(ours, module).state_dict())
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), ours.o_proj(theirs(x)[0]))


def test_as_many_landmarks_as_tokens_is_softmax_attention():
    exact = dataclasses.replace(TINY, landmarks=40, convolution=0)
    model, plain = build(exact), build(dataclasses.replace(SOFTMAX, landmarks=40))
    plain.load_state_dict(model.state_dict())
    seen = ids() != 0
    torch.testing.assert_close(model(ids()), plain(ids()))
    precondition(model, rows="weights")
    precondition(plain, rows="weights")
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    pair = (m.encoder.blocks[0].attention(x, seen)[seen] for m in (model, plain))
    torch.testing.assert_close(*pair)


def test_what_padding_and_the_mean_are():
    """By default every place counts, and id 0 is padding; both can be switched."""
    x = ids()
    published, tokens = (build(dataclasses.replace(TINY, pooling=pooling)) for pooling in ("length", "tokens"))
    ratio = tokens.encoder(x) / published.encoder(x)
    torch.testing.assert_close(ratio, torch.tensor([[40 / 23], [40 / 36]]).double().expand(2, 16))
    black = build(dataclasses.replace(TINY, id_0="token"))
    assert (black(x) - published(x)).abs().max() > 1e-3
    torch.testing.assert_close(black(ids(False)), published(ids(False)))
    with torch.no_grad():
        for model in (black, published):
            model.encoder.tokens.weight[0] += torch.arange(16)
    torch.testing.assert_close(published(x), build()(x))
    assert (black(x) - build(dataclasses.replace(TINY, id_0="token"))(x)).abs().max() > 1e-3


# Conditioned


@both
@pytest.mark.parametrize("rows", ["output", "weights"])
def test_conditioned_as_the_oracle_and_restored(settings, rows):
    """C acts on F Z B v and the convolution is added behind; rows="weights" are those of F Z B."""
    model, x = build(settings), ids()
    plain = model(x)
    report = precondition(model, rows=rows, strict=True)
    assert report.converted == ["encoder.blocks.0.attention", "encoder.blocks.1.attention"]
    torch.testing.assert_close(model(x), by_hand(model, settings, x, rows=rows))
    assert (model(x) - plain).abs().max() > 0.01 * plain.abs().max()
    again = build(settings)
    apply_conditioning(again, conditioning(model))
    for twin in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin(x) == model(x)).all()
    restore(model)
    assert (model(x) == plain).all()
    assert type(model.encoder.blocks[0].attention).__name__.startswith(settings.attention.title())


@pytest.mark.parametrize("gradient", ["stopped", "through"])
@pytest.mark.parametrize("rows", ["output", "weights"])
def test_gradients_are_those_of_the_whole_matrix(rows, gradient):
    """C by hand from the n × n matrix, held or not."""
    attention = build().encoder.blocks[0].attention
    q, k, v = torch.randn(3, 2, 2, 40, 8, dtype=torch.float64, requires_grad=True)
    left, right = attention.weights(q, k, ids() != 0)
    heads = left @ right @ v
    norm = (heads if rows == "output" else left @ right).norm(dim=-1, keepdim=True)
    weigh = torch.randn(heads.shape, dtype=torch.float64)
    expected = torch.autograd.grad(
        (heads / (norm.detach() if gradient == "stopped" else norm) * weigh).sum(), (q, k, v)
    )
    precondition(attention, rows=rows, gradient=gradient)
    found = torch.autograd.grad((attention.heads(q, k, v, ids() != 0) * weigh).sum(), (q, k, v))
    torch.testing.assert_close(found, expected)


class NoSquare(TorchDispatchMode):
    """Raises where a matrix of tokens by tokens is made."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            assert not isinstance(each, torch.Tensor) or tuple(each.shape[-2:]) != (40, 40), function
        return result


@pytest.mark.parametrize("rows", ["output", "weights"])
def test_no_matrix_of_tokens_by_tokens(rows):
    model = build()
    precondition(model, rows=rows)
    with NoSquare():
        model(ids()).sum().backward()
    softmax = build(SOFTMAX)
    precondition(softmax, rows="weights")
    with pytest.raises(AssertionError), NoSquare():
        softmax(ids())


def test_norms_of_rows_that_cancel_in_float32():
    """Entries of F Z reach 18 where rows of the product are shorter than 1."""
    torch.manual_seed(0)
    attention = NystromAttention(16, 2, 8, convolution=0, inverse_steps=12)
    left, right = attention.weights(*torch.randn(2, 1, 2, 256, 8), None)
    exact = (left.double() @ right.double()).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(norms_of_product(left, right).double(), exact, rtol=1e-6, atol=0)


@both
def test_condition_numbers_are_those_of_the_heads(settings):
    """Before the convolution is added: of F Z B v."""
    model = build(settings)
    x = ids(False)
    weights = model.encoder.blocks[0].attention
    features = model.encoder.blocks[0].norm1(model.encoder.tokens(x) + model.encoder.positions.weight)
    q, k, v = (
        p(features).unflatten(-1, (2, 8)).transpose(1, 2) for p in (weights.q_proj, weights.k_proj, weights.v_proj)
    )
    if settings.attention == "nystrom":
        left, right = weights.weights(q, k, None)
        matrix = left @ right
    else:
        matrix = (q @ k.mT / math.sqrt(8)).softmax(-1)
    for conditioned in (False, True):
        if conditioned:
            precondition(model, rows="weights")
        measured = head_outputs(model, x)[0]
        torch.testing.assert_close(measured.before, matrix @ v)
        torch.testing.assert_close(condition_number(measured.before), condition_number(matrix @ v))


def test_what_nystrom_attention_cannot_give_is_refused():
    model = build()
    with pytest.raises(ValueError, match="does not give its attention weights"):
        attention_weights_spectra(model, ids(), [0])
    install(find_sites(model), DOptimal())
    with pytest.raises(ValueError, match="padding would count"):
        model(ids())


@both
def test_spectral_queries_and_training_in_mixed_precision(settings):
    """λ x is added to queries, keys and values, qk_norm acts before the landmarks, and bfloat16 trains."""
    model, x = build(settings), ids()
    plain = model(x)
    spectral_condition(model, 0.3)
    with torch.no_grad():
        by_weights = build(settings)
        for block in by_weights.encoder.blocks:
            for role in "qkv":
                getattr(block.attention, f"{role}_proj").weight += 0.3 * torch.eye(16)
    torch.testing.assert_close(model(x), by_weights(x))
    restore(model)
    assert (model(x) == plain).all()
    install(find_sites(model), QKNorm())
    attention = model.encoder.blocks[0].attention
    q, k, v = torch.randn(3, 2, 2, 40, 8, dtype=torch.float64)
    torch.testing.assert_close(
        attention.heads(7 * q, k, v, x != 0), attention.heads(q, 3 * k, v, x != 0), rtol=1e-4, atol=1e-5
    )
    restore(model)
    trained = settings.build(20, 3)
    find_variant("preconditioned_weights").apply(trained)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trained(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    heads = []
    trained.encoder.blocks[0].attention.o_proj.register_forward_pre_hook(lambda _, args: heads.append(args[0].dtype))
    trained(x)
    assert heads == [torch.float32]


def test_wrong_sizes_are_named():
    for changes, word in [
        ({"landmarks": 3}, "landmarks=3 must divide length=40"), ({"heads": 3}, "heads=3 must divide"),
        ({"convolution": 4}, "convolution must be odd"), ({"dropout": 1.0}, "dropout must be in"),
        ({"layers": 0}, "layers must be at least 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            dataclasses.replace(TINY, **changes)
    model = build()
    with pytest.raises(ValueError, match="at most"):
        model(torch.ones(1, 45, dtype=torch.long))
    with pytest.raises(ValueError, match="got 39: pad them"):
        model(torch.ones(1, 39, dtype=torch.long))
    assert model(torch.ones(1, 10, dtype=torch.long)).shape == (1, 3)
