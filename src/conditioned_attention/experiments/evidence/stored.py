"""Schemas of the files of runs and comparisons, key by key, against which they are checked when they are read.

Keys that an earlier version did not write are optional.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypedDict

from conditioned_attention.storage.schema import Count, Rule

Number = float | None  # null stands for a number that is not finite
_Log10 = Annotated[Number, Rule(lambda x: x is None or abs(x) <= 308, "a number up to 308, or null")]
_Share = Annotated[Number, Rule(lambda x: x is None or 0 <= x <= 1, "a number from 0 to 1, or null")]
_Positive = Annotated[Number, Rule(lambda x: x is None or x > 0, "a positive number or null")]
_Rate = Annotated[float, Rule(lambda lr: 0 < lr < math.inf, "a positive number")]
_Head = Annotated[int, Rule(lambda i: 0 <= i < 1 << 12, "a whole number from 0 to 4095")]  # an array has that size


class Metric(TypedDict):
    name: str
    higher_is_better: bool


class _Scored(TypedDict):
    score: Number


class Row(_Scored, total=False):
    """A line of ``metrics.jsonl`` or a row of a history: what a training loop yielded; it may hold more keys."""

    epoch: Number
    step: Count
    seen: Count
    seconds: Number
    train_loss: Number
    eval_loss: Number
    ema_score: Number
    ema_eval_loss: Number
    test_score: Number
    test_eval_loss: Number
    selected_step: Count
    selected_score: Number
    log10_kappa: _Log10
    floor_share: _Share
    largest_scale: Number
    log10_kappa_weights: _Log10
    value_growth: Number


History = Annotated[list[Row], Rule(bool, "a list with at least one row")]

Machine = TypedDict(
    "Machine", {"machine": str, "devices": list[str], "torch": str, "conditioned-attention": str}
)  # what `short_environment` gives


class _Made(TypedDict):
    variant: str
    seed: Count
    metric: Metric
    settings: Any
    environment: Machine


class Begun(_Made, total=False):
    """``begun.json``: what a run is, and where, when and by which command it was begun.

    ``continued`` lists the machines on which it was continued.
    """

    variant_settings: dict[str, Any] | None
    continued: list[Machine]
    date: str
    command: str


class Result(Begun):
    """``result.json``."""

    history: History


class Data(TypedDict):
    """``data.json``: what a run has found out about its data."""

    in_words: list[str]
    data_fingerprint: dict[str, Any]


class BuiltOf(TypedDict):
    """What a model was built from; see `models.built`."""

    model: str
    settings: dict[str, Any]
    arguments: dict[str, Any]


class Model(TypedDict):
    """``model.json``: what is needed, besides weights, to rebuild a run's model without its recipe and data."""

    built_of: BuiltOf | None
    conditioning: dict[str, Any]
    classes: list[str]
    preprocessing: dict[str, Any] | None


class Places(TypedDict):
    """``places.json``: where a run's data are and how they are read, which affects none of its numbers."""

    places: dict[str, Any]


class _Step(TypedDict):
    step: Count


class TrainRow(_Step, total=False):
    """A line of ``train.jsonl``; the parts of a loss have further keys."""

    seen: Count
    loss: Number
    lr: Number
    grad_norm: Number
    seconds: Number


class _HeadRow(_Step):
    layer: _Head
    module: str
    head: _Head
    conditioned: bool
    kappa_before: _Positive
    kappa_after: _Positive
    log_mu_before: Number
    log_mu_after: Number


class HeadRow(_HeadRow, total=False):
    """A line of ``conditions.jsonl``: a `HeadRecord`, of which these keys are checked."""

    resolution: _Positive
    not_finite: Number


class ProjectionRow(_Step):
    """A line of ``projections.jsonl``: a `ProjectionRecord`, of which these keys are checked."""

    role: str
    kappa_corrected: _Positive


class _Score(TypedDict):
    seed: Count
    score: Number


class _Failure(TypedDict):
    seed: Count
    reason: str


class _Trial(TypedDict):
    variant: str
    lr: _Rate
    scores: list[_Score]
    failures: list[_Failure]


class Tuned(TypedDict):
    """``tuning.json``."""

    metric: Metric
    trials: list[Annotated[_Trial, Rule(lambda t: t["scores"] or t["failures"], "one with scores or failures")]]


class Grid(TypedDict):
    rates: list[_Rate]
    seeds: Count


class TuningSettings(TypedDict):
    """``settings.json`` in a folder of tuning."""

    grid: Grid


class _Cost(TypedDict):
    time_ratio: float
    time_p20: float
    time_p80: float
    memory_ratio: float


class Costs(TypedDict):
    variants: dict[str, _Cost]


class _Several(Machine):
    runs: Count


class Machines(_Several, total=False):
    """Where a number of runs were made; ``continued`` lists the machines on which they went on."""

    continued: list[Machine]


class Call(TypedDict):
    """When runs were made (the day they began, UTC), and the command that was typed."""

    date: str
    command: str


class _TableRow(TypedDict):
    variant: str


class Table(TypedDict, total=False):
    """The keys of an earlier ``results.json`` that are used besides the runs themselves."""

    table: list[_TableRow]
    cost: Costs | None
    settings: Any


class _Run(TypedDict):
    variant: str
    seed: Count
    history: History


class _Results(TypedDict):
    table: list[_TableRow]
    runs: list[_Run]
    metric: Metric
    failures: dict[str, str]
    settings: Any
    environment: dict[str, Any]
    cost: Costs | None


class Results(_Results, total=False):
    """``results.json``."""

    machines: list[Machines]
    tuning: Tuned | None
    calls: list[Call]
