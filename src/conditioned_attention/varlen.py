"""`preconditioned_attention_varlen`: attention over sequences of different lengths, packed into one tensor.

Shapes: T and S the numbers of all queries and of all keys, H heads (G key heads under grouped queries), D head width,
E value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conditioned_attention.attention.arguments import Arguments, checked
from conditioned_attention.attention.fused import attend as fused
from conditioned_attention.attention.fused import contract as fused_contract
from conditioned_attention.functional import check_impl, meant, run
from conditioned_attention.preconditioner import RowNorm


def preconditioned_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
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
    """Applies `preconditioned_attention` to sequences packed into one tensor; no sequence attends to another.

    Args:
        query: (T, H, D), the queries of all sequences one after the other.
        key: (S, H, D), their keys; with ``enable_gqa`` (S, G, D), where G divides H.
        value: (S, H, E), with as many heads as key.
        cu_seqlens_q: int32 on query's device, one entry more than there are sequences: the index of the first query of
            each, starting with 0, and T as the last entry.
        cu_seqlens_k: the same for the keys, with S.  A sequence without keys gives rows of zero.
        max_seqlen_q: the number of queries in the longest sequence, or more.  If None it is computed, which waits for
            the device.
        max_seqlen_k: the same for keys.
        dropout_p, is_causal, scale, enable_gqa, window, rows, gradient, eps: as in `preconditioned_attention`, within
            each sequence.  With ``is_causal`` the first query sees only the first key, even if there are more keys
            than queries.
        impl: ``"fused"``, all sequences in one launch of the Triton kernels, for CUDA; ``"composed"`` or ``"lean"``,
            one call per sequence; or ``"auto"``, one call per sequence of whatever `preconditioned_attention` picks,
            until a measurement on CUDA favours something else.

    Returns:
        (T, H, E), in query's dtype (under autocast, in autocast's).

    Raises:
        ValueError: shapes that do not match, an unknown option, or an ``impl`` that cannot run.  Entries of
            ``cu_seqlens`` that are out of order, and lengths above ``max_seqlen``, are detected on a CPU and wherever
            ``max_seqlen`` is None.  With it the caller is responsible on CUDA, where the check would wait for the
            device, and under ``torch.compile``.
        TypeError: an argument that is not a tensor, or incompatible dtypes.

    >>> import torch
    >>> from conditioned_attention import preconditioned_attention_varlen
    >>> q, k, v = torch.randn(3, 7, 4, 16)  # 7 tokens of two sequences, 4 heads, 16 wide
    >>> starts = torch.tensor([0, 5, 7], dtype=torch.int32)
    >>> y = preconditioned_attention_varlen(q, k, v, starts, starts, is_causal=True)
    >>> y.shape, torch.allclose(y.norm(dim=-1), torch.ones(7, 4))
    (torch.Size([7, 4, 16]), True)
    """
    transform = RowNorm(rows, gradient, eps)
    check_impl(impl)
    _check_shapes(query, key, value, enable_gqa)
    longest_q = _check_starts("q", cu_seqlens_q, query, max_seqlen_q)
    longest_k = _check_starts("k", cu_seqlens_k, key, max_seqlen_k)
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        lengths = f"{len(cu_seqlens_q)} and {len(cu_seqlens_k)}"
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must be of as many sequences, got {lengths} numbers")
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    arguments = checked(Arguments(q, k, v, None, dropout_p, is_causal, scale, enable_gqa, window))
    if meant(impl) == "fused":
        if (why_not := fused_contract.refusal(transform, arguments)) is not None:
            raise ValueError(f"impl='fused' cannot run here: {why_not}; 'auto' picks one that can")
        output = fused.attend_packed(transform, arguments, cu_seqlens_q, cu_seqlens_k, (longest_q, longest_k))
    else:
        output = _one_by_one(transform, arguments, cu_seqlens_q, cu_seqlens_k, impl)
    return output.squeeze(0).transpose(0, 1)


def _one_by_one(transform: RowNorm, arguments: Arguments, starts_q: Tensor, starts_k: Tensor, impl: str) -> Tensor:
    """(1, H, T, E), from one call a sequence."""
    query, key, value = arguments[:3]
    lengths_q, lengths_k = (starts.diff().tolist() for starts in (starts_q, starts_k))
    sequences = zip(query.split(lengths_q, 2), key.split(lengths_k, 2), value.split(lengths_k, 2), strict=True)
    outputs = []
    for q, k, v in sequences:
        one = arguments._replace(query=q, key=k, value=v)
        outputs.append(run(transform, one, impl if q.numel() and k.numel() else "composed"))  # nothing to compute
    return torch.cat(outputs, 2) if outputs else query.new_zeros(*query.shape[:3], value.shape[-1])


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != 3:
            raise ValueError(f"{name} must be (tokens, heads, width), got shape {tuple(tensor.shape)}")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"query and key must have the same head width (last dimension): {shapes}")
    if key.shape[:2] != value.shape[:2]:
        raise ValueError(f"key and value must have the same tokens and heads (dimensions 0 and 1): {shapes}")
    h, g = query.shape[1], key.shape[1]
    if g == 0 or (h % g if enable_gqa else h != g):
        words = "a number of heads that divides query's" if enable_gqa else "query's number of heads"
        raise ValueError(f"key and value must have {words} (dimension 1): {shapes}")


def _check_starts(which: str, starts: Tensor, tokens: Tensor, longest: int | None) -> int:
    """The most tokens of a sequence."""
    name = f"cu_seqlens_{which}"
    if not isinstance(starts, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(starts).__name__}")
    if starts.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {starts.dtype}")
    if starts.dim() != 1 or len(starts) < 1 or starts.device != tokens.device:
        where = f"shape {tuple(starts.shape)} on {starts.device}"
        raise ValueError(f"{name} must be one number more than there are sequences, on {tokens.device}, got {where}")
    if longest is not None and (isinstance(longest, bool) or longest < 0):
        raise ValueError(f"max_seqlen_{which} must not be negative, got {longest}")
    if longest is not None and (starts.device.type != "cpu" or torch.compiler.is_compiling()):
        return longest
    lengths = starts.diff()
    if starts[0] != 0 or starts[-1] != len(tokens) or (lengths < 0).any():
        raise ValueError(f"{name} must go up from 0 to the number of tokens, {len(tokens)}, got {starts.tolist()}")
    most = int(lengths.max()) if len(lengths) else 0
    if longest is not None and longest < most:
        raise ValueError(f"max_seqlen_{which} is {longest}, but a sequence has {most} tokens")
    return most
