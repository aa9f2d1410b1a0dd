"""Inputs for an inspection: tensors, text or pictures from files, or random numbers."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioned_attention._warnings import warn

_TENSORS = (".pt", ".pth", ".npy", ".npz", ".safetensors")
_TEXTS = (".txt", ".md")
_TOKENS = 32  # of synthetic text
_WINDOW = 128  # tokens of real text
_SAMPLES = 2  # of random numbers
_REAL_SAMPLES = 4
_UNREADABLE = 10  # pictures; with more of them a folder is given up
_CHARACTERS = 100_000  # read of a text


def load_input(path: Path, model: nn.Module | None = None, source: str = "") -> Any:
    """Loads inputs to call a model with: one tensor, a tuple, or keywords.

    Args:
        path: a file with tensors, which are used as they are; a text, of which the first windows of 128 tokens are
            used, without padding; or a picture or folder of pictures, of which the first four readable ones are used,
            read as in training on the folder and prepared as the model expects them.
        model: the model that will get the input; for text and pictures.
        source: the name by which the model was loaded: a Hugging Face folder has the tokenizer or image processor.

    Raises:
        ValueError: a file of another kind, or one without anything that can be used.
    """
    if path.suffix in _TENSORS:
        return _tensors(path)
    if path.suffix in _TEXTS:
        return _text(path, model, source)
    from conditioned_attention.experiments.data.images.read import SUFFIXES

    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return _pictures(path, model, source)
    tensors, texts, pictures = (", ".join(kinds) for kinds in (_TENSORS, _TEXTS, SUFFIXES))
    raise ValueError(f"{path}: inputs come as {tensors} (tensors), {texts} (text), {pictures} or a folder (pictures)")


def _tensors(path: Path) -> Any:
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


def _text(path: Path, model: nn.Module | None, source: str) -> dict[str, torch.Tensor]:
    """Windows of a text, all of the same length so that nothing needs padding."""
    from transformers import AutoTokenizer

    if not Path(source).is_dir():
        raise ValueError(f"{path} is text, for a Hugging Face folder with its tokenizer; {source!r} is none")
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or _WINDOW
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_CHARACTERS)
    made = tokenizer(text, truncation=True, max_length=min(_WINDOW, longest), return_overflowing_tokens=True)
    windows = made["input_ids"]
    if not isinstance(windows[:1], list) or not windows or not isinstance(windows[0], list):  # a slow tokenizer
        windows = [windows]
    full = [window for window in windows if len(window) == len(windows[0])][:_REAL_SAMPLES]
    if not full[0]:
        raise ValueError(f"{path} holds no text")
    ids = torch.tensor(full)
    both = getattr(config, "is_encoder_decoder", False)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if both else {})


def _read(path: Path) -> list[Any]:
    """The first readable pictures, in RGB, read as in training; warns of pictures that cannot be read."""
    from conditioned_attention.experiments.data.images.folder import images_below
    from conditioned_attention.experiments.data.images.read import SUFFIXES, read_rgb
    from conditioned_attention.experiments.data.scan import reason_of

    files = [path] if path.is_file() else [path / name for name in images_below(path)]
    if not files:
        raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    found, unreadable = list[Any](), list[str]()
    for file in files:
        try:
            found.append(read_rgb(file))
        except Exception as error:  # damaged files fail in as many ways as there are readers
            unreadable.append(f"{file} ({reason_of(error)})")
        if len(found) == _REAL_SAMPLES or len(unreadable) > _UNREADABLE:
            break
    if not found:
        raise ValueError(f"no picture can be read: {', '.join(unreadable)}")
    if unreadable:
        warn(f"left out: {', '.join(unreadable)}")
    return found


def _pictures(path: Path, model: nn.Module | None, source: str) -> Any:
    images = _read(path)
    if Path(source).is_dir():
        processor: Any = import_module("transformers").AutoImageProcessor.from_pretrained(source)
        return dict(processor(images, return_tensors="pt"))
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"{path} is pictures, for a timm model or a Hugging Face folder; {source!r} is neither")
    timm_data: Any = import_module("timm.data")
    settings = timm_data.resolve_model_data_config(model)
    transform = timm_data.create_transform(**settings, is_training=False)
    mode = "L" if settings["input_size"][0] == 1 else "RGB"
    return torch.stack([transform(image.convert(mode)) for image in images])


def synthetic_input(model: nn.Module) -> Any:
    """Random input in the form that the model expects: pixels, tokens or sound; None if the form is unknown.

    The random state is fixed, so the same model gets the same input.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        sizes = getattr(model, "pretrained_cfg", None) or {}
        if "input_size" in sizes:  # timm
            return torch.randn(_SAMPLES, *sizes["input_size"])
        config = getattr(model, "config", None)
        return None if config is None else _for_config(model, config)


def _for_config(model: nn.Module, config: Any) -> dict[str, torch.Tensor] | None:
    """Random keyword arguments for a Hugging Face model, as far as its config and signature define them."""
    asked = inspect.signature(model.forward).parameters
    made: dict[str, torch.Tensor] = {}
    text, image, sound = (getattr(config, f"{part}_config", None) or config for part in ("text", "vision", "audio"))
    if "input_ids" in asked and isinstance(getattr(text, "vocab_size", None), int):
        made["input_ids"] = torch.randint(text.vocab_size, (_SAMPLES, _TOKENS))
    if "pixel_values" in asked and getattr(image, "image_size", None) is not None:
        size = image.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        made["pixel_values"] = torch.randn(_SAMPLES, getattr(image, "num_channels", 3), height, width)
    positions = getattr(sound, "max_source_positions", None)
    if "input_features" in asked and hasattr(sound, "num_mel_bins") and positions is not None:
        made["input_features"] = torch.randn(_SAMPLES, sound.num_mel_bins, 2 * positions)
    if "input_values" in asked and not made:
        made["input_values"] = torch.randn(_SAMPLES, 16_000)
    if made and getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in asked:
        both = hasattr(config, "decoder")  # an encoder and a decoder, put together
        vocabulary = getattr(config.decoder if both else text, "vocab_size", None)
        if vocabulary is None:
            return None
        made["decoder_input_ids"] = torch.randint(vocabulary, (_SAMPLES, _TOKENS))
    return made or None
