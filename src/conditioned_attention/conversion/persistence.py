"""What a checkpoint must remember: weights alone do not show whether they were trained with C."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from conditioned_attention._warnings import warn
from conditioned_attention.conversion.check import Settings, already, check_module
from conditioned_attention.conversion.configs import (
    CONFIG_KEY,
    configs_of,
    link,
    pretrained_in,
    relink,
    remembered_in,
    tell_adapters,
    unknown_around,
)
from conditioned_attention.conversion.guard import is_guarded, put_guard, refresh_guards, take_guard
from conditioned_attention.conversion.names import Lookup, bare_name
from conditioned_attention.conversion.record import conditioning, entries_of, settings_in
from conditioned_attention.conversion.sources import record_from
from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites import (
    Site,
    active_transform,
    correct_sites,
    find_sites,
    forget_compiled,
    install,
    settled,
    unwrap,
)
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.sites.site import HOOK_KEY
from conditioned_attention.spectral import Spectral


def apply_conditioning(
    model: nn.Module, data: Mapping[str, Any] | str | Path | None = None, *, partial: bool = False
) -> None:
    """Repeats on a freshly loaded model what `conditioning` recorded.

    Args:
        model: a plain model of the same architecture, or one that is already conditioned this way.
        data: what `conditioning` returned; or a ``state_dict`` of a model that was converted with ``guard=True``, alone
            or inside a checkpoint's dictionary (``{"state_dict": …}``), which the model can load afterwards; or the
            path of such a file (.pt, .pth, .bin, .safetensors, or .json for a record), or of a folder written by
            ``save_pretrained`` or torch.distributed.checkpoint.  Default: the record in the model's Hugging Face
            config, or in the config of its adapter.
        partial: the model is only a part of the recorded one, such as an encoder alone or the first layers: recorded
            modules that it does not have are skipped.  It must have at least one of them.

    Raises:
        TypeError: ``model`` is not a module, or ``data`` is of another type.
        ValueError: no data; data of another format; a state_dict without a guard; a recorded module that the model
            does not have or that cannot be converted; a module that is already conditioned differently.  The model is
            then unchanged.
        FileNotFoundError: there is nothing at the path.

    >>> import json
    >>> from transformers import BertConfig, BertModel
    >>> from conditioned_attention import apply_conditioning, conditioning, precondition
    >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    >>> trained, loaded = BertModel(config), BertModel(config)
    >>> _ = precondition(trained)
    >>> apply_conditioning(loaded, json.loads(json.dumps(conditioning(trained))))
    >>> conditioning(loaded) == conditioning(trained)
    True
    """
    check_module(model)
    given = None if data is None else record_from(data)
    plans = remembered_in(model) if given is None else [(model, given.record)]
    loose = given is None or given.loose
    if not plans:
        raise ValueError(
            f"no data given, and no config in the model, nor that of an adapter, contains a {CONFIG_KEY!r} entry"
        )
    with settled(model), ExitStack() as undo:
        planned = [pair for part, said in plans for pair in _plan(part, said, loose=loose, partial=partial)]
        heads = {site: done for site, done in planned if isinstance(done, HeadTransform)}
        corrections = {site: done for site, done in planned if isinstance(done, Spectral)}
        undo.callback(install([*heads], heads.__getitem__))
        new = [site for site in corrections if spectral_of(site.module) is None]
        correct_sites(new, corrections.__getitem__, loading=True)
        undo.pop_all()
    forget_compiled([*heads])
    if given is not None and given.guarded:
        put_guard(stays(model))
    remember(model)


def _plan(model: nn.Module, data: Any, *, loose: bool, partial: bool) -> list[tuple[Site, Settings]]:
    """What the record asks to be done at each site; raises ValueError if something else has been done to the model."""
    sites = find_sites(model)
    lookup = Lookup(model, sites, loose=loose, partial=partial)
    planned: dict[tuple[str, bool], tuple[Site, Settings]] = {}
    for entry in entries_of(data):
        settings = settings_in(entry)
        for site in lookup.find(entry["modules"]):
            key = site.name, isinstance(settings, Spectral)
            present: Settings | None = spectral_of(site.module) if key[1] else active_transform(site)
            if key in planned:
                present = planned[key][1]
            if present not in (None, settings):
                raise ValueError(already(site, present))
            planned[key] = site, settings
    for site in sites:
        for present in (active_transform(site), spectral_of(site.module)):
            if present is not None and (site.name, isinstance(present, Spectral)) not in planned:
                raise ValueError(already(site, present))
    return list(planned.values())


def remember(model: nn.Module) -> None:
    """Writes what was done into guards, into the configs of Hugging Face models and of adapters; or removes it.

    From now on these are brought up to date with the model whenever its state_dict or a config is written.
    """
    roots = {id(root): root for root in (stays(model), *pretrained_in(model), *filter(is_guarded, model.modules()))}
    for root in roots.values():
        if conditioning(root)["transforms"]:
            root._state_dict_pre_hooks[HOOK_KEY] = Asked(root, configs_of(root))
        else:
            root._state_dict_pre_hooks.pop(HOOK_KEY, None)
            take_guard(root)
    _bring_up_to_date(model)


def _bring_up_to_date(model: nn.Module) -> None:
    refresh_guards(model)
    for pretrained in pretrained_in(model):
        link(pretrained, configs_of(pretrained))
    tell_adapters(model)


def stays(model: Any) -> nn.Module:
    """The model inside wrappers that are later removed: of torch.compile, PEFT, weight averages, several devices."""
    inner: Any = unwrap(model)
    while (within := _within(inner)) is not None:
        inner = unwrap(within)
    whole: nn.Module = inner
    return whole


def _within(model: Any) -> Any:
    """The model that a wrapper holds; None if this is not a wrapper."""
    if type(model).__module__.partition(".")[0] == "peft" and hasattr(model, "get_base_model"):
        return model.get_base_model()
    names, own = [name for name, _ in model.named_children()], next(model.parameters(recurse=False), None)
    return getattr(model, names[0]) if own is None and len(names) == 1 and not bare_name(names[0]) else None


class Asked:
    """A hook before a converted model makes its state_dict: it brings up to date what remembers the conversion.

    It is copied and pickled with the model, and links the copies of the configs to the copy of the model.
    """

    def __init__(self, model: nn.Module, configs: Sequence[Any]) -> None:
        self._model, self._configs = weakref.ref(model), configs

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        _bring_up_to_date(module)
        if prefix and unknown_around(module):
            warn(
                f"{prefix.rstrip('.')} was converted on its own, so the config of the model around it does not record "
                "this: a checkpoint that save_pretrained writes of that model would run unconditioned until "
                "apply_conditioning. Convert the whole model with include= instead, or keep conditioning(whole model)"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _asked_of_a_copy, (self._model(), self._configs)


def _asked_of_a_copy(model: nn.Module, configs: Sequence[Any]) -> Asked:
    """The hook of a copied model, of which nothing but the configs may exist yet."""
    relink(model, configs)
    return Asked(model, configs)
