"""Alarms: what somebody who trains a model wants to know at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from conditioned_attention._warnings import warn as warn_user
from conditioned_attention.measure.monitoring.records import HeadRecord


@dataclass(frozen=True)
class Alarm:
    """Heads of one measurement that exceed a bound or are not finite.

    Attributes:
        kind: ``"not finite"`` (an entry is inf or NaN), ``"kappa"`` or ``"scale"`` (the largest factor on a row).
        step: the training step.
        bound: the bound that was exceeded; None for ``"not finite"``.
        heads: the records of these heads, worst first.
        measured: how many heads were measured.

    >>> from conditioned_attention.measure import Alarm, HeadRecord
    >>> record = HeadRecord(0, 0, "attn", 2, False, 9e6, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> print(Alarm("kappa", step=100, bound=1e6, heads=(record,), measured=8))
    step 100: κ is above 1e+06 in 1 of 8 heads, most in attn, head 2 (9e+06)
    """

    kind: str
    step: int
    bound: float | None
    heads: tuple[HeadRecord, ...]
    measured: int

    def __str__(self) -> str:
        worst = self.heads[0]
        where = f"{worst.module or 'the model'}, head {worst.head}"
        count = f"{len(self.heads)} of {self.measured} heads"
        if self.kind == "not finite":
            return f"step {self.step}: head outputs are not finite in {count}, most in {where}"
        name, value = ("κ", worst.kappa) if self.kind == "kappa" else ("C", worst.largest_scale)
        shown = "at the numerical floor" if math.isinf(value) else f"{value:.3g}"
        return f"step {self.step}: {name} is above {self.bound:g} in {count}, most in {where} ({shown})"


def alarms_of(records: Sequence[HeadRecord], max_kappa: float | None, max_scale: float | None) -> Iterator[Alarm]:
    """The alarms that the records of one measurement give; κ at the numerical floor is above every bound."""
    kinds = (("not finite", 0.0, "not_finite"), ("kappa", max_kappa, "kappa"), ("scale", max_scale, "largest_scale"))
    for kind, bound, field in kinds:
        beyond = [record for record in records if bound is not None and getattr(record, field) > bound]
        if beyond:
            beyond.sort(key=lambda record: -getattr(record, field))
            passed = None if kind == "not finite" else bound
            yield Alarm(kind, records[0].step, passed, tuple(beyond), len(records))


def warn(alarm: Alarm) -> None:
    """The default for what is done with an alarm: a ``RuntimeWarning``."""
    warn_user(str(alarm), RuntimeWarning)


class Unchanged:
    """Warns once if a model's numbers stay the same to the last bit while its optimizer takes steps.

    The model that is watched is then a copy, as with a Trainer's ``model_init`` or a module that was copied into
    another; or nothing before its heads trains.  The first step may change nothing, as warm-ups begin at a rate of 0.
    """

    def __init__(self) -> None:
        self.since, self.numbers, self.said = 0, list[str](), False

    def look(self, records: Sequence[HeadRecord]) -> None:
        """Compares a measurement with the last one that was different."""
        numbers = [repr(replace(record, step=0)) for record in records]  # as text, since NaN differs from itself
        step = records[0].step if records else self.since
        if numbers != self.numbers:
            self.since, self.numbers = step, numbers
        elif step - self.since >= 2 and not self.said:
            self.said = True
            warn_user(
                f"step {step}: all numbers are those of step {self.since}, to the last bit, so the watched model was "
                "not trained in between; does the monitor watch another copy of the model than the one that trains?",
                RuntimeWarning,
            )
