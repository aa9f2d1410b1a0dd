"""The record of one attention head at one step.

Shapes: B samples, H heads, N tokens, D head width.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from conditioned_attention.measure.numbers.spectra import Spectrum, spectrum
from conditioned_attention.storage.files import finite

_NAN = math.nan
_MAY_BE_INFINITE = ("kappa", "log_mu", "row_spread", "largest_scale")


@dataclass(frozen=True)
class HeadRecord:
    """The conditioning of one head at one step: medians over the samples of the probe batch.

    ``…_before`` describes the head output ``softmax(q kᵀ) v``, ``…_after`` the output after the head's transform, or
    after C if it has none (what C would do).

    Attributes:
        step: the training step, as given to the monitor.
        layer: position of the attention call in the forward pass, from 0.
        module: name of the attention module.
        head: index of the head in its layer, from 0.
        conditioned: whether the model runs with a transform on this head.
        kappa_before, kappa_after: κ; inf at the numerical floor.
        log_mu_before, log_mu_after: log μ (equation 10), natural logarithm.
        floor_before, floor_after: share of the samples whose κ is at the numerical floor.
        largest_scale: the largest factor that the transform (or C) puts on a row, over all samples.
        sigma_max_before, sigma_max_after, sigma_min_before, sigma_min_after: σ₁ and σ_k.
        stable_rank_before, stable_rank_after: ‖A‖_F² / σ₁².
        effective_rank_before, effective_rank_after: exp of the entropy of the singular values.
        row_spread_before, row_spread_after: the largest row norm over the smallest; inf with a row of zeros.
        resolution: the largest κ that can be distinguished from infinity in the precision in which the heads were
            computed.
        rows, columns: n and d of the head's matrix.
        samples: the number of matrices over which the medians are taken.
        not_finite: share of the samples with an entry that is not finite; they are left out of the medians.

    >>> import torch
    >>> from conditioned_attention import ConditionMonitor
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    >>> record = ConditionMonitor(layer, torch.randn(2, 5, 32)).measure(0)[3]
    >>> record.module, record.head, record.rows, record.columns, record.samples, record.kappa > 1
    ('self_attn', 3, 5, 8, 2, True)
    """

    step: int
    layer: int
    module: str
    head: int
    conditioned: bool
    kappa_before: float
    kappa_after: float
    log_mu_before: float
    log_mu_after: float
    floor_before: float
    floor_after: float
    largest_scale: float
    sigma_max_before: float = _NAN
    sigma_max_after: float = _NAN
    sigma_min_before: float = _NAN
    sigma_min_after: float = _NAN
    stable_rank_before: float = _NAN
    stable_rank_after: float = _NAN
    effective_rank_before: float = _NAN
    effective_rank_after: float = _NAN
    row_spread_before: float = _NAN
    row_spread_after: float = _NAN
    resolution: float = _NAN
    rows: int = 0
    columns: int = 0
    samples: int = 0
    not_finite: float = 0.0

    @property
    def kappa(self) -> float:
        """κ of the matrix that the model really uses: after the transform if it has one."""
        return self.kappa_after if self.conditioned else self.kappa_before

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data; numbers that are not finite become None, which JSON can hold."""
        return dict(finite(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadRecord:
        """Returns the record that `to_json` wrote, with or without the fields that were added later.

        None becomes ``inf``, as for κ, log μ and the row spread at the floor, or NaN if no sample was finite and
        for numbers that are never infinite.
        """
        nothing_finite = data.get("not_finite") == 1.0
        numbers = dict(data)
        for name in (name for name, found in data.items() if found is None):
            numbers[name] = math.inf if name.startswith(_MAY_BE_INFINITE) and not nothing_finite else _NAN
        return cls(**numbers)


def head_records(
    step: int, layer: int, module: str, conditioned: bool, before: Tensor, after: Tensor, heads: Iterable[int]
) -> Iterator[HeadRecord]:
    """Yields one record for each of ``heads``, from head outputs before and after the transform, both (B, H, N, D)."""
    chosen = list(heads)
    # On the CPU: a GPU is slow at small decompositions in float64, and is needed for training.
    before, after = (t.detach()[:, chosen].cpu() for t in (before, after))
    norms = [t.double().norm(dim=-1) for t in (before, after)]
    # What the transform multiplied each row by; a row of zeros stays as it is.
    scale = (norms[1] / norms[0]).where(norms[0] > 0, 1.0).flatten(2).amax(-1)
    spectra = [spectrum(t) for t in (before, after)]
    numbers = _numbers(spectra[0], norms[0], "before") | _numbers(spectra[1], norms[1], "after")
    finite = ~(numbers["kappa_before"].isnan() | numbers["kappa_after"].isnan())
    for i, head in enumerate(chosen):
        kept = finite[:, i]
        medians: dict[str, Any] = {name: _median(values[:, i][kept]) for name, values in numbers.items()}
        yield HeadRecord(
            *(step, layer, module, head, conditioned),
            floor_before=_mean(numbers["kappa_before"][:, i][kept].isinf()),
            floor_after=_mean(numbers["kappa_after"][:, i][kept].isinf()),
            largest_scale=float(scale[:, i][kept].max()) if kept.any() else _NAN,
            resolution=min(found.resolution for found in spectra),
            rows=before.shape[-2],
            columns=before.shape[-1],
            samples=before.shape[0],
            not_finite=1.0 - _mean(kept),
            **medians,
        )


def _numbers(found: Spectrum, norms: Tensor, when: str) -> dict[str, Tensor]:
    """Numbers (B, H) by the field of the record that gets their median."""
    names = ("kappa", "log_mu", "sigma_max", "sigma_min", "stable_rank", "effective_rank")
    numbers: dict[str, Tensor] = {f"{name}_{when}": getattr(found, name) for name in names}
    spread = (norms.amax(-1) / norms.amin(-1)).where(norms.amin(-1) > 0, math.inf)
    return numbers | {f"row_spread_{when}": spread}


def _median(values: Tensor) -> float:
    """The middle value, or the lower one of two (a mean with inf would hide the finite one)."""
    return float(values.median()) if len(values) else _NAN


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0


def spread(wanted: int, count: int) -> list[int]:
    """``wanted`` of the numbers 0 … count - 1, evenly spaced, with the first and, if more than one, the last."""
    if wanted >= count:
        return list(range(count))
    return [0] if wanted == 1 else [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def in_words(records: Sequence[HeadRecord]) -> str:
    """Describes one measurement of at least one head, in one line.

    >>> in_words([HeadRecord(7, 0, "attn", 2, False, 100.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)])
    'step 7: median log10 κ 2.00 of 1 heads, 0 % at the floor, largest C 1.5; largest κ in attn, head 2'
    """
    numbers = summary(records)
    worst = max(records, key=lambda record: -1.0 if math.isnan(record.kappa) else record.kappa)
    kappa = f"{numbers['log10_kappa']:.2f}".replace("inf", "at the floor")
    return (
        f"step {records[0].step}: median log10 κ {kappa} of {len(records)} heads, "
        f"{100 * numbers['floor_share']:.0f} % at the floor, largest C {numbers['largest_scale']:.3g}; "
        f"largest κ in {worst.module or 'the model'}, head {worst.head}"
    )


def summary(records: Iterable[HeadRecord]) -> dict[str, float]:
    """A few numbers of one measurement for logs: median log₁₀ κ of the heads (of the matrices that the model uses),
    the share of heads at the numerical floor, and the largest factor on a row.

    Heads without a finite sample are left out; NaN if there are no others.

    >>> summary([HeadRecord(0, 0, "attn", 0, False, 100.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)])
    {'log10_kappa': 2.0, 'floor_share': 0.0, 'largest_scale': 1.5}
    """
    known = [record for record in records if not math.isnan(record.kappa)]
    values = [math.log10(record.kappa) for record in known]
    return {
        "log10_kappa": statistics.median(values) if values else _NAN,
        "floor_share": sum(math.isinf(value) for value in values) / len(values) if values else _NAN,
        "largest_scale": max((record.largest_scale for record in known), default=_NAN),
    }
