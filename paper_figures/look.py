"""What a method is called and looks like in every table and figure, and how a figure becomes a file."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from repro.harness.storage import write_atomically

STYLE_FILE = Path(__file__).with_name("style.mplstyle")
# Nothing that depends on the day or on the machine goes into a file: the same records give the same bytes.
METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Look:
    """A method's label, colour and marker; controls are drawn lightly."""

    label: str
    colour: str
    marker: str
    light: bool = False


# Colours are those of Okabe and Ito, which the colour-blind can tell apart; markers differ too, for print without colour.
LOOKS = {
    "base": Look("Base", "#000000", "*"),
    "ofa": Look("OFA", "#0072B2", "o"),
    "slimmable": Look("Slimmable", "#CC79A7", "P"),
    "diff_pruning": Look("Diff-Pruning", "#D55E00", "s"),
    "magnitude": Look("Magnitude", "#009E73", "^"),
    "random": Look("Random", "#E69F00", "D"),
    "scratch": Look("Scratch", "#56B4E9", "v"),
    "untrained": Look("Untrained, importance", "#777777", "x", light=True),
    "untrained_random": Look("Untrained, random", "#AAAAAA", "+", light=True),
    "floor": Look("Floor (real against real)", "#444444", "_"),
    "noise": Look("Noise", "#444444", "."),
}
SPARE_COLOURS = ("#8C564B", "#5D3A9B", "#7F7F00")
SPARE_MARKERS = ("X", "h", "<", ">")


def look_of(method: str) -> Look:
    """Returns a method's look, which depends on its name alone, so that it is the same whichever methods are present."""
    if method in LOOKS:
        return LOOKS[method]
    number = zlib.crc32(method.encode())
    return Look(_label_of(method), SPARE_COLOURS[number % len(SPARE_COLOURS)], SPARE_MARKERS[number // 7 % len(SPARE_MARKERS)])


def _label_of(method: str) -> str:
    """Returns the label of an unknown method: its name, which begins with the label of the longest known method that it begins with."""
    known = max((name for name in LOOKS if method.startswith(f"{name}_")), key=len, default="")
    return f"{LOOKS[known].label}, {method.removeprefix(f'{known}_').replace('_', ' ')}" if known else method


def drawn(text: str) -> str:
    """Returns a text as matplotlib draws it to the letter: between two dollar signs it would set a formula."""
    return text.replace("$", r"\$")


@contextmanager
def house_style() -> Iterator[None]:
    """Draws with the project's style alone: the user's own matplotlibrc must not change a figure."""
    with matplotlib.style.context(["default", STYLE_FILE]):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as PDF and PNG and returns the two paths.

    Raises:
        ReproError: The folder cannot be written.
    """
    paths = []
    for suffix, metadata in METADATA.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        paths.append(folder / "figures" / f"{name}.{suffix}")
        write_atomically(paths[-1], buffer.getvalue())
    return paths
