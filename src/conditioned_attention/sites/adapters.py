"""Tells which adapters of PEFT are exact on a projection that computes with W + C, and which would take W for W + C.

An adapter that adds to the output of the projection, and to W when it is merged, is exact.  One that multiplies W, or
its norm, or rotates it, would do so without C.  Nothing of PEFT is imported here.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch import nn

# Tuners of PEFT that add to what the projection returns; tests/conversion/test_adapters.py tries every one that it has.
_ADDING = {"lora", "adalora", "loha", "lokr", "vera", "fourierft", "randlora", "vblora", "c3a", "waveft"}
_SHARED = {"tuners_utils", "lycoris_utils", "_buffer_dict", "mixed"}  # files for tuners of every kind
_ADVICE = "which is not exact on a weight that is W + C: call fold(model) before the adapter is made"


def adapter_against(module: Any) -> str:
    """Why a correction cannot go with the adapters around a projection; empty if it can, or if there are none."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        tuner = _tuner(type(module).__module__)
        variants = [type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()]
        dora = [name for name in variants if name.startswith("Dora")]
        if tuner in _SHARED or tuner == "" or (tuner in _ADDING and not dora):
            module = inner
        else:
            return f"has an adapter around it ({'DoRA' if dora else tuner} of PEFT) that multiplies W or its norm"
    return ""


def keeps_weights(frame: FrameType) -> bool:
    """Whether this function moves or changes the weights of other modules, and so has to get W.

    Raises RuntimeError if it belongs to an adapter that would not be exact.
    """
    name = _file(frame)
    if name.startswith(("accelerate.", "torch.distributed.")):
        return True
    if not name.startswith("peft."):
        return False
    behind: FrameType | None = frame
    functions = []
    while behind is not None and (name := _file(behind)).startswith("peft."):
        functions.append((name, behind.f_code.co_name))
        behind = behind.f_back
    for name, _ in functions:
        tuner = _tuner(name)
        if name == "peft.tuners.lora.dora" or tuner not in ("", *_SHARED, *_ADDING):
            tuner = "DoRA" if tuner == "lora" else tuner
            raise RuntimeError(f"an adapter of PEFT ({tuner}) reads the weight of a corrected projection, {_ADVICE}")
    # A property of the wrapper with the name of the weight only passes on what other code asks for.
    return len(functions) > 1 or functions[0][1] not in ("weight", "in_proj_weight")


def _tuner(file: str) -> str:
    """The name of the tuner to which a file of PEFT belongs; empty for other files."""
    parts = file.split(".")
    return parts[2] if parts[:2] == ["peft", "tuners"] and len(parts) > 2 else ""


def _file(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
