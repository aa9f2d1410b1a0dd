"""Warnings that point at the user's line of code, however deep inside the library they are raised."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

_FOLDERS = (Path(__file__).parent, Path(torch.__file__).parent / "nn" / "modules")
_WITHIN = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)  # and not "conditioned_attention_tools" beside it


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` for the first line outside this library and outside ``torch.nn.modules``, which may call it.

    While torch.compile traces there is no such line, and no warning is given.
    """
    if torch.compiler.is_compiling():
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_WITHIN):
        frame, level = frame.f_back, level + 1
    found = category(message)
    found.ours = True  # type: ignore[attr-defined]
    warnings.warn(found, stacklevel=level)


def is_ours(message: Warning | str) -> bool:
    """Whether a warning was given by `warn`."""
    return getattr(message, "ours", False)
