"""Inspects every attention module of a model: its heads, how they can be reached, and their condition numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from conditioned_attention.conversion import spectral_condition
from conditioned_attention.conversion.check import check_module
from conditioned_attention.inspection.logits import SelfLogit, strongest_self_logit
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.probing.projections import ProjectionRecord, projection_records
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import Site, active_transform, find_sites
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.storage.files import finite

_HEADS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head")


@dataclass(frozen=True)
class InspectionRow:
    """What an inspection says about one attention module.

    Attributes:
        name: the name of the module, as in ``model.named_modules()``.
        class_name: its class.
        heads: number of heads; None where it is not known.
        mechanism: how its heads would be reached; empty if they cannot be.
        conversion: what `precondition` would do: ``"converts"``, ``"on request"`` (only where ``include`` names it),
            ``"refused"``, ``"no attention"`` (it is attention in name only), or ``"already conditioned"``.
        reason: why it is refused or left alone, or another remark.
        kappa: median κ of its heads' outputs on the input; inf at the numerical floor, None if it was not measured.
            Heads without a finite sample are left out, here and below; NaN if there are no others.
        kappa_after: the same after C (or after the transform that the module already has).
        floor: share of its heads' matrices that are at the numerical floor.
        largest_scale: the largest factor by which C multiplies a row.
    """

    name: str
    class_name: str
    heads: int | None
    mechanism: str
    conversion: str
    reason: str
    kappa: float | None = None
    kappa_after: float | None = None
    floor: float | None = None
    largest_scale: float | None = None


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a model.

    Attributes:
        rows: one for each attention module.
        parameters: the number of parameters of the model.
        not_measured: why there are no condition numbers; empty if there are.
        self_logit: what spectral conditioning would do to the logits, in the module where it does most; None if no
            projections are known, or the model was not run.
        heads: the condition monitor's records of the heads of every attention call, before and after C.
        heads_corrected: the same for the model with λ I on its projections, if requested.
        projections: records of W_Q, W_K and W_V with and without their correction C, if requested.
        strength: λ of that correction, or ``"auto"``; None if the model is corrected already, or if not requested.
    """

    rows: tuple[InspectionRow, ...]
    parameters: int
    not_measured: str = ""
    self_logit: SelfLogit | None = None
    heads: tuple[HeadRecord, ...] = ()
    heads_corrected: tuple[HeadRecord, ...] = ()
    projections: tuple[ProjectionRecord, ...] = ()
    strength: float | str | None = None

    @property
    def strength_shown(self) -> str:
        """λ as text."""
        return self.strength if isinstance(self.strength, str) else f"{self.strength:g}"

    @property
    def complete(self) -> bool:
        """Whether there is attention, and conversion would reach all of it."""
        return bool(self.rows) and all(row.conversion != "refused" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None, as JSON cannot hold them."""
        rows = [finite(asdict(row)) for row in self.rows]
        data = {"parameters": self.parameters, "not_measured": self.not_measured, "modules": rows}
        if self.self_logit is not None:
            data["self_logit"] = finite(asdict(self.self_logit))
        data["heads"] = [record.to_json() for record in self.heads]
        if self.heads_corrected:
            data["heads_corrected"] = [record.to_json() for record in self.heads_corrected]
        if self.projections:
            data["strength"] = self.strength
            data["projections"] = [record.to_json() for record in self.projections]
        return data


def inspect_model(
    model: nn.Module, probe: Any = None, *, spectral: float | str | None = None, dtype: torch.dtype = torch.float32
) -> Inspection:
    """Finds what conversion would do to each attention module of ``model``, and the condition numbers of its heads.

    The model is not changed.

    Args:
        model: any module.
        probe: what the model is called with: a mapping (keywords), a tuple (positional) or one tensor; None to measure
            nothing.
        spectral: λ or ``"auto"``: also measure W_Q, W_K and W_V, and the heads, with and without λ I.  If the model
            is already corrected, W_Q, W_K and W_V are measured with its own corrections.
        dtype: the lowest precision in which heads are computed; ``torch.float64`` resolves heads that are at the
            floor of float32.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``spectral`` is not a valid strength, or no projections are known.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
    >>> row = inspect_model(layer, torch.randn(10, 2, 32)).rows[0]
    >>> row.name, row.heads, row.mechanism, row.conversion, row.kappa > 1
    ('self_attn', 4, 'class swap', 'converts', True)
    """
    check_module(model)
    sites = find_sites(model)
    records: list[HeadRecord] = []
    logit = None
    not_measured = "there was nothing to run the model on (--input)"
    if not any(site.reachable for site in sites):
        not_measured = "there is no attention whose heads can be reached"
    elif probe is not None:
        not_measured = ""
        try:
            records = _measure(model, probe, dtype)
            logit = strongest_self_logit(model, probe)
        except Exception as error:  # a model of anybody's, on an input that may not be its own
            not_measured = f"the model does not run on this input: {type(error).__name__}: {error}"
    rows = [_row(site, [record for record in records if record.module == site.name]) for site in sites]
    parameters = sum(p.numel() for p in model.parameters())
    inspection = Inspection(tuple(rows), parameters, not_measured, logit, tuple(records))
    if spectral is None:
        return inspection
    if any(spectral_of(site.module) is not None for site in sites):
        return replace(inspection, projections=tuple(projection_records(model)))
    projections, corrected = _with_lambda(model, spectral, probe if records else None, dtype)
    return replace(inspection, projections=tuple(projections), heads_corrected=tuple(corrected), strength=spectral)


def _measure(model: nn.Module, probe: Any, dtype: torch.dtype) -> list[HeadRecord]:
    """Measures all samples, since they were chosen; the table shows what is not finite, so no warning is needed."""
    return ConditionMonitor(model, probe, samples=None, dtype=dtype, keep=0, on_alarm=lambda _: None).measure(0)


def _with_lambda(
    model: nn.Module, strength: float | str, probe: Any, dtype: torch.dtype
) -> tuple[list[ProjectionRecord], list[HeadRecord]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that λ is large: nothing is going to train with it
        with spectral_condition(model, strength):
            return projection_records(model), [] if probe is None else _measure(model, probe, dtype)


def _row(site: Site, records: Sequence[HeadRecord]) -> InspectionRow:
    refused = site.against(RowNorm())
    heads = max((record.head + 1 for record in records), default=_heads(site.module))
    mechanism = site.mechanism.name if site.mechanism is not None else ""
    reason = refused or site.opt_in or site.reason
    row = InspectionRow(site.name, type(site.module).__qualname__, heads, mechanism, _conversion(site), reason)
    if not records:
        return row
    known = [record for record in records if not math.isnan(record.kappa)]
    if not known:
        return replace(row, kappa=math.nan, kappa_after=math.nan, floor=math.nan, largest_scale=math.nan)
    return replace(
        row,
        kappa=median(record.kappa_before for record in known),
        kappa_after=median(record.kappa_after for record in known),
        floor=sum(record.floor_before for record in known) / len(known),
        largest_scale=max(record.largest_scale for record in known),
    )


def _conversion(site: Site) -> str:
    if active_transform(site) is not None:
        return "already conditioned"
    if not site.attention:
        return "no attention"
    if site.against(RowNorm()):
        return "refused"
    return "on request" if site.opt_in else "converts"


def _heads(module: nn.Module) -> int | None:
    """The number of heads, under the names that modules or their configs use for it; None if it is not found."""
    found = (getattr(place, name, None) for place in (module, getattr(module, "config", None)) for name in _HEADS)
    return next((value for value in found if isinstance(value, int)), None)
