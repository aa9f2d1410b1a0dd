"""From a name to a model, and an input that it runs on.

A name is that of a timm model, a folder with a Hugging Face checkpoint, or a file with a saved module.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioned_attention._torchvision import make_importable
from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.conversion.persistence import CONFIG_KEY

_TENSOR_FILES = (".pt", ".pth", ".npy", ".npz", ".safetensors")
_TOKENS = 32  # of synthetic text
_SAMPLES = 2


def load_model(name: str, *, pretrained: bool = False, weights: bool = True, unpickle: bool = False) -> nn.Module:
    """The model of that name, in evaluation mode.

    Args:
        name: a timm model (``"vit_small_patch16_224"``), a folder with a config.json, or a file that ``torch.save``
            wrote a module to.
        pretrained: download timm's weights; else they are random.
        weights: False builds the model without weights (on the ``meta`` device), to look at its structure only.
        unpickle: loading a saved module runs code that the file names; this says that you trust it.

    Raises:
        ValueError: a name that is none of the three; a saved module without ``unpickle``; a file with something else.
    """
    path = Path(name)
    make_importable()
    if path.is_dir():
        model = _from_folder(path, weights)
    elif path.is_file():
        model = _from_file(path, unpickle)
    else:
        model = _from_timm(name, pretrained, weights)
    return model.eval()


def _from_timm(name: str, pretrained: bool, weights: bool) -> nn.Module:
    import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        near = timm.list_models(f"*{short}*")[:5]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{name!r} is no timm model, no folder and no file{hint}")
    with nullcontext() if weights else torch.device("meta"):
        model: nn.Module = timm.create_model(short, pretrained=pretrained and weights)
    return model


def _from_folder(folder: Path, weights: bool) -> nn.Module:
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
        raise ValueError(f"{path}: a saved module runs code when it is loaded; say --unpickle if you trust the file")
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # no such format, or a class that is not there
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{path} holds a {type(model).__name__} and not a module: save the model and not its state_dict"
        )
    return model


def load_input(path: Path) -> Any:
    """What a file says that the model should be called with: one tensor, a tuple, or keywords.

    Raises:
        ValueError: a file of another kind, or one that holds no tensors.
    """
    if path.suffix not in _TENSOR_FILES:
        raise ValueError(f"{path}: inputs come as {', '.join(_TENSOR_FILES)}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix in (".npy", ".npz"):
        import numpy as np

        data = np.load(path, allow_pickle=False)
        return torch.from_numpy(data) if path.suffix == ".npy" else {k: torch.from_numpy(v) for k, v in data.items()}
    data = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(data, (torch.Tensor, tuple, list, dict)):
        raise ValueError(f"{path} holds a {type(data).__name__}; inputs are a tensor, a tuple of them or a dict")
    return data


def synthetic_input(model: nn.Module) -> Any:
    """Random numbers of the form that the model asks for: pixels, tokens or sound; None if that cannot be told.

    The random state is fixed, so the same model gets the same input.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        sizes = getattr(model, "pretrained_cfg", None)
        if sizes is not None and "input_size" in sizes:  # timm
            return torch.randn(_SAMPLES, *sizes["input_size"])
        config = getattr(model, "config", None)
        return None if config is None else _for_config(model, config)


def _for_config(model: nn.Module, config: Any) -> dict[str, torch.Tensor] | None:
    """Keywords for a Hugging Face model, as far as its config and signature name them."""
    asked = inspect.signature(model.forward).parameters
    made: dict[str, torch.Tensor] = {}
    text, image, sound = (getattr(config, f"{part}_config", None) or config for part in ("text", "vision", "audio"))
    if "input_ids" in asked and isinstance(getattr(text, "vocab_size", None), int):
        made["input_ids"] = torch.randint(text.vocab_size, (_SAMPLES, _TOKENS))
    if "pixel_values" in asked and getattr(image, "image_size", None) is not None:
        size = image.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        made["pixel_values"] = torch.randn(_SAMPLES, getattr(image, "num_channels", 3), height, width)
    if "input_features" in asked and hasattr(sound, "num_mel_bins"):
        made["input_features"] = torch.randn(_SAMPLES, sound.num_mel_bins, 2 * sound.max_source_positions)
    if "input_values" in asked and not made:
        made["input_values"] = torch.randn(_SAMPLES, 16_000)
    if made and getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in asked:
        made["decoder_input_ids"] = torch.randint(text.vocab_size, (_SAMPLES, _TOKENS))
    return made or None
