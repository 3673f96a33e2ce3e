"""Figures of the page as SVG, drawn once and recoloured for light and dark mode."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from paper_figures.house_style import house_style

# A colour of the figures -> its counterpart in dark mode.
DARK = {
    "#1a1a1a": "#e4e2dd",
    "#000000": "#f2f0eb",
    "#0072b2": "#4fb0ea",
    "#2b3a67": "#93a5e6",
    "#d55e00": "#ff8a3d",
    "#009e73": "#35cfa2",
    "#cc79a7": "#e79cc4",
    "#e69f00": "#f0b429",
    "#56b4e9": "#8fd3f7",
    "#8c564b": "#c98f82",
    "#5d3a9b": "#a98be0",
    "#7f7f00": "#c2c23f",
    "#444444": "#b9b6ae",
    "#555555": "#a8a59d",
    "#777777": "#98958d",
    "#999999": "#98958d",
    "#aaaaaa": "#7d7a73",
    "#e3e3e3": "#363a40",
}
INK = "#1a1a1a"
ON_PAGE: dict[Any, str] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",  # the reader's fonts are not ours
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
COLOUR = re.compile("#[0-9a-f]{6}")
PLACES = re.compile(r' d="[^"]*"| x="[^"]*"| y="[^"]*"|translate\([^)]*\)')  # not the scale of a letter, which is small
FRACTION = re.compile(r"-?\d+\.\d{3,}(?!\d|e)")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page: two data URIs, alternative text, size in CSS pixels, and caption."""

    light: str
    dark: str
    alt: str
    width: int
    height: int
    caption: str


def picture(draw: Callable[[], Figure], alt: str, caption: str) -> Picture:
    """Draws a figure in the project's style.

    Raises:
        MissingRecordsError: The records do not allow it.
        ReproError: A record is malformed.
    """
    with house_style(), matplotlib.rc_context(ON_PAGE):
        figure = draw()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = _smaller(buffer.getvalue())
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    dark = COLOUR.sub(lambda found: DARK.get(found[0], found[0]), svg).replace("<svg", f'<svg fill="{DARK["#000000"]}"', 1)
    return Picture(light=data_uri(svg.encode()), dark=data_uri(dark.encode()), alt=alt, width=width, height=height, caption=caption)


def _smaller(svg: str) -> str:
    """Returns an SVG without its declaration, comments and line breaks, its coordinates to a hundredth of a point."""
    svg = "<svg" + svg.partition("<svg")[2]
    svg = re.sub("<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = PLACES.sub(lambda place: FRACTION.sub(lambda found: f"{float(found[0]):.2f}", place[0]), svg)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")


def data_uri(content: bytes, kind: str = "svg+xml") -> str:
    """Returns an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
