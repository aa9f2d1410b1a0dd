"""Where an attention module keeps W_Q, W_K and W_V: which rows of which weights make queries, keys and values.

Roles are letters: q, k, v, and - for rows that are none of them (a gate, an MLP beside attention).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from conditioned_attention.sites.adapters import adapter_against

ROLES = "qkv"
NORMED = "its weights are corrected before the norm that follows them"  # remark

Making = str | tuple[str, Sequence[int]]  # what the rows of a weight make, as `register_attention` takes it
Places = Mapping[str, Making]


@dataclass(frozen=True)
class Projection:
    """One weight of an attention module that holds rows of W_Q, W_K or W_V.

    Attributes:
        path: path, below the attention module, of the module that owns it; empty if that is the attention module.
        roles: the roles that the rows make, in order.
        sizes: the number of rows of each role in one group; None if they are equal.
        groups: how often the sequence of roles is repeated: 1 for ``[Q | K | V]``, the number of heads if the rows of
            each head lie together.
        parameter: the name of the weight in its owner.
        bias: the name of the bias if it is not beside the weight but on the attention module, with ``{}`` for the
            letter of the role, or the name of one bias [Q | K | V].
    """

    path: str
    roles: str = ROLES
    sizes: tuple[int, ...] | None = None
    groups: int = 1
    parameter: str = "weight"
    bias: str = ""

    @property
    def name(self) -> str:
        """The name of the weight, below the attention module."""
        return f"{self.path}.{self.parameter}".lstrip(".")

    def owner(self, attention: nn.Module) -> nn.Module:
        """The module that holds the weight now, inside an adapter (PEFT's LoRA) if it has been wrapped in one since."""
        owner = attention.get_submodule(self.path)
        while isinstance(inner := getattr(owner, "base_layer", None), nn.Module):
            owner = inner
        return owner

    def against(self, attention: nn.Module) -> str:
        """Why C cannot be added to the weight; empty if it can."""
        owner = self.owner(attention)
        weight = owner._parameters.get(self.parameter)
        if weight is None:
            return self.replaced(owner)
        reason = not_to_add_to(weight)
        return f"{self.name} {reason}" if reason else adapter_against(attention.get_submodule(self.path))

    def replaced(self, owner: nn.Module) -> str:
        """The reason to refuse a weight that is not a parameter of its owner but computed again in every call."""
        return (
            f"{self.name} is no parameter of its {type(owner).__qualname__}, so C would not reach it: "
            "torch.nn.utils.parametrize, weight norm, pruning and quantize_dynamic put something else in its place"
        )

    def rows(self, attention: nn.Module) -> dict[str, Rows]:
        """The rows of each role, in the weight as a matrix (out, in)."""
        return self.rows_of(self.owner(attention))

    def rows_of(self, owner: nn.Module) -> dict[str, Rows]:
        """The same, given the module that owns the weight."""
        weight = held(owner, self.parameter)
        total = int(as_matrix(owner, getattr(owner, self.parameter) if weight is None else weight).shape[0])
        sizes = self.sizes or (total // (self.groups * len(self.roles)),) * len(self.roles)
        step = sum(sizes)
        if step * self.groups != total or len(sizes) != len(self.roles):
            raise ValueError(f"{self.name} has {total} rows, which are not {self.groups} × {sizes} for {self.roles!r}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        found = zip(self.roles, starts, sizes)
        return {role: Rows(start, size, self.groups, step) for role, start, size in found if role in ROLES}

    def biases(self, attention: nn.Module) -> dict[str, tuple[Tensor, list[int]]]:
        """The bias of each role that has one, and the indices of the role's entries in it."""
        owner, found = self.owner(attention), {}
        beside = self.parameter.replace("weight", "bias") if "weight" in self.parameter else ""
        for role, rows in self.rows_of(owner).items():
            if self.bias:
                bias, entries = getattr(attention, self.bias.format(role), None), [*range(rows.count)]
                if bias is not None and len(bias) > rows.count:
                    entries = [ROLES.index(role) * rows.count + i for i in entries]
            else:
                bias, entries = getattr(owner, beside, None), rows.indices()
            if isinstance(bias, Tensor):
                found[role] = bias, entries
        return found


@dataclass(frozen=True)
class Rows:
    """Rows ``start + g · step + j`` for groups g and j < size: those of one role, in order."""

    start: int
    size: int
    groups: int
    step: int

    @property
    def count(self) -> int:
        return self.groups * self.size

    def indices(self) -> list[int]:
        """The indices of all these rows."""
        return [self.start + g * self.step + j for g in range(self.groups) for j in range(self.size)]


@dataclass(frozen=True)
class Projections:
    """All weights that make the queries, keys and values of an attention module.

    Attributes:
        weights: each weight once; every role is in one of them.
        heads: the number of query heads.
        remark: what a report should say about them.
    """

    weights: tuple[Projection, ...]
    heads: int
    remark: str = ""

    def bound_logits(self, attention: nn.Module) -> bool:
        """Whether queries and keys go through a norm after the projections, which keeps logits small for any λ."""
        return NORMED in self.remark or hasattr(attention, "logit_scale")  # cosine attention, as in Swin V2

    def against(self, attention: nn.Module) -> str:
        """Why C cannot be added to one of the weights; empty if it can."""
        return next((reason for weight in self.weights if (reason := weight.against(attention))), "")

    def of(self, roles: str) -> Projections:
        """The same without the weights that hold none of these roles."""
        return replace(self, weights=tuple(weight for weight in self.weights if set(weight.roles) & set(roles)))

    def matrices(self, attention: nn.Module) -> Iterator[tuple[str, Tensor, list[int]]]:
        """Yields each role, the weight (out, in) that makes it as a view of the parameter, and its rows in that."""
        for projection in self.weights:
            owner = projection.owner(attention)
            matrix = as_matrix(owner, getattr(owner, projection.parameter))
            for role, rows in projection.rows(attention).items():
                yield role, matrix, rows.indices()

    def head_widths(self, attention: nn.Module) -> dict[str, int]:
        """The number of rows per head for each role: keys have as many as queries, values have as many heads as keys.

        Raises ValueError if the rows cannot be divided evenly among the heads.
        """
        rows = {role: r.count for weight in self.weights for role, r in weight.rows(attention).items()}
        width = rows["q"] // self.heads
        key_heads = rows["k"] // width if width else 0
        widths = {"q": width, "k": width, "v": rows["v"] // key_heads if key_heads else 0}
        if width * self.heads != rows["q"] or key_heads * width != rows["k"] or key_heads * widths["v"] != rows["v"]:
            raise ValueError(f"rows for {rows} cannot be divided evenly among {self.heads} heads")
        return widths


def weight_at(path: str, making: Making, heads: int, parameter: str = "weight") -> Projection:
    """One weight, from what its rows make; ``"H*qkv"`` is (Q K V)(Q K V)..., once for each head."""
    roles, sizes = (making, None) if isinstance(making, str) else (making[0], tuple(making[1]))
    return Projection(path, roles.removeprefix("H*"), sizes, heads if roles.startswith("H*") else 1, parameter)


def made_by(
    module: Any, places: Mapping[str, str | tuple[str, str | Sequence[int]]], heads: int, remark: str = ""
) -> Projections:
    """The weights at these paths; numbers of rows may be names of attributes: ``("H*kv", "key_dim val_dim")``."""
    weights = []
    for path, making in places.items():
        if isinstance(making, tuple) and isinstance(making[1], str):
            making = (making[0], [getattr(module, name) for name in making[1].split()])
        weights.append(weight_at(path, making, heads))  # type: ignore[arg-type]
    return Projections(tuple(weights), heads, remark)


def held(owner: nn.Module, parameter: str) -> Tensor | None:
    """The parameter of this name, or the tensor that is set in its place for a call, as DataParallel and PEFT do.

    None if it has become a property or a method, or does not exist.
    """
    found = owner._parameters.get(parameter)
    return owner.__dict__.get(parameter) if found is None else found


def is_offloaded(owner: nn.Module) -> bool:
    """Whether accelerate keeps the values of a module's weights elsewhere, and brings them for each call."""
    hook = owner.__dict__.get("_hf_hook")
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))


def not_to_add_to(weight: Tensor) -> str:
    """Why C cannot be added to this weight; empty if it can."""
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        return f"is of {weight.dtype}, to which C cannot be added"
    cls = type(weight)
    if cls.__torch_dispatch__ is not Tensor.__torch_dispatch__ and not cls.__module__.startswith("torch."):
        return f"is a {cls.__module__}.{cls.__qualname__}, as quantizers put them in place, to which C cannot be added"
    return ""


def as_matrix(owner: nn.Module, weight: Tensor) -> Tensor:
    """A view of a weight as (out, in): transposed if it is (in, ...), without the kernel of 1 × 1 convolutions."""
    matrix = weight.flatten(1) if weight.dim() > 2 else weight
    names = {cls.__qualname__ for cls in type(owner).__mro__ if cls.__module__.startswith("transformers.")}
    return matrix.t() if names & _TRANSPOSED else matrix


# Classes of transformers, which is not imported for this: their weights are (in, out) and (in, heads, width).
_TRANSPOSED = {"Conv1D", "XLNetRelativeAttention"}


def whole(weight: Tensor) -> Tensor:
    """A weight that FSDP2 or tensor parallelism has spread over devices, gathered; every process has to call this."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
