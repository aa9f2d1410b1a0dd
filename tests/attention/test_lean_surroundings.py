"""Where `lean` runs: transforms of functorch, autocast, torch.compile, checkpointing, export and FSDP2."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from conditioned_attention import functional, preconditioned_attention
from conditioned_attention.attention.lean import steps as lean_steps
from conditioned_attention.profiling.memory import held_bytes
from tests.attention.test_lean import Q, assert_same, auto_prefers_lean, composed, lean, results  # noqa: F401
from tests.pairwise import pairwise


def test_reverse_mode_of_functorch():
    loss = lambda attention: lambda q: attention(q, q + 1, q - 1).sin().sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(loss(lean))(Q), torch.func.grad(loss(composed))(Q))
    output, pull = torch.func.vjp(lambda q: lean(q, q, q), Q)
    expected, pull_composed = torch.func.vjp(lambda q: composed(q, q, q), Q)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(pull(Q), pull_composed(Q))


def test_jacobians():
    """Several upstream gradients at once."""
    few = lambda attention: lambda q: attention(q, q + 1, q - 1).sum((0, 1, 2))[:3]  # noqa: E731
    expected = torch.func.jacrev(few(composed))(Q)
    torch.testing.assert_close(torch.func.jacrev(few(lean))(Q), expected)
    vectorized = torch.autograd.functional.jacobian(few(lean), Q, vectorize=True)
    torch.testing.assert_close(vectorized, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.usefixtures("auto_prefers_lean")
def test_other_transforms_of_functorch():
    vmapped = torch.func.vmap(preconditioned_attention)
    torch.testing.assert_close(vmapped(Q, Q, Q), composed(Q, Q, Q))
    loss = lambda q: preconditioned_attention(q, q, q).sum()  # noqa: E731
    for_each = torch.func.vmap(torch.func.grad(loss))(Q)
    torch.testing.assert_close(for_each, torch.stack([torch.func.grad(loss)(q) for q in Q]))
    with pytest.raises(ValueError, match="functorch"):
        torch.func.vmap(lean)(Q, Q, Q)
    with sdpa_kernel(SDPBackend.MATH):
        torch.func.jvp(loss, (Q,), (Q,))


def test_second_derivatives_say_why_there_are_none():
    q = Q.clone().requires_grad_()
    (first,) = torch.autograd.grad(lean(q, q, q).square().sum() + lean(q, q, q)[0, 0, 0, 0], q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivative.*SDPBackend\.MATH"):
        first.sum().backward()
    loss = lambda q: lean(q, q, q).sin().sum()  # noqa: E731
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(Q)
    with sdpa_kernel(SDPBackend.MATH):  # what the message says
        y = preconditioned_attention(q, q, q, gradient="through").sin().sum()
        (first,) = torch.autograd.grad(y, q, create_graph=True)
        first.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    mask = torch.randn(5, 5)
    with torch.autocast("cpu", dtype):
        ours = results(lambda *t: lean(*t, mask), Q, Q + 1, Q - 1)
        theirs = results(lambda *t: composed(*t, mask), Q, Q + 1, Q - 1)
    assert ours[0].dtype == dtype
    assert ours[1].dtype == torch.float32
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(dtype).eps * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradient", "dtype", "dynamic"),
    [
        ("stopped", torch.bfloat16, True),
        ("through", torch.float32, False),
        pytest.param("stopped", torch.float32, False, marks=pytest.mark.slow),
        pytest.param("through", torch.bfloat16, True, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(gradient, dtype, dynamic):
    mask = torch.rand(5, 5) > 0.3
    q, k, v = (t.to(dtype) for t in (Q, Q + 1, Q - 1))
    torch._dynamo.reset()
    attend = lambda *t: lean(*t, mask, is_causal=True, gradient=gradient)  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(results(compiled, q, k, v), results(attend, q, k, v)):
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(dtype).eps * b.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v), rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", "lean", "composed"])
def test_compiles_no_more_often_than_plain_attention(impl, monkeypatch):
    from torch._dynamo.testing import CompileCounter

    def compilations(function):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for tokens in (5, 9, 700, 6, 1100):
            for batch in (2, 3, 40):
                t = torch.randn(batch, 2, tokens if batch < 40 else 5, 8)
                compiled(t, t, t)
        return counter.frame_count

    rules = (functional._Rule("cpu", 1000, "lean", "a test"), functional._Rule("cpu", 0, "composed", "a test"))
    monkeypatch.setattr(functional, "_AUTO", rules)  # both sides of the rule are met
    ours = compilations(lambda *t: preconditioned_attention(*t, impl=impl))
    assert ours == compilations(F.scaled_dot_product_attention)


def overwrites_output(q, k, v, mask):
    y = lean(q, k, v, mask)
    y += q
    return y


def overwrites_query(q, k, v, mask):
    q = q * 1
    y = lean(q, k, v, mask)
    q.mul_(2)
    return y


def overwrites_cache(q, k, v, mask):
    y = lean(q, k, v, mask)
    v.copy_(q.detach())
    return y


def overwrites_mask(q, k, v, mask):
    mask = mask * 1
    y = lean(q, k, v, mask)
    mask.fill_(5)
    return y


@pytest.mark.one_in(4)
@pytest.mark.parametrize("function", [overwrites_output, overwrites_query, overwrites_cache, overwrites_mask])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_what_is_kept_may_not_be_overwritten(function, backend):
    """Not a wrong gradient, but an error, in a compiled graph as well."""
    run = function if backend is None else torch.compile(function, fullgraph=True, backend=backend)
    torch._dynamo.reset()
    q, v = Q.clone().requires_grad_(), Q.clone()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(q, Q + 1, v, torch.randn(5, 5)).sum().backward()


@pytest.mark.parametrize(("tokens", "expected"), [(10, "composed"), (2000, "lean")])
def test_auto_in_a_compiled_graph_goes_by_size(tokens, expected, monkeypatch):
    rules = (functional._Rule("cpu", 1000, "lean", "a test"), functional._Rule("cpu", 0, "composed", "a test"))
    monkeypatch.setattr(functional, "_AUTO", rules)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    torch._dynamo.reset()
    q = torch.randn(1, 1, tokens, 8)
    torch.compile(preconditioned_attention, fullgraph=True, backend=backend, dynamic=False)(q, q, q)
    assert ("lean_forward" in graphs[0]) == (expected == "lean")


ORDERS = {"contiguous": (0, 1, 2, 3), "heads inside": (0, 2, 1, 3), "tokens outside": (2, 0, 1, 3)}


def calls_of_operators(dtype, order, kv_heads, mask):
    """Each registered operator with arguments, forward with gradients first; numbers in memory in this order."""
    back = [order.index(i) for i in range(4)]

    def tensor(heads, tokens):
        return torch.randn([(2, heads, tokens, 8)[i] for i in order]).permute(back).to(dtype)

    q, k, v, dy = tensor(4, 5), tensor(kv_heads, 7), tensor(kv_heads, 7), tensor(4, 5)
    mask = None if mask is None else mask.to(dtype)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    yield lean_steps.forward_operator, (*leaves, mask, mask is None, None, 1e-6, "through")
    yield lean_steps.forward_operator, (q, k, v, mask, mask is None, None, 1e-6, "stopped")
    kept = lean_steps.forward_operator(q, k, v, mask, mask is None, None, 1e-6, "stopped")
    for gradient in ("stopped", "through"):
        arguments = (dy, q, k, v, mask, *kept, mask is None, None, 1e-6, gradient)
        yield lean_steps.backward_operator, arguments


@pytest.mark.parametrize(
    ("dtype", "layout", "kv_heads", "masked"),
    pairwise([torch.float32, torch.float64, torch.bfloat16, torch.float16], list(ORDERS), [4, 2], [False, True]),
)
def test_registered_operators(dtype, layout, kv_heads, masked):
    """Schema, strides and dtypes of the stand-ins that torch.compile plans with."""
    mask = torch.randn(1, 1, 5, 7) if masked else None
    for operator, arguments in calls_of_operators(dtype, ORDERS[layout], kv_heads, mask):
        for what in ("test_schema", "test_autograd_registration", "test_faketensor"):
            torch.library.opcheck(operator, arguments, test_utils=what)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout", "kv_heads", "masked"),
    pairwise([torch.float32, torch.bfloat16], list(ORDERS), [4, 2], [False, True]),
)
def test_registered_operators_for_symbolic_sizes(dtype, layout, kv_heads, masked):
    """What torch.compile traces of them, forward and backward, for sizes that it does not know: the slow check."""
    mask = torch.randn(1, 1, 5, 7) if masked else None
    (forward, of_forward), *_, (backward, of_backward) = calls_of_operators(dtype, ORDERS[layout], kv_heads, mask)
    torch.library.opcheck(forward, of_forward, test_utils="test_aot_dispatch_dynamic")
    torch.library.opcheck(backward, of_backward, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [False, True])
def test_keeps_as_little_when_compiled(dtype, dynamic):
    b, h, n, d = 2, 3, 50, 16
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in torch.randn(3, b, n, h, d).to(dtype))
    weight = torch.randn(h * d, h * d, dtype=dtype, requires_grad=True)

    def held(attention):
        block = lambda *t: attention(*t).transpose(1, 2).flatten(2) @ weight  # noqa: E731
        compiled = torch.compile(block, fullgraph=True, dynamic=dynamic)
        return held_bytes(lambda: compiled(q, k, v), [q, k, v, weight])

    assert held(lean) == held(F.scaled_dot_product_attention) + 4 * b * h * n


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_inductor(turned):
    """The real compiler may lay tensors out otherwise than the trace did."""

    def block(x, w, out):
        q, k, v = (x @ w).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        y = lean(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ out
        return y.transpose(1, 2).sum() if turned else y.square().sum()

    x, w, out = torch.randn(2, 10, 64), torch.randn(64, 192) / 8, torch.randn(64, 64) / 8
    compiled = torch.compile(block, fullgraph=True)
    for a, b in zip(results(compiled, x, w, out), results(block, x, w, out)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    def gradient(run):
        q = Q.clone().requires_grad_()
        run(lambda q: lean(q * 2, q, q + 1).sin(), q).square().sum().backward()  # reentrant takes no grad()
        return q.grad

    checkpointed = gradient(lambda block, q: checkpoint(block, q, use_reentrant=reentrant))
    assert torch.equal(checkpointed, gradient(lambda block, q: block(q)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved", ["attention", "everything"])
def test_selective_checkpointing(dtype, saved):
    attention = [torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default]
    policy = attention if saved == "attention" else lambda *args, **kwargs: CheckpointPolicy.PREFER_SAVE
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def gradient(run):
        q = Q.detach().clone().to(dtype).requires_grad_()
        run(lambda q: lean(q * 2, q, q + 1), q).square().sum().backward()
        return q.grad

    checkpointed = gradient(lambda block, q: checkpoint(block, q, use_reentrant=False, context_fn=contexts))
    assert checkpointed.abs().max() > 0
    torch.testing.assert_close(checkpointed, gradient(lambda block, q: block(q)))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.usefixtures("auto_prefers_lean")
@pytest.mark.parametrize("strict", [False, True])
def test_export_leaves_no_private_operator(strict):
    class Model(torch.nn.Module):
        def forward(self, q):
            return preconditioned_attention(q, q, q)

    program = torch.export.export(Model(), (Q,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in targets
    assert not any("flash" in target or "conditioned" in target for target in targets)
    torch.testing.assert_close(program.module()(Q), composed(Q, Q, Q))
    assert "flash" not in str(torch.jit.trace(Model(), (Q,), check_trace=False).graph)


def test_fully_sharded(tmp_path):
    """FSDP2 over one process: its parameters are DTensors, and what reaches attention is not."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out(lean(q, k, v).transpose(1, 2).flatten(2)) + x

    x, block = torch.randn(2, 5, 16), Block()
    block(x).square().sum().backward()
    expected = block.qkv.weight.grad.clone()
    block.zero_grad()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(block, mesh=mesh)
        block(x).square().sum().backward()
        torch.testing.assert_close(block.qkv.weight.grad.full_tensor(), expected)
    finally:
        dist.destroy_process_group()
