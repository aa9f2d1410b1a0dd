"""Variants of a comparison: each is a name and the changes that it makes to an otherwise identical model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import nn

from conditioned_attention.conversion import ConversionReport
from conditioned_attention.experiments.variants.changes import Change, Heads, Patterns


@dataclass(frozen=True)
class Variant:
    """A named set of changes to a model's attention, which a comparison trains as one variant.

    Attributes:
        name: its name in tables and folders.
        changes: what is done to a fresh model, in this order; empty for a plain model.
        about: one line for the report.

    >>> import torch
    >>> from conditioned_attention.preconditioner import RowNorm
    >>> from conditioned_attention.experiments import VARIANTS, Variant
    >>> from conditioned_attention.experiments.variants.changes import Heads
    >>> mine = Variant("c_with_gradient", (Heads(RowNorm(gradient="through")),), "C is differentiated too")
    >>> mine.apply(torch.nn.TransformerEncoderLayer(32, 4, 64)).rows[0].status
    'converted'
    """

    name: str
    changes: tuple[Change, ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+=-]*", self.name):
            raise ValueError(
                f"a variant's name is also a folder's: letters, digits and _ . + - = only, got {self.name!r}"
            )
        if not isinstance(self.changes, tuple) or not all(isinstance(change, Change) for change in self.changes):
            raise TypeError(f"changes must be a tuple of changes, such as (Heads(),), got {self.changes!r}")
        for one, two in combinations(self.changes, 2):
            who = f"variant {self.name!r}: {type(one).__name__} and {type(two).__name__}"
            if one.of == two.of and _meet(one, two):
                raise ValueError(f"{who} both change the {one.of} of the same modules, and only one can")
            if two.initial and not one.initial:
                raise ValueError(f"{who} are the wrong way round: what changes the start alone comes first")

    def apply(self, model: nn.Module, batch: Any = None, *, initialise: bool = True) -> ConversionReport | None:
        """Changes ``model`` in place; every attention module that is to be changed must be of a known class.

        Args:
            model: a freshly built model.
            batch: some inputs, for changes that depend on what the model does with them.
            initialise: False leaves out changes that act only on initial weights, for a model that has been trained.

        Returns:
            The report of the last conversion, or None if there was none.

        Raises:
            ValueError: an attention module cannot be changed, a pattern matches none, or a change needs a batch, or one
                that reaches every attention module.
        """
        changes = [change for change in self.changes if initialise or not change.initial]
        return _last(change.apply(model, batch) for change in changes)

    def apply_structure(self, model: nn.Module) -> ConversionReport | None:
        """As `apply` with meaningless numbers: to count or time what a model does, without data or on meta tensors."""
        return _last(change.apply_structure(model) for change in self.changes)

    def after_step(self, model: nn.Module) -> None:
        """What its changes do to the model after every optimizer step; usually nothing."""
        for change in self.changes:
            change.after_step(model)

    def leaving(self, patterns: tuple[str, ...]) -> Variant:
        """The same variant, but it leaves the attention modules of these names alone."""
        return replace(self, changes=tuple(replace(c, exclude=_joined(c.exclude, patterns)) for c in self.changes))

    @property
    def mixes_rows(self) -> bool:
        """Whether the result for a token depends on the rows of other tokens."""
        return any(isinstance(change, Heads) and change.transform.mixes_rows for change in self.changes)


def _joined(patterns: Patterns, more: tuple[str, ...]) -> Patterns:
    before = (patterns,) if isinstance(patterns, str) else patterns or ()
    return (*before, *more) or None


def _meet(one: Change, two: Change) -> bool:
    """Whether both changes select a common module, as far as that can be known without a model."""
    if (one.include, one.exclude) == (two.include, two.exclude):
        return True
    return one.include is two.include is None and None in (one.exclude, two.exclude)


def _last(reports: Iterable[ConversionReport | None]) -> ConversionReport | None:
    found = None
    for report in reports:
        found = report or found
    return found


def check_suited(variants: Iterable[Variant], *, causal: bool) -> None:
    """Raises ValueError for a variant that a causal task cannot use, because it mixes rows of different tokens."""
    for variant in variants:
        if causal and variant.mixes_rows:
            raise ValueError(
                f"variant {variant.name!r} is not for a causal task: a token's factor would depend on the tokens after "
                "it, which are what is predicted"
            )
