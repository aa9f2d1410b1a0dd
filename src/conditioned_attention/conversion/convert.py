"""Converts a model in place, and restores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from conditioned_attention._warnings import warn
from conditioned_attention.conversion.change import Change, carry_out
from conditioned_attention.conversion.check import already, check_module, check_not_folded
from conditioned_attention.conversion.guard import put_guard
from conditioned_attention.conversion.persistence import remember, stays
from conditioned_attention.conversion.report import ConversionReport, row_for
from conditioned_attention.conversion.selection import Patterns
from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import (
    Site,
    active_transform,
    against,
    find_sites,
    forget_compiled,
    install,
    reset_compiled,
    settled,
    uninstall,
)
from conditioned_attention.sites.corrected import uncorrect

_LOADED = "_is_hf_initialized"  # transformers marks the parameters that from_pretrained has filled


def precondition(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    rows: str = "output",
    gradient: str = "stopped",
    eps: float = 1e-6,
    strict: bool = False,
    guard: bool = False,
) -> ConversionReport:
    """Switches a model's attention to preconditioned attention, in place; call it before training.

    Weights that were trained without C do not work with it: a trained model is ruined until it is trained again, or
    less so after `calibrate` (docs/fine_tuning.md).  A UserWarning says so if the weights were loaded by
    ``from_pretrained`` of transformers; weights loaded by other libraries cannot be recognised.

    Everything is checked before anything is changed.  Parameters, buffers and state_dict keys stay the same, so a
    checkpoint does not show that it was conditioned: see `conditioning` and `apply_conditioning`.

    Args:
        model: any module that contains attention of a known class: ``torch.nn.MultiheadAttention`` (and with it
            ``nn.Transformer`` and its layers), timm's (docs/timm.md lists them), torchvision's, Hugging Face's
            (docs/hugging_face.md), or a class given to `register_attention`.
        include: glob patterns for module names (as in ``model.named_modules()``); only matching modules are converted.
            Default: all except attention that pools tokens into features (timm's ``AttentionPoolLatent`` and the like),
            which the report lists as excluded and which is converted only if a pattern matches it.
        exclude: glob patterns for the names of modules that are left alone; applied after ``include``.
        rows, gradient, eps: as in `preconditioned_attention`.
        strict: raise if an attention module that was not excluded cannot be converted.
        guard: add a buffer to every converted module, whose name says what was done to it; this is the one exception to
            unchanged keys.  The ``state_dict`` then shows how it was conditioned: a plain model refuses it with
            ``strict=True``, `apply_conditioning` reads it, and this model refuses one that is plain or was conditioned
            differently, even with ``strict=False``.  If the model is inside a wrapper (DistributedDataParallel,
            PEFT's), the inner model is guarded, which remains when the wrapper is removed.

    Returns:
        A report with one row for every attention module: what was done and how, or why not.  In a ``with`` statement it
        makes the conversion temporary.

    Raises:
        TypeError: ``model`` is not a module, or a pattern is not a string.
        ValueError: nothing to convert; a pattern that matches no attention module; an unknown option; a module that was
            already converted with other options; a Hugging Face checkpoint of a conditioned model (use
            `apply_conditioning` for it); with ``strict``, an attention module that cannot be converted.  The model is
            then unchanged.

    >>> from transformers import ViTConfig, ViTModel
    >>> from conditioned_attention import precondition, restore
    >>> sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    >>> model = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes))
    >>> report = precondition(model, exclude="*.0.*")
    >>> report.names("converted"), report.names("excluded")
    (['layers.1.attention'], ['layers.0.attention'])
    >>> restore(model).names("restored")
    ['layers.1.attention']
    """
    transform = RowNorm(rows, gradient, eps)
    report = convert(model, transform, include=include, exclude=exclude, strict=strict, guard=guard)
    if any(getattr(parameter, _LOADED, False) for parameter in model.parameters()):
        warn(
            "these weights come from a checkpoint that does not say that it was trained with C; if it was not, what "
            "the model computes is ruined until it is trained again: restore(model) takes C away, and calibrate(model, "
            "batch) brings the model nearer to what it was (docs/fine_tuning.md)"
        )
    return report


def convert(
    model: nn.Module,
    transform: HeadTransform,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
    guard: bool = False,
) -> ConversionReport:
    """Converts a model as `precondition` does, but with any head transform, such as the controls of a comparison.

    >>> import torch
    >>> from conditioned_attention.conversion import convert
    >>> from conditioned_attention.controls import HeadRMSNorm
    >>> convert(torch.nn.TransformerEncoderLayer(32, 4, 64), HeadRMSNorm()).rows[0].status
    'converted'
    """
    check_module(model)
    report = carry_out(model, HeadChange(transform), include, exclude, strict)
    if guard:
        put_guard(stays(model))
        remember(model)
    return report


@dataclass(frozen=True)
class HeadChange(Change):
    """The conversion of heads by a transform, as a change of a model."""

    transform: HeadTransform

    def against(self, site: Site) -> str:
        return against(site, self.transform)

    def done(self, site: Site) -> bool:
        present = active_transform(site)
        if present not in (None, self.transform):
            raise ValueError(already(site, present))
        return present is not None

    def do(self, sites: Sequence[Site]) -> None:
        install(sites, self.transform)
        forget_compiled(sites)

    def undo(self, sites: Sequence[Site]) -> None:
        forget_compiled(uninstall(sites))


def restore(model: nn.Module) -> ConversionReport:
    """Undoes every conversion of a model: same classes, same parameters, and the plain model's output bit for bit.

    Args:
        model: a module, converted or not; a plain one is left as it is.  A `MultiheadAttention` of this library with
            which the model was built stays.  A loaded Hugging Face checkpoint of a conditioned model to which
            `apply_conditioning` was not applied becomes a plain model.

    Returns:
        A report whose rows name the modules that were restored.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the class of a converted module has been replaced since, as torch.nn.utils.parametrize and
            fully_shard do; or its correction has been folded into its weights (see `unfold`).  Nothing is changed then.

    >>> import torch
    >>> from conditioned_attention import precondition, restore
    >>> layer, x = torch.nn.TransformerEncoderLayer(32, 4, 64).eval(), torch.randn(5, 1, 32)
    >>> plain, report = layer(x), precondition(layer)
    >>> [row.status for row in restore(layer).rows], torch.equal(layer(x), plain)
    (['restored'], True)
    """
    check_module(model)
    with settled(model):
        sites = find_sites(model)
        check_not_folded(sites)
        heads = uninstall(sites)
        corrected = [site for site in sites if uncorrect(site.module)]
        forget_compiled(heads)
        if corrected:
            reset_compiled()
        remember(model)
    restored = {id(site.module) for site in (*heads, *corrected)}
    rows = [row_for(site, "restored" if id(site.module) in restored else "unchanged", site.reason) for site in sites]
    return ConversionReport(tuple(rows))
