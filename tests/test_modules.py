"""`MultiheadAttention`: the stock module bit for bit where C = 1, and C where it belongs."""

import copy
import itertools
import math
import pickle
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from conditioned_attention import (
    ConditionMonitor,
    MultiheadAttention,
    apply_conditioning,
    conditioning,
    precondition,
    reference,
    restore,
)
from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.conversion import convert
from conditioned_attention.modules import guard
from conditioned_attention.preconditioner import TRANSFORM
from tests.models import Identity
from tests.oracle import NormalisedRows

INF = math.inf


def twins(embed_dim, num_heads, **kwargs):
    """The stock module and ours with C = 1, of the same parameters, biases included."""
    stock, ours = (
        nn.MultiheadAttention(embed_dim, num_heads, **kwargs),
        MultiheadAttention(embed_dim, num_heads, **kwargs),
    )
    for parameter in stock.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours.load_state_dict(stock.state_dict())
    ours.__dict__[TRANSFORM] = Identity()
    return stock, ours


def run(module, tensors, **call):
    """Output, weights, and the gradients of everything, under one seed."""
    leaves = {id(t): t.detach().clone().requires_grad_() for t in tensors}  # one tensor given twice stays one
    q, k, v = (leaves[id(t)] for t in tensors)
    torch.manual_seed(3)
    output, weights = module(q, k, v, **call)
    loss = (output * torch.linspace(-1, 1, output.numel()).to(output).view_as(output)).sum()
    if weights is not None:
        loss = loss + (weights * torch.linspace(-1, 1, weights.numel()).to(weights).view_as(weights)).sum()
    module.zero_grad()
    loss.backward()
    gradients = [p.grad for p in module.parameters()] + [t.grad for t in leaves.values()]
    return output, weights, *gradients


def assert_same_bits(stock, ours, what):
    for a, b in zip(stock, ours, strict=True):
        assert (a is None) == (b is None), what
        assert a is None or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)), what


def masks(choose, batch, heads, n, m):
    """An attn_mask and a key_padding_mask of some kind; every query may attend to the first key."""
    kind, padding = (
        choose.choice(["none", "bool", "float", "bool3", "float3"]),
        choose.choice(["none", "bool", "float"]),
    )
    attn = torch.rand((batch * heads, n, m) if kind.endswith("3") else (n, m)) < 0.4
    attn[..., 0] = False
    ignored = torch.rand((batch, m)) < 0.4
    ignored[:, 0] = False
    attn = {"none": None, "bool": attn}.get(kind.rstrip("3"), torch.randn(attn.shape).masked_fill(attn, -INF))
    ignored = {"none": None, "bool": ignored}.get(padding, torch.randn(batch, m).masked_fill(ignored, -INF))
    return attn, ignored


def tensors(sharing, layout, batch, n, m, widths):
    """Query, key and value; ``sharing`` says which of them are one tensor."""
    sizes = [(n, widths[0]), (n if sharing == "self" else m, widths[1]), (n if sharing == "self" else m, widths[2])]
    shapes = [{"unbatched": (t, w), "batch": (batch, t, w), "tokens": (t, batch, w)}[layout] for t, w in sizes]
    q, k, v = (torch.randn(shape) for shape in shapes)
    if len(set(widths)) == 1 and sharing in ("self", "memory"):
        v = k
    return (k, k, k) if sharing == "self" and len(set(widths)) == 1 else (q, k, v)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("layout", ["unbatched", "batch", "tokens"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.filterwarnings("ignore:Support for mismatched", "ignore:key_padding_mask has type")
def test_without_c_it_is_the_stock_module_bit_for_bit(layout, need_weights):
    choose = random.Random(hash((layout == "batch", need_weights)))
    options = itertools.product([False, True], [False, True], [False, True], [False, True], ["self", "memory", "other"])
    for (wide, bias, add_bias_kv, add_zero_attn, sharing), _ in itertools.product(options, range(2)):
        embed_dim, heads = choose.choice([(16, 4), (15, 3), (7, 1)])
        widths = (embed_dim, 6, 9) if wide else (embed_dim,) * 3
        batch, n, m, dropout = choose.choice([1, 3]), choose.choice([1, 5]), 6, choose.choice([0.0, 0.3])
        extra = {"bias": bias, "add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn, "dropout": dropout}
        wider = {"kdim": 6, "vdim": 9} if wide else {}
        stock, ours = twins(embed_dim, heads, batch_first=layout == "batch", **extra, **wider)
        training = choose.random() < 0.7
        stock.train(training), ours.train(training)
        batch, m = (1 if layout == "unbatched" else batch), n if sharing == "self" else m
        attn, ignored = masks(choose, batch, heads, n, m)
        causal = choose.random() < 0.3
        if causal:
            attn = torch.full((n, m), -INF).triu(1)
        if layout == "unbatched" and ignored is not None:
            ignored = ignored[0]
        call = {"attn_mask": attn, "key_padding_mask": ignored, "need_weights": need_weights, "is_causal": causal}
        call["average_attn_weights"] = choose.random() < 0.5
        given = tensors(sharing, layout, batch, n, m, widths)
        what = (
            layout,
            sharing,
            embed_dim,
            extra,
            wider,
            training,
            {k: getattr(v, "shape", v) for k, v in call.items()},
        )
        assert_same_bits(run(stock, given, **call), run(ours, given, **call), what)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("need_weights", [False, True])
def test_other_dtypes_without_c_are_the_stock_module(dtype, need_weights):
    stock, ours = twins(16, 4, dtype=dtype)
    x, mask = torch.randn(5, 3, 16, dtype=dtype), torch.rand(3, 5) < 0.4
    mask[:, 0] = False
    call = {"key_padding_mask": mask, "need_weights": need_weights}
    assert_same_bits(run(stock, (x, x, x), **call), run(ours, (x, x, x), **call), dtype)


@pytest.mark.parametrize("need_weights", [False, True])
def test_autocast_without_c_is_the_stock_module(need_weights):
    stock, ours = twins(16, 4)
    x, mask = torch.randn(5, 3, 16), torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -INF)
    call = {"attn_mask": mask, "need_weights": need_weights}
    with torch.autocast("cpu", torch.bfloat16):
        results = run(stock, (x, x, x), **call), run(ours, (x, x, x), **call)
    assert results[0][0].dtype == torch.bfloat16
    assert_same_bits(*results, "autocast")


@pytest.mark.parametrize("need_weights", [False, True])
def test_without_c_it_is_the_native_fast_path_to_rounding(need_weights):
    stock, ours = twins(16, 4, batch_first=True)
    x, mask = torch.randn(3, 5, 16), torch.rand(3, 5) < 0.4
    mask[:, 0] = False
    stock.eval(), ours.eval()
    with torch.no_grad():
        fast, weights = stock(x, x, x, key_padding_mask=mask, need_weights=need_weights)
        output, our_weights = ours(x, x, x, key_padding_mask=mask, need_weights=need_weights)
    assert (fast - output).abs().max() < 1e-6
    assert weights is None or (weights - our_weights).abs().max() < 1e-6


@pytest.mark.parametrize("rows", ["output", "weights"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_c_stands_between_the_heads_and_the_projection(rows, need_weights):
    """Against the paper's equations in float64, with a mask in which True means ignore."""
    ours = MultiheadAttention(12, 3, batch_first=True, rows=rows, dtype=torch.float64)
    nn.init.normal_(ours.in_proj_bias), nn.init.normal_(ours.out_proj.bias)
    x, ignored = torch.randn(2, 5, 12, dtype=torch.float64), torch.ones(5, 5).triu(1).bool()
    q, k, v = F.linear(x, ours.in_proj_weight, ours.in_proj_bias).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    heads = reference.preconditioned_attention(q, k, v, attn_mask=~ignored, rows=rows)
    expected = ours.out_proj(heads.transpose(1, 2).reshape(2, 5, 12))
    output, weights = ours(x, x, x, attn_mask=ignored, need_weights=need_weights, average_attn_weights=False)
    torch.testing.assert_close(output, expected)
    if need_weights:  # those of the stock module, which C does not touch
        plain = (q @ k.transpose(-2, -1) / 2).masked_fill(ignored, -INF).softmax(-1)
        torch.testing.assert_close(weights, plain)


@pytest.mark.parametrize("gradient", ["stopped", "through"])
def test_gradient_of_both_paths_is_the_same_and_follows_the_option(gradient):
    ours = MultiheadAttention(12, 3, gradient=gradient, dtype=torch.float64)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    results = [run(ours, (x, x, x), need_weights=False)]
    output = ours(x, x, x)[0]
    ours.zero_grad()
    (output * torch.linspace(-1, 1, output.numel()).to(output).view_as(output)).sum().backward()
    for ours_gradient, parameter in zip(results[0][2:], ours.parameters()):
        torch.testing.assert_close(ours_gradient, parameter.grad)
    if gradient == "stopped":
        stock = nn.MultiheadAttention(12, 3, dtype=torch.float64)
        stock.load_state_dict(ours.state_dict())
        with NormalisedRows():
            oracle = run(stock, (x, x, x), need_weights=False)
        for a, b in zip(results[0], oracle):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", ["output", "weights"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("which", ["attn_mask", "attn_mask of each head", "key_padding_mask"])
def test_queries_that_may_attend_to_nothing_are_zero(rows, need_weights, boolean, which):
    ours = MultiheadAttention(12, 3, batch_first=True, rows=rows)
    nn.init.normal_(ours.out_proj.bias)
    shape = {"attn_mask": (5, 5), "attn_mask of each head": (6, 5, 5), "key_padding_mask": (2, 5)}[which]
    mask = torch.zeros(shape, dtype=torch.bool)
    if which == "attn_mask":
        mask[2] = True
    else:
        mask[: shape[0] // 2] = True  # the first sample
    masked = {"attn_mask": (slice(None), 2)}.get(which, (0,))
    mask = mask if boolean else torch.zeros(shape).masked_fill(mask, -INF)
    x = torch.randn(2, 5, 12)
    call = {which.partition(" ")[0]: mask, "need_weights": need_weights, "average_attn_weights": False}
    output, weights, *gradients = run(ours, (x, x, x), **call)
    assert (output[masked] == ours.out_proj.bias).all()
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0] != 0).any()
    assert output.isfinite().all()
    if need_weights:
        zeros = weights.transpose(1, 2)[masked]
        assert (zeros == 0).all()
        assert (weights.sum(-1) - 1).abs().lt(1e-6).sum() == weights[..., 0].numel() - zeros[..., 0].numel()


def test_forward_calls_the_output_projection_as_a_module():
    ours, seen = MultiheadAttention(8, 2), []
    x = torch.randn(3, 2, 8)
    ours.out_proj.register_forward_hook(lambda module, args, output: seen.append(args[0]) or 2 * output)
    once = ours(x, x, x)[0]
    assert [t.shape for t in seen] == [(6, 8)]
    assert seen[0].unflatten(-1, (2, 4)).norm(dim=-1).sub(1).abs().max() < 1e-6, "rows of heads have unit length"
    ours.out_proj._forward_hooks.clear()
    assert torch.equal(once, 2 * ours(x, x, x)[0])


def call_of(query=(5, 2, 8), key=(5, 2, 8), value=(5, 2, 8), **kwargs):
    return (torch.randn(query), torch.randn(key), torch.randn(value)), kwargs


WRONG = {
    "4-D query": call_of((1, 5, 2, 8)),
    "1-D query": call_of((8,)),
    "2-D key": call_of(key=(5, 8)),
    "3-D key to 2-D query": call_of((5, 8)),
    "query width": call_of((5, 2, 6)),
    "value longer than key": call_of(value=(4, 2, 8)),
    "key width": call_of(key=(5, 2, 6), value=(5, 2, 6)),
    "other batch": call_of((5, 3, 8)),
    "integer attn_mask": call_of(attn_mask=torch.ones(5, 5, dtype=torch.long)),
    "integer key_padding_mask": call_of(key_padding_mask=torch.ones(2, 5, dtype=torch.long)),
    "attn_mask size": call_of(attn_mask=torch.zeros(5, 4)),
    "attn_mask 3-D size": call_of(attn_mask=torch.zeros(2, 5, 5)),
    "attn_mask 3-D unbatched": call_of((5, 8), (5, 8), (5, 8), attn_mask=torch.zeros(1, 5, 5)),
    "attn_mask 4-D": call_of(attn_mask=torch.zeros(2, 2, 5, 5)),
    "attn_mask 4-D unbatched": call_of((5, 8), (5, 8), (5, 8), attn_mask=torch.zeros(1, 2, 5, 5)),
    "key_padding_mask size": call_of(key_padding_mask=torch.zeros(2, 4)),
    "key_padding_mask batch": call_of(key_padding_mask=torch.zeros(5, 2)),
    "key_padding_mask 1-D": call_of(key_padding_mask=torch.zeros(5)),
    "key_padding_mask 2-D unbatched": call_of((5, 8), (5, 8), (5, 8), key_padding_mask=torch.zeros(1, 5)),
    "attn_mask of another type": call_of(attn_mask=torch.zeros(5, 5, dtype=torch.float16)),
    "key_padding_mask of another type": call_of(key_padding_mask=torch.zeros(2, 5, dtype=torch.float64)),
    "key of another type": ((torch.randn(5, 2, 8), *[torch.randn(5, 2, 8).double()] * 2), {}),
    "is_causal alone": call_of(is_causal=True),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 8, "vdim": 8, "bias": False}, {"kdim": 7}])
def test_wrong_calls_raise_what_the_stock_module_raises(what, need_weights, widths):
    args, kwargs = WRONG[what]
    errors = []
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        with pytest.raises((AssertionError, RuntimeError)) as caught:
            cls(8, 2, **widths)(*args, **kwargs, need_weights=need_weights)
        errors.append(caught.type)
    assert errors[0] is errors[1]


def test_a_causal_hint_drops_the_mask_exactly_where_the_stock_module_drops_it():
    stock, ours = twins(8, 2)
    x, wrong, padding = torch.randn(5, 2, 8), torch.zeros(5, 5), torch.zeros(2, 5)
    for need_weights, ignored in itertools.product([False, True], [None, padding]):
        call = {"attn_mask": wrong, "key_padding_mask": ignored, "need_weights": need_weights, "is_causal": True}
        hinted = run(ours, (x, x, x), **call)
        assert_same_bits(run(stock, (x, x, x), **call), hinted, call)
        dropped = not need_weights and ignored is None
        assert torch.equal(hinted[0], run(ours, (x, x, x), **{**call, "is_causal": False})[0]) != dropped


def test_masks_of_two_types_warn():
    x, kwargs = torch.randn(5, 2, 8), {"attn_mask": torch.zeros(5, 5), "key_padding_mask": torch.zeros(2, 5).bool()}
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        with pytest.warns(UserWarning, match="deprecated"):
            cls(8, 2)(x, x, x, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MultiheadAttention(8, 2)(x, x, x, attn_mask=torch.zeros(5, 5), key_padding_mask=torch.zeros(2, 5))


def test_construction():
    with pytest.raises(ValueError, match=r"rows='columns' is unknown; valid are \('output', 'weights'\)"):
        MultiheadAttention(8, 2, rows="columns")
    with pytest.raises(ValueError, match="gradient='no' is unknown"):
        MultiheadAttention(8, 2, gradient="no")
    with pytest.raises(ValueError, match="eps must be positive"):
        MultiheadAttention(8, 2, eps=0.0)
    with pytest.raises(TypeError, match="positional"):
        MultiheadAttention(8, 2, 0.0, True, False, False, None, None, False, None, None, "output")
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        with pytest.raises(ValueError, match="must be greater than 0"):
            cls(0, 2)
        with pytest.raises(AssertionError, match="divisible"):
            cls(8, 3)
    ours = MultiheadAttention(8, 2, 0.1, True, True, True, 6, 7, True, "cpu", torch.float64, rows="weights", eps=1e-3)
    stock = nn.MultiheadAttention(8, 2, 0.1, True, True, True, 6, 7, True, "cpu", torch.float64)
    assert {n: (p.shape, p.dtype) for n, p in ours.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in stock.named_parameters()
    }
    stock.load_state_dict(ours.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert "rows='weights', gradient='stopped', eps=0.001" in repr(ours)
    assert isinstance(ours, nn.MultiheadAttention)


def test_same_initialisation_under_the_same_seed():
    torch.manual_seed(1)
    stock = nn.MultiheadAttention(8, 2)
    torch.manual_seed(1)
    ours = MultiheadAttention(8, 2)
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), ours.parameters()))


@pytest.mark.parametrize("rows", ["output", "weights"])
def test_copies_saves_and_functional_calls(rows, tmp_path):
    ours = MultiheadAttention(8, 2, rows=rows)
    x = torch.randn(5, 2, 8)
    expected = ours(x, x, x)[0]
    torch.save(ours.state_dict(), tmp_path / "weights.pt")
    loaded = MultiheadAttention(8, 2, rows=rows)
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
        assert torch.equal(twin(x, x, x)[0], expected)
    called = torch.func.functional_call(MultiheadAttention(8, 2, rows=rows), dict(ours.named_parameters()), (x, x, x))
    assert torch.equal(called[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("need_weights", [False, True])
def test_compiles_without_a_graph_break(need_weights):
    ours = MultiheadAttention(8, 2, batch_first=True)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    expected = run(ours, (x, x, x), key_padding_mask=mask, need_weights=need_weights)
    for a, b in zip(run(compiled, (x, x, x), key_padding_mask=mask, need_weights=need_weights), expected):
        assert a is b is None or torch.allclose(a, b, atol=1e-6)


def biased(module):
    """``module`` with biases: without any, keys of padding have zero values, and C undoes what they do to a head."""
    for name, parameter in module.named_parameters():
        if ("attn" in name and name.endswith("bias")) or name == "in_proj_bias":
            nn.init.normal_(parameter)
    return module


def of_layer(layer, built):
    """``layer`` conditioned: with attention built as ours, or converted."""
    biased(layer)
    if not built:
        precondition(layer, strict=True)
        return layer
    for name, stock in [*layer.named_children()]:
        if type(stock) is nn.MultiheadAttention:
            ours = MultiheadAttention(stock.embed_dim, stock.num_heads, batch_first=stock.batch_first)
            ours.load_state_dict(stock.state_dict())
            setattr(layer, name, ours)
    return layer


def assert_evaluation_is_training(model, keep, *args, **kwargs):
    """Training has no fast path; and the model that is compared is conditioned at all."""
    trained = model.train()(*args, **kwargs)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.eval()
        with torch.no_grad():
            assert (twin(*args, **kwargs)[keep] - trained[keep]).abs().max() < 1e-6
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.__dict__[TRANSFORM] = Identity()
    assert (model(*args, **kwargs)[keep] - trained[keep]).abs().max() > 1e-3
    return trained


@pytest.mark.one_in(2)
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_fast_paths_of_the_encoder_do_not_skip_c(built, norm_first, nested, activation):
    sizes = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": True}
    layer = of_layer(nn.TransformerEncoderLayer(8, 2, norm_first=norm_first, activation=activation, **sizes), built)
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    assert encoder.use_nested_tensor == (nested and not norm_first), "the path under test"
    assert_evaluation_is_training(copy.deepcopy(layer), ~padding, x, src_key_padding_mask=padding)
    assert_evaluation_is_training(copy.deepcopy(encoder), ~padding, x, src_key_padding_mask=padding)
    assert_evaluation_is_training(encoder, ..., x)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_whole_transformer_evaluates_as_it_trains(batch_first):
    model = of_layer(nn.Transformer(8, 2, 2, 1, 16, dropout=0.0, batch_first=batch_first), built=False)
    x, y = torch.randn(5, 5, 8), torch.randn(5, 5, 8)  # as many samples as tokens: both layouts
    mask, padding = torch.ones(5, 5).triu(1).bool(), torch.zeros(5, 5).bool()
    padding[0, 3:] = True
    call = {"tgt_mask": mask, "src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    assert_evaluation_is_training(model, ..., x, y, **call)


def test_a_decoder_layer_evaluates_as_it_trains():
    layer = of_layer(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True), built=True)
    assert type(layer.multihead_attn) is MultiheadAttention
    assert_evaluation_is_training(layer, ..., torch.randn(2, 4, 8), torch.randn(2, 5, 8))


def test_nested_tensors():
    ours = biased(MultiheadAttention(8, 2, batch_first=True))
    sequences = [torch.randn(n, 8) for n in (3, 5, 1)]
    nested = torch.nested.nested_tensor(sequences)
    output, weights = ours(nested, nested, nested, need_weights=False)
    assert weights is None
    assert output.is_nested
    for result, x in zip(output.unbind(), sequences, strict=True):
        torch.testing.assert_close(result, ours(x, x, x, need_weights=False)[0])
    other, later = torch.nested.nested_tensor(sequences), MultiheadAttention(8, 2)
    jagged = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    for module, args, kwargs in (
        (ours, (nested, other, other), {"need_weights": False}),
        (ours, (nested, nested, nested), {}),
        (ours, (nested, nested, nested), {"need_weights": False, "attn_mask": torch.zeros(5, 5)}),
        (ours, (jagged, jagged, jagged), {"need_weights": False}),
        (later, (nested, nested, nested), {"need_weights": False}),
    ):
        with pytest.raises(AssertionError, match="nested tensors are taken as"):
            module(*args, **kwargs)


def test_a_guard_that_was_removed_is_an_error_and_not_plain_attention():
    layer = of_layer(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), built=True).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x)
        layer.self_attn._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="was removed from this MultiheadAttention"):
            layer(x)
        guard(layer.self_attn)
        assert torch.equal(layer(x), expected)


def test_hooks_of_a_later_process_do_not_take_the_guards_place():
    ours = pickle.loads(pickle.dumps(MultiheadAttention(8, 2)))
    hooks = dict(ours._forward_pre_hooks)
    ours.register_forward_pre_hook(lambda module, args: None)
    assert hooks.items() <= ours._forward_pre_hooks.items()
    assert all(key < 0 for key in hooks), "handles count up from 0"


def built_model(**options):
    return nn.ModuleDict({"a": MultiheadAttention(8, 2, **options), "b": nn.MultiheadAttention(8, 2)})


def test_what_was_built_conditioned_is_reported_and_stays():
    model = built_model()
    report = precondition(model, strict=True)
    assert report.converted == ["b"]
    assert "built as conditioned_attention.modules.MultiheadAttention" in report.rows[0].reason
    data = conditioning(model)
    assert data["transforms"][0]["modules"] == ["a", "b"]
    restored = restore(model)
    assert restored.names("restored") == ["b"]
    assert [type(m) for m in model.values()] == [MultiheadAttention, nn.MultiheadAttention]
    assert conditioning(model)["transforms"][0]["modules"] == ["a"], "the one that was built still runs with C"
    fresh = built_model()
    apply_conditioning(fresh, data)
    assert conditioning(fresh) == data
    restore(fresh)
    assert conditioning(fresh)["transforms"][0]["modules"] == ["a"]
    plain = nn.ModuleDict({name: nn.MultiheadAttention(8, 2) for name in "ab"})
    apply_conditioning(plain, data)
    assert conditioning(plain) == data


def test_what_was_built_with_other_options_is_an_error():
    model = built_model(eps=1e-3)
    with pytest.raises(ValueError, match=r"a was built with RowNorm.*build it with other options"):
        precondition(model)
    with pytest.raises(ValueError, match="a was built with RowNorm"):
        apply_conditioning(model, conditioning(built_model()))
    with pytest.raises(ValueError, match="a was built with RowNorm"):
        convert(model, HeadRMSNorm())
    assert type(model["b"]) is nn.MultiheadAttention
    assert precondition(model, eps=1e-3).names("unchanged") == ["a"]


@pytest.mark.parametrize("built", [False, True])
def test_the_monitor_sees_the_heads_and_leaves_no_trace(built):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    if built:
        for layer in model.layers:
            of_layer(layer, built)
    x = torch.randn(3, 6, 8)
    model.eval()
    before, parts = model(x), [(type(m), dict(m._forward_pre_hooks)) for m in model.modules()]
    records = ConditionMonitor(model, x).measure(0)
    assert len(records) == 4
    assert all(record.conditioned == built for record in records)
    assert torch.equal(model(x), before)
    assert [(type(m), dict(m._forward_pre_hooks)) for m in model.modules()] == parts


def test_restore_takes_the_guard_away():
    model = nn.MultiheadAttention(8, 2)
    mine = model.register_forward_pre_hook(lambda module, args: None)
    precondition(model)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        assert len(one._forward_pre_hooks) == 2
        restore(one)
        assert list(one._forward_pre_hooks) == [mine.id]


class OwnMultiheadAttention(nn.MultiheadAttention):
    """A subclass may do anything in its forward."""


def test_subclasses_are_refused_with_the_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizable = torch.ao.nn.quantizable.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"own": OwnMultiheadAttention(8, 2), "ao": quantizable, "stock": nn.MultiheadAttention(8, 2)})
    report = precondition(model)
    assert report.converted == ["stock"]
    assert report.refused == ["own", "ao"]
    assert all(
        "is a subclass of MultiheadAttention and" in row.reason for row in report.rows if row.status == "refused"
    )


def test_a_hugging_face_model_may_hold_it_beside_its_own_attention():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = SiglipVisionModel(SiglipVisionConfig(image_size=8, patch_size=4, **sizes)).eval()
    x, plain = torch.randn(2, 3, 8, 8), copy.deepcopy(model)
    how = {row.class_name: row.mechanism for row in precondition(model, strict=True).rows}
    assert how == {"SiglipAttention": "interface", "MultiheadAttention": "class swap"}
    pooler = MultiheadAttention(32, 4, batch_first=True)
    pooler.load_state_dict(model.head.attention.state_dict())
    expected = model(x)
    model.head.attention = pooler
    assert torch.equal(model(x).pooler_output, expected.pooler_output)
    model.head.attention = plain.head.attention
    assert not torch.allclose(model(x).pooler_output, expected.pooler_output, rtol=1e-3)


def test_nested_tensors_take_the_causal_hint_for_nothing():
    """As in the stock module, whose fast path sees no mask there and so no hint about it."""
    parts = [torch.randn(n, 8) for n in (2, 5)]
    nested = torch.nested.as_nested_tensor(parts)
    ours = MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        hinted, _ = ours(nested, nested, nested, need_weights=False, is_causal=True)
    for part, row in zip(parts, hinted.unbind()):
        torch.testing.assert_close(row, ours(part, part, part)[0].detach())
