"""Makes Plotly charts from numbers, as the plain data that plotly.js takes.  Nothing is read or written.

A chart has one or several views (such as loss and learning rate), of which the page shows one at a time.  Colours are
those for light pages; on dark pages the page's script replaces them by their counterparts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import Summary, outcome
from conditioned_attention.experiments.report.columns import Numbers
from conditioned_attention.experiments.report.curves import (
    Band,
    Curve,
    Curves,
    band_over_seeds,
    last_third,
    thin,
    thin_band,
)
from conditioned_attention.measure.plots.curves import limit_of
from conditioned_attention.measure.plots.style import THEMES, styles

Trace = dict[str, Any]

_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_DOTTED = 40  # points; a curve with fewer shows each as a dot
_BESIDE = 1.6  # length of the axis in longest bars, to leave room for the numbers beside the bars
_VALUES = "%{xaxis.title.text} %{x}<br>%{yaxis.title.text} %{y:.4~g}<extra></extra>"


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    name: str
    colour: str
    dash: str


@dataclass(frozen=True)
class View:
    """Traces and layout of one picture."""

    name: str
    traces: list[Trace]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart of a page.

    Attributes:
        key: charts with the same key have the same axes across a page.
        title, caption: as the reader sees them.
        alt: what the chart shows, for readers who cannot see it.
        views: at least one, except for heat maps.
        legend: the entries that can be switched on and off.
        heat: the numbers of a heat map; see `heat_numbers`.
    """

    key: str
    title: str
    caption: str
    alt: str
    views: list[View] = field(default_factory=list)
    legend: list[Entry] = field(default_factory=list)
    heat: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What the page's script draws."""
        return asdict(self)


class Drawn(NamedTuple):
    """The curves and the layout from which a view is made.

    Attributes:
        curves: the curve of every variant and seed.
        layout: the layout of the view.
        middle: how the line combines the seeds, see `band_over_seeds`.
    """

    curves: Curves
    layout: dict[str, Any]
    middle: Callable[..., Any] = np.mean


Palette = Mapping[str, Entry]  # of every variant on a page


def counterparts() -> dict[str, str]:
    """Maps each colour of the charts to the one that replaces it on a dark page."""
    light, dark = THEMES["light"], THEMES["dark"]
    return dict(zip((*light.colours, light.faint), (*dark.colours, dark.faint)))


def palette_of(variants: Sequence[str]) -> dict[str, Entry]:
    """Colours and line styles of variants, in the same order as in the matplotlib pictures."""
    return {name: Entry(name, colour, _DASHES[line]) for name, (colour, line) in zip(variants, styles())}


def shown(text: str) -> str:
    """Escapes text so that Plotly, which interprets some HTML, shows it as it is."""
    return html.escape(text, quote=False)


def compact(values: Numbers | Sequence[float]) -> list[float | int | None]:
    """Rounds numbers to five significant digits, more than a screen shows; None for what is not finite.

    >>> compact([1.0, 0.123456, float("inf")])
    [1, 0.12346, None]
    """
    found: list[float | int | None] = []
    for value in values:
        number = float(f"{value:.5g}")
        found.append(None if not math.isfinite(number) else int(number) if number.is_integer() else number)
    return found


def axes(x: str, y: str, *, log: bool = False, log_x: bool = False) -> dict[str, Any]:
    """A layout with the titles of both axes."""
    return {
        "xaxis": {"title": {"text": shown(x)}} | ({"type": "log"} if log_x else {}),
        "yaxis": {"title": {"text": shown(y)}, "type": "log" if log else "linear"},
    }


def curve_chart(key: str, title: str, caption: str, views: Mapping[str, Drawn], palette: Palette) -> Chart | None:
    """A chart with a line over seeds, a band from lowest to highest, and each seed; None if there is nothing to draw.

    Args:
        key, title, caption: as in `Chart`.
        views: the views by name.
        palette: how every variant is drawn.
    """
    drawn, first = [], None
    for name, (curves, layout, middle) in views.items():
        bands = {variant: band_over_seeds(list(by_seed.values()), middle) for variant, by_seed in curves.items()}
        if not any(np.isfinite(band.mean).any() for band in bands.values()):
            continue
        drawn.append(View(name, list(_traces(bands, curves, palette)), layout))
        first = first or bands
    if first is None:
        return None
    return Chart(key, title, caption, _alt(title, first), drawn, [palette[name] for name in first])


def with_last_third(name: str, whole: str, drawn: Drawn) -> dict[str, Drawn]:
    """One view called ``name``; if curves settle, one called ``whole`` and a second one of their last third."""
    cut = last_third(drawn.curves)
    return (
        {whole: drawn, f"{name}, last third".removeprefix(", "): drawn._replace(curves=cut)} if cut else {name: drawn}
    )


def over_seeds(views: Mapping[str, Drawn], middle: str = "means") -> str:
    """Says how lines and bands combine seeds; empty if no variant has several."""
    several = any(len(by_seed) > 1 for drawn in views.values() for by_seed in drawn.curves.values())
    return f" Lines are {middle} over seeds, bands reach from lowest to highest." if several else ""


def band_chart(
    key: str, title: str, caption: str, views: Mapping[str, tuple[Mapping[str, Band], dict[str, Any]]], palette: Palette
) -> Chart:
    """A chart of lines in bands that are already computed."""
    drawn = [View(name, list(_traces(bands, {}, palette)), layout) for name, (bands, layout) in views.items()]
    first = next(iter(views.values()))[0]
    return Chart(key, title, caption, _alt(title, first), drawn, [palette[name] for name in first])


def _traces(bands: Mapping[str, Band], singles: Curves, palette: Palette) -> Iterator[Trace]:
    """The traces of a view, bands first so that they lie below every line."""
    entries = [palette[name] for name in bands]
    thinned = [thin_band(band) for band in bands.values()]
    for entry, band in zip(entries, thinned):
        if np.any(band.high > band.low):
            yield {**_common(entry), **_outline(band), "fillcolor": entry.colour, "meta": "band"}
    for entry, band in zip(entries, thinned):
        yield {
            **_common(entry),
            "x": compact(band.x),
            "y": compact(band.mean),
            "mode": "lines+markers" if len(band.x) <= _DOTTED else "lines",
            "line": {"color": entry.colour, "width": 2, "dash": entry.dash},
            "marker": {"color": entry.colour, "size": 5},
            "hovertemplate": f"%{{fullData.name}}<br>{_VALUES}",
            "meta": "mean",
        }
    for entry in entries:
        yield from _single_seeds(entry, singles.get(entry.name, {}))


def _common(entry: Entry) -> Trace:
    return {"type": "scatter", "name": shown(entry.name), "legendgroup": entry.name, "showlegend": False}


def _single_seeds(entry: Entry, curves: Mapping[int, Curve]) -> Iterator[Trace]:
    """Traces of single seeds, hidden until the reader asks for them; none for a single seed, which is the mean."""
    for seed, curve in curves.items() if len(curves) > 1 else ():
        x, y = thin(*curve)
        yield {
            **_common(entry),
            "x": compact(x),
            "y": compact(y),
            "mode": "lines",
            "line": {"color": entry.colour, "width": 1, "dash": entry.dash},
            "opacity": 0.7,
            "visible": False,
            "hovertemplate": f"%{{fullData.name}}, seed {seed}<br>{_VALUES}",
            "meta": "seed",
        }


def _outline(band: Band) -> Trace:
    """The closed line around each stretch of the band that has numbers."""
    drawn = np.isfinite(band.low) & np.isfinite(band.high)
    xs: list[Any] = []
    ys: list[Any] = []
    for stretch in np.split(np.arange(len(drawn)), np.flatnonzero(np.diff(drawn)) + 1):
        if len(stretch) and drawn[stretch[0]]:
            gap = [None] if xs else []
            xs += [*gap, *compact(band.x[stretch]), *compact(band.x[stretch][::-1])]
            ys += [*gap, *compact(band.high[stretch]), *compact(band.low[stretch][::-1])]
    return {"x": xs, "y": ys, "mode": "lines", "line": {"width": 0}, "fill": "toself", "hoverinfo": "skip"}


def _alt(title: str, bands: Mapping[str, Band]) -> str:
    """The text alternative of a chart: its title, and the value at which every line ends."""
    ends = []
    for variant, band in bands.items():
        finite = np.flatnonzero(np.isfinite(band.mean))
        if len(finite):
            ends.append(f"{variant} ends at {band.mean[finite[-1]]:.4g}")
    return f"{title}: {', '.join(ends)}."


def difference_chart(rows: Sequence[Summary], metric: Metric, palette: Palette) -> Chart | None:
    """A chart of each variant's difference from the baseline with its interval; None if there is no interval."""
    found = [row for row in rows[1:] if row.difference is not None and row.difference.n > 1]
    if not found:
        return None
    words = {"": "", "not shown": "no difference shown", "better": "better", "worse": "worse"}
    traces: list[Trace] = []
    for row in found:
        assert row.difference is not None
        d, entry = row.difference, palette[row.variant]
        traces.append(
            {
                **_common(entry),
                "x": compact([d.mean]),
                "y": [shown(row.variant)],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": compact([d.high - d.mean]),
                    "arrayminus": compact([d.mean - d.low]),
                    "color": entry.colour,
                    "thickness": 2,
                },
                "mode": "markers",
                "marker": {"color": entry.colour, "size": 10},
                "hovertemplate": f"%{{y}}: {d.mean:+.4g} [{d.low:+.4g}, {d.high:+.4g}]"
                f"<br>{words[outcome(d, metric)]}, {d.n} seeds<extra></extra>",
                "meta": "mean",
            }
        )
    layout = axes("difference", "")
    layout["yaxis"] = {"autorange": "reversed", "type": "category", "ticklabelstandoff": 6}
    layout["shapes"] = [_line(x0=0, x1=0, y0=0, y1=1, yref="paper")]
    way = "to the right is better" if metric.higher_is_better else "to the left is better"
    alt = "; ".join(f"{r.variant} {r.difference.mean:+.4g}" for r in found if r.difference)
    return Chart(
        "difference",
        f"Difference to {rows[0].variant} in {metric.name}",
        f"Of the final scores, same seeds in pairs, with the 95 % t interval; {way}. An interval that crosses the line "
        "at zero shows no difference, and does not show that there is none.",
        f"Differences in {metric.name}: {alt}.",
        [View("", traces, layout)],
    )


def reached_chart(rows: Sequence[Summary], palette: Palette) -> Chart | None:
    """A chart like figure 2 of arXiv 2603.27153: how soon each variant came to the baseline's final score."""
    if len(rows) < 2 or all(row.reached.time is None for row in rows[1:]):
        return None
    values, by = [row.reached.time for row in rows], rows[0].reached.by
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "showlegend": False,
        "x": [0 if value is None else value for value in values],
        "y": [shown(row.variant) for row in rows],
        "text": [str(row.reached).removeprefix(f"{by} ") for row in rows],
        "customdata": [str(row.reached) for row in rows],
        "textposition": "outside",  # where it is readable on every colour
        "cliponaxis": False,
        "marker": {"color": [palette[row.variant].colour for row in rows]},
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
        "meta": "mean",
    }
    layout = axes(f"{by}s", "")
    layout["yaxis"] = {"autorange": "reversed", "type": "category", "ticklabelstandoff": 6}
    layout["xaxis"] |= {"rangemode": "tozero", "range": [0, _BESIDE * max(value or 0 for value in values)]}
    return Chart(
        "reached",
        f"{by.capitalize()}s to the final score of {rows[0].variant}",
        "The first evaluation at which the mean over seeds was as good as the baseline's at its last one (figure 2 of "
        "arXiv 2603.27153). The baseline's own bar ends where it first was.",
        f"{by.capitalize()}s: " + ", ".join(f"{row.variant} {row.reached}" for row in rows) + ".",
        [View("", [trace], layout)],
    )


def limit_line(resolution: float) -> dict[str, Any]:
    """The part of a layout that marks the largest κ distinguishable from infinity: a line and its label."""
    if not math.isfinite(resolution):
        return {}
    return {
        "shapes": [_line(x0=0, x1=1, xref="paper", y0=resolution, y1=resolution)],
        "annotations": [
            {
                "x": 1,
                "xref": "paper",
                "xanchor": "right",
                "y": math.log10(resolution),  # where an axis is logarithmic, annotations take logarithms
                "yanchor": "bottom",
                "text": limit_of(resolution),
                "showarrow": False,
                "font": {"size": 11},
            }
        ],
    }


def _line(**ends: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": THEMES["light"].faint, "width": 1.5, "dash": "dash"}, **ends}


def share_axes(charts: Sequence[Chart]) -> None:
    """Gives views of the same chart key, name and axis titles the same ranges; changes the charts in place."""
    groups: dict[Any, list[View]] = {}
    for chart in charts:
        for view in chart.views:
            titles = [view.layout.get(axis, {}).get("title", {}).get("text") for axis in ("xaxis", "yaxis")]
            groups.setdefault((chart.key, view.name, *titles), []).append(view)
    for views in groups.values():
        if len(views) > 1:
            _share(views, "x", _x_values)
            _share(views, "y", lambda trace: trace["y"])
    heats = [chart.heat for chart in charts if chart.heat]
    for heat in heats:
        heat["zmin"] = min(other["zmin"] for other in heats)
        heat["zmax"] = max(other["zmax"] for other in heats)


def _x_values(trace: Trace) -> list[Any]:
    values = list(trace["x"])
    if error := trace.get("error_x"):
        values += [trace["x"][0] + error["array"][0], trace["x"][0] - error["arrayminus"][0]]
    return values


def _share(views: Sequence[View], axis: str, values_of: Callable[[Trace], list[Any]]) -> None:
    name = f"{axis}axis"
    log = views[0].layout[name].get("type") == "log"
    if views[0].layout[name].get("type") == "category":
        return
    values = [v for view in views for trace in view.traces for v in values_of(trace) if v is not None]
    values += [
        shape[f"{axis}0"] for view in views for shape in view.layout.get("shapes", []) if f"{axis}ref" not in shape
    ]
    values = [math.log10(v) for v in values if v > 0] if log else values
    if values:
        low, high = min(values), max(values)
        margin = 0.05 * (high - low or 1)
        bars = views[0].layout[name].get("rangemode") == "tozero"
        ends = (0, _BESIDE * high) if bars else (low - margin, high + margin)
        for view in views:
            view.layout[name]["range"] = [float(f"{v:.5g}") for v in ends]
