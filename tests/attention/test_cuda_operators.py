"""The calls of the CUDA operators, without a GPU: stand-ins on the CPU that compute what PyTorch documents of them.

They prove that arguments stand in their places, that padded statistics are met and that C is folded in rightly; not
that the kernels of a GPU do what is documented.  `test_operator` runs on a GPU where there is one.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conditioned_attention import preconditioned_attention
from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.attention.lean import contract as lean_contract
from tests.judge import assert_as_good_as_plain, plain

PADDED = 32  # memory-efficient attention pads its statistics


def weights(query, key, mask, causal, scale, lse=None):
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query.float() @ key.float().transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    if mask is not None:
        logits = logits + mask
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    lse = logits.logsumexp(-1) if lse is None else lse
    return (logits - lse.unsqueeze(-1)).exp(), lse


def repeated(tensor, like):
    return tensor.repeat_interleave(like.shape[1] // tensor.shape[1], 1)


def dropped(p, seed):
    """The factors of dropout, the same for the same seed."""
    generator = torch.Generator().manual_seed(int(seed))
    return lambda w: (torch.rand(w.shape, generator=generator) >= p) / (1 - p)


def stand_in(query, key, value, mask, causal, scale, p, seed):
    w, lse = weights(query, key, mask, causal, scale)
    return ((w * dropped(p, seed)(w)) @ repeated(value, query).float()).to(query.dtype), lse


def stand_in_backward(upstream, query, key, value, mask, output, lse, causal, scale, p, seed):
    w, _ = weights(query, key, mask, causal, scale, lse)
    factor, upstream = dropped(p, seed)(w), upstream.float()
    delta = (upstream * output.float()).sum(-1, keepdim=True)
    ds = w * (upstream @ repeated(value, query).float().transpose(-2, -1) * factor - delta)
    ds = ds * (scale or query.shape[-1] ** -0.5)
    dv = (w * factor).transpose(-2, -1) @ upstream
    dk = ds.transpose(-2, -1) @ query.float()
    groups = (query.shape[0], key.shape[1], -1, *key.shape[2:])
    dk, dv = dk.view(groups).sum(2), dv.view(groups).sum(2)
    return tuple(t.to(query.dtype) for t in (ds @ repeated(key, query).float(), dk, dv))


SEED, OFFSET = torch.tensor(7), torch.tensor(11)


def flash(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    assert not return_debug_mask
    output, lse = stand_in(query, key, value, None, is_causal, scale, dropout_p, SEED)
    return output, lse, None, None, query.shape[2], key.shape[2], SEED.clone(), OFFSET.clone(), torch.empty(0)


def flash_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
    philox_seed, philox_offset, *, scale=None,
):  # fmt: skip
    assert (max_q, max_k, int(philox_offset)) == (query.shape[2], key.shape[2], int(OFFSET))
    lse = logsumexp
    return stand_in_backward(
        grad_out, query, key, value, None, out, lse, is_causal, scale, dropout_p, philox_seed
    )  # fmt: skip


def efficient(query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    assert compute_log_sumexp
    output, lse = stand_in(query, key, value, attn_bias, is_causal, scale, dropout_p, SEED)
    lse = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % PADDED), value=torch.inf)
    return output, lse, SEED.clone(), OFFSET.clone()


def efficient_backward(
    grad_out_, query, key, value, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p, grad_input_mask,
    is_causal=False, *, scale=None,
):  # fmt: skip
    assert grad_input_mask == [True, True, True, False]
    assert logsumexp.shape[-1] % PADDED == 0
    lse, offset = logsumexp[..., : query.shape[2]], int(philox_offset)
    assert offset == int(OFFSET)
    grads = stand_in_backward(
        grad_out_, query, key, value, attn_bias, out, lse, is_causal, scale, dropout_p, philox_seed
    )
    return *grads, torch.empty(0)


@pytest.fixture(params=["cuda flash", "cuda efficient"])
def backend(request, monkeypatch):
    monkeypatch.setattr(lean_contract, "_refuses_on_cpu", lambda arguments: None)
    monkeypatch.setattr(lean_contract, "backend", lambda arguments, prepared: request.param)
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_scaled_dot_product_flash_attention", flash)
    library.impl("_scaled_dot_product_flash_attention_backward", flash_backward)
    library.impl("_scaled_dot_product_efficient_attention", efficient)
    library.impl("_scaled_dot_product_efficient_attention_backward", efficient_backward)
    yield request.param
    library._destroy()


def run(function, tensors, upstream):
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gqa", [False, True])
def test_same_numbers_as_plain_attention(backend, dtype, causal, scale, masked, gqa):
    if (masked and backend == "cuda flash") or (gqa and backend == "cuda efficient"):
        return  # which `lean` refuses there
    q, k, v, upstream = torch.randn(4, 2, 4, 48, 8)
    k, v = (k[:, :2], v[:, :2]) if gqa else (k, v)
    mask = torch.randn(48, 48).to(dtype) if masked else None
    lean_ = lambda *t: preconditioned_attention(  # noqa: E731
        *t, mask, is_causal=causal, scale=scale, enable_gqa=gqa, impl="lean"
    )
    plain_ = lambda *t: plain(*t, mask if mask is None else mask.to(t[0].dtype), causal, scale, gqa)  # noqa: E731
    tensors = [t.to(dtype) for t in (q, k, v)]
    ours, plains = run(lean_, tensors, upstream), run(plain_, tensors, upstream)
    oracle = run(plain_, [t.double() for t in tensors], upstream)
    for what, a, b, c in zip(("output", "dq", "dk", "dv"), ours, plains, oracle):
        assert_as_good_as_plain(a, b, c, 3, what)


def test_dropout_uses_the_random_state_of_forward(backend):
    q, k, v, upstream = torch.randn(4, 2, 4, 48, 8)
    ours = run(lambda *t: preconditioned_attention(*t, None, 0.4, impl="lean"), (q, k, v), upstream)

    def by_hand(q, k, v):
        w, _ = weights(q, k, None, False, None)
        o = (w * dropped(0.4, SEED)(w)) @ v
        return o / o.detach().norm(dim=-1, keepdim=True)

    for a, b in zip(ours, run(by_hand, (q, k, v), upstream)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "width", "keys", "mask", "kv_heads", "words"),
    [
        (0, 16, 16, None, 4, "neither flash nor memory-efficient"),
        (1, 16, 20, None, 2, None),
        (1, 12, 16, None, 4, "no multiple of 8"),
        (2, 12, 16, torch.bfloat16, 4, None),
        (2, 16, 20, torch.bfloat16, 4, "no multiple of 16"),
        (2, 16, 16, torch.float32, 4, "must have query's dtype"),
        (2, 16, 16, None, 2, "grouped queries"),
        (3, 16, 16, None, 4, "cuDNN"),
    ],
)
def test_each_backend_is_taken_or_refused_with_its_reason(choice, width, keys, mask, kv_heads, words, monkeypatch):
    """On tensors of CUDA that have no memory; PyTorch's choice is given."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **kwargs: choice)
    with FakeTensorMode():
        q = torch.ones(2, 4, 8, width, device="cuda", dtype=torch.bfloat16)
        k = torch.ones(2, kv_heads, keys, width, device="cuda", dtype=torch.bfloat16)
        m = None if mask is None else torch.ones(8, keys, device="cuda", dtype=mask)
        arguments = Arguments(q, k, k, m, 0.1, False, None, kv_heads != 4)
        refusal = lean_contract._refuses_on_cuda(arguments)
        assert (refusal is None) if words is None else (words in refusal)
        if refusal is None:
            prepared = lean_contract.tensors(arguments)
            assert lean_contract.backend(arguments, prepared) == {1: "cuda flash", 2: "cuda efficient"}[choice]
            assert m is None or prepared[3].shape == (2, 4, 8, keys)
