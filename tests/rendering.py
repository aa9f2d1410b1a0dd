"""Pictures as they come out: their pixels, where data lie among them, and their text."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text


def render(figure):
    """Pixels (height, width, 3), 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def pixel_at(image, ax, x, y):
    """(row, column) of a point of the data."""
    across, up = ax.transData.transform((x, y))
    return round(image.shape[0] - up), round(across)


def differs(image, ax, x, y, colour, around=0):
    """By how much, 0 to 255, the pixel nearest to the colour differs from it, so many pixels around a point."""
    row, column = pixel_at(image, ax, x, y)
    part = image[max(0, row - around) : row + around + 1, max(0, column - around) : column + around + 1]
    assert part.size, f"({x}, {y}) lies outside the picture"
    return int(np.abs(part - np.array(to_rgb(colour)) * 255).max(-1).min())


def texts(figure):
    """Every text that is drawn, with its box in pixels; call `render` first."""
    renderer = figure.canvas.get_renderer()
    unseen = {label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in _out_of_view(axis)}
    return [
        (text, text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in unseen
    ]


def _out_of_view(axis):
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    return [
        label
        for minor in (False, True)
        for place, tick in zip(
            axis.get_ticklocs(minor=minor), axis.get_minor_ticks() if minor else axis.get_major_ticks()
        )
        for label in (tick.label1, tick.label2)
        if not low - slack <= place <= high + slack
    ]


def check_texts(figure):
    """No text lies on another, and none is cut at the figure's edge."""
    found = texts(figure)
    assert found
    width, height = figure.canvas.get_width_height()
    for text, box in found:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text.get_text()!r} is cut: {box} in {width} × {height}"
    for (one, box), (two, other) in combinations(found, 2):
        apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
        assert apart, f"{one.get_text()!r} lies on {two.get_text()!r}"
