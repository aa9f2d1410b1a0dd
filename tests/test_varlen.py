"""Packed sequences: each must be as if it were alone."""

import pytest
import torch

from conditioned_attention import preconditioned_attention_varlen
from tests.attention import by_hand
from tests.attention.kernels import (  # noqa: F401
    DEVICE,
    assert_good,
    interpreted,
    needs_kernels,
    poison_more_memory,
)
from tests.attention.test_operator import run

QUERIES, KEYS = [0, 37, 1, 5, 0, 20], [4, 37, 3, 0, 0, 70]
LONG = {"max_seqlen_q": max(QUERIES), "max_seqlen_k": max(KEYS)}
every_impl = pytest.mark.parametrize("impl", ["composed", "lean", pytest.param("fused", marks=needs_kernels)])


def starts(lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def key_heads_for(impl):
    """Of `draw`: on a GPU `lean` takes float32 by PyTorch's memory-efficient attention, which has no grouped heads."""
    return 2 if impl == "lean" and DEVICE == "cuda" else 1


def draw(heads=2, key_heads=1, width=16, value_width=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(QUERIES), heads, width), (sum(KEYS), key_heads, width), (sum(KEYS), key_heads, value_width))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def alone(q, k, v, kept=None, **options):
    """`by_hand` on each sequence; ``kept`` (T, H, keys) is what dropout multiplies by."""
    outputs, t, s = [], 0, 0
    for n, m in zip(QUERIES, KEYS, strict=True):
        one = [x.transpose(0, 1) for x in (q[t : t + n], k[s : s + m], v[s : s + m])]
        mine = None if kept is None else kept[t : t + n, :, :m].transpose(0, 1)
        outputs.append(by_hand.attention(*one, kept=mine, **options).transpose(0, 1))
        t, s = t + n, s + m
    return torch.cat(outputs)


def packed(*tensors, **options):
    if "causal" in options:
        options["is_causal"] = options.pop("causal")
    gqa = tensors[0].shape[1] != tensors[1].shape[1]
    return preconditioned_attention_varlen(*tensors, starts(QUERIES), starts(KEYS), enable_gqa=gqa, **options)


def assert_right(tensors, name="", **options):
    kept, ours_only = options.pop("kept", None), options.pop("ours", {})
    ours = run(lambda *t: packed(*t, **options, **ours_only), tensors)
    plain = run(lambda *t: alone(*t, kept, **options), tensors)
    assert_good(ours, plain, run(lambda *t: alone(*t, kept, **options), [t.double() for t in tensors]), name)


@pytest.mark.one_in(3)
@every_impl
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, "window": 9, "gradient": "through"}], ids=str
)
def test_each_sequence_is_as_if_alone(impl, options):
    assert_right(draw(key_heads=key_heads_for(impl)), impl, **options, ours={"impl": impl})


@every_impl
def test_rows_of_zero_where_there_are_no_keys(impl):
    y = packed(*draw(key_heads=key_heads_for(impl)), impl=impl)
    assert (y[38:43] == 0).all()
    torch.testing.assert_close(y[:38].norm(dim=-1), torch.ones(38, 2, device=DEVICE))


@pytest.mark.one_in(2)
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_in_half_precision_from_the_weights(dtype):
    tensors = draw(key_heads=2, width=20, value_width=33, dtype=dtype)
    assert_right(tensors, dtype, rows="weights", gradient="through", ours={"impl": "fused", **LONG})


@pytest.mark.slow_on_a_cpu
@needs_kernels
def test_kernels_with_dropout():
    q, k, v = draw()
    alike = (torch.zeros_like(q), torch.zeros_like(k))
    places = torch.cat([torch.eye(max(KEYS), device=DEVICE)[:m] for m in KEYS])[:, None]
    torch.manual_seed(0)
    kept = (packed(*alike, places, dropout_p=0.3, impl="fused") != 0).float() / 0.7
    assert 0.6 < (kept[-20:] > 0).float().mean() < 0.8
    torch.manual_seed(0)
    assert_right((q, k, v), "dropout", kept=kept, ours={"impl": "fused", "dropout_p": 0.3})


@needs_kernels
def test_kernels_take_starts_that_do_not_lie_side_by_side():
    q, k, v = draw(key_heads=2)
    both = torch.stack([starts(QUERIES), starts(KEYS)], 1)
    apart = preconditioned_attention_varlen(q, k, v, both[:, 0], both[:, 1], impl="fused")
    assert torch.equal(apart, packed(q, k, v, impl="fused"))


@pytest.mark.slow_on_a_cpu
@needs_kernels
def test_kernels_compile_without_a_graph_break():
    tensors = draw()
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    options = {"impl": "fused", "causal": True, **LONG}
    for a, b in zip(run(compiled, tensors, **options), run(packed, tensors, **options), strict=True):
        torch.testing.assert_close(a, b)


def test_a_mask_would_say_the_same():
    """Tokens of other sequences hidden by a mask instead."""
    q, k, v = draw(key_heads=2)
    whose_q = torch.repeat_interleave(torch.tensor(QUERIES))
    whose_k = torch.repeat_interleave(torch.tensor(KEYS))
    mask = (whose_q[:, None] == whose_k).to(DEVICE)
    whole = by_hand.attention(*(t.transpose(0, 1) for t in (q, k, v)), mask).transpose(0, 1)
    torch.testing.assert_close(packed(q, k, v), whole)


def test_no_sequence_and_no_token():
    q = torch.empty(0, 2, 8)
    none = torch.zeros(1, dtype=torch.int32)
    assert preconditioned_attention_varlen(q, q, q, none, none).shape == (0, 2, 8)


Q = torch.randn(7, 4, 8)
TWO = torch.tensor([0, 3, 7], dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"query": Q[0]}, ValueError, r"query must be \(tokens, heads, width\), got shape \(4, 8\)"),
        ({"query": None}, TypeError, "query must be a torch.Tensor, got NoneType"),
        ({"query": Q[..., :4]}, ValueError, "same head width"),
        ({"value": Q[:5]}, ValueError, "same tokens and heads"),
        ({"query": Q[:, :2]}, ValueError, "query's number of heads"),
        ({"query": torch.randn(7, 6, 8), "enable_gqa": True}, ValueError, "divides query's"),
        ({"query": Q.double()}, TypeError, "must share one dtype"),
        ({"cu_seqlens_q": TWO.long()}, TypeError, "cu_seqlens_q must be int32, got torch.int64"),
        ({"cu_seqlens_k": [0, 7]}, TypeError, "cu_seqlens_k must be a torch.Tensor, got list"),
        ({"cu_seqlens_k": TWO[None]}, ValueError, "cu_seqlens_k must be one number more than there are sequences"),
        ({"cu_seqlens_q": TWO + 1}, ValueError, r"must go up from 0 to the number of tokens, 7, got \[1, 4, 8\]"),
        ({"cu_seqlens_q": TWO[:2]}, ValueError, "number of tokens, 7"),
        ({"cu_seqlens_q": TWO[[0, 2, 1, 2]]}, ValueError, "must go up"),
        ({"cu_seqlens_q": TWO[[0, 2]]}, ValueError, "as many sequences, got 2 and 3 numbers"),
        ({"max_seqlen_q": 3}, ValueError, "max_seqlen_q is 3, but a sequence has 4 tokens"),
        ({"max_seqlen_k": -1}, ValueError, "max_seqlen_k must not be negative"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"impl": "flash"}, ValueError, "impl='flash' is unknown"),
        ({"impl": "fused"}, ValueError, "impl='fused' cannot run here: the kernels take"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(changes, error, words):
    given = {"query": Q, "key": Q, "value": Q, "cu_seqlens_q": TWO, "cu_seqlens_k": TWO} | changes
    if changes.get("impl") == "fused":
        given |= {name: given[name].double() for name in ("query", "key", "value")}
        given = {name: tensor.to(DEVICE) if torch.is_tensor(tensor) else tensor for name, tensor in given.items()}
    with pytest.raises(error, match=words):
        preconditioned_attention_varlen(**given)
