"""Spectral conditioning of a model in place (arXiv 2603.07162): W_Q, W_K, W_V -> W + C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from conditioned_attention._warnings import warn
from conditioned_attention.conversion.addition import Addition, find_additions
from conditioned_attention.conversion.change import Change, carry_out
from conditioned_attention.conversion.check import already, check_module, check_not_folded
from conditioned_attention.conversion.persistence import remember
from conditioned_attention.conversion.report import ConversionReport
from conditioned_attention.conversion.selection import Patterns
from conditioned_attention.conversion.shared import Holders, against_sharing, holders_in
from conditioned_attention.sites import Site, correct_sites, find_projections, find_sites, reset_compiled
from conditioned_attention.sites.corrected import set_folded, spectral_of, uncorrect
from conditioned_attention.sites.projections import Projections, is_offloaded
from conditioned_attention.spectral import PUBLISHED, SATURATED, Spectral, auto_strength, self_logit, swamps

AUTO = "auto"
OFFLOADED = "has its values elsewhere between calls (accelerate's offload)"


def spectral_condition(
    model: nn.Module,
    strength: float | str = AUTO,
    *,
    correction: str = "identity",
    per_head: bool = False,
    roles: str = "qkv",
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
) -> ConversionReport:
    """Adds a fixed correction C to the query, key and value projections of a model's attention, in place.

    W remains the parameter, with its name and values; the model computes with W + C, and weight decay acts on W alone
    (arXiv 2603.07162, Theorems 3.5 and 3.8).  Everything is checked before anything is changed.  Afterwards the effect
    is checked, unless weights have no values (meta) or are spread over devices: with ``"identity"`` every projection
    gives λ x[..., :k] more than before, with ``"polar"`` κ(W + C) is at most 1 + 1/λ.

    Args:
        model: any module that contains attention of a known class; it may be converted by `precondition` as well,
            before or after.
        strength: λ.  ``"auto"`` is d^(-1/4) for ``"identity"`` with heads of width d, which adds about 1 to the logit
            of a token with itself for inputs of unit root mean square, as layer norms make them; and 1 for ``"polar"``,
            as in the paper.  The paper's 10 for ``"identity"`` saturates the softmax of most models, and gives a
            warning.
        correction: ``"identity"``, C = λ I_k with the rectangular identity; or ``"polar"``, C = λ σ_max(W) U Vᵀ for
            W = U S Vᵀ, computed once from the weights as they are now, so that κ(W + C) ≤ 1 + 1/λ.  It cannot be
            recovered from trained weights, so it is kept in buffers ``…_correction``, the one exception to unchanged
            state_dict keys.
        per_head: use one identity, or polar factor, for the rows of each head; otherwise one for all rows of each of
            W_Q, W_K and W_V.
        roles: ``"qkv"`` corrects all three as the paper does, ``"qk"`` only queries and keys, ``"v"`` only values.
        include, exclude: glob patterns for module names, as for `precondition`.
        strict: raise if an attention module that was not excluded cannot be corrected.

    Returns:
        A report with one row for every attention module.  In a ``with`` statement it makes the correction temporary,
        and raises ValueError at the end of the block if C has been folded into the weights inside it.

    Raises:
        TypeError: ``model`` is not a module, or an option is of a wrong type.
        ValueError: nothing to correct; an unknown option; a module that is already corrected differently; with
            ``strict``, an attention module that cannot be corrected.  The model is then unchanged.  (Weights that a
            quantizer has replaced, projections that another module has as well, and adapters that multiply W cannot be
            corrected.)
        RuntimeError: a projection does not compute what was expected of its class.  The model is then unchanged.

    Warns:
        UserWarning: λ is so large that each token would attend to itself and little else.

    >>> import torch
    >>> from conditioned_attention import restore, spectral_condition
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, 128)
    >>> spectral_condition(layer).converted
    ['self_attn']
    >>> restore(layer).names("restored")
    ['self_attn']
    """
    change = SpectralChange(strength, correction, per_head, roles)
    return carry_out(model, change, include, exclude, strict)


def fold(model: nn.Module) -> list[str]:
    """Makes corrections part of the weights: W becomes W + C, and the model runs without hooks, like any of its class.

    The sum is taken in float32 (float64 for float64 weights), and once for a weight that several modules share.  Fold
    for other programs that read or replace the weights, such as quantizers and adapters that multiply them.  Train
    before folding, because weight decay acts on C as well from then on.  `conditioning` records it, and `unfold`
    undoes it.

    Args:
        model: a module that was given to `spectral_condition`.

    Returns:
        The names of the attention modules whose weights were changed.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: nothing is corrected; a weight is no longer a parameter, or is offloaded; in half precision, adding
            C would round away more than a tenth of the weights' typical size; a weight also belongs to another module
            of the model, which has no C or a different one.  Nothing is changed then.

    >>> import torch
    >>> from conditioned_attention import fold, spectral_condition, unfold
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, 128)
    >>> _ = spectral_condition(layer, 0.3)
    >>> fold(layer), unfold(layer)
    (['self_attn'], ['self_attn'])
    """
    return _refold(model, folded=True)


def unfold(model: nn.Module) -> list[str]:
    """Undoes `fold`: the parameters are W again, bit for bit where C is zero, elsewhere up to rounding at λ.

    Args:
        model: a module that was given to `fold`, or one loaded from its checkpoint and given to `apply_conditioning`.

    Returns:
        The names of the attention modules whose weights were changed.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: nothing is folded; a weight is no longer a parameter, or is offloaded.  Nothing is changed then.

    >>> import torch
    >>> from conditioned_attention import fold, spectral_condition, unfold
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
    >>> report, before = spectral_condition(layer, 0.5), layer.self_attn.in_proj_weight.detach().clone()
    >>> fold(layer), unfold(layer), torch.allclose(layer.self_attn.in_proj_weight, before)
    (['self_attn'], ['self_attn'], True)
    """
    return _refold(model, folded=False)


def _refold(model: nn.Module, *, folded: bool) -> list[str]:
    """Folds the corrections of a model that are not folded yet, or unfolds those that are."""
    check_module(model)
    plans: list[tuple[Site, Projections]] = []
    for site in find_sites(model):
        spectral = spectral_of(site.module)
        if spectral is not None and spectral.folded != folded:
            projections = find_projections(site.module)
            reason = projections if isinstance(projections, str) else projections.against(site.module)
            if reason:
                raise ValueError(f"{site.name} cannot be {'folded' if folded else 'unfolded'}: {reason}")
            assert isinstance(projections, Projections)
            plans.append((site, projections))
    if not plans:
        raise ValueError(f"there is nothing to {'fold: no projection is corrected' if folded else 'unfold'}")
    additions = find_additions(model, plans)
    for addition in additions:
        _check(addition, folded=folded)
    for addition in additions:
        addition.carry_out(1 if folded else -1)
    for site, projections in plans:
        set_folded(site.module, projections, folded=folded)
    reset_compiled()
    remember(model)
    return [site.name for site, _ in plans]


def _check(addition: Addition, *, folded: bool) -> None:
    """Raises ValueError for a weight to which C cannot be added, or not without loss."""
    if is_offloaded(addition.owner):
        raise ValueError(
            f"{addition.name}: {addition.correction.projection.parameter} of its {type(addition.owner).__qualname__} "
            f"{OFFLOADED}: fold before that is done to it"
        )
    if not folded:
        return
    largest = addition.correction.largest(addition.owner)
    if swamps(largest, addition.weight):
        raise ValueError(
            f"{addition.name}: adding {largest:.3g} to {addition.weight.dtype} weights would round away more than a "
            "tenth of what they are there: fold a float32 copy of the model"
        )


@dataclass(frozen=True)
class SpectralChange(Change):
    """The correction of query, key and value projections, as a change of a model."""

    strength: float | str
    correction: str
    per_head: bool
    roles: str = "qkv"
    plans: dict[int, tuple[Projections, Spectral]] = field(default_factory=dict, repr=False)
    holders: dict[int, Holders] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.strength, str) and self.strength != AUTO:
            raise ValueError(f"strength={self.strength!r} is unknown; valid are a number and {AUTO!r}")
        self._spectral(64)  # raises for what is wrong whatever the module

    def _spectral(self, width: int) -> Spectral:
        strength = self.strength
        if isinstance(strength, str):
            strength = auto_strength(width) if self.correction == "identity" else PUBLISHED["polar"]
        return Spectral(strength, self.correction, self.per_head, roles=self.roles)

    def against(self, site: Site) -> str:
        if not site.attention:
            return site.reason
        found = find_projections(site.module)
        if isinstance(found, str):
            return found
        if reason := found.against(site.module):
            return f"{reason}; call spectral_condition(model) and fold(model) before that is done to it"
        root = site.parents[0] if site.parents else site.module
        if id(root) not in self.holders:
            self.holders[id(root)] = holders_in(root)
        if reason := against_sharing(site.module, found, self.holders[id(root)]):
            return reason
        if self.correction == "polar" and any(is_offloaded(weight.owner(site.module)) for weight in found.weights):
            return f"a weight {OFFLOADED}, and the polar correction is computed from them: correct before that is done"
        try:
            widths = found.head_widths(site.module)
        except ValueError as error:
            return str(error)
        self.plans[id(site.module)] = found, self._spectral(widths["q"])
        return ""

    def done(self, site: Site) -> bool:
        present, wanted = spectral_of(site.module), self.plans[id(site.module)][1]
        if present not in (None, wanted):
            raise ValueError(already(site, present))
        return present is not None

    def do(self, sites: Sequence[Site]) -> None:
        correct_sites(sites, lambda site: self.plans[id(site.module)][1])
        self._warn(sites)

    def undo(self, sites: Sequence[Site]) -> None:
        check_not_folded(sites)
        for site in sites:
            uncorrect(site.module)
        reset_compiled()

    def how(self, site: Site) -> str | None:
        return "W + C" if id(site.module) in self.plans else ""

    def remark(self, site: Site) -> str:
        return self.plans[id(site.module)][0].remark

    def _warn(self, sites: Sequence[Site]) -> None:
        """Warns once about a λ with which each token would attend to itself and little else."""
        if self.correction != "identity" or self.roles == "v":
            return
        for site in sites:
            projections, spectral = self.plans[id(site.module)]
            if projections.bound_logits(site.module):
                continue
            width = projections.head_widths(site.module)["q"]
            if (logit := self_logit(spectral.strength, width)) > SATURATED:
                warn(
                    f"strength={spectral.strength:g} adds about {logit:.3g} to the logit of a token with itself, for "
                    f"inputs of unit root mean square and heads of width {width} (first at {site.name!r}): attention "
                    "would look at the token itself and little else. A small ViT with a class token trained to chance "
                    f"that way; strength={AUTO!r} is {auto_strength(width):.2g} here"
                )
                return
