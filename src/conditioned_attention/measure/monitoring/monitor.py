"""A monitor that watches the conditioning of a model's attention heads while it trains.

It never touches the training step.  At regular intervals it runs the model once more, on a batch that stays the same,
so that numbers from different steps, runs and backends can be compared, whatever compiled or fused kernel is used in
training.

Shapes: B probe samples, H heads, N tokens, D head width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention._warnings import warn as warn_user
from conditioned_attention.measure.monitoring import callbacks
from conditioned_attention.measure.monitoring.alarms import Alarm, Unchanged, alarms_of, warn
from conditioned_attention.measure.monitoring.records import HeadRecord, head_records, in_words, spread, summary
from conditioned_attention.measure.monitoring.sinks import sink_for
from conditioned_attention.measure.probing.probe import HeadOutputs, watch_heads
from conditioned_attention.sites import find_sites, unwrap

Choice = int | Sequence[int] | None
Log = Callable[[Mapping[str, float], int], None]


class ConditionMonitor:
    """Measures κ, log μ and more for every attention head of a model, before and after C, at intervals during training.

    The probe, one extra forward pass, runs without gradient, in evaluation mode, without autocast and without code
    compiled by ``torch.compile``; modes, buffers, attributes and random states are restored, so training continues as
    if nothing had happened.  A measurement costs this forward pass and 2 · samples · heads singular value
    decompositions per layer, on the CPU.

    With several processes, each measures by itself, and the first one writes and logs.  With DistributedDataParallel
    you may also call it in that process only; with FSDP2 every process has to call it at the same steps, because the
    forward pass gathers the weights.

    Args:
        model: the model that is trained, plain or converted; it may be wrapped by ``torch.compile``,
            DistributedDataParallel or ``fully_shard``.  It must contain attention that `precondition` could convert.
        probe: what the model is called with: a mapping (keywords), a tuple (positional) or one tensor.  Use a handful
            of real samples without padding, on the model's device.
        every: number of steps between measurements.
        path: file or folder to which every measurement is appended: JSON Lines, or a folder of Parquet files if it ends
            in ``.parquet`` (`read_records` reads both); numbers that are not finite become null.
        layers: which attention calls of the forward pass to measure: a sequence of positions from 0, a number of calls,
            spread evenly from the first to the last, or None for all.
        heads: which heads of each call, in the same way.
        samples: how many matrices (B) of each head, spread evenly over the probe batch; None for all.
        dtype: models of lower precision are probed with temporary copies of their parameters in this dtype, because
            heads that were rounded to bfloat16 have hardly a κ left; None measures what the model computes, and
            ``torch.float64`` resolves what is at the floor of float32.
        keep: how many measurements stay in ``records``; 0 if the return value of `measure` is enough.
        max_kappa, max_scale: upper bounds on κ and on the largest factor that C puts on a row.
        on_alarm: called with an `Alarm` if a bound is exceeded or a head's output is not finite; the default gives a
            ``RuntimeWarning``.  An exception that it raises ends the measurement, after everything was written.
        log: called with a few numbers and the step after each measurement, for example to send them to a tracker:
            ``lambda numbers, step: wandb.log(dict(numbers), step=step)``.

    Attributes:
        records: every `HeadRecord` of the last ``keep`` measurements.

    Raises:
        TypeError: ``model`` is not a module, or an argument that must be a number is not one.
        ValueError: no attention whose heads can be reached; a number out of range.

    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from conditioned_attention import ConditionMonitor
    >>> sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    >>> model = ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, **sizes))
    >>> monitor = ConditionMonitor(model, torch.randn(3, 1, 8, 8), every=10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for step in range(20):
    ...     _ = monitor.step(step)
    ...     model(torch.randn(3, 1, 8, 8)).last_hidden_state.square().mean().backward()  # or a step of your own
    ...     optimizer.step()
    >>> len(monitor.records)  # 2 measurements, 2 layers, 4 heads
    16
    >>> print(monitor)  # doctest: +ELLIPSIS
    step 10: median log10 κ ... of 8 heads, ...
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        every: int = 100,
        path: str | Path | None = None,
        layers: Choice = None,
        heads: Choice = None,
        samples: int | None = 4,
        dtype: torch.dtype | None = torch.float32,
        keep: int = 200,
        max_kappa: float | None = None,
        max_scale: float | None = None,
        on_alarm: Callable[[Alarm], None] = warn,
        log: Log | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        _check_count("every", every, "of steps")
        _check_count("keep", keep, "of measurements", least=0)
        if samples is not None:
            _check_count("samples", samples, "or None for all")
        for name, choice in {"layers": layers, "heads": heads}.items():
            if choice is not None:
                _check_choice(name, choice)
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32, torch.float64 or None, got {dtype}")
        self.model = unwrap(model)
        if not any(site.reachable for site in find_sites(self.model)):
            raise ValueError(f"{type(self.model).__name__} holds no attention whose heads can be reached")
        self.probe = probe
        self.every = every
        self.layers, self.heads, self.samples, self.dtype = layers, heads, samples, dtype
        self.max_kappa, self.max_scale, self.on_alarm, self.log = max_kappa, max_scale, on_alarm, log
        self.path = Path(path) if path is not None else None
        self._sink = None if self.path is None else sink_for(self.path)
        self._kept: deque[list[HeadRecord]] = deque(maxlen=keep)
        self._unchanged = Unchanged()
        self._calls: int | None = None  # of attention in a forward pass; counted when it matters

    @property
    def records(self) -> list[HeadRecord]:
        """Every record of the last ``keep`` measurements."""
        return [record for measurement in self._kept for record in measurement]

    def __str__(self) -> str:
        """Describes the last measurement that was kept, in one line."""
        last = self._kept[-1] if self._kept else []
        return in_words(last) if last else f"nothing measured yet of {type(self.model).__name__}"

    def step(self, step: int) -> list[HeadRecord]:
        """Measures if ``step`` is a multiple of ``every``; returns the new records, or an empty list.

        Warns once if no number has changed since an earlier step, as when another copy of the model is being trained.
        """
        if step % self.every:
            return []
        records = self.measure(step)
        self._unchanged.look(records)
        return records

    def measure(self, step: int) -> list[HeadRecord]:
        """Runs the probe now and returns one record for every chosen head; the records are also kept and written.

        Raises ValueError if a chosen layer or head does not exist in the model.
        """
        new: list[HeadRecord] = []

        def take(layer: int, outputs: HeadOutputs) -> None:
            new.extend(self._records(step, layer, outputs))

        layers = self._layers()
        last = self._calls if layers is None else max(layers) + 1
        calls = watch_heads(self.model, self.probe, take, layers=layers, dtype=self.dtype, stop_after=last)
        if layers is not None and max(layers) >= calls:
            raise ValueError(f"layers={self.layers!r}: the forward pass has {calls} attention calls, from 0")
        if layers is None:
            self._calls = calls
        self._keep(new)
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
            if self._sink is not None:
                self._warn_of_earlier(step)
                self._sink(new)
            if self.log is not None:
                self.log(summary(new), step)
        for alarm in alarms_of(new, self.max_kappa, self.max_scale):
            self.on_alarm(alarm)
        return new

    trainer_callback, lightning_callback = callbacks.trainer_callback, callbacks.lightning_callback

    def _layers(self) -> list[int] | None:
        if not isinstance(self.layers, int):
            return None if self.layers is None else list(self.layers)
        if self._calls is None:
            self._calls = watch_heads(self.model, self.probe, lambda *_: None, layers=(), dtype=self.dtype)
        return spread(self.layers, self._calls)

    def _records(self, step: int, layer: int, outputs: HeadOutputs) -> list[HeadRecord]:
        before, after = (t.flatten(0, -4) for t in (outputs.before, outputs.after))
        if self.samples is not None:
            rows = spread(self.samples, before.shape[0])
            before, after = before[rows], after[rows]
        count = before.shape[1]
        heads = range(count) if self.heads is None else self.heads
        chosen = spread(heads, count) if isinstance(heads, int) else heads
        if max(chosen) >= count:
            raise ValueError(f"heads={self.heads!r}: layer {layer} has {count} heads, from 0")
        return list(head_records(step, layer, outputs.module, outputs.conditioned, before, after, chosen))

    def _keep(self, new: list[HeadRecord]) -> None:
        if 0 < len(self._kept) == self._kept.maxlen and self._sink is None and not self._warned:
            self._warned = True
            warn_user(
                f"only the last {self._kept.maxlen} measurements are kept: give a path, or a larger keep",
                RuntimeWarning,
            )
        self._kept.append(new)

    def _warn_of_earlier(self, step: int) -> None:
        """Warns, before a new training writes its first record, if records of an earlier one would be mixed with it."""
        begins, self._written = step == 0 and not self._written, True
        if begins and self.path is not None and self.path.exists() and (self.path.is_dir() or self.path.stat().st_size):
            warn_user(
                f"{str(self.path)!r} holds records of an earlier training, which those of this one are mixed with: "
                "delete it, or give another path",
                RuntimeWarning,
            )

    _warned = _written = False


def _check_count(name: str, value: Any, what: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer number {what}, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_choice(name: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        _check_count(name, value, "of them")
        return
    if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a number, a sequence of positions or None, got {type(value).__name__}")
    if not value or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in value):
        raise ValueError(f"{name} must be positions from 0, at least one, got {value!r}")
