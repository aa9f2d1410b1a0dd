"""`preconditioned_attention` on tensors: checks the arguments, picks an implementation, and can explain the choice.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from conditioned_attention.attention import composed
from conditioned_attention.attention.arguments import Arguments, check_float, checked
from conditioned_attention.attention.fused import attend as fused
from conditioned_attention.attention.fused import contract as fused_contract
from conditioned_attention.attention.lean import attend as lean
from conditioned_attention.attention.lean import contract as lean_contract
from conditioned_attention.preconditioner import HeadTransform, RowNorm, check_rows

IMPLEMENTATIONS = ("composed", "lean", "fused")


class _Rule(NamedTuple):
    """The implementation that "auto" prefers for queries of a device and at least so many numbers, and why."""

    device: str
    numbers: int
    impl: str
    why: str


# The first row that fits is preferred; where its implementation cannot run, or would copy, "composed" does.  The rows
# come from results/bench/operator.csv: over plain attention in float32, forward and backward, composed and lean take
# 1.02 and 1.04 at 8×6×197×64 numbers, 1.05 and 1.05 at 512×3×49×32, 1.21 and 1.46 at 8×6×17×16.
_AUTO = (
    _Rule("cpu", 2**19, "lean", "takes up to 3 % less time here, but keeps one more tensor of the output's size"),
    _Rule("cpu", 0, "composed", "so small a call takes longer in it than its memory is worth"),
    _Rule("cuda", 0, "composed", "no measurement on CUDA speaks for it yet"),
)
_OTHERWISE = _Rule("", 0, "composed", "nothing was measured for this device")
_UNMEASURED = "no measurement speaks for it yet"


_chosen = "auto"  # what "auto" means now; torch.compile guards on it, and compiles anew where it has changed


def implementation(impl: str) -> AbstractContextManager[None]:
    """Returns a context manager inside which ``impl="auto"`` means this implementation.

    It applies to calls on tensors, to packed sequences and to converted models.  Like an explicit ``impl=`` it raises
    where the implementation cannot run, and never falls back to another; a call that names an implementation gets that
    one.  It holds for all threads of the process, and for compiled functions, whether they were compiled outside the
    block (they are compiled once for each implementation) or enter it themselves.  If activation checkpointing
    recomputes part of the forward pass, enter it around the whole training step.

    Args:
        impl: ``"composed"``, ``"lean"`` or ``"fused"`` (see `preconditioned_attention`), or ``"auto"`` for the rule
            that holds outside.

    Raises:
        ValueError: an unknown name.  Calls inside the block raise it if the implementation cannot run on their
            arguments, or in a converted module that computes its own attention and has C applied afterwards, which is
            what ``"composed"`` does.

    >>> import torch
    >>> from conditioned_attention import explain, implementation
    >>> q = torch.randn(2, 4, 10, 16)
    >>> with implementation("lean"):
    ...     explain(q, q, q).impl
    'lean'
    """
    check_impl(impl)
    return _meanwhile(impl)


@contextmanager
def _meanwhile(impl: str) -> Iterator[None]:
    global _chosen
    before, _chosen = _chosen, impl
    try:
        yield
    finally:
        _chosen = before


def behind(transform: HeadTransform, output: Tensor, weights: Tensor | None = None) -> Tensor:
    """A transform of heads that a module has computed by itself: as ``"composed"`` would, so nothing else may be asked.

    Args:
        transform: of the heads.
        output: (..., H, N, E), what they give.
        weights: (..., H, N, M), for a transform that reads them.

    Raises:
        ValueError: `implementation` asks for another.
    """
    if _chosen not in ("auto", "composed"):
        raise ValueError(
            f"implementation({_chosen!r}) cannot run here: this module computes its own attention, and the transform "
            "of its heads is applied behind that; 'auto' and 'composed' do so"
        )
    return transform(output, weights)


@dataclass(frozen=True)
class Explanation:
    """Which implementation runs, and why each other one does not.

    Attributes:
        impl: the name of the implementation that `preconditioned_attention` would run.
        reason: why it was picked, with what it costs.
        refused: every other implementation, by name, with the reason against it.
    """

    impl: str
    reason: str
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.impl}: {self.reason}"]
        return "\n".join(lines + [f"not {name}: {why}" for name, why in self.refused.items()])


def preconditioned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    window: int | None = None,
    rows: str = "output",
    gradient: str = "stopped",
    eps: float = 1e-6,
    impl: str = "auto",
) -> Tensor:
    """Attention with every row of every head scaled to unit length: ``C · softmax(q kᵀ · scale) v``.

    This is equation (12) and Theorem 4.4 of arXiv 2603.27153, with ``C_ii = 1 / max(‖row_i‖₂, eps)``; a row of exactly
    zero keeps C = 1.  The arguments up to ``enable_gqa`` are those of
    ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        query: (..., H, N, D), or (N, D); float16, bfloat16, float32 or float64.
        key: (..., H, M, D); with ``enable_gqa`` G key heads, where G divides H.
        value: (..., H, M, E), with as many heads as key.
        attn_mask: broadcastable to (..., H, N, M).  Boolean, True where the query may attend; or numbers that are added
            to the logits, in query's dtype or float32.
        dropout_p: probability that an attention weight is dropped, in [0, 1].  C is computed after dropout.  As in
            PyTorch, dropout applies whenever this is not zero: pass 0.0 in evaluation.
        is_causal: query i attends to keys 0..i (aligned to the upper left).  If ``attn_mask`` is given, both apply.
        scale: factor on the logits; default 1/√D.
        enable_gqa: let several query heads share a key and value head.  Each query head has its own C.
        window: query i attends only to keys j with |i - j| < window (with ``is_causal`` to the last ``window`` keys up
            to i); None for all.  ``"fused"`` skips what lies outside, the other implementations turn it into a mask.
        rows: ``"output"`` computes C from the rows of ``softmax(q kᵀ) v`` (Theorem 4.4); ``"weights"`` from the rows of
            ``softmax(q kᵀ)`` (Algorithm 1 read literally), which takes memory for B · H · N · M numbers except with
            ``"fused"``.
        gradient: ``"stopped"`` treats C as a constant in the backward pass, as in the paper; ``"through"`` takes the
            ordinary derivative.
        eps: the smallest norm by which a row is divided; float16 uses at least 6.1e-5.
        impl: ``"composed"``, PyTorch's attention and then C: works wherever that does, and keeps one more tensor of
            the output's size for the backward pass; ``"lean"``, PyTorch's flash operators with C built in: keeps one
            float per row more than plain attention; ``"fused"``, our own Triton kernels for CUDA: keep that float too;
            or ``"auto"``, whichever was measured to be better for the device and size (`explain` says which, and why).
            An explicit request never falls back to another implementation.

    Returns:
        (..., H, N, E), in query's dtype (under autocast, in autocast's).

    Raises:
        ValueError: shapes or devices that do not match, an unknown option, a number out of range; ``impl="lean"`` or
            ``"fused"`` where it cannot run (dropout on a CPU, a functorch transform, no CUDA, ...).
        TypeError: an argument that is not a tensor, or tensors of incompatible dtypes.

    With the gradient stopped, the backward pass does not give the gradient of any function of the inputs: it keeps the
    component along each row, on which the forward pass does not depend.  ``gradient="through"`` removes it.

    >>> import torch
    >>> from conditioned_attention import preconditioned_attention
    >>> q, k, v = torch.randn(3, 2, 4, 10, 16)  # 2 sequences, 4 heads, 10 tokens, 16 wide
    >>> y = preconditioned_attention(q, k, v, is_causal=True)
    >>> y.shape, torch.allclose(y.norm(dim=-1), torch.ones(2, 4, 10))
    (torch.Size([2, 4, 10, 16]), True)
    """
    transform = RowNorm(rows, gradient, eps)
    check_impl(impl)
    arguments = checked(Arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window))
    return run(transform, arguments, impl)


def precondition_rows(output: Tensor, *, gradient: str = "stopped", eps: float = 1e-6) -> Tensor:
    """Applies C to a head output that was computed elsewhere: scales each row along the last dimension to unit length.

    Args:
        output: (..., D), rows of attention heads along the last dimension; float16, bfloat16, float32 or float64.
        gradient: ``"stopped"`` or ``"through"``, as in `preconditioned_attention`.
        eps: the smallest norm by which a row is divided; float16 uses at least 6.1e-5.

    Returns:
        ``output`` with rows of unit length, in the same dtype; zero rows stay zero.

    Raises:
        ValueError: an unknown option, or a tensor without dimensions.
        TypeError: not a floating-point tensor.

    >>> import torch
    >>> from conditioned_attention import precondition_rows
    >>> precondition_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    check_float("output", output)
    if output.dim() < 1:
        raise ValueError("output must have at least one dimension, the row's, got a scalar")
    return RowNorm("output", gradient, eps)(output)


def attend(
    transform: HeadTransform,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention followed by any `HeadTransform`: what converted models call.  Arguments as above.

    A transform that mixes rows is refused under a causal or a boolean mask.  Masks of numbers are let through: most are
    position biases.
    """
    check_rows(transform, causal=is_causal, masked=attn_mask is not None and attn_mask.dtype == torch.bool)
    if transform.changes_queries:
        query, key = transform.queries(query, key)
    arguments = checked(Arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa))
    return run(transform, arguments, "auto")


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    window: int | None = None,
    rows: str = "output",
    gradient: str = "stopped",
    eps: float = 1e-6,
    impl: str = "auto",
) -> Explanation:
    """Tells which implementation `preconditioned_attention` would run for these arguments, and why not the others.

    It takes the same arguments and raises the same errors, but computes nothing.

    >>> import torch
    >>> from conditioned_attention import explain
    >>> q = torch.randn(2, 4, 10, 16)
    >>> explain(q, q, q).impl
    'composed'
    """
    transform = RowNorm(rows, gradient, eps)
    check_impl(impl)
    arguments = checked(Arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window))
    refused = {name: why for name in IMPLEMENTATIONS if (why := _why_not(name, transform, arguments))}
    picked = _pick(transform, arguments, impl)
    asked = meant(impl)
    others = {name: refused.get(name) or _why_passed_over(name, picked, arguments, asked) for name in IMPLEMENTATIONS}
    del others[picked]
    return Explanation(picked, _cost(picked, transform), others)


def _why_passed_over(name: str, picked: str, arguments: Arguments, impl: str) -> str:
    """The reason against an implementation that could run."""
    if impl != "auto":
        return f"impl={impl!r} was asked for"
    if name == "fused":
        return _UNMEASURED
    rule = _preferred(arguments)
    return rule.why if picked == rule.impl else lean_contract.copies(arguments) or ""


def run(transform: HeadTransform, arguments: Arguments, impl: str) -> Tensor:
    """What every public function comes down to: picks an implementation and calls it."""
    picked = _pick(transform, arguments, impl)
    if picked == "fused":
        return fused.attend(transform, arguments)
    arguments = arguments.for_pytorch()
    return lean.attend(transform, arguments) if picked == "lean" else composed.attend(transform, arguments)


def _pick(transform: HeadTransform, arguments: Arguments, impl: str) -> str:
    """The implementation that runs; one that was asked for by name runs or raises."""
    impl = meant(impl)
    if impl == "auto":
        name = _preferred(arguments).impl
        why_not = _why_not(name, transform, arguments)
        if name == "lean":
            why_not = why_not or lean_contract.copies(arguments)
        return name if why_not is None else "composed"
    why_not = _why_not(impl, transform, arguments)
    if why_not is not None:
        raise ValueError(f"impl={impl!r} cannot run here: {why_not}; 'auto' picks one that can")
    return impl


def _preferred(arguments: Arguments) -> _Rule:
    query = arguments.query
    if torch._C._get_tracing_state() is not None:
        return _OTHERWISE  # the size is a value of the graph there
    fits = (rule for rule in _AUTO if query.device.type == rule.device and _at_least(rule.numbers, query))
    return next(fits, _OTHERWISE)


def _at_least(numbers: int, query: Tensor) -> bool:
    if numbers == 0 or not torch.compiler.is_compiling():
        return query.numel() >= numbers
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # A size that is a symbol stays one: no guard on it, and so no compilation that plain attention would not take.
    return statically_known_true(query.numel() >= numbers)


def _why_not(name: str, transform: HeadTransform, arguments: Arguments) -> str | None:
    """The reason why an implementation cannot run; None if it can."""
    if name == "lean":
        return lean_contract.refusal(transform, arguments)
    return fused_contract.refusal(transform, arguments) if name == "fused" else None


def _cost(name: str, transform: HeadTransform) -> str:
    if transform.needs_weights and name == "composed":
        return "explicit softmax in float32, because rows='weights' reads the weights; memory B·H·N·M"
    if name == "lean":
        return "PyTorch's flash attention with C folded into backward; keeps one float a row more than plain attention"
    if name == "fused":
        return "Triton kernels with C worked in; keeps one float a row more than plain attention"
    return "scaled_dot_product_attention, then C; keeps one more tensor of the output's size"


def meant(impl: str) -> str:
    """The implementation that a call asks for, by its own word or by that of `implementation` around it."""
    return _chosen if impl == "auto" else impl


def check_impl(impl: str) -> None:
    """Raises ValueError for a name that is no implementation's."""
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r} is unknown; valid are {('auto', *IMPLEMENTATIONS)}")
