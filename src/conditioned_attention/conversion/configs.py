"""Keeps records in configs: those of Hugging Face models and of their parts, and those of adapters.

transformers writes a config before it asks for the state_dict, and calls no hook before.  So the record in a config
is brought up to date whenever the config is copied, which happens when it is written.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from conditioned_attention._warnings import warn
from conditioned_attention.conversion.names import plain_name
from conditioned_attention.conversion.record import FORMAT, conditioning
from conditioned_attention.sites import MARKER

# Key in a Hugging Face config.json, in the dictionaries of its parts, and in "auto_mapping" of adapter_config.json
CONFIG_KEY = "conditioned_attention"

_ATTENTION = "attn_implementation"  # beside it: popped again when config.json is loaded


class Remembered(dict[str, Any]):
    """A record in a config, which is brought up to date when the config is copied, as happens when it is written.

    It knows the models that read the config, by weak references.  Copies and pickles of the config alone hold a plain
    dictionary, which `relink` turns into one of these again if a model is copied with its config.
    """

    def __init__(self, config: Any, models: Sequence[nn.Module], record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self._config = weakref.ref(config)
        self._models = [weakref.ref(model) for model in models]

    @property
    def models(self) -> list[nn.Module]:
        return [model for ref in self._models if (model := ref()) is not None]

    def now(self) -> dict[str, Any]:
        """The record of the first of its models that is conditioned."""
        config, models = self._config(), self.models
        if config is not None and models:
            self.update(_first_record(config, models))
        return dict(self)

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        return self.now()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.now(),)


class _Mark(str):
    """The name in config.json that means "not to be run as it is"; None when nothing is conditioned any more."""

    of: Remembered

    def __deepcopy__(self, memo: Any) -> str | None:
        return MARKER if self.of.now()["transforms"] else None

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (MARKER,)


def configs_of(model: nn.Module) -> list[Any]:
    """The config of a Hugging Face model, and the configs inside it from which transformers builds its parts."""
    found: list[Any] = []
    waiting = [getattr(model, "config", None)]
    while waiting:
        config = waiting.pop(0)
        if hasattr(config, "_attn_implementation") and not any(config is other for other in found):
            found.append(config)
            waiting += vars(config).values()
    return found


def link(model: nn.Module, configs: Sequence[Any]) -> None:
    """Makes the configs remember how the model is conditioned; what other models have left there stays as well."""
    for config in configs:
        before = vars(config).get(CONFIG_KEY)
        others = before.models if isinstance(before, Remembered) else []
        models = [model, *(other for other in others if other is not model)]
        record = _first_record(config, models)
        if record["transforms"]:
            _write(config, Remembered(config, models, record))
        elif CONFIG_KEY in vars(config):
            delattr(config, CONFIG_KEY)
            vars(config).pop(_ATTENTION, None)


def relink(model: nn.Module, configs: Sequence[Any]) -> None:
    """Makes the configs of a copied model remember the copy, of which nothing else may exist yet."""
    for config in configs:
        if CONFIG_KEY in vars(config):
            _write(config, Remembered(config, [model], vars(config)[CONFIG_KEY]))


def _write(config: Any, remembered: Remembered) -> None:
    mark = _Mark(MARKER)
    mark.of = remembered
    setattr(config, CONFIG_KEY, remembered)
    setattr(config, _ATTENTION, mark)


def _first_record(config: Any, models: Sequence[nn.Module]) -> dict[str, Any]:
    records = [_record_for(config, model) for model in models]
    return next((record for record in records if record["transforms"]), records[0])


def unknown_around(model: nn.Module) -> bool:
    """Whether a model of a kind that is part of others was converted by itself, so that their configs do not say so."""
    config: Any = getattr(model, "config", None)
    remembered = vars(config).get(CONFIG_KEY) if getattr(config, "base_config_key", "") else None
    return isinstance(remembered, Remembered) and all(other is model for other in remembered.models)


def _record_for(config: Any, model: Any) -> dict[str, Any]:
    """The record of a model, or of the part of it that reads this config, with the names that the part alone has."""
    if getattr(model, "config", None) is config:
        return conditioning(model)
    parts = _outermost(model, lambda part: getattr(part, "config", None) is config)
    records = [(name, record) for name, part in parts if (record := conditioning(part))["transforms"]]
    if len(records) == 1:
        return records[0][1]
    return _joined(records)  # several parts from one config: by the names that they have in the whole


def _joined(records: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    entries = [
        {**entry, "modules": [plain_name(f"{name}.{module}".rstrip(".")) for module in entry["modules"]]}
        for name, record in records
        for entry in record["transforms"]
    ]
    return {"format": FORMAT, "transforms": entries}


def _outermost(
    model: nn.Module, wanted: Callable[[nn.Module], bool], name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that are wanted, with their names."""
    if wanted(model):
        yield name, model
        return
    for child_name, child in model.named_children():
        yield from _outermost(child, wanted, f"{name}.{child_name}".lstrip("."))


def pretrained_in(model: nn.Module) -> list[nn.Module]:
    """The outermost Hugging Face models in a model: what can be saved with a config of its own."""
    return [part for _, part in _outermost(model, _is_pretrained)]


def _is_pretrained(part: nn.Module) -> bool:
    return getattr(part, "config", None) is not None and hasattr(part, "save_pretrained") and not _borrows_config(part)


def _borrows_config(module: nn.Module) -> bool:
    """Whether a module shows the config of a Hugging Face model inside it, as the wrappers of PEFT do.

    Names in that config are those of the model inside, which is saved and loaded without the wrapper.
    """
    return type(module).__module__.partition(".")[0] == "peft"


def remembered_in(model: nn.Module) -> list[tuple[nn.Module, Mapping[str, Any]]]:
    """The outermost models whose configs, or whose adapters' configs, remember a conversion, each with that record."""
    parts = _outermost(model, lambda part: _remembers(part) is not None)
    return [found for _, part in parts if (found := _remembers(part)) is not None]


def _remembers(part: Any) -> tuple[nn.Module, Mapping[str, Any]] | None:
    base = part.get_base_model() if _borrows_config(part) and hasattr(part, "get_base_model") else part
    config = None if _borrows_config(base) else getattr(base, "config", None)
    if CONFIG_KEY in getattr(config, "__dict__", {}):
        return base, getattr(config, CONFIG_KEY)
    adapters = [(base, getattr(config, "auto_mapping", None) or {}) for base, config in _adapters_on(part)]
    return next(((base, said[CONFIG_KEY]) for base, said in adapters if CONFIG_KEY in said), None)


def _adapters_on(part: Any) -> list[tuple[nn.Module, Any]]:
    """The configs of the adapters that PEFT has put into a model, each with the model.

    PEFT notes them on the model, or on its own wrapper alone if the adapter only adds tokens.
    """
    if not _borrows_config(part):
        configs, base = vars(part).get("peft_config"), part
    elif hasattr(part, "get_base_model"):
        configs, base = part.peft_config, part.get_base_model()
    else:
        return []
    return [(base, config) for config in configs.values()] if isinstance(configs, dict) else []


def tell_adapters(model: nn.Module) -> None:
    """Makes the configs of adapters, which are saved without the model, remember how it is conditioned.

    PEFT keeps this if they have a task type; otherwise it overwrites the field, and a warning is given.
    """
    adapters = {id(config): (base, config) for part in model.modules() for base, config in _adapters_on(part)}
    for base, config in adapters.values():
        record, kept = conditioning(base), dict(getattr(config, "auto_mapping", None) or {})
        kept.pop(CONFIG_KEY, None)
        if record["transforms"]:
            kept[CONFIG_KEY] = record
        config.auto_mapping = kept or None
        if record["transforms"] and getattr(config, "task_type", None) is None:
            warn(
                "adapter_config.json of this adapter will not say that its base model is conditioned, because PEFT "
                "overwrites the field where task_type is None: give the adapter's config a task_type, or keep "
                "conditioning(model) beside the adapter, for apply_conditioning(model, record) after it is loaded"
            )
