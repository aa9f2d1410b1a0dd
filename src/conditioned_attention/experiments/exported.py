"""Exports a trained model as plain files: weights, the record of its conditioning, and how to build it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conditioned_attention.conversion import conditioning
from conditioned_attention.conversion.configs import CONFIG_KEY
from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.timm_model import TimmModel
from conditioned_attention.experiments.trained import ABOUT, WEIGHTS, about_model, checkpoint_in, load_run
from conditioned_attention.experiments.training.checkpoints import PositionData
from conditioned_attention.experiments.training.start import Weights
from conditioned_attention.storage.files import read_json, write_bytes, write_json
from conditioned_attention.storage.ownership import checkpoints_in, claim

RECORD, CONFIG, TOKENIZER = "conditioning.json", "config.json", "tokenizer.json"


def export_run(
    folder: str | Path,
    into: str | Path,
    *,
    weights: Weights = "run",
    step: int | None = None,
    model: nn.Module | None = None,
) -> Path:
    """Writes a run's trained model into a folder of its own.

    The folder gets ``model.safetensors`` (the state_dict), ``conditioning.json`` (the record for `apply_conditioning`),
    ``model.json`` (what `load_run` builds the model from, its classes, the preprocessing of its images), and
    ``tokenizer.json`` if the run has one.  For a timm model it also gets timm's ``config.json`` with the record inside:
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` followed by ``apply_conditioning(model, "FOLDER")`` then
    gives the trained model.  So does
    ``timm.create_model(NAME, num_classes=…, checkpoint_path="FOLDER/model.safetensors")`` followed by the same call.
    If a transform has weights of its own (a gain, a gate), or C was computed (polar), the plain model rejects these
    weights: use `load_run`, or condition the model before you load them.

    Args:
        folder, weights, step, model: as for `load_run`.
        into: a new or empty folder, or that of an earlier export.

    Returns:
        The folder ``into``.

    Raises:
        ValueError: ``into`` holds something else; or as for `load_run`.
        FileNotFoundError: as for `load_run`.
    """
    folder, into = Path(folder).expanduser(), Path(into).expanduser()
    trained = load_run(folder, weights=weights, step=step, model=model)
    about = {**about_model(folder), "weights": weights, "from": _origin(folder, step)}
    if checkpoints_in(into) or (into / "result.json").exists():
        raise ValueError(f"{into} holds a run; choose a new or empty folder")
    claim(into)
    _write_weights(trained, into / WEIGHTS)
    write_json(into / RECORD, conditioning(trained))
    if about["built_of"] is not None and about["built_of"]["model"] == "timm_model.TimmModel":
        _write_timms_config(trained, about, into / CONFIG)
    for tokenizer in folder.glob(TOKENIZER):
        write_bytes(into / TOKENIZER, tokenizer.read_bytes())
    write_json(into / ABOUT, about)
    return into


def _origin(folder: Path, step: int | None) -> dict[str, Any]:
    """Returns which run the weights come from, at which step, and its last evaluation up to that step."""
    position = read_json(checkpoint_in(folder, step) / "position.json", PositionData)
    run = {name: position["run"].get(name) for name in ("variant", "seed")}
    return {**run, "step": position["step"], "evaluation": (position["history"] or [None])[-1]}


def _write_weights(model: nn.Module, path: Path) -> None:
    """Writes each tensor once: tied weights are stored under one of their names, and loading ties them again."""
    from safetensors.torch import save

    once: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape) if tensor.numel() else (name,)
        once.setdefault(key, (name, tensor.contiguous()))
    write_bytes(path, save(dict(once.values()), {"format": "pt"}))


def _write_timms_config(model: nn.Module, about: dict[str, Any], path: Path) -> None:
    """Writes the config that timm and the Hugging Face Hub read; `apply_conditioning` finds our record in it."""
    with needs("timm"):
        from timm.models._hub import save_config_for_hf

    settings = TimmModel(**about["built_of"]["settings"])
    arguments = settings.arguments(**about["built_of"]["arguments"])
    config: dict[str, Any] = {"label_names": about["classes"], CONFIG_KEY: about["conditioning"]}
    if about["preprocessing"] is not None:
        config["pretrained_cfg"] = about["preprocessing"]
    save_config_for_hf(model, str(path), config, arguments)
