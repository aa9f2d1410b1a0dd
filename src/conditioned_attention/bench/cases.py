"""The shapes that are measured: attention as the models of the papers call it, and as a GPT does.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.choices import Choices


@dataclass(frozen=True)
class Inputs:
    """The arguments of attention, and the gradient (B, H, N, D) from which backward starts."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    upstream: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.query, self.key, self.value, self.mask

    @property
    def leaves(self) -> list[Tensor]:
        """The arguments that require a gradient."""
        return [tensor for tensor in self.arguments if tensor is not None and tensor.requires_grad]

    def double(self) -> Inputs:
        """Copies in float64 that require the same gradients; a boolean mask stays one."""
        mask = None if self.mask is None else _double(self.mask)
        return Inputs(_double(self.query), _double(self.key), _double(self.value), mask, _double(self.upstream))


Known = TypeVar("Known")
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Case(Choices):
    """One shape of attention and where it comes from.

    Attributes:
        name: its name in tables and on the command line.
        query: (B, H, N, D).
        about: the source, in words.
        keys: M, if it is not N.
        key_heads: G, if it is not H; each key head then serves H / G query heads.
        causal: query i attends to keys 0..i.
        mask: ``"none"``; ``"bias"``, a learned (1, H, N, M) that is added to the logits and gets a gradient; or
            ``"padding"``, a boolean (B, 1, 1, M) that hides the last keys of each sequence.
        channels: rows are channels, as in XCiT: query and key have unit length along the tokens, the scale is 1, and
            the tensors are views whose last dimension is not contiguous, as that model makes them.
    """

    name: str
    query: tuple[int, int, int, int]
    about: str
    keys: int | None = None
    key_heads: int | None = None
    causal: bool = False
    mask: Literal["none", "bias", "padding"] = "none"
    channels: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``scaled_dot_product_attention``, which our functions take too."""
        scale = 1.0 if self.channels else None
        return {"is_causal": self.causal, "scale": scale, "enable_gqa": self.key_heads is not None}

    @property
    def shape(self) -> str:
        """Everything that determines the cost, in a few signs."""
        extras = [f"{self.keys} keys"] if self.keys else []
        extras += [f"{self.key_heads} key heads"] if self.key_heads else []
        extras += ["causal"] if self.causal else []
        extras += {"none": [], "bias": ["learned bias"], "padding": ["padding mask"]}[self.mask]
        return ", ".join(["×".join(map(str, self.query)), *extras])

    def inputs(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Random tensors, the same every time; drawn on the device, since large ones would take a CPU seconds."""
        generator = torch.Generator(device).manual_seed(0)
        batch, heads, n, width = self.query
        m, key_heads = self.keys or n, self.key_heads or heads
        query = self._draw(generator, batch, heads, n, width, unit=self.channels)
        key = self._draw(generator, batch, key_heads, m, width, unit=self.channels)
        value = self._draw(generator, batch, key_heads, m, width)
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in (query, key, value))
        upstream = self._draw(generator, batch, heads, n, width).to(dtype)
        return Inputs(query, key, value, self._mask(generator, (batch, heads, n, m), dtype), upstream)

    def _draw(self, generator: torch.Generator, *size: int, unit: bool = False) -> Tensor:
        """Draws (B, H, N, D) as a view of (B, N, H, D), or of (B, D, H, N) for channels, as projections give it."""
        batch, heads, n, width = size
        randn = partial(torch.randn, generator=generator, device=generator.device)
        if self.channels:
            tensor = randn(batch, width, heads, n).permute(0, 2, 3, 1)
        else:
            tensor = randn(batch, n, heads, width).transpose(1, 2)
        return F.normalize(tensor, dim=-1) if unit else tensor

    def _mask(self, generator: torch.Generator, size: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        (batch, heads, n, m), device = size, generator.device
        if self.mask == "bias":
            return torch.randn(1, heads, n, m, generator=generator, device=device).to(dtype).requires_grad_()
        if self.mask == "padding":
            sizes = (batch, 1, 1, 1)
            lengths = torch.randint(math.ceil(m / 2), m + 1, sizes, generator=generator, device=device)
            return torch.arange(m, device=device) < lengths
        return None

    def merge_heads(self, output: Tensor) -> Tensor:
        """(B, H, N, E) -> tokens × all heads, as a model passes it to its output projection."""
        tokens = output.permute(0, 3, 1, 2) if self.channels else output.transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], -1)


def _double(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.bool else tensor.detach().double().requires_grad_(tensor.requires_grad)


CASES = {
    case.name: case
    for case in (
        Case("vit_b", (8, 12, 197, 64), "ViT-B/16 and DeiT-B at 224 pixels, 8 images"),
        Case("vit_s", (8, 6, 197, 64), "ViT-S/16 at 224 pixels, 8 images"),
        Case("swin_bias", (512, 3, 49, 32), "Swin-T stage 1, windows of 8 images, relative position bias", mask="bias"),
        Case("swin", (512, 3, 49, 32), "the same windows without the bias"),
        Case("digits", (8, 6, 17, 16), "a few tokens, as in the demo"),
        Case("xcit", (8, 8, 48, 196), "XCiT-S12/16 at 224 pixels, 8 images: rows are channels", channels=True),
        Case("bert", (8, 12, 128, 64), "BERT and Crammed BERT on GLUE, 8 sentences", mask="padding"),
        Case("lra_image", (8, 2, 1024, 32), "Long Range Arena image and pathfinder, Nystromformer's model"),
        Case("lra_listops", (4, 2, 2048, 32), "Long Range Arena ListOps, Nystromformer's model"),
        Case("lra_retrieval", (2, 2, 4096, 32), "Long Range Arena text and retrieval, Nystromformer's model"),
        Case("gpt", (4, 12, 1024, 64), "GPT-2 small at its full context, 4 sequences", causal=True),
        Case(
            "gpt_grouped", (4, 12, 1024, 64), "the same with grouped queries, as in Llama 3", key_heads=4, causal=True
        ),
    )
}

# For a GPU: 16 thousand tokens in a batch and H · D = 2048, as flash attention is usually measured, and ViT's 197
# tokens.  The cheap ones first, so that little is missing when time is up.
GPU_CASES = {
    case.name: case
    for n, batch in ((197, 64), (1024, 16), (4096, 4), (16384, 1))
    for width in (64, 128)
    for causal in (False, True)
    for case in [
        Case(
            f"d{width}_n{n}{'_causal' * causal}",
            (batch, 12 if n == 197 else 2048 // width, n, width),
            "ViT-B's tokens and heads, 64 images" if n == 197 else "16 thousand tokens, H · D = 2048",
            causal=causal,
        )
    ]
}


def by_name(names: Iterable[str], known: Mapping[str, Known], kind: str) -> list[Known]:
    """The known things with these names, once each, or all if no name is given; raises ValueError for unknown names."""
    names = list(dict.fromkeys(names)) or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{kind} {unknown[0]!r} is unknown; valid are {', '.join(known)}")
    return [known[name] for name in names]


find_cases = partial(by_name, known=CASES, kind="case")


def in_order(names: Iterable[str]) -> list[str]:
    """The different names in the order of `GPU_CASES` and `CASES`, not that of measurement; unknown ones last."""
    order = {name: place for place, name in enumerate([*GPU_CASES, *CASES])}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order)))
