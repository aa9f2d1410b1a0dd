"""The report of a conversion, with one row for each attention module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conditioned_attention.sites import Site


@dataclass(frozen=True)
class ReportRow:
    """What a conversion did to one attention module.

    Attributes:
        name: the name of the module, as in ``model.named_modules()``.
        class_name: its class before conversion.
        mechanism: how its heads are reached; empty if they cannot be.
        status: ``"converted"``, ``"unchanged"`` (it already was as requested), ``"excluded"`` (by include or exclude,
            or because it is converted only if include names it), ``"refused"`` (its heads cannot be reached),
            ``"no attention"`` (it is attention in name only) or ``"restored"``.
        reason: why it was refused, left out or left unchanged; empty otherwise.

    >>> import torch
    >>> from conditioned_attention import precondition
    >>> row = precondition(torch.nn.TransformerEncoderLayer(32, 4, 64)).rows[0]
    >>> row.name, row.class_name, row.status
    ('self_attn', 'MultiheadAttention', 'converted')
    """

    name: str
    class_name: str
    mechanism: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """One `ReportRow` for every attention module of the model, in the model's order; ``print`` shows them as a table.

    Used as a context manager, it makes the conversion temporary: at the end of the ``with`` block the modules that this
    conversion changed are plain again, and no others.

    >>> import torch
    >>> from conditioned_attention import precondition
    >>> layer, x = torch.nn.TransformerEncoderLayer(32, 4, 64).eval(), torch.randn(5, 1, 32)
    >>> plain = layer(x)
    >>> with precondition(layer) as report:
    ...     conditioned = layer(x)
    >>> torch.equal(layer(x), plain), torch.allclose(conditioned, plain)
    (True, False)
    """

    rows: tuple[ReportRow, ...]
    _undo: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> ConversionReport:
        return self

    def __exit__(self, *_: object) -> None:
        if self._undo is not None:
            self._undo()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are records of what was done, and undo nothing."""
        return ConversionReport, (self.rows,)

    def names(self, status: str) -> list[str]:
        """The names of the modules with this status."""
        return [row.name for row in self.rows if row.status == status]

    @property
    def converted(self) -> list[str]:
        """Names of the modules that were changed."""
        return self.names("converted")

    @property
    def refused(self) -> list[str]:
        """Names of the attention modules that could not be changed; `rows` gives the reasons."""
        return self.names("refused")

    def __str__(self) -> str:
        cells = [("module", "class", "how", "status", "reason")]
        cells += [(r.name or "(the model)", r.class_name, r.mechanism or "-", r.status, r.reason) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[4]]).rstrip() for row in cells]
        return "\n".join(lines)


def row_for(site: Site, status: str, reason: str = "", mechanism: str | None = None) -> ReportRow:
    """The row of one site; without ``mechanism``, with the way in which its heads are reached."""
    if mechanism is None:
        mechanism = "" if site.mechanism is None else site.mechanism.name
    return ReportRow(site.name, type(site.module).__qualname__, mechanism, status, reason)
