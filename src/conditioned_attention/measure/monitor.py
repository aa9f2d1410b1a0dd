"""A monitor that watches the conditioning of a model's attention heads while it trains.

It never touches the training step.  Every so many steps it runs the model once more, on a batch that stays the same:
numbers of different steps, runs and backends can then be compared, whatever compiled or fused kernel trains.

Shapes: B probe samples, H heads, N tokens, D head width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.measure.spectra import condition_number, log_complexity
from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import Site, active_transform, find_sites, install, transform_of, unwrap


@dataclass(frozen=True)
class HeadRecord:
    """The conditioning of one head at one step: medians over the samples of the probe batch.

    Attributes:
        step: of training, as given to the monitor.
        layer: position of the attention call in the forward pass, from 0.
        module: name of the attention module.
        head: index of the head in its layer, from 0.
        conditioned: whether the model runs with a transform on this head.
        kappa_before: κ of the head output ``softmax(q kᵀ) v``; inf at the numerical floor.
        kappa_after: κ after the head's transform, or after C if it has none (what C would do).
        log_mu_before, log_mu_after: the same for log μ, natural logarithm.
        floor_before, floor_after: share of the samples whose κ is at the numerical floor.
        largest_scale: the largest factor that the transform (or C) puts on a row.
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

    @property
    def kappa(self) -> float:
        """κ of the matrix that the model really uses: after the transform if it has one."""
        return self.kappa_after if self.conditioned else self.kappa_before

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None, which JSON has."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadRecord:
        """The record that `to_json` wrote; None comes back as ``inf``, which is what κ and log μ are at the floor."""
        values: dict[str, Any] = {k: math.inf if v is None else v for k, v in data.items()}
        return cls(**values)


class ConditionMonitor:
    """Measures κ and log μ of every attention head of a model, before and after C, every so many steps.

    The probe runs without gradient, in evaluation mode, without autocast, and without a ``torch.compile`` around the
    model; modes, buffers, attributes and random states are put back, so training goes on as if nothing had happened.

    Args:
        model: the model that trains, plain or converted; wrapped by ``torch.compile`` or DistributedDataParallel is
            fine.  It must hold attention that `precondition` could convert.
        probe: what the model is called with: a mapping (keywords), a tuple (positional) or one tensor.  A handful of
            real samples without padding; the cost is one forward pass and 2 · B · H singular value decompositions a
            layer.
        every: steps between measurements.
        path: JSON Lines file that every measurement is appended to; numbers that are not finite are null.

    Attributes:
        records: every `HeadRecord` so far.

    Raises:
        TypeError: ``model`` is not a module, or ``every`` not an integer.
        ValueError: no attention whose heads can be reached; ``every`` below 1.

    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from conditioned_attention import ConditionMonitor
    >>> sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    >>> model = ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, **sizes))
    >>> monitor = ConditionMonitor(model, torch.randn(3, 1, 8, 8), every=10)
    >>> for step in range(20):
    ...     _ = monitor.step(step)  # and an optimizer step of your own
    >>> len(monitor.records)  # 2 measurements, 2 layers, 4 heads
    16
    """

    def __init__(self, model: nn.Module, probe: Any, *, every: int = 100, path: str | Path | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(every, int):
            raise TypeError(f"every must be an integer number of steps, got {type(every).__name__}")
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.model = unwrap(model)
        if not any(site.reachable for site in find_sites(self.model)):
            raise ValueError(f"{type(self.model).__name__} holds no attention whose heads can be reached")
        self.probe = probe
        self.every = every
        self.path = Path(path) if path is not None else None
        self.records: list[HeadRecord] = []

    def step(self, step: int) -> list[HeadRecord]:
        """Measures if ``step`` is a multiple of ``every``; returns the new records, or an empty list."""
        return self.measure(step) if step % self.every == 0 else []

    def measure(self, step: int) -> list[HeadRecord]:
        """Runs the probe now and returns one record for every head; they are kept and written as well."""
        new = [
            record
            for layer, call in enumerate(head_outputs(self.model, self.probe))
            for record in _records(step, layer, call)
        ]
        self.records += new
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(json.dumps(record.to_json()) + "\n" for record in new)
        return new


@dataclass(frozen=True)
class HeadOutputs:
    """What one call of an attention module computed: heads before and after the transform, (B, H, N, D)."""

    module: str
    conditioned: bool
    before: Tensor
    after: Tensor


def head_outputs(model: nn.Module, probe: Any) -> list[HeadOutputs]:
    """Head outputs of every attention call in one forward pass on ``probe``, in the order of the calls.

    The model is left as it was: modes, buffers, random states and conversion.
    """
    calls: list[HeadOutputs] = []
    sites = [site for site in find_sites(model) if site.reachable]
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.callback(install(sites, lambda site: _Recording(site, _acting(site), calls)))
        call(model, probe)
    return calls


def _acting(site: Site) -> HeadTransform | None:
    return None if active_transform(site) is None else transform_of(site.module)


class _Recording(HeadTransform):
    """Another transform (or none), with what goes in and what comes out written down."""

    kind = "recording"

    def __init__(self, site: Site, inner: HeadTransform | None, calls: list[HeadOutputs]) -> None:
        self.site, self.inner, self.calls = site, inner, calls

    @property
    def needs_weights(self) -> bool:
        return self.inner is not None and self.inner.needs_weights

    @property
    def changes_queries(self) -> bool:
        return self.inner is not None and self.inner.changes_queries

    def queries(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (query, key) if self.inner is None else self.inner.queries(query, key)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        after = RowNorm()(output) if self.inner is None else self.inner(output, weights)
        self.calls.append(HeadOutputs(self.site.name, self.inner is not None, output, after))
        return output if self.inner is None else after


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, no autocast; afterwards everything that hangs on the modules is as it was."""
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    # Accelerate puts an autocasting forward on the instance, over the class's own.
    if "_original_forward" in model.__dict__:
        model.__dict__.pop("forward", None)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            for module, members, registered in attributes:
                _put_back(module.__dict__, members)
                _put_back(module._buffers, registered)
            for buffer, version, saved in buffers:
                if buffer._version != version:  # writing to others would break a backward pass that waits for them
                    buffer.copy_(saved)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def call(model: nn.Module, probe: Any) -> None:
    """Runs the model on a mapping (keywords), a tuple (positional) or one tensor."""
    if isinstance(probe, Mapping):
        model(**probe)
    elif isinstance(probe, (tuple, list)):
        model(*probe)
    else:
        model(probe)


def _records(step: int, layer: int, call: HeadOutputs) -> Iterator[HeadRecord]:
    """One record a head, of the matrices (N, D) of its samples."""
    # On the CPU: a GPU is slow at small decompositions in float64, and is needed for training.
    before, after = (t.detach().cpu().flatten(0, -4).transpose(0, 1) for t in (call.before, call.after))
    norms = [t.double().norm(dim=-1) for t in (before, after)]
    scale = (norms[1] / norms[0]).where(norms[0] > 0, 1.0).amax(dim=(-2, -1))
    kappas = [condition_number(t) for t in (before, after)]
    log_mus = [log_complexity(t) for t in (before, after)]
    for head in range(before.shape[0]):
        yield HeadRecord(
            step=step,
            layer=layer,
            module=call.module,
            head=head,
            conditioned=call.conditioned,
            kappa_before=_median(kappas[0][head]),
            kappa_after=_median(kappas[1][head]),
            log_mu_before=_median(log_mus[0][head]),
            log_mu_after=_median(log_mus[1][head]),
            floor_before=float(kappas[0][head].isinf().double().mean()),
            floor_after=float(kappas[1][head].isinf().double().mean()),
            largest_scale=float(scale[head]),
        )


def _median(values: Tensor) -> float:
    """The middle value, between two the lower one (a mean with inf would hide the finite one)."""
    return float(values.median())
