"""The initial weights of transformers: one definition for every family and library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from conditioned_attention.choices import Choices
from conditioned_attention.sites import find_projections, find_sites
from conditioned_attention.storage.settings import added

# The usual standard deviation, and the width of the models that it was made for (BERT-base, GPT-2, ViT-B).
USUAL_STD, USUAL_WIDTH = 0.02, 768

_OUTPUT_OF_ATTENTION = (
    "attention.o_proj", "attention.proj", "attn.proj", "attn.c_proj", "self_attn.o_proj", "self_attn.out_proj",
)  # fmt: skip
_OUTPUT_OF_MLP = ("mlp.fc2", "mlp.c_proj", "mlp.down_proj", "linear2")


@dataclass(frozen=True, kw_only=True)
class Start(Choices):
    """How the weights of a transformer are initialised.

    Attributes:
        init: standard deviation of the normal distribution that the weights of all layers, embeddings and tokens are
            drawn from; biases are 0, layer norms 1 and 0.  ``"width"`` is 0.02 · √(768 / width): the usual 0.02 at
            width 768, and as much signal in every layer at any width.  ``"library"`` leaves initialisation to the
            library, as versions of this project did before this option: 0.02 at any width.
        qk_scale: factor on the initial W_Q and W_K; the logits grow by its square.
        vo_scale: factor on the initial W_V and W_O (the output projection of attention); what attention adds to the
            tokens grows by its square.
        residual_scale: ``"depth"`` multiplies the initial output projections of attention and MLP by 1/√(2 · layers),
            as GPT-2 does, so that the sum over all blocks does not grow with their number; ``"none"`` does not.
    """

    init: float | Literal["library", "width"] = added("width", before="library")
    qk_scale: float = added(1.0)
    vo_scale: float = added(1.0)
    residual_scale: Literal["none", "depth"] = added("none")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init", "qk_scale", "vo_scale"):
            value = getattr(self, name)
            if name == "init" and isinstance(value, str):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def first_weights(
        self, build: Callable[[], nn.Module], *, width: int, layers: int, library_scales: bool = False
    ) -> nn.Module:
        """Builds a model and gives it the initial weights that the settings ask for.

        From the same state of torch's generator, models of the same shape start with the same numbers, whatever their
        libraries draw for themselves, if the width is a multiple of 4; at other widths a fused weight gets other
        numbers.

        Args:
            build: makes the model with its library's weights.
            width: width of its tokens.
            layers: how many blocks it has.
            library_scales: whether the library scales output projections by 1/√(2 · layers).
        """
        seed = None if self.init == "library" else int(torch.randint(2**62, (), device="cpu"))
        model = build()
        with torch.no_grad():
            if seed is not None:
                _draw(model, self.std(width), torch.Generator().manual_seed(seed))
            _scale_projections(model, {"q": self.qk_scale, "k": self.qk_scale, "v": self.vo_scale})
            there = 1 / math.sqrt(2 * layers) if library_scales and seed is None else 1.0
            residual = (1 / math.sqrt(2 * layers) if self.residual_scale == "depth" else 1.0) / there
            _scale(model, _OUTPUT_OF_ATTENTION, layers, residual * self.vo_scale)
            _scale(model, _OUTPUT_OF_MLP, layers, residual)
        return model

    def std(self, width: int) -> float:
        """Returns the standard deviation for a width of the tokens.

        >>> round(Start().std(64), 4), Start().std(768), Start(init=0.1).std(64)
        (0.0693, 0.02, 0.1)
        """
        if self.init == "width":
            return USUAL_STD * math.sqrt(USUAL_WIDTH / width)
        return USUAL_STD if self.init == "library" else float(self.init)


def _draw(model: nn.Module, std: float, generator: torch.Generator) -> None:
    """Draws matrices, kernels, embeddings and tokens from a normal distribution, not truncated; biases 0, norms 1."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() > 1:
            parameter.normal_(0.0, std, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _scale_projections(model: nn.Module, factors: Mapping[str, float]) -> None:
    """Multiplies the rows of each role in the query, key and value projections of every attention module."""
    if set(factors.values()) == {1.0}:
        return
    for site in find_sites(model):
        projections = find_projections(site.module)
        assert not isinstance(projections, str), projections
        for role, matrix, rows in projections.matrices(site.module):
            matrix[rows] *= factors[role]


def _scale(model: nn.Module, endings: tuple[str, ...], layers: int, factor: float) -> None:
    """Multiplies the weights of the modules whose names have one of these endings, one in every block."""
    if factor == 1.0:
        return
    found = [module for name, module in model.named_modules() if name.endswith(endings)]
    assert len(found) == layers, f"{type(model).__name__} has {len(found)} modules called {endings}"
    for module in found:
        module.weight *= factor
