"""Colours for light and dark backgrounds, axes painted in them, and the legend above a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ThemeName = Literal["light", "dark"]

SCALE = "viridis"  # of heat maps: equal steps look equal, to every common kind of colour vision


@dataclass(frozen=True)
class Theme:
    """A set of colours that go together in a plot.

    Text has a contrast ratio of at least 4.5 to the background and lines of at least 3 (WCAG 2.1), and any two of
    ``colours`` are at least 10 apart (CIEDE2000), also under protanopia, deuteranopia and tritanopia: see the tests.

    Attributes:
        background: colour of the figure and its axes.
        text: colour of all text, and of the axes' lines.
        faint: colour of lines that are not data, such as the numerical floor.
        colours: colours of the curves, in order; the first is the baseline's.
        band: opacity of bands.

    >>> from conditioned_attention.measure.plots import THEMES
    >>> THEMES["dark"].background
    '#0D1117'
    """

    background: str
    text: str
    faint: str
    colours: tuple[str, ...]
    band: float


# Okabe and Ito's colours.  On white their orange and sky blue have a contrast of 2.3, so a dark mustard and an indigo
# stand there instead; on dark ground black is white, and all are a little lighter.
THEMES: dict[str, Theme] = {
    "light": Theme(
        background="#FFFFFF",
        text="#1A1A1A",
        faint="#666666",
        colours=("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B5200", "#4012A1"),
        band=0.15,
    ),
    "dark": Theme(
        background="#0D1117",
        text="#E6E6E6",
        faint="#9A9A9A",
        colours=("#F2F2F2", "#067EDA", "#DE6916", "#00AC80", "#CD7AA9", "#EEA700", "#29C1FF"),
        band=0.3,
    ),
}
COLOURS = THEMES["light"].colours
_LINES = ("-", "--", ":", "-.")  # where there are more curves than colours
_LEGEND_COLUMN = 6  # entries


def find_theme(name: str) -> Theme:
    """The theme of this name.

    >>> find_theme("dark").background
    '#0D1117'
    """
    if name not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(map(repr, THEMES))}, got {name!r}")
    return THEMES[name]


def styles(theme: ThemeName = "light") -> Iterator[tuple[str, str]]:
    """Yields colour and kind of line for one curve after another."""
    return cycle((colour, line) for line in _LINES for colour in find_theme(theme).colours)


def new_axes(ax: Axes | None, theme: ThemeName, size: tuple[float, float] = (6.4, 3.6)) -> Axes:
    """Returns ``ax``, or the axes of a new figure of this size in inches, painted in the theme.

    >>> from conditioned_attention.measure.plots import new_axes
    >>> new_axes(None, "dark", (4, 3)).figure.get_size_inches().tolist()
    [4.0, 3.0]
    """
    return panels(None if ax is None else [ax], 1, theme, size)[0]


def panels(axes: Sequence[Axes] | None, number: int, theme: ThemeName, size: tuple[float, float]) -> list[Axes]:
    """``axes``, or those of a new figure side by side, painted in the theme; ValueError unless there are ``number``."""
    colours = find_theme(theme)
    if axes is None:
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            needs = "drawing needs: pip install 'conditioned-attention[plots]'"
            raise ModuleNotFoundError(f"{needs} ({error})") from error

        axes = list(Figure(figsize=size, layout="constrained").subplots(1, number, squeeze=False)[0])
    if len(axes) != number:
        raise ValueError(f"axes must be {number}, one a panel, got {len(axes)}")
    for ax in axes:
        ax.figure.set_facecolor(colours.background)
        ax.set_facecolor(colours.background)
        ax.tick_params(which="both", colors=colours.text)
        for spine in ax.spines.values():
            spine.set_color(colours.text)
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
            text.set_color(colours.text)
    return list(axes)


def named_on_the_first(axes: Sequence[Axes], *, numbers: bool = True) -> None:
    """Names the vertical axis, and shows its ``numbers``, only on the first of several panels that share it."""
    for ax in axes[1:]:
        ax.set_ylabel("")
        if numbers:
            ax.tick_params(labelleft=False)


def legend_above(ax: Axes) -> None:
    """Puts the legend above the plot, where it covers no curve, in the colour of the axis labels.

    >>> from conditioned_attention.measure.plots import legend_above, new_axes
    >>> ax = new_axes(None, "light")
    >>> line = ax.plot([1, 2], label="baseline")
    >>> legend_above(ax)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['baseline']
    """
    columns = _legend_columns(ax)
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, ncols=columns,
        fontsize="medium" if columns == 1 else "small", labelcolor=ax.xaxis.label.get_color(),
    )  # fmt: skip


def legend_height(ax: Axes) -> float:
    """The height in inches of the legend above the plot."""
    return 0.2 * math.ceil(len(ax.get_legend_handles_labels()[0]) / _legend_columns(ax))


def _legend_columns(ax: Axes) -> int:
    return 1 if len(ax.get_legend_handles_labels()[0]) <= _LEGEND_COLUMN else 2


def room_for_legend(ax: Axes) -> None:
    """Makes a figure that was created for these axes higher by the height of the legend above them."""
    from matplotlib.figure import Figure

    if isinstance(ax.figure, Figure):
        ax.figure.set_figheight(ax.figure.get_figheight() + legend_height(ax))
