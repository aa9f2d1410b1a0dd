"""`preconditioned_attention` on tensors: checks its arguments, picks an implementation, can explain the pick.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from conditioned_attention.attention import composed, fused, fused_contract, lean, lean_contract
from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.preconditioner import HeadTransform, RowNorm, check_rows

IMPLEMENTATIONS = ("composed", "lean", "fused")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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

    Equation (12) and Theorem 4.4 of arXiv 2603.27153, ``C_ii = 1 / max(‖row_i‖₂, eps)``; a row of exactly zero
    keeps C = 1.  The first block of arguments is that of ``torch.nn.functional.scaled_dot_product_attention``.

    Args:
        query: (..., H, N, D), or (N, D); float16, bfloat16, float32 or float64.
        key: (..., H, M, D); G key heads with G a divisor of H if ``enable_gqa``.
        value: (..., H, M, E), of key's heads.
        attn_mask: broadcastable to (..., H, N, M).  Boolean, True where the query may attend; or a number added to
            the logits, of query's dtype or float32.
        dropout_p: probability that an attention weight is dropped, in [0, 1].  C is taken after dropout.  As in
            PyTorch it applies whenever it is not zero: pass 0.0 in evaluation.
        is_causal: query i attends to keys 0..i (aligned to the upper left).  With ``attn_mask`` both hold.
        scale: factor on the logits; default 1/√D.
        enable_gqa: let several query heads share a key and value head.  Each query head has its own C.
        window: query i attends only to keys j with |i - j| < window (with ``is_causal`` the last ``window`` keys up to
            i); None for all.  ``"fused"`` skips what lies outside, the others make a mask of it.
        rows: ``"output"``, C from the rows of ``softmax(q kᵀ) v`` (Theorem 4.4); or ``"weights"``, from the rows of
            ``softmax(q kᵀ)`` (Algorithm 1 read literally), which takes B · H · N · M numbers of memory except in
            ``"fused"``.
        gradient: ``"stopped"``, C is a constant in backward (the paper); ``"through"``, the ordinary derivative.
        eps: the smallest row norm that is divided by; float16 uses at least 6.1e-5.
        impl: ``"composed"``, PyTorch's attention and then C: works wherever that does, and keeps one more tensor of
            the output's size for backward; ``"lean"``, PyTorch's flash operators with C worked in: keeps one float
            a row more than plain attention; ``"fused"``, Triton kernels of our own for CUDA: keeps that too; or
            ``"auto"``, whichever was measured to be better for the device and size (`explain` says which, and why).
            An explicit request never falls back to another.

    Returns:
        (..., H, N, E), in query's dtype (autocast's under autocast).

    Raises:
        ValueError: shapes or devices that do not fit, an unknown option, a number out of range; ``impl="lean"`` or
            ``"fused"`` where it cannot run (dropout on a CPU, a transform of functorch, no CUDA, ...).
        TypeError: something that is not a tensor, or tensors of dtypes that do not go together.

    With the gradient stopped the result is not the gradient of any function of the inputs: it keeps the part along
    the row, which the forward pass does not depend on.  ``gradient="through"`` removes it.

    >>> import torch
    >>> from conditioned_attention import preconditioned_attention
    >>> q, k, v = torch.randn(3, 2, 4, 10, 16)  # 2 sequences, 4 heads, 10 tokens, 16 wide
    >>> y = preconditioned_attention(q, k, v, is_causal=True)
    >>> y.shape, torch.allclose(y.norm(dim=-1), torch.ones(2, 4, 10))
    (torch.Size([2, 4, 10, 16]), True)
    """
    transform = RowNorm(rows, gradient, eps)
    _check_name(impl)
    arguments = _arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)
    return _attend(transform, arguments, impl)


def precondition_rows(output: Tensor, *, gradient: str = "stopped", eps: float = 1e-6) -> Tensor:
    """C applied to a head output that someone else computed: each row along the last dimension to unit length.

    Args:
        output: (..., D), one attention head's row each; float16, bfloat16, float32 or float64.
        gradient: ``"stopped"`` or ``"through"``, as in `preconditioned_attention`.
        eps: the smallest row norm that is divided by; float16 uses at least 6.1e-5.

    Returns:
        ``output`` with rows of unit length, in the same dtype; zero rows stay zero.

    Raises:
        ValueError: an unknown option, or no dimension to take rows along.
        TypeError: not a floating-point tensor.

    >>> import torch
    >>> from conditioned_attention import precondition_rows
    >>> precondition_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    _check_float("output", output)
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
    arguments = _arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return _attend(transform, arguments, "auto")


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
    """Which implementation `preconditioned_attention` would run for these arguments, and why not the others.

    Takes the same arguments, raises the same errors, and computes nothing.

    >>> import torch
    >>> from conditioned_attention import explain
    >>> q = torch.randn(2, 4, 10, 16)
    >>> explain(q, q, q).impl
    'composed'
    """
    transform = RowNorm(rows, gradient, eps)
    _check_name(impl)
    arguments = _arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)
    refused = {name: why for name in IMPLEMENTATIONS if (why := _why_not(name, transform, arguments))}
    picked = _pick(transform, arguments, impl)
    others = {name: refused.get(name) or _why_passed_over(name, picked, arguments, impl) for name in IMPLEMENTATIONS}
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


def _attend(transform: HeadTransform, arguments: Arguments, impl: str) -> Tensor:
    picked = _pick(transform, arguments, impl)
    if picked == "fused":
        return fused.attend(transform, arguments)
    arguments = arguments.for_pytorch()
    return lean.attend(transform, arguments) if picked == "lean" else composed.attend(transform, arguments)


def _pick(transform: HeadTransform, arguments: Arguments, impl: str) -> str:
    """The implementation that runs; one that was asked for by name runs or raises."""
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


def _check_name(impl: str) -> None:
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r} is unknown; valid are {('auto', *IMPLEMENTATIONS)}")


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    window: int | None = None,
) -> Arguments:
    _check(query, key, value, attn_mask, dropout_p, enable_gqa)
    _check_window(window)
    if attn_mask is not None and attn_mask.is_floating_point() and query.dtype == torch.float64:
        attn_mask = attn_mask.double()  # stock CPU attention accepts a float32 mask there and misreads it
    return Arguments(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, enable_gqa: bool
) -> None:
    """Raises for whatever `scaled_dot_product_attention` would refuse, take silently or answer obscurely."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_float(name, tensor)
        if tensor.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions (tokens, width), got shape {tuple(tensor.shape)}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; they must share one device")
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise TypeError(f"{name} has dtype {tensor.dtype}, query {query.dtype}; they must share one dtype")
    if not isinstance(dropout_p, (int, float, torch.SymFloat)):
        raise TypeError(f"dropout_p must be a number, got {type(dropout_p).__name__}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be a probability in [0, 1], got {dropout_p}")
    if query.is_nested or key.is_nested or value.is_nested:
        return  # jagged sizes are PyTorch's to compare
    if torch._C._get_tracing_state() is not None:
        return  # sizes are values of the graph there, and PyTorch checks them when it runs
    _check_shapes(query, key, value, enable_gqa)
    if attn_mask is not None:
        _check_mask(query, key, attn_mask, enable_gqa)


def _check_window(window: int | None) -> None:
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, (int, torch.SymInt)):
        raise TypeError(f"window must be a whole number or None, got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


def _check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; valid are float16, bfloat16, float32 and float64")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    wrong = _wrong_shapes(query.shape, key.shape, value.shape, enable_gqa)
    if wrong is not None:  # the words are made only now: small attention takes no longer than they do
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"{wrong}: {shapes}")


def _wrong_shapes(query: torch.Size, key: torch.Size, value: torch.Size, enable_gqa: bool) -> str | None:
    if query[-1] != key[-1]:
        return "query and key must have the same head width (last dimension)"
    if key[-2] != value[-2]:
        return "key and value must have the same number of tokens (dimension -2)"
    if enable_gqa:
        if min(len(query), len(key), len(value)) < 3:
            return "enable_gqa needs a head dimension (-3) in query, key and value"
        if key[-3] != value[-3] or key[-3] == 0 or query[-3] % key[-3]:
            return "enable_gqa needs key and value heads (dimension -3) that divide query's"
    skip = 3 if enable_gqa else 2
    if not all(_broadcast(query[:-skip], other[:-skip]) for other in (key, value)):
        return "batch and head dimensions must be equal or broadcastable"
    return None


def _check_mask(query: Tensor, key: Tensor, attn_mask: Tensor, enable_gqa: bool) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor or None, got {type(attn_mask).__name__}")
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, query on {query.device}; they must share one device")
    autocast = torch.is_autocast_enabled(query.device.type) and attn_mask.is_floating_point()
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype) and not autocast:
        valid = " and ".join(str(dtype) for dtype in dict.fromkeys((torch.bool, torch.float32, query.dtype)))
        raise TypeError(f"attn_mask has dtype {attn_mask.dtype}; valid are {valid}")
    heads = query.shape[:-2]
    if not enable_gqa:  # under grouped queries the heads are query's
        heads = torch.broadcast_shapes(heads, key.shape[:-2])
    target, sizes = (*heads, query.shape[-2], key.shape[-2]), attn_mask.shape
    # "==" and not "in": a size may be symbolic under torch.compile.
    fits = all(size == 1 or size == goal for size, goal in zip(reversed(sizes), reversed(target)))
    if not fits or not 2 <= len(sizes) <= len(target):
        raise ValueError(f"attn_mask of shape {tuple(sizes)} does not broadcast to (..., H, N, M) = {target}")


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b)))
