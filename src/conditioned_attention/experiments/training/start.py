"""Weights to start a run with: those that another run has ended with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.models.mask_rcnn import CLASSIFIER
from conditioned_attention.experiments.training.checkpoints import PositionData, damage, size_and_checksum
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.files import read_json, write_json
from conditioned_attention.storage.ownership import checkpoints_in

Weights = Literal["run", "model", "average"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartWeights:
    """The weights of another run's newest checkpoint: their moving average, if it has one.

    Attributes:
        source: the checkpoint's folder.
        weights: a state_dict.
        identity: what that run was, its step, and the checksums of its files, as plain data; this is part of what
            identifies the run that starts with these weights.
    """

    source: Path
    weights: dict[str, Tensor]
    identity: dict[str, Any]

    @classmethod
    def of(cls, pattern: str | None, variant: Variant, seed: int) -> StartWeights | None:
        """Reads the weights in the folder that `Training.start_from` names; None if it names none.

        Raises:
            FileNotFoundError: there is no checkpoint in that folder.
            ValueError: the newest checkpoint is damaged, or the pattern has other names in braces than it may.
        """
        if pattern is None:
            return None
        try:
            folder = Path(pattern.format(variant=variant.name, seed=seed)).expanduser()
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"start_from={pattern!r} may have {{variant}} and {{seed}} in braces only") from error
        found = checkpoints_in(folder)
        if not found and (folder / "model.safetensors").is_file() and (folder / "model.json").is_file():
            return cls._exported(folder)
        if not found:
            raise FileNotFoundError(f"start_from={pattern!r}: there is no checkpoint in {folder}")
        source = found[-1]
        if reason := damage(source):
            raise ValueError(f"start_from={pattern!r}: {source} is damaged ({reason})")
        position = read_json(source / "position.json", PositionData)
        files = read_json(source / "files.json", dict[str, list[int]])
        of_weights = {name: print_ for name, print_ in files.items() if name.startswith("model") or name == "extra.pt"}
        identity = {"run": position["run"], "step": position["step"], "files": of_weights}
        return cls(source, weights_in(source), identity)

    @classmethod
    def _exported(cls, folder: Path) -> StartWeights:
        """Reads the weights in a folder that `export_run` has written, which records the run that they are from."""
        origin = read_json(folder / "model.json", dict[str, Any]).get("from", {})
        run = {name: origin.get(name) for name in ("variant", "seed")}
        files = {"model.safetensors": size_and_checksum(folder / "model.safetensors")}
        identity = {"run": run, "step": origin.get("step"), "files": files}
        return cls(folder, weights_in(folder), identity)

    def apply(self, model: nn.Module, variant: Variant, batch: Any, note_in: Path | None) -> None:
        """Loads these weights into a fresh model and applies a variant's change to it.

        Weights of the same name and shape are taken over; the others, such as a new head, stay as the model has them.
        A detector takes a classifier's weights for the classifier inside it.  What a variant changes only in the
        initial weights is left out, since the other run has started with it.

        For ``batch`` see `Variant.apply`.  The folder ``note_in`` gets ``start.json``, which lists what was taken over
        and what was not.

        Raises:
            ValueError: no weight fits.
        """
        taken = self._load(model)
        variant.apply(model, batch, initialise=False)
        taken |= self._load(model)  # parameters that came with the change, such as a gain
        fresh = [name for name in model.state_dict() if name not in taken]
        if not taken:
            raise ValueError(f"no weight of {self.source} fits {type(model).__name__} by name and shape")
        if fresh:
            logger.warning("%d of %d tensors start fresh: %s", len(fresh), len(fresh) + len(taken), ", ".join(fresh))
        if note_in is not None:
            note = {"from": self.identity["run"], "step": self.identity["step"], "taken": sorted(taken), "fresh": fresh}
            write_json(note_in / "start.json", note)

    def _load(self, model: nn.Module) -> set[str]:
        there, inside = model.state_dict(), model.__dict__.get(CLASSIFIER, "")
        named = {f"{inside}{name}": weight for name, weight in self.weights.items()} | self.weights
        fitting = {k: w for k, w in named.items() if k in there and there[k].shape == w.shape}
        model.load_state_dict(fitting, strict=False)
        # tied weights are stored under one name, and loading it sets all of them
        storages = {there[name].data_ptr() for name in fitting}
        return {name for name, tensor in there.items() if name in fitting or tensor.data_ptr() in storages}


def weights_in(checkpoint: Path, which: Weights = "run") -> dict[str, Tensor]:
    """Reads weights from a checkpoint as a state_dict.

    Args:
        checkpoint: its folder.
        which: ``"run"``, the weights that the run was scored with, which are the average of `Training.ema` if there is
            one; ``"model"``, those that were trained; or ``"average"``, the moving average (``ema`` or ``ema_beside``).

    Raises:
        ValueError: there is no average; or the weights are stored in parts (fsdp2).
    """
    if which not in get_args(Weights):
        raise ValueError(f"weights={which!r} is unknown; valid are {', '.join(map(repr, get_args(Weights)))}")
    extra: dict[str, Any] = {}
    if which != "model" and (checkpoint / "extra.pt").exists():
        extra = torch.load(checkpoint / "extra.pt", weights_only=True, map_location="cpu")
    average = extra.get("average", {} if extra.keys() & {"beside", "best"} else extra)
    if which == "average" and not (average := average or extra.get("beside", {})):
        raise ValueError(f"weights='average': {checkpoint} has none; only runs with ema or ema_beside keep one")
    if average:
        return {name.removeprefix("module."): w for name, w in average.items() if name.startswith("module.")}
    if (checkpoint / "model.safetensors").exists():
        from safetensors.torch import load_file

        return load_file(checkpoint / "model.safetensors")
    if (checkpoint / "pytorch_model.bin").exists():
        weights: dict[str, Tensor] = torch.load(checkpoint / "pytorch_model.bin", weights_only=True, map_location="cpu")
        return weights
    raise ValueError(f"{checkpoint} holds its weights in parts (fsdp2), which cannot be read by one process yet")
