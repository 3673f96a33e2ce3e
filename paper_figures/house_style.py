"""The project's style of figures, and reproducible files of them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from repro.files.writing import write_atomically

STYLE_FILE = Path(__file__).with_name("style.mplstyle")
# Widths of figures in inches: one column of a paper, and two. A figure narrower than WIDE has its panels below each other.
COLUMN, PAGE, WIDE = 3.25, 6.75, 5.0
# No date and no version goes into a file: the same records give the same bytes.
METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


def text_inches(text: str, size: str | float) -> float:
    """Returns how wide a text is in the style's font, at a size in points or a named one."""
    font = FontProperties(family=mpl.rcParams["font.family"], size=size)
    return float(TextPath((0, 0), text, size=font.get_size_in_points(), prop=font).get_extents().width) / 72


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Returns into how many columns a legend of a width in inches may be laid, one at least."""
    size = mpl.rcParams["legend.fontsize"]
    letters = mpl.rcParams["legend.handlelength"] + mpl.rcParams["legend.handletextpad"] + mpl.rcParams["legend.columnspacing"]
    beside = letters * FontProperties(size=size).get_size_in_points() / 72
    inches = [text_inches(label, size) + beside for label in labels]

    def needed(columns: int) -> float:
        return float(sum(max(column) for column in np.array_split(inches, columns)))

    return next((columns for columns in range(len(labels), 1, -1) if needed(columns) < width), 1)


def drawn(text: str) -> str:
    """Escapes the dollar signs of a text, which matplotlib would take for a formula."""
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
