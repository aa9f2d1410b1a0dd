"""`register_attention`: makes your own attention classes known; their heads are reached by a hook."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.projections import Places, Projection, Projections, weight_at
from conditioned_attention.sites.site import Mechanism, plain_class
from conditioned_attention.sites.swap import subclass_reason

_registered: dict[type, Hook] = {}
_projections: dict[type, Places | Callable[[Any], Places]] = {}


def register_attention(
    cls: type[nn.Module],
    *,
    at: str | None,
    heads: str | int = "num_heads",
    layout: str = "B N H*D",
    along: str = "D",
    projections: Places | Callable[[Any], Places] | None = None,
) -> None:
    """Tells the library where the heads of your own attention class are, so that `precondition` can convert it.

    Only this exact class is registered, not its subclasses, for the rest of the process.  Registering it again replaces
    the earlier registration for later conversions.

    Args:
        cls: a subclass of ``torch.nn.Module`` that computes attention.
        at: path of the submodule (relative to an instance) that gets the heads' output ``softmax(q kᵀ) v`` as its first
            argument, usually the output projection; or None if ``forward`` returns the heads (alone, or as the first
            entry of a tuple).  Nothing may come in between: no gate, no norm, no sum.  If there is no such submodule,
            put an ``nn.Identity()`` there: it adds no key to the state_dict.
        heads: the number of heads, or the name of the instance attribute that holds it.
        layout: the axes of that tensor in order: B batch, N tokens, H heads, D head width; ``*`` joins two of them into
            one dimension.  ``"B N H*D"`` is the usual ``(batch, tokens, channels)``, ``"B H*D N"`` an image
            ``(batch, channels, height, width)``, ``"B H N D"`` heads that are not merged yet.
        along: the axis along which a row of the attention output runs: ``"D"`` for one row per token; ``"N"`` for
            attention between channels, where a row is one channel over all tokens.
        projections: for `spectral_condition`: maps the path of each submodule that computes queries, keys or values to
            what the rows of its weight compute, in order: ``{"qkv": "qkv"}`` for [Q | K | V],
            ``{"q": "q", "kv": "kv"}``, ``"H*qkv"`` if the rows of each head lie together, ``"-"`` for rows that are
            something else, and ``("qkv", (64, 16, 16))`` with the number of rows of each (within one head after ``H*``)
            if they are not equal; or a function that returns such a mapping for an instance.  A path that ends in a
            parameter, such as ``"in_proj_weight"``, stands for that parameter.

    Raises:
        TypeError: ``cls`` is not a module class, or ``at``, ``heads`` or ``projections`` has the wrong type.
        ValueError: ``layout``, ``along`` or what the rows compute is invalid, or ``heads`` is below 1.

    >>> import torch
    >>> from torch import nn
    >>> from conditioned_attention import precondition, register_attention, spectral_condition
    >>> class MyAttention(nn.Module):
    ...     def __init__(self, width, heads):
    ...         super().__init__()
    ...         self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
    ...
    ...     def forward(self, x):
    ...         q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    ...         y = nn.functional.scaled_dot_product_attention(q, k, v)
    ...         return self.out(y.transpose(1, 2).flatten(2))
    >>> register_attention(MyAttention, at="out", heads="heads", projections={"qkv": "qkv"})
    >>> model = nn.Sequential(MyAttention(32, 4), MyAttention(32, 4))
    >>> precondition(model).converted, spectral_condition(model, "auto").converted
    (['0', '1'], ['0', '1'])
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls must be a subclass of torch.nn.Module, got {cls!r}")
    if at is not None and not (isinstance(at, str) and at):
        raise TypeError(f"at must be the path of a submodule, or None for the module's output, got {at!r}")
    if isinstance(heads, bool) or not isinstance(heads, (str, int)):
        raise TypeError(f"heads must be a number or the name of an attribute, got {type(heads).__name__}")
    if isinstance(heads, int) and heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    if projections is not None and not (isinstance(projections, Mapping) or callable(projections)):
        raise TypeError(f"projections must be a mapping or a function, got {type(projections).__name__}")
    if isinstance(projections, Mapping):
        _check(projections)
    _registered[cls] = Hook(at, heads, Layout(layout, along))
    _projections.pop(cls, None)
    if projections is not None:
        _projections[cls] = projections


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to a module's heads if its class was registered; a reason if that does not fit; None if it was not."""
    cls = plain_class(module)
    if cls in _registered:
        return _registered[cls].missing(module) or _registered[cls]
    bases = [base for base in cls.__mro__[1:] if base in _registered]
    return subclass_reason(cls, bases[0]) if bases else None


def projections_of(module: nn.Module) -> Projections | str | None:
    """Where a registered class makes queries, keys and values; a reason if that does not fit; None for all others."""
    cls = plain_class(module)
    if cls not in _registered:
        return None
    if cls not in _projections:
        return "was registered without its projections: call register_attention(…, projections=…)"
    places = _projections[cls]
    if callable(places):
        places = places(module)
        _check(places)
    heads = _registered[cls].number_of_heads(module)
    weights = []
    for path, rows in places.items():
        owner, parameter = _place(module, path)
        if parameter is None:
            return f"has no weight {path!r}, which was registered by register_attention"
        weights.append(weight_at(owner, rows, heads, parameter))
    found = Projections(tuple(weights), heads)
    try:
        found.head_widths(module)
    except (ValueError, KeyError) as error:
        return f"does not have the projections that were registered by register_attention: {error}"
    return found


def _place(module: nn.Module, path: str) -> tuple[str, str | None]:
    """The path of the submodule and the name of its weight, which is None if there is none."""
    try:
        owner = Projection(path).owner(module)
    except AttributeError:
        above, _, name = path.rpartition(".")
        parameters = dict(module.named_parameters(remove_duplicate=False))
        return above, name if path in parameters else None
    return path, "weight" if getattr(owner, "weight", None) is not None else None


def _check(places: Places) -> None:
    """Raises unless queries, keys and values are each made in exactly one place."""
    if not isinstance(places, Mapping):
        raise TypeError(f"projections must give a mapping from paths to rows, got {type(places).__name__}")
    all_roles = ""
    for path, rows in places.items():
        roles = rows if isinstance(rows, str) else rows[0] if isinstance(rows, tuple) and len(rows) == 2 else None
        if not (isinstance(path, str) and isinstance(roles, str) and re.fullmatch(r"(H\*)?[qkv-]+", roles)):
            raise ValueError(
                f"projections[{path!r}] must be letters of q, k, v and -, with 'H*' before them where each head's rows "
                f"lie together, or such letters and the numbers of rows; got {rows!r}"
            )
        all_roles += roles
    if sorted(all_roles.replace("H*", "").replace("-", "")) != ["k", "q", "v"]:
        raise ValueError(f"projections must make queries, keys and values once each, got {dict(places)!r}")
