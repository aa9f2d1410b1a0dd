"""Carries out a change of attention modules on a whole model: everything is checked before anything is changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from conditioned_attention.conversion.check import check_module
from conditioned_attention.conversion.persistence import remember
from conditioned_attention.conversion.report import ConversionReport, row_for
from conditioned_attention.conversion.selection import Patterns, lines_of, nothing_because, select
from conditioned_attention.sites import Site, find_sites, marked


class Change(ABC):
    """A change that can be made to attention modules, and undone."""

    @abstractmethod
    def against(self, site: Site) -> str:
        """Why it cannot be done to this module; empty if it can."""

    @abstractmethod
    def done(self, site: Site) -> bool:
        """Whether it has been done already; raises ValueError if something else has been."""

    @abstractmethod
    def do(self, sites: Sequence[Site]) -> None:
        """Makes the change to all of these modules, or raises and makes it to none."""

    @abstractmethod
    def undo(self, sites: Sequence[Site]) -> None:
        """Undoes the change."""

    def how(self, site: Site) -> str | None:
        """How the module is changed, for the report; None for the way its heads are reached."""
        return None

    def remark(self, site: Site) -> str:
        """What the report should say about a module that is changed."""
        return site.reason


def carry_out(model: nn.Module, change: Change, include: Patterns, exclude: Patterns, strict: bool) -> ConversionReport:
    """Makes a change to those attention modules of a model that the patterns select, and reports it."""
    check_module(model)
    if marked(model):
        raise ValueError(
            "this checkpoint was trained with conditioned attention: call apply_conditioning(model) to go on with it "
            "as it was, or restore(model) first to make it a plain model"
        )
    sites = find_sites(model)
    chosen = select(sites, include, exclude)
    reasons = {site.name: reason for site in chosen if (reason := change.against(site))}
    refused = {site.name: reasons[site.name] for site in chosen if site.name in reasons and site.attention}
    if strict and refused:
        raise ValueError("strict=True, and these cannot be converted:\n" + lines_of(refused))
    able = [site for site in chosen if site.name not in reasons]
    optional = {site.name: site.opt_in for site in sites if site.opt_in and site not in chosen}
    if not able:
        raise ValueError("nothing to convert in " + type(model).__name__ + nothing_because(sites, optional | reasons))
    new = [site for site in able if not change.done(site)]
    status = {site.name: "unchanged" for site in able} | {site.name: "converted" for site in new}
    status |= dict.fromkeys(reasons, "no attention") | dict.fromkeys(refused, "refused")
    words = {site.name: change.remark(site) for site in able} | optional | reasons
    rows = tuple(row_for(s, status.get(s.name, "excluded"), words.get(s.name, s.reason), change.how(s)) for s in sites)
    change.do(new)
    remember(model)

    def undo() -> None:
        change.undo(new)
        remember(model)

    return ConversionReport(rows, undo)
