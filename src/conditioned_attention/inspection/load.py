"""Loads a model by its name: a timm model, a folder with a Hugging Face checkpoint, or a file with a saved module."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.conversion.configs import CONFIG_KEY
from conditioned_attention.environment import check_torchvision, needs


def load_model(name: str, *, pretrained: bool = False, weights: bool = True, unpickle: bool = False) -> nn.Module:
    """Loads a model by its name, in evaluation mode.

    Args:
        name: a timm model (``"vit_small_patch16_224"``), a folder with a config.json, or a file that ``torch.save``
            wrote a module to.
        pretrained: download timm's weights; otherwise they are random.
        weights: False builds the model without weights (on the ``meta`` device), to look at its structure only.
        unpickle: load a saved module, which runs code that the file names; set it only if you trust the file.

    Raises:
        ValueError: a name that is none of the three; a saved module without ``unpickle``; a file with something else.
    """
    path = Path(name)
    check_torchvision()
    if path.is_dir():
        return _from_folder(path, weights).eval()
    return (_from_file(path, unpickle) if path.is_file() else _from_timm(name, pretrained, weights)).eval()


def weights_in_words(name: str, *, pretrained: bool = False) -> str:
    """Says in words which weights `load_model` gives a model, for readers of what was measured.

    >>> weights_in_words("vit_small_patch16_224", pretrained=True)
    "timm's pretrained weights"
    """
    if Path(name).exists():
        return f"the weights in {name}"
    if pretrained:
        return "timm's pretrained weights"
    return "fresh random weights, as timm starts this model (--pretrained downloads trained ones)"


def _from_timm(name: str, pretrained: bool, weights: bool) -> nn.Module:
    with needs("timm", f"{name!r}, which is no folder and no file, but may be a timm model,"):
        import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        near = timm.list_models(f"*{short}*")[:5]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{name!r} is neither a timm model nor an existing folder or file{hint}")
    with torch.random.fork_rng([]), nullcontext() if weights else torch.device("meta"):
        torch.manual_seed(0)  # the same name is the same model
        model: nn.Module = timm.create_model(short, pretrained=pretrained and weights)
    return model


def _from_folder(folder: Path, weights: bool) -> nn.Module:
    with needs("transformers", f"the folder {folder}"):
        import transformers

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no Hugging Face checkpoint")
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    cls: Any = getattr(transformers, architecture, transformers.AutoModel)
    if not weights:
        with torch.device("meta"):
            model: nn.Module = cls._from_config(config) if hasattr(cls, "_from_config") else cls.from_config(config)
    else:
        model = cls.from_pretrained(folder)
    if CONFIG_KEY in vars(getattr(model, "config", object)):
        apply_conditioning(model)
    return model


def _from_file(path: Path, unpickle: bool) -> nn.Module:
    if not unpickle:
        raise ValueError(f"{path}: a saved module runs code when it is loaded; pass --unpickle if you trust the file")
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # no such format, or a class that is not there
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        raise ValueError(f"{path} holds a {what} and not a module: save the model and not its state_dict")
    return model
