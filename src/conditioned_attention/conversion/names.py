"""Names of modules in records: as in a state_dict of the model alone, without the parts that wrappers add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from conditioned_attention.sites import Site

# What checkpoint_wrapper, FullyShardedDataParallel, torch.compile and the adapters of PEFT put into a name.
_INSIDE = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer")
# DistributedDataParallel, AveragedModel, timm's ModelEma, engines; others may have a child of that name too.
_AROUND = "module"


def plain_name(name: str) -> str:
    """The name without the traces of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def bare_name(name: str) -> str:
    """The plain name without its parts called "module", which is how names are compared."""
    return ".".join(part for part in plain_name(name).split(".") if part != _AROUND)


def all_names(model: nn.Module, sites: Sequence[Site]) -> dict[str, Site]:
    """Every plain name of every site: a module that is used in several places has several names."""
    names = {plain_name(site.name): site for site in sites}
    known, by_module = {*map(bare_name, names)}, {id(site.module): site for site in sites}
    for name, module in model.named_modules(remove_duplicate=False):
        if (site := by_module.get(id(module))) is not None and bare_name(name) not in known:
            names[plain_name(name)] = site
    return names


class Lookup:
    """Finds the sites of a model by the names of a record.

    Args:
        loose: the record may be of a model around this one, or inside it, so that all its names are longer or shorter
            by the same prefix; otherwise names must be equal, or differ only by the base model's prefix.
        partial: names that the model does not have are skipped, as long as it has one of them.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], *, loose: bool = False, partial: bool = False) -> None:
        self._sites = all_names(model, sites)
        bare: dict[str, list[Site]] = {}
        for name, site in self._sites.items():
            bare.setdefault(bare_name(name), []).append(site)
        self._bare = {name: found[0] for name, found in bare.items() if len(found) == 1}
        self._prefix = getattr(model, "base_model_prefix", "") + "."
        self._loose, self._partial = loose, partial

    def find(self, names: Sequence[str]) -> list[Site]:
        """The sites of these names.  Raises ValueError for one that the model does not have."""
        found = [self._one(name) for name in names]
        if self._loose and None in found:
            found = max([found, *self._shifted(names)], key=lambda sites: len(sites) - sites.count(None))
        missing = [name for name, site in zip(names, found) if site is None]
        if missing and not (self._partial and len(missing) < len(names)):
            raise ValueError(self._message(missing[0], part=len(missing) < len(names)))
        return [site for site in found if site is not None]

    def _one(self, name: str, *, exactly: bool = False) -> Site | None:
        names = (name,) if exactly else (name, self._prefix + name, name.removeprefix(self._prefix))
        tries = (table.get(key) for n in names for table, key in ((self._sites, n), (self._bare, bare_name(n))))
        return next((site for site in tries if site is not None), None)

    def _shifted(self, names: Sequence[str]) -> Iterator[list[Site | None]]:
        """The sites that are found with the same prefix before all names, or taken off them, if only one fits any."""
        pairs = [(bare_name(name), site) for name in names for site in self._bare]
        longer = {site.removesuffix(name) for name, site in pairs if site.endswith("." + name) or not name}
        shorter = {name.removesuffix(site) for name, site in pairs if name.endswith("." + site) or not site}
        if len(longer) == 1:
            yield [self._one(beginning + bare_name(name), exactly=True) for beginning in longer for name in names]
        if len(shorter) == 1:
            yield [
                self._one(bare_name(name).removeprefix(beginning), exactly=True)
                if bare_name(name).startswith(beginning)
                else None
                for beginning in shorter
                for name in names
            ]

    def _message(self, name: str, *, part: bool) -> str:
        return (
            f"the model has no attention module {name!r}; it has: {', '.join(self._sites) or 'none'} (classes of your "
            "own have to be registered first, with register_attention)"
            + (
                ". If it is a part of the model that the record is of (an encoder alone, fewer layers): "
                "apply_conditioning(model, partial=True) passes by what is missing"
                if part
                else ""
            )
        )
