"""Published figures in a plot: hollow and grey, never joined by a line, with a legend of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from paper_figures.house_style import drawn, legend_columns
from paper_figures.methods import LOOKS, look_of
from paper_figures.published import Published

GREY = "#555555"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A published figure and where it stands on the horizontal axis, in the axis's own unit."""

    entry: Published
    x: float


def draw_published(axes: Axes, points: Sequence[Point]) -> None:
    """Draws the points in front of ours, which shine through them."""
    for point in points:
        axes.plot([point.x], [point.entry.fid], zorder=5, **_style(point.entry))


def add_published_legend(figure: SubFigure, points: Sequence[Point], title: str | None, width: float) -> None:
    """Adds a legend below the axes, an item per method with the figures themselves: points of one size lie on top of one another."""
    groups: dict[str, list[Published]] = {}
    for point in points:
        groups.setdefault(point.entry.method, []).append(point.entry)
    names = {method: LOOKS[method].label if method in LOOKS else group[0].label for method, group in groups.items()}
    figures = {method: ", ".join(f"{entry.fid:.2f}" for entry in group) for method, group in groups.items()}
    labels = [drawn(f"{names[method]} (published): {listed}") for method, listed in figures.items()]
    handles = [Line2D([], [], **_style(group[0])) for group in groups.values()]
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, width), title=title, alignment="left")


def _style(entry: Published) -> dict[str, Any]:
    marker = look_of(entry.method).marker
    return {
        "color": GREY,
        "marker": marker,
        "markersize": 9.0 if marker == "*" else 5.5,
        "markerfacecolor": "none",
        "markeredgewidth": 0.8,
        "linestyle": "none",
    }
