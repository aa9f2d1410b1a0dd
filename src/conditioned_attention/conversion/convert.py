"""Conversion of a model in place, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from torch import nn

from conditioned_attention.conversion.guard import check_room, put_guard
from conditioned_attention.conversion.persistence import already, check_module, conditioning, remember
from conditioned_attention.conversion.report import ConversionReport, row_for
from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import (
    Site,
    active_transform,
    find_sites,
    forget_compiled,
    install,
    marked,
    settled,
    uninstall,
    unwrap,
)

Patterns = str | Sequence[str] | None


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
    """Switches the attention of a model to preconditioned attention, in place.

    Everything is checked before anything is changed.  Parameters, buffers and state_dict keys stay what they are, so
    a checkpoint does not know that it was conditioned: see `conditioning` and `apply_conditioning`.

    Args:
        model: any module that contains attention of a known class: ``torch.nn.MultiheadAttention`` (and with it
            ``nn.Transformer`` and its layers), timm's (docs/timm.md lists them), torchvision's, Hugging Face's
            (docs/hugging_face.md), or a class given to `register_attention`.
        include: glob patterns over module names (as in ``model.named_modules()``); only matches are converted.
            Default: all but attention that pools tokens into features (timm's ``AttentionPoolLatent`` and its like),
            which the report lists as excluded: it is converted where a pattern matches it.
        exclude: glob patterns over module names that are left alone, after ``include``.
        rows, gradient, eps: as in `preconditioned_attention`.
        strict: raise if an attention module that was not excluded cannot be converted.
        guard: add a buffer ``conditioned_attention`` with the record of the conversion to the model, the one exception
            to unchanged keys.  Its ``state_dict`` then tells how it was conditioned: a plain model does not load it
            with ``strict=True``, `apply_conditioning` reads it, and this model refuses one that is plain or was
            conditioned otherwise, also with ``strict=False``.

    Returns:
        A report with one row for every attention module: what was done, how, and why not.  In a ``with`` statement it
        makes the conversion temporary.

    Raises:
        TypeError: ``model`` is not a module, or a pattern is not a string.
        ValueError: nothing to convert; a pattern that matches no attention; an unknown option; a module that was
            already converted with other options; a Hugging Face checkpoint of a conditioned model, for which there is
            `apply_conditioning`; with ``strict``, an attention module that cannot be converted; with ``guard``, a model
            that has something else by the buffer's name.  The model is then unchanged.

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
    return convert(model, transform, include=include, exclude=exclude, strict=strict, guard=guard)


def convert(
    model: nn.Module,
    transform: HeadTransform,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    strict: bool = False,
    guard: bool = False,
) -> ConversionReport:
    """`precondition` with any head transform, as the controls of a comparison need."""
    check_module(model)
    inner = unwrap(model)
    if guard:
        check_room(inner)
    if marked(model):
        raise ValueError(
            "this checkpoint was trained with conditioned attention: call apply_conditioning(model) to go on with it "
            "as it was, or restore(model) first to make it a plain model"
        )
    report = _convert(model, transform, include, exclude, strict)
    if guard:
        put_guard(inner, conditioning(inner))
    return report


def _convert(
    model: nn.Module, transform: HeadTransform, include: Patterns, exclude: Patterns, strict: bool
) -> ConversionReport:
    sites = find_sites(model)
    chosen = _select(sites, include, exclude)
    reasons = {site.name: reason for site in chosen if (reason := site.against(transform))}
    refused = {site.name: reasons[site.name] for site in chosen if site.name in reasons and site.attention}
    if strict and refused:
        raise ValueError("strict=True, and these cannot be converted:\n" + _lines(refused))
    able = [site for site in chosen if site.name not in reasons]
    optional = {site.name: site.opt_in for site in sites if site.opt_in and site not in chosen}
    if not able:
        raise ValueError("nothing to convert in " + type(model).__name__ + _nothing_because(sites, optional | reasons))
    for site in able:
        present = active_transform(site)
        if present not in (None, transform):
            raise ValueError(already(site, present))
    new = {site.name for site in able if active_transform(site) is None}
    status = {site.name: "converted" if site.name in new else "unchanged" for site in able}
    status |= dict.fromkeys(reasons, "no attention") | dict.fromkeys(refused, "refused")
    words = optional | reasons
    rows = tuple(row_for(s, status.get(s.name, "excluded"), words.get(s.name, s.reason)) for s in sites)
    changed = [site for site in able if site.name in new]
    install(changed, transform)
    forget_compiled(changed)
    remember(model)
    return ConversionReport(rows, partial(_make_plain, model, changed))


def restore(model: nn.Module) -> ConversionReport:
    """Undoes every conversion of a model: same classes, same parameters, the output of the plain model bit for bit.

    Args:
        model: a module, converted or not; on a plain one nothing happens.  A `MultiheadAttention` of this library
            that the model was built with stays.  A Hugging Face checkpoint that was loaded, and to which
            `apply_conditioning` was not applied, becomes a plain model.

    Returns:
        A report whose rows name the modules that were restored.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a converted module has got another class since, as torch.nn.utils.parametrize and fully_shard
            give it; nothing is changed then.
    """
    check_module(model)
    with settled(model):
        sites = find_sites(model)
        made_plain = _make_plain(model, sites)
    restored = {id(site.module) for site in made_plain}
    rows = [row_for(site, "restored" if id(site.module) in restored else "unchanged", site.reason) for site in sites]
    return ConversionReport(tuple(rows))


def _make_plain(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that were not plain."""
    restored = uninstall(sites)
    forget_compiled(restored)
    remember(model)
    return restored


def _select(sites: Sequence[Site], include: Patterns, exclude: Patterns) -> list[Site]:
    names = [site.name for site in sites]
    by_default = {site.name for site in sites if not site.opt_in or active_transform(site) is not None}
    chosen = by_default if include is None else _matches("include", include, names)
    chosen -= set() if exclude is None else _matches("exclude", exclude, names)
    return [site for site in sites if site.name in chosen]


def _matches(argument: str, patterns: str | Sequence[str], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    if not isinstance(patterns, (str, Sequence)):
        raise TypeError(f"{argument} takes glob patterns as strings, got {type(patterns).__name__}")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} takes glob patterns as strings, got {type(pattern).__name__}")
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise ValueError(
                f"{argument}={pattern!r} matches no attention module; there are: {', '.join(names) or 'none'}"
            )
        found |= hits
    return found


def _nothing_because(sites: Sequence[Site], reasons: Mapping[str, str]) -> str:
    if reasons:
        return ":\n" + _lines(reasons)
    return (
        ": include and exclude leave no attention module"
        if sites
        else ": it holds no attention module that is known, or that calls itself so; see register_attention"
    )


def _lines(reasons: Mapping[str, str]) -> str:
    return "\n".join(f"  {name or '(the model)'}: {reason}" for name, reason in reasons.items())
