"""Records on a model, as plain data, how it was built, so that it can be built again without recipe and data."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
from torch import nn

_BUILT_OF = "_built_of"  # attribute of a model; plain data, so it is copied with the model and not in its state_dict
_Build = TypeVar("_Build", bound=Callable[..., nn.Module])


def remembered(build: _Build) -> _Build:
    """Decorates the ``build`` of a dataclass in this package: the model records how it was built; see `built_of`."""

    @functools.wraps(build)
    def building(settings: Any, *args: Any, **kwargs: Any) -> nn.Module:
        model = build(settings, *args, **kwargs)
        given = inspect.signature(build).bind(settings, *args, **kwargs).arguments
        cls, arguments = type(settings), dict(list(given.items())[1:])
        if cls.__module__.rpartition(".")[0] == __package__:  # and not a class that was derived elsewhere
            name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
            found = {"model": name, "settings": dataclasses.asdict(settings), "arguments": arguments}
            model.__dict__[_BUILT_OF] = json.loads(json.dumps(found))
        return model

    return cast(_Build, building)


def built_of(model: nn.Module) -> dict[str, Any] | None:
    """How a model was built: ``{"model": "file.Class", "settings": its fields, "arguments": of its build}``.

    None if it was not built by this package.
    """
    return model.__dict__.get(_BUILT_OF)


def build_again(data: Mapping[str, Any]) -> nn.Module:
    """Builds a model of the same shape with fresh weights; torch's generator keeps its state.

    Raises:
        ValueError: this version has no such class, or it takes other settings.
    """
    file, _, name = data["model"].partition(".")
    try:
        if not re.fullmatch(r"[a-z_]+\.[A-Za-z]+", data["model"]):
            raise AttributeError("that is no name of one")
        cls = getattr(import_module(f"{__package__}.{file}"), name)
        settings = cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in data["settings"].items()})
        build = functools.partial(settings.build, **data["arguments"])
    except (ModuleNotFoundError, AttributeError, TypeError) as error:
        raise ValueError(f"this version cannot build the model {data['model']!r}: {error}") from error
    with torch.random.fork_rng():
        model: nn.Module = build()
    return model
