"""Hook: the heads are rewritten on their way into the module that follows them.

It works for any attention whose heads reach some submodule (most often the output projection) unchanged, or are what
the attention module returns.  It costs one more tensor of the output's size than a class swap, and sees no attention
weights.

Axes: B batch (windows, clips), H heads, N tokens of one head, D head width.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from conditioned_attention.functional import behind
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.forward import demand, demand_no_more, reached, replaced
from conditioned_attention.sites.site import HOOK_KEY, Mechanism, Site, plain_class

ALONG = ("D", "N")


@dataclass(frozen=True)
class Layout:
    """How heads lie in the tensor that a hook sees: its axes in order, ``"B N H*D"`` or ``"B H*D N"`` or ``"B H N D"``.

    ``*`` joins two axes into one dimension, the slower first.  N may be any number of dimensions (height and width, or
    none where a head gives one row).  ``along`` is the axis that a row of the head runs along: D, or N in channel
    attention, where the rows of ``softmax(·) v`` are channels.
    """

    axes: str = "B N H*D"
    along: str = "D"

    def __post_init__(self) -> None:
        letters = re.sub(r"[ *]", "", self.axes)
        if sorted(letters) != ["B", "D", "H", "N"] or not re.fullmatch(r"[BHND](?:[ *][BHND])*", self.axes):
            raise ValueError(
                f"layout={self.axes!r} is not an order of the axes B, N, H and D such as 'B N H*D' or 'B H*D N'"
            )
        if self.axes.count("*") > 1 or not {"B", "N"} <= set(self.axes.split()):
            raise ValueError(f"layout={self.axes!r} joins axes other than H and D; valid are H*D and D*H")
        if self.along not in ALONG:
            raise ValueError(f"along={self.along!r} is unknown; valid are {ALONG}")

    def apply(self, transform: HeadTransform, x: Tensor, heads: int) -> Tensor:
        """``x`` with every head transformed."""
        dimensions = self.axes.split()
        n = dimensions.index("N")
        several = x.dim() - len(dimensions)  # dimensions of tokens beyond one; -1 where there is none
        if several < (-1 if "*" in self.axes else 0):
            raise ValueError(f"heads were expected as {self.axes!r}, got a tensor of shape {tuple(x.shape)}")
        i = next(i for i, dimension in enumerate(dimensions) if "H" in dimension)
        size = x.shape[i if i < n else i - len(dimensions)]
        if size != heads if dimensions[i] == "H" else size % heads:
            raise ValueError(
                f"heads were expected as {self.axes!r} with {heads} of them, got a tensor of shape {tuple(x.shape)}"
            )
        y = x.unsqueeze(n) if several < 0 else x.flatten(n, n + several)
        for i, dimension in enumerate(dimensions):
            if dimension == "H*D":
                y = y.unflatten(i, (heads, -1))
            elif dimension == "D*H":
                y = y.unflatten(i, (-1, heads))
        letters = re.sub(r"[ *]", "", self.axes)
        inward = [letters.index(axis) for axis in ("B", "H", *(("N", "D") if self.along == "D" else ("D", "N")))]
        outward = [inward.index(i) for i in range(4)]
        return behind(transform, y.permute(inward)).permute(outward).reshape(x.shape)


def _apply(layout: Layout, transform: HeadTransform, x: Tensor, heads: int) -> Tensor:
    return layout.apply(transform, x, heads)


torch.fx.wrap("_apply")  # one node, because it branches on sizes


@dataclass(frozen=True)
class Hook(Mechanism):
    """The heads reach the submodule ``at`` as its input; ``at=None``: they are what the module itself returns.

    Args:
        at: path of the submodule below the attention module, or None for the module's output (the first of a tuple).
        heads: the number of heads, or the attribute (a path with dots) of the attention module that holds it.
        layout: how the heads lie in that tensor.
        opt_in: why such modules are converted only if they are asked for by name; empty if they always are.
        width: the attribute that holds the width of a head, where the module's own forward splits the channels into as
            many heads of this width as fit.
    """

    at: str | None
    heads: str | int = "num_heads"
    layout: Layout = Layout()
    opt_in: str = ""
    width: str = ""

    name: ClassVar[str] = "hook"
    guarded: ClassVar[bool] = False  # skip_nnmodule_hook_guards, which is PyTorch's default

    def put(self, site: Site, transform: HeadTransform) -> None:
        self.put_on(site.module, transform)

    def uninstall(self, site: Site) -> bool:
        module = site.module
        if module.__dict__.pop(TRANSFORM, None) is None:
            return False
        module._forward_pre_hooks.pop(HOOK_KEY, None)
        demand_no_more(module)
        if (target := self.target(module)) is not None:
            _take_off(target)
        return True

    def missing(self, module: nn.Module) -> str:
        """Why the hook finds nothing to hold on to in this module; empty if it does."""
        if self.at is not None and self.target(module) is None:
            return f"this {type(module).__qualname__} has no module at {self.at!r}, where its heads should pass"
        if not isinstance(self.number_of_heads(module), int):
            return f"this {type(module).__qualname__} has no number of heads in the attribute {self.heads!r}"
        return ""

    def target(self, module: nn.Module) -> nn.Module | None:
        """The submodule that the hook stands before, if there is one."""
        found = None if self.at is None else _attribute(module, self.at)
        return found if isinstance(found, nn.Module) else None

    def refusal(self, site: Site, transform: HeadTransform) -> str:
        if reason := replaced(site.module, plain_class(site.module)):
            return reason
        if transform.needs_weights:
            return "its heads are reached by a hook, which never sees the attention weights: take rows='output'"
        if transform.changes_queries:
            return "its heads are reached by a hook, which never sees queries and keys"
        return ""

    def number_of_heads(self, module: nn.Module) -> Any:
        """The number of heads that was given, or that the module's attribute holds; None if there is no attribute."""
        return self.heads if isinstance(self.heads, int) else _attribute(module, self.heads)

    def heads_in(self, module: nn.Module, x: Tensor) -> Any:
        """The number of heads in a tensor, as the module has it at this call, because some may have been pruned."""
        return x.shape[-1] // _attribute(module, self.width) if self.width else self.number_of_heads(module)

    def put_on(self, module: nn.Module, transform: HeadTransform) -> None:
        """Puts hooks on all modules that take part."""
        module.__dict__[TRANSFORM] = transform
        rewrite = _Rewrite(self, module, transform)
        if self.at is None:
            put_first(module._forward_hooks, _OnOutput(self, rewrite))
            return
        target = self.target(module)
        assert target is not None  # `missing` has looked
        _take_off(target)
        # Three hooks: one changes the heads; one, before each call, puts it back if another module has been put in the
        # target's place; one, after each call, checks whether heads came by at all (`demand`).
        put_first(target._forward_pre_hooks, rewrite)
        put_first(module._forward_pre_hooks, _Follow(self))
        demand(module, f"no heads came to {self.at!r}", "register the class at another site")


def hook_of(module: nn.Module) -> Hook | None:
    """The hook that was put on an attention module, whatever its class; None if there is none."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        found = hooks.get(HOOK_KEY)
        if isinstance(found, (_Follow, _OnOutput)):
            return found.hook
    return None


@dataclass(frozen=True)
class _Rewrite:
    """A hook before the submodule that gets the heads of ``attention``, which is asked for their number every time."""

    hook: Hook
    attention: nn.Module
    transform: HeadTransform

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        reached(self.attention)
        if not args:
            raise TypeError(
                f"the heads should reach this {type(module).__qualname__} as its first positional argument, "
                "and it was called with keywords only"
            )
        heads = self.hook.heads_in(self.attention, args[0])
        return (_apply(self.hook.layout, self.transform, args[0], heads), *args[1:])


@dataclass(frozen=True)
class _OnOutput:
    """A hook after an attention module that returns its heads."""

    hook: Hook
    rewrite: _Rewrite

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        _raise_if_replaced(module)
        if isinstance(output, tuple):
            changed = self.rewrite(module, output)
            return type(output)(*changed) if hasattr(output, "_fields") else changed  # a named tuple stays one
        if isinstance(output, (list, Mapping)):
            raise TypeError(
                f"{type(module).__qualname__} should return its heads, or a tuple that begins with them; "
                f"it returned a {type(output).__name__}"
            )
        return self.rewrite(module, (output,))[0]


@dataclass(frozen=True)
class _Follow:
    """A hook before the attention module, which makes sure that `_Rewrite` is where the heads arrive.

    If another module is put there (LoRA wraps the output projection), the hook stays behind on the old one.
    """

    hook: Hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        _raise_if_replaced(module)
        target = self.hook.target(module)
        if target is not None and _rewrites(target):
            return
        if target is None or torch.compiler.is_compiling():
            raise RuntimeError(
                f"the module at {self.hook.at!r} of a {type(module).__qualname__} was replaced after conversion: "
                "convert again with precondition(model), or run the model once before torch.compile"
            )
        self.hook.put_on(module, module.__dict__[TRANSFORM])


def _raise_if_replaced(module: nn.Module) -> None:
    """Raises RuntimeError if the forward was replaced after conversion: a new one may pass on or return anything."""
    if "forward" not in module.__dict__ or torch.compiler.is_compiling():
        return
    if reason := replaced(module, plain_class(module)):
        raise RuntimeError(
            f"this {type(module).__qualname__} was converted, but {reason}: take that forward off, or call "
            "restore(model)"
        )


def _attribute(module: nn.Module, path: str) -> Any:
    """What is at a path with dots, or None."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def put_first(hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
    """Puts a hook before all others, which then see what the module really gets."""
    assert isinstance(hooks, OrderedDict)
    hooks[HOOK_KEY] = hook
    hooks.move_to_end(HOOK_KEY, last=False)


def _take_off(target: nn.Module) -> None:
    """Removes the hook from the module at the site, or from one inside it if it has become a wrapper since."""
    for module in target.modules():
        for key in _rewrites(module):
            del module._forward_pre_hooks[key]


def _rewrites(module: nn.Module) -> list[int]:
    """The keys of `_Rewrite` among a module's hooks; not `HOOK_KEY` if torch.ao has moved it to a quantized module."""
    return [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _Rewrite)]
