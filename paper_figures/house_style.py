"""The project's style of figures, and reproducible files of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from repro.files.writing import write_atomically

STYLE_FILE = Path(__file__).with_name("style.mplstyle")
# No date and no version goes into a file: the same records give the same bytes.
METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


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
