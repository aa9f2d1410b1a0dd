"""What spectral conditioning would do to a model's attention logits, on the inputs that its attention receives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from conditioned_attention.measure.probing.probe import attention_inputs
from conditioned_attention.measure.probing.projections import known_projections
from conditioned_attention.spectral import PUBLISHED, SATURATED, auto_strength, self_logit


@dataclass(frozen=True)
class SelfLogit:
    """How strongly λ I makes the tokens of one attention module attend to themselves.

    Attributes:
        module: its name.
        width: d, the width of a head's queries.
        input_square: mean square of the entries of the module's input; 1 after a layer norm.
        bounded: whether queries and keys are normed after the projections, so that no λ makes logits large.
    """

    module: str
    width: int
    input_square: float
    bounded: bool

    def at(self, strength: float) -> float:
        """What λ adds to the logit of a token with itself: λ² x² √d; 0 if the logits are bounded."""
        return 0.0 if self.bounded else self.input_square * self_logit(strength, self.width)

    def sentence(self) -> str:
        """Says in a sentence what λ adds to the logits, at its published value and at ``"auto"``."""
        if self.bounded:
            return "spectral conditioning: queries and keys are normed behind the projections, which bounds the logits"
        published, auto = PUBLISHED["identity"], auto_strength(self.width)
        consequence = ": attention looks at itself and little else" if self.at(published) > SATURATED else ""
        return (
            f"spectral conditioning: λ = {published:g}, as published, adds {self.at(published):.3g} to the logit of a "
            f"token with itself{consequence}; strength='auto' is {auto:.2g} and adds {self.at(auto):.2g} "
            f"(most in {self.module or 'the model'})"
        )


def strongest_self_logit(model: nn.Module, probe: Any) -> SelfLogit | None:
    """The `SelfLogit` of the module where λ I adds most; None if no projections are known.  The model is unchanged.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, 128)
    >>> found = strongest_self_logit(layer, torch.ones(10, 2, 64))
    >>> found.module, found.width, found.at(10.0)
    ('self_attn', 16, 400.0)
    """
    known = {site.name: (site, found) for site, found in known_projections(model) if site.attention}
    inputs = attention_inputs(model, probe, [site for site, _ in known.values()])
    found = []
    for name, x in inputs.items():
        module, projections = known[name][0].module, known[name][1]
        width, bounded = projections.head_widths(module)["q"], projections.bound_logits(module)
        found.append(SelfLogit(name, width, x.float().square().mean().item(), bounded))
    return max(found, key=_strength, default=None)


def _strength(logit: SelfLogit) -> float:
    """The number by which modules are compared; those whose inputs are not finite come last."""
    return -1.0 if math.isnan(logit.at(1.0)) else logit.at(1.0)
