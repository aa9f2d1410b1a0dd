"""The Triton kernels: the case list of the operator, masks, registration, what is kept, what is refused."""

import functools
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from conditioned_attention import explain, reference
from conditioned_attention.attention.fused import attend as fused
from conditioned_attention.attention.fused import launch as fused_launch
from conditioned_attention.attention.fused.launch import Options
from conditioned_attention.attention.lean import rows as lean_rows
from conditioned_attention.attention.triton import machine
from conditioned_attention.profiling.memory import held_bytes
from tests.attention.kernels import DEVICE, GPU, assert_good, fused_, interpreted, needs_kernels, poison_more_memory  # noqa: F401
from tests.attention.test_operator import CASES, double, plain_through, run
from tests.judge import plain, stock
from tests.triton_interpreter import VARIABLE

pytestmark = needs_kernels

ROOT = Path(__file__).parents[2]
REFUSED = {"5-D": "same number of dimensions", "float64": "not torch.float64", "float64, mask": "not torch.float64"}
# Those whose gradient through the norm says something new, for the interpreter
THROUGH = {
    "63 tokens, width 60",
    "rows below eps",
    "fully masked rows",
    "grouped queries, causal, mask",
    "bfloat16",
    "float16",
}
MARKS = {"1000 tokens": pytest.mark.slow_on_a_cpu, "fully masked rows": ()}  # the second alone notices a listed fault
cases = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=MARKS.get(case.name, pytest.mark.one_in(8))) for case in CASES]
)


def on_device(tensors, mask):
    return [t.to(DEVICE) for t in tensors], None if mask is None else mask.to(DEVICE)


@cases
def test_output_and_gradient_are_as_good_as_plain_pytorch(case):
    tensors, mask = on_device(*case.tensors())
    options = {"is_causal": case.causal, "scale": case.scale, "enable_gqa": case.kv_heads is not None}
    if case.name in REFUSED:
        with pytest.raises(ValueError, match=f"impl='fused' cannot run here: .*{REFUSED[case.name]}"):
            fused_(*tensors, mask, **options)
        return
    ours = run(fused_, tensors, mask, **options)
    arguments = (case.causal, case.scale, case.kv_heads is not None)
    # The memory-efficient operators of CUDA have made rows without a key NaN (pytorch/pytorch#110213).
    with sdpa_kernel(SDPBackend.MATH) if case.name.startswith("fully masked") else nullcontext():
        plains = run(plain, tensors, mask, *arguments)
    oracle = run(reference.preconditioned_attention, [t.double() for t in tensors], double(mask), *arguments)
    assert ours[0].dtype == case.dtype
    assert_good(ours, plains, oracle, case.name)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in THROUGH], ids=lambda case: case.name)
def test_gradient_through_the_norm(case):
    tensors, mask = on_device(*case.tensors())
    gqa = case.kv_heads is not None
    ours = run(fused_, tensors, mask, 0.0, case.causal, scale=case.scale, enable_gqa=gqa, gradient="through")
    plains = run(plain_through, tensors, mask, case.causal, case.scale, gqa)
    oracle = run(plain_through, [t.double() for t in tensors], double(mask), case.causal, case.scale, gqa)
    assert_good(ours, plains, oracle, case.name)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("n", "m"), [(70, 70), (40, 100), (100, 40)])
def test_causal_over_several_blocks(n, m):
    """Blocks that every query sees, that some see in part, and that none sees; two heads share their keys."""
    q, k, v = torch.randn(1, 2, n, 16), torch.randn(1, 1, m, 16), torch.randn(1, 1, m, 16)
    tensors = [t.to(DEVICE) for t in (q, k, v)]
    arguments = (None, True, None, True)
    oracle = run(plain, [t.double() for t in tensors], *arguments)
    assert_good(run(fused_, tensors, is_causal=True, enable_gqa=True), run(plain, tensors, *arguments), oracle, (n, m))


# Sequences, heads, key heads, queries, keys -> shapes of masks; the second has several blocks of queries and keys
MASKS = {
    (2, 4, 2, 9, 12): [(9, 12), (1, 12), (2, 1, 1, 12), (1, 4, 9, 12), (2, 4, 9, 12)],
    (1, 2, 1, 70, 40): [(70, 40), (1, 40)],
}


@pytest.mark.parametrize(
    ("sizes", "shape", "causal", "gradient"),
    [
        pytest.param(s, shape, *way, marks=pytest.mark.slow_on_a_cpu if (i + j) % 2 else ())  # in turn
        for j, way in enumerate([(False, "stopped"), (True, "through")])
        for i, (s, shape) in enumerate((s, shape) for s in MASKS for shape in MASKS[s])
    ],
    ids=str,
)
def test_gradient_of_an_additive_mask(sizes, shape, causal, gradient, monkeypatch):
    monkeypatch.setattr(fused_launch, "_PROGRAMS", 3)  # so that heads are added up in the kernel and after it
    b, h, g, n, m = sizes
    q, k, v, mask = torch.randn(b, h, n, 12), *torch.randn(2, b, g, m, 12), torch.randn(shape)
    tensors = [t.to(DEVICE) for t in (q, k, v, mask)]
    ours = run(fused_, tensors, is_causal=causal, enable_gqa=True, gradient=gradient)
    function = plain if gradient == "stopped" else plain_through
    plains = run(lambda *t: function(*t, causal, None, True), tensors)
    oracle = run(lambda *t: function(*t, causal, None, True), [t.double() for t in tensors])
    assert_good(ours, plains, oracle, shape)


def test_a_number_added_to_all_keys_has_no_gradient():
    q, k, v = torch.randn(3, 1, 2, 9, 16, device=DEVICE)
    mask = torch.randn(2, 9, 1, device=DEVICE)
    assert (run(fused_, (q, k, v, mask))[4] == 0).all()
    torch.testing.assert_close(fused_(q, k, v, mask), fused_(q, k, v))


def test_rows_masked_by_the_smallest_number_are_pytorchs():
    """Many models mask so; a row of nothing else attends to all keys alike."""
    q, k, v = torch.randn(3, 1, 2, 9, 16, device=DEVICE)
    mask = torch.zeros(9, 9, device=DEVICE)
    mask[3] = torch.finfo(torch.float32).min
    # The memory-efficient operators of CUDA have made such rows NaN (pytorch/pytorch#110213).
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.normalize(stock(q, k, v, mask), dim=-1)
    torch.testing.assert_close(fused_(q, k, v, mask), expected)


def test_no_number_in_a_mask_is_none_in_the_row():
    """And is not taken for the smallest, as a maximum of GPUs would."""
    q, k, v = torch.randn(3, 1, 2, 9, 16, device=DEVICE)
    mask = torch.zeros(9, 9, device=DEVICE)
    mask[3, 4] = math.nan
    hurt = fused_(q, k, v, mask).isnan()
    assert hurt[:, :, 3].all()
    assert hurt.sum() == 2 * 16


def test_zero_rows_send_back_what_plain_attention_would():
    q, k = torch.randn(2, 1, 1, 6, 16, device=DEVICE)
    v = torch.zeros_like(k)
    ours, stock_ = run(fused_, (q, k, v)), run(F.scaled_dot_product_attention, (q, k, v))
    assert (ours[0] == 0).all()
    torch.testing.assert_close(ours[3], stock_[3])


def test_float16_keeps_small_weights_of_large_values():
    """C times a weight is 1e-6 here, where float16 has steps of 6e-8."""
    q, k, v, upstream = (torch.randn(1, 1, 64, 16, device=DEVICE) * factor for factor in (1, 1, 1e4, 100))
    tensors = [t.half() for t in (q, k, v)]

    def dv(function, *tensors):
        value = tensors[2].detach().requires_grad_()
        return torch.autograd.grad(function(*tensors[:2], value), value, upstream.to(value.dtype))[0].double()

    oracle = dv(plain, *(t.double() for t in tensors))
    error, reference = ((dv(function, *tensors) - oracle).abs().max() for function in (fused_, plain))
    assert error <= 3 * reference


def test_one_token_keeps_every_digit():
    """Its weight is 1 whatever its logit; a C that went through the log-sum-exp of 256 would not come back whole.

    32² rounds nowhere; of other logits a GPU's multiply-add, which does not round the product, would find the rest.
    """
    q = torch.zeros(1, 1, 1, 16, device=DEVICE)
    q[..., 0] = 32.0
    v, upstream = torch.randn(2, 1, 1, 1, 16, device=DEVICE)
    v.requires_grad_()
    (dv,) = torch.autograd.grad(fused_(q, q, v), v, upstream)
    torch.testing.assert_close(dv, upstream / v.detach().norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1e25), (torch.float16, 1e-5), (torch.float16, 1e4)])
def test_extreme_values_are_finite(dtype, factor):
    q, k = torch.randn(2, 1, 2, 9, 16, dtype=dtype, device=DEVICE)
    v = (torch.randn(1, 2, 9, 16) * factor).to(DEVICE, dtype)
    for result in run(fused_, (q, k, v)):
        assert result.isfinite().all()


@pytest.mark.parametrize("widths", [(16, 256), (200, 33), (1, 3)])
def test_head_widths(widths):
    d, e = widths
    q, k, v = torch.randn(1, 1, 5, d), torch.randn(1, 1, 7, d), torch.randn(1, 1, 7, e)
    tensors = [t.to(DEVICE) for t in (q, k, v)]
    assert_good(run(fused_, tensors), run(plain, tensors), run(plain, [t.double() for t in tensors]), widths)


Q = torch.randn(2, 4, 5, 8, device=DEVICE)
SMALL = Q[:1, :1].contiguous()
WIDE = torch.randn(1, 1, 3, 257, device=DEVICE)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((WIDE, WIDE, WIDE), {}, "head widths up to 256, got 257"),
        ((Q, Q[:1], Q[:1]), {}, "broadcast"),
        ((Q[:, :, :0], Q, Q), {}, "empty"),
        ((Q.double(), Q.double(), Q.double()), {}, "not torch.float64"),
        ((Q.to("meta"),) * 3, {}, "the tensors are on meta"),
    ],
)
def test_refuses_with_the_reason(args, kwargs, words):
    with pytest.raises(ValueError, match=f"impl='fused' cannot run here: .*{words}"):
        fused_(*args, **kwargs)
    assert words in explain(*args, **kwargs).refused["fused"]


def test_explain_says_what_it_is_and_why_auto_does_not_take_it():
    assert "one float a row" in explain(Q, Q, Q, impl="fused").reason
    assert "no measurement" in explain(Q, Q, Q).refused["fused"]


@pytest.mark.slow_on_a_cpu
@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
def test_operators_are_registered_rightly(masked):
    q, k, v = (SMALL.clone().requires_grad_() for _ in range(3))
    of_mask = masked == torch.float32
    mask = None if masked is None else torch.ones(1, 1, 5, 5, device=DEVICE, dtype=masked, requires_grad=of_mask)
    seed = torch.tensor([5], device=DEVICE)
    options = Options(False, 0.3, 0.0 if masked is None else 0.2, 0, 1e-6, "output", "stopped")
    torch.library.opcheck(fused.forward_operator, (q, k, v, mask, seed, None, None, *options))
    results = [t.detach() for t in fused.forward_operator(q, k, v, mask, seed, None, None, *options)]
    inputs = [t if t is None else t.detach() for t in (q, k, v, mask, seed, None, None)]
    torch.library.opcheck(fused.backward_operator, (results[0], *inputs, *results, *options, of_mask))


@pytest.mark.slow_on_a_cpu
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    bias = torch.randn(5, 5, device=DEVICE)
    function = lambda *t: fused_(*t, is_causal=True)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = (SMALL, SMALL + 1, SMALL - 1, bias)
    for a, b in zip(run(compiled, tensors), run(function, tensors), strict=True):
        torch.testing.assert_close(a, b)


def graphs_of(attention, mark):
    """How many graphs torch.compile makes of growing sequences and batches; ``mark``: sizes said to differ."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter)
    for b, n in ((1, 5), (1, 6), (2, 7), (3, 9)):
        q, k, v = (t.requires_grad_() for t in torch.randn(3, b, 2, n, 8, device=DEVICE))
        for tensor in (q, k, v) if mark else ():
            torch._dynamo.mark_dynamic(tensor, 2)
        compiled(q, k, v).sum().backward()
    return counter.frame_count


@pytest.mark.slow
@pytest.mark.parametrize("mark", [False, True])
def test_recompiles_no_more_than_plain_attention(mark):
    ours = graphs_of(lambda q, k, v: fused_(q, k, v, is_causal=True, dropout_p=0.1), mark)
    assert ours <= graphs_of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, None, 0.1, True), mark)


def test_keeps_one_float_a_row_more_than_plain_attention():
    """Through the output projection, which keeps its input."""
    b, h, n, d = 2, 3, 20, 16
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in torch.randn(3, b, n, h, d, device=DEVICE))
    weight = torch.randn(h * d, h * d, device=DEVICE, requires_grad=True)

    def held(attention):
        forward = lambda: attention(q, k, v).transpose(1, 2).reshape(b, n, h * d) @ weight  # noqa: E731
        return held_bytes(forward, [q, k, v, weight])

    row = 4 * b * h * n
    assert held(fused_) == row * d + 2 * row  # y; the log-sum-exp, as flash attention; 1/C


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_keeps_as_little_when_compiled(dynamic):
    b, h, n, d = 2, 3, 50, 16
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in torch.randn(3, b, n, h, d, device=DEVICE))
    weight = torch.randn(h * d, h * d, device=DEVICE, requires_grad=True)
    block = lambda *t: fused_(*t).transpose(1, 2).flatten(2) @ weight  # noqa: E731
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic)
    row = 4 * b * h * n
    assert held_bytes(lambda: compiled(q, k, v), [q, k, v, weight]) == row * d + 2 * row


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_inductor(turned):
    """The real compiler may lay tensors out otherwise than the trace did."""

    def block(x, w, out):
        q, k, v = (x @ w).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        y = fused_(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ out
        return y.transpose(1, 2).sum((1, 2)) if turned else y

    tensors = [t.to(DEVICE) for t in (torch.randn(2, 10, 64), torch.randn(64, 192) / 8, torch.randn(64, 64) / 8)]
    compiled = torch.compile(block, fullgraph=True)
    for a, b in zip(run(compiled, tensors), run(block, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_drops_the_same_weights_again(reentrant):
    def gradient(run_block):
        torch.manual_seed(0)
        q = SMALL.clone().requires_grad_()
        run_block(lambda q: fused_(q * 2, q, q + 1, dropout_p=0.4).sin(), q).square().sum().backward()
        return q.grad

    checkpointed = gradient(lambda block, q: checkpoint(block, q, use_reentrant=reentrant))
    assert torch.equal(checkpointed, gradient(lambda block, q: block(q)))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("saved", ["attention", "everything", "nothing"])
def test_selective_checkpointing(saved):
    attention = [torch.ops.conditioned_attention.fused_forward.default]
    choice = {"everything": CheckpointPolicy.PREFER_SAVE, "nothing": CheckpointPolicy.PREFER_RECOMPUTE}
    policy = attention if saved == "attention" else lambda *args, **kwargs: choice[saved]
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def gradient(run_block):
        torch.manual_seed(0)
        q = SMALL.clone().requires_grad_()
        run_block(lambda q: fused_(q * 2, q, q + 1, dropout_p=0.4).sin(), q).square().sum().backward()
        return q.grad

    checkpointed = gradient(lambda block, q: checkpoint(block, q, use_reentrant=False, context_fn=contexts))
    assert torch.equal(checkpointed, gradient(lambda block, q: block(q)))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 3]])
def test_some_of_the_gradients(wanted):
    q, k, v, bias = *torch.randn(3, 1, 2, 9, 16, device=DEVICE), torch.randn(2, 9, 9, device=DEVICE)
    everything = run(fused_, (q, k, v, bias))[1:]
    tensors = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((q, k, v, bias))]
    output = fused_(*tensors)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(output)
    output.backward(upstream)
    for i, tensor in enumerate(tensors):
        assert torch.equal(tensor.grad, everything[i]) if i in wanted else tensor.grad is None


def test_gradients_that_a_sum_sends_back():
    """Their strides are 0."""
    q, k, v = torch.randn(3, 1, 2, 9, 16, device=DEVICE)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    expanded = torch.autograd.grad(fused_(*leaves).sum(), leaves)
    whole = torch.autograd.grad(fused_(*leaves), leaves, torch.ones_like(q))
    assert all(torch.equal(a, b) for a, b in zip(expanded, whole, strict=True))


def test_inference_mode():
    with torch.inference_mode():
        y = fused_(SMALL, SMALL, SMALL)
    torch.testing.assert_close(y, fused_(SMALL, SMALL, SMALL))


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_modes_see_the_operators():
    q = SMALL.clone().requires_grad_()
    with Watching() as mode:
        watched = run(fused_, (q, q, q))
    assert {"conditioned_attention.fused_forward.default", "conditioned_attention.fused_backward.default"} < set(
        mode.seen
    )
    for a, b in zip(watched, run(fused_, (q, q, q)), strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_are_an_error():
    q = SMALL.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fused_(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_nothing_is_recorded_without_gradients():
    with torch.no_grad():
        assert not fused_(SMALL.clone().requires_grad_(), SMALL, SMALL).requires_grad


def test_tf32_is_pytorchs_switch_to_turn():
    """By its newer name, after which the older one raises."""
    switches = torch.backends.cuda.matmul
    if not hasattr(switches, "fp32_precision"):
        pytest.skip("a PyTorch that has only the older name")
    before = switches.fp32_precision
    try:
        found = []
        for precision in ("tf32", "ieee"):
            switches.fp32_precision = precision
            found.append(fused_launch._may_use_tf32())
    finally:
        switches.fp32_precision = before
    assert found == [True, False]


def test_autocast():
    with torch.autocast(DEVICE, torch.bfloat16):
        assert fused_(Q, Q, Q).dtype == torch.bfloat16
        assert "not torch.float64" in explain(Q, Q.double(), Q).refused["fused"]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes"), [(80, 163), (89, 99), (90, 227)])
def test_compiles_for_a_gpu_and_fits(capability, kilobytes, tmp_path):
    """Without one, by Triton's compiler and assembler: the interpreter takes what these do not."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop(VARIABLE, None)
    command = [sys.executable, "-m", "tests.attention.compile_kernels", str(capability)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    of_backward = {"prepare", "keys_and_values", "queries", "additive_mask"}
    assert {line[0] for line in lines} == {"attend", "attend_in_parts", "merge", *of_backward}
    for kernel, shared, stack, case in lines:
        assert int(shared) <= kilobytes * 1024, (kernel, case)
        if capability == 90 or case == "dropout, 128 wide":  # whose own blocks are there for this
            assert int(stack) <= 192, (kernel, case)  # registers that did not fit: 48 of a thread's 255


@pytest.mark.parametrize(("attribute", "value", "words"), [("hip", "6.4", "ROCm"), ("old", True, "capability 8.0")])
def test_other_cards_are_refused(attribute, value, words, monkeypatch):
    if attribute == "hip":
        monkeypatch.setattr(torch.version, "hip", value)
    monkeypatch.setattr(machine, "_too_old", lambda index: value is True)
    with FakeTensorMode():
        q = torch.empty(1, 2, 5, 16, device="cuda")
        assert words in explain(q, q, q).refused["fused"]
        assert not lean_rows.run_on(q)


@pytest.mark.skipif(GPU, reason="there Triton has its driver")
def test_a_machine_on_which_triton_cannot_launch_is_refused(tmp_path, monkeypatch):
    """As where there is no C compiler, with which Triton builds what talks to the driver."""
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "_too_old", lambda index: False)
    machine._cannot_launch.cache_clear()
    assert "Triton cannot launch kernels, for which it needs a C compiler" in machine.refuses_machine(
        torch.device("cuda")
    )
    machine._cannot_launch.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2])
def test_offsets_beyond_two_to_the_31(which):
    """The second sequence lies 2³¹ numbers behind the first (4 GiB, of zeros but for these)."""
    far = 2**31 + 64
    tensors = list(torch.randn(3, 2, 2, 40, 16, device=DEVICE).half())
    near = run(fused_, tensors)
    memory = torch.zeros(far + tensors[0][0].numel(), dtype=torch.half, device=DEVICE)
    tensors[which] = memory.as_strided((2, 2, 40, 16), (far, 640, 16, 1)).copy_(tensors[which])
    for a, b in zip(run(fused_, tensors), near, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not GPU, reason="no CUDA device")
def test_more_than_two_to_the_31_numbers():
    q = torch.randn(1, 2**13 + 1, 2**12, 64, device=DEVICE, dtype=torch.bfloat16)  # 4 GiB each
    few = torch.randn(1, 2**13 + 1, 16, 64, device=DEVICE, dtype=torch.bfloat16)
    y = fused_(q, few, few)
    torch.testing.assert_close(y[:, -1:], plain(q[:, -1:], few[:, -1:], few[:, -1:]), atol=1e-2, rtol=0)


@pytest.mark.skipif(not GPU, reason="no CUDA device")
def test_the_same_bits_every_time():
    tensors = [torch.randn(2, 8, 300, 64, device=DEVICE) for _ in range(3)] + [torch.randn(8, 300, 300, device=DEVICE)]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(fused_, tensors), run(fused_, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
