"""`register_attention`: classes of your own, reached by a hook."""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.site import Mechanism, plain_class
from conditioned_attention.sites.swap import subclass_reason

_registered: dict[type, Hook] = {}


def register_attention(
    cls: type[nn.Module],
    *,
    at: str | None,
    heads: str | int = "num_heads",
    layout: str = "B N H*D",
    along: str = "D",
) -> None:
    """Tells the library where the heads of an attention class of your own are, so that `precondition` converts it.

    Exactly this class is known then, not its subclasses, for the rest of the process.  Registering it again replaces
    what was said before, for conversions to come.

    Args:
        cls: a subclass of ``torch.nn.Module`` that computes attention.
        at: path of the submodule (below an instance) that gets the heads' output ``softmax(q kᵀ) v`` as its first
            argument, most often the output projection; or None if the heads are what ``forward`` returns (the first of
            a tuple).  Nothing may stand between: no gate, no norm, no sum.  If there is no such submodule, put an
            ``nn.Identity()`` there: it adds no key to the state_dict.
        heads: the number of heads, or the attribute of an instance that holds it.
        layout: the axes of that tensor in order: B batch, N tokens, H heads, D head width; ``*`` joins two of them into
            one dimension.  ``"B N H*D"`` is the usual ``(batch, tokens, channels)``, ``"B H*D N"`` an image
            ``(batch, channels, height, width)``, ``"B H N D"`` heads that are not merged yet.
        along: the axis that a row of the attention output runs along: ``"D"``, one row a token; ``"N"`` in attention
            between channels, where a row is one channel over all tokens.

    Raises:
        TypeError: ``cls`` is not a class of modules, or ``at`` or ``heads`` has a wrong type.
        ValueError: ``layout`` or ``along`` is unknown, or ``heads`` below 1.

    >>> import torch
    >>> from torch import nn
    >>> from conditioned_attention import precondition, register_attention
    >>> class MyAttention(nn.Module):
    ...     def __init__(self, width, heads):
    ...         super().__init__()
    ...         self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
    ...
    ...     def forward(self, x):
    ...         q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    ...         y = nn.functional.scaled_dot_product_attention(q, k, v)
    ...         return self.out(y.transpose(1, 2).flatten(2))
    >>> register_attention(MyAttention, at="out", heads="heads")
    >>> precondition(nn.Sequential(MyAttention(32, 4), MyAttention(32, 4))).converted
    ['0', '1']
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls must be a subclass of torch.nn.Module, got {cls!r}")
    if at is not None and not (isinstance(at, str) and at):
        raise TypeError(f"at must be the path of a submodule, or None for the module's output, got {at!r}")
    if isinstance(heads, bool) or not isinstance(heads, (str, int)):
        raise TypeError(f"heads must be a number or the name of an attribute, got {type(heads).__name__}")
    if isinstance(heads, int) and heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    _registered[cls] = Hook(at, heads, Layout(layout, along))


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to its heads if its class was registered; a reason if that fits it not; None if it was not."""
    cls = plain_class(module)
    if cls in _registered:
        return _registered[cls].missing(module) or _registered[cls]
    bases = [base for base in cls.__mro__[1:] if base in _registered]
    return subclass_reason(cls, bases[0]) if bases else None
