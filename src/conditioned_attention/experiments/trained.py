"""Loads a trained model from the folder of a run, conditioned as in training, without its recipe and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.experiments.evidence.stored import Model
from conditioned_attention.experiments.models.built import build_again
from conditioned_attention.experiments.training.checkpoints import damage
from conditioned_attention.experiments.training.start import Weights, weights_in
from conditioned_attention.storage.files import read_json
from conditioned_attention.storage.ownership import checkpoint_name, checkpoints_in

WEIGHTS, ABOUT = "model.safetensors", "model.json"


def load_run(
    folder: str | Path, *, weights: Weights = "run", step: int | None = None, model: nn.Module | None = None
) -> nn.Module:
    """Returns the trained model of a run, on the CPU and in evaluation mode, conditioned as in training.

    Only the library that the model is built from, such as timm, has to be installed.

    Args:
        folder: the folder of ``train``, of one run of a comparison (``runs/VARIANT/seed-N`` in the comparison's
            folder), or one that `export_run` has written.
        weights: ``"run"``, the weights that the run was scored with; ``"model"``, the trained weights themselves, if
            the run was scored with their average (``ema``); ``"average"``, the moving average of the weights (``ema``
            or ``ema_beside``).
        step: step of the checkpoint; default the newest.  A run keeps its two newest checkpoints.
        model: a fresh, unconditioned model of the same shape; needed if a task of your own built the model.

    Raises:
        FileNotFoundError: the folder holds no checkpoint, or not that one.
        ValueError: the checkpoint is damaged; it holds no average, or its weights in parts (fsdp2); it was written by a
            version that did not record how models are built, and no ``model`` is given; or the model is another one.

    >>> model = load_run("runs/deit_b-preconditioned-0", weights="average")  # doctest: +SKIP
    >>> logits = model(images)  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    about = about_model(folder)
    state = _state_of(folder, weights, step)
    if model is None:
        if about["built_of"] is None:
            raise ValueError(f"{folder}: a custom task built this model; pass a fresh one as model")
        model = build_again(about["built_of"])
    apply_conditioning(model, about["conditioning"])
    _load(model, state, folder)
    return model.eval()


def about_model(folder: Path) -> dict[str, Any]:
    """Reads ``model.json``; raises ValueError if it is missing or damaged."""
    if not (folder / ABOUT).is_file():
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        raise ValueError(
            f"{folder} has no {ABOUT}: it is not the folder of a run, or an earlier version wrote it. Calling the same "
            "'train' there again writes the file without training anything again"
        )
    found: dict[str, Any] = read_json(folder / ABOUT, Model)
    return found


def checkpoint_in(folder: Path, step: int | None = None) -> Path:
    """Returns the newest checkpoint of a run, or that of ``step``; raises ValueError if it is damaged."""
    found = checkpoints_in(folder)
    if step is not None:
        there, found = found, [path for path in found if path.name == checkpoint_name(step)]
        if there and not found:
            raise FileNotFoundError(f"step={step}: {folder} holds {', '.join(path.name for path in there)}")
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder}")
    if reason := damage(found[-1]):
        raise ValueError(f"{found[-1]} is damaged ({reason}); step=… takes another checkpoint")
    return found[-1]


def _state_of(folder: Path, weights: Weights, step: int | None) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        return weights_in(checkpoint_in(folder, step), weights)
    if weights != "run" or step is not None:
        raise ValueError(
            f"{folder} was exported and holds one state of a model: no weights={weights!r} and step={step}"
        )
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def _load(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Loads weights into a model; tied weights may be stored under only one of their names."""
    there = model.state_dict()
    shapes = [name for name, tensor in weights.items() if name in there and there[name].shape != tensor.shape]
    if shapes or (unknown := weights.keys() - there.keys()):
        name = shapes[0] if shapes else sorted(unknown)[0]
        raise ValueError(f"the weights in {folder} are those of another model than {type(model).__name__}: see {name}")
    model.load_state_dict(weights, strict=False)
    storages = {there[name].data_ptr() for name in weights}
    if missing := [name for name, tensor in there.items() if name not in weights and tensor.data_ptr() not in storages]:
        raise ValueError(f"the weights in {folder} are not all of {type(model).__name__}: there is no {missing[0]}")
