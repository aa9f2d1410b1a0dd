"""Measures what a conversion alone would do to trained weights, and advises how to train them further."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention._warnings import warn
from conditioned_attention.calibration import calibrate
from conditioned_attention.conversion import convert, spectral_condition
from conditioned_attention.inspection.inspect import Inspection
from conditioned_attention.preconditioner import RowNorm


def losses_at_start(model: nn.Module, ids: Tensor) -> dict[str, float] | None:
    """The loss of a decoder, in nats per token, as it is and after each conversion, without any training.

    The model is left as it was except for rounding in W_O.

    Args:
        model: a plain model of Hugging Face transformers.
        ids: (B, N), int64, windows of text; the first half is used for calibration, and the other half is scored.

    Returns:
        The losses under ``"plain"``, ``"C"``, ``"C, calibrated"`` and ``"λ I"``; None for a model that does not predict
        the next token, and for fewer than two windows; also None, with a warning that says why, for a model that one of
        these conversions refuses.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    >>> list(losses_at_start(gpt, torch.randint(64, (2, 16))))
    ['plain', 'C', 'C, calibrated', 'λ I']
    """
    can_generate: Any = getattr(model, "can_generate", None)
    decodes = can_generate is not None and can_generate() and not getattr(model.config, "is_encoder_decoder", False)
    if not decodes or len(ids) < 2:
        return None
    half = len(ids) // 2
    found = {"plain": _loss(model, ids[half:])}
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter("ignore")
            stack.enter_context(convert(model, RowNorm()))
            found["C"] = _loss(model, ids[half:])
            stack.enter_context(calibrate(model, {"input_ids": ids[:half], "use_cache": False}))
            found["C, calibrated"] = _loss(model, ids[half:])
        with spectral_condition(model):
            found["λ I"] = _loss(model, ids[half:])
    except ValueError as error:
        warn(f"what a conversion does to the loss before any training is not shown: {error}")
        return None
    return found


@torch.no_grad()
def _loss(model: nn.Module, ids: Tensor) -> float:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).item()


def advice(inspection: Inspection, name: str, losses: Mapping[str, float] | None) -> list[str]:
    """A few lines of advice for users of trained weights; none if a model is already conditioned or has no attention.

    Args:
        inspection: the inspection of the model.
        name: the name by which the model was loaded.
        losses: what `losses_at_start` returned.
    """
    conversions = [row.conversion for row in inspection.rows]
    if "converts" not in conversions or "already conditioned" in conversions:
        return []
    lines = [
        "if these weights were trained without C, conversion changes what the model computes (docs/fine_tuning.md)"
    ]
    if losses is not None:
        told = ", ".join(f"{what} {loss:.2f}" for what, loss in losses.items())
        lines.append(f"loss on the second half of the input before any training, in nats a token: {told}")
    lines.append("calibrate(model, batch) after precondition(model) scales W_O so that it starts closer to what it was")
    if losses is not None or (Path(name) / "config.json").is_file():
        variants = "baseline preconditioned preconditioned_calibrated spectral"
        lines.append(
            f"to try, on your text: conditioned-attention compare fine_tune --pretrained {name} --variants {variants}"
        )
    return lines
