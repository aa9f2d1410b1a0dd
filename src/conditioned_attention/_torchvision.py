"""torchvision beside a CPU build of torch: its compiled operators do not load, and then neither does timm.

Used by the command line, the experiments and the benchmarks before they import timm; the core never calls it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_library: torch.library.Library | None = None  # the operators live as long as this object


def make_importable() -> None:
    """Makes ``import torchvision`` work, by declaring the two operators whose absence stops it.

    Only after an ordinary import has failed, so a working torchvision is left alone.  The operators are declared,
    not implemented: calling ``torchvision.ops.nms`` still raises.
    """
    global _library
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
