"""The grid of sample images: a row per network, the same seed in every column."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from paper_figures.cells import Cell, MissingRecordsError, Strip, cells_of, some_of
from paper_figures.house_style import COLUMN, text_inches
from paper_figures.methods import look_of
from repro.errors import ReproError
from repro.experiment.records import Record
from repro.files.writing import sha256_of_file

MAX_IMAGES = 10
TALLEST, MARGIN = 8.0, 0.03  # inches: of a page of text, and white around a figure

Image = npt.NDArray[np.float64]


def samples(folder: Path, records: Sequence[Record], width: float = COLUMN) -> Figure:
    """Draws the sample strips of every cell of the lowest seed but of ablations, at most ten images a row, as large as a page allows.

    Raises:
        MissingRecordsError: No record names a strip that exists.
        ReproError: A strip is unreadable or is not of the recorded shape.
    """
    cells = cells_with_strips(folder, records)
    rows = [images_of(folder, cell.strip) for cell in cells if cell.strip]
    canvas, centres = _stacked(rows, [cell.method for cell in cells])
    labels = [_label(cell) for cell in cells]
    below, beside = 0.25 + MARGIN, 0.1 + MARGIN + max(text_inches(label, mpl.rcParams["ytick.labelsize"]) for label in labels)
    inches_per_pixel = min((width - beside) / canvas.shape[1], TALLEST / canvas.shape[0])
    width, height = canvas.shape[1] * inches_per_pixel + beside, canvas.shape[0] * inches_per_pixel + below
    placed_here = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)  # "none" is forgotten once a figure is saved
    figure = Figure(figsize=(width, height), layout=placed_here)
    left, bottom = (beside - MARGIN) / width, (below - MARGIN) / height
    axes = figure.add_axes((left, bottom, 1 - beside / width, 1 - below / height))
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_yticks(centres, labels)
    axes.set_xticks([])
    figure.supxlabel("The same noise in every column")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def cells_with_strips(folder: Path, records: Sequence[Record]) -> list[Cell]:
    """Returns the cells of the lowest seed, but of ablations, that have a strip; of many sizes some.

    Raises:
        MissingRecordsError: There is none.
        ReproError: A record is malformed.
    """
    cells = [cell for cell in cells_of(records) if cell.done and cell.own and cell.strip]
    first_seed = min((cell.seed for cell in cells), default=0)
    cells = [cell for cell in cells if cell.seed == first_seed and cell.strip and (folder / cell.strip.file).is_file()]
    drawn = {None, *some_of(cell.size for cell in cells if cell.size is not None)}
    cells = [cell for cell in cells if cell.size in drawn]
    if not cells:
        raise MissingRecordsError("the figure samples: left out, no sample strips; run `python -m repro run`")
    return cells


def _label(cell: Cell) -> str:
    label = look_of(cell.method).label
    return label if cell.size is None or cell.method == "base" else f"{label}, P = {cell.size:g}"


def images_of(folder: Path, strip: Strip) -> Image:
    """Returns the first images of a strip, of shape (count, height, width, 3), between 0 and 1.

    Raises:
        ReproError: The file is unreadable, is not of the recorded shape, or lies somewhere else.
    """
    path = folder / strip.file
    remedy = "delete it and its record and run the cell again"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ReproError(f"{path}: a link to somewhere else; {remedy}")
    try:
        if strip.sha256 not in ("", sha256_of_file(path)):
            raise ReproError(f"{path}: not the samples of its record, whose SHA-256 is {strip.sha256[:16]}...; {remedy}")
        with PIL.Image.open(path, formats=("PNG",)) as image:  # reads the header alone: a small file can decompress to a huge image
            width, height = image.size
        if (width, height) == (strip.count * strip.width, strip.height):
            pixels = np.asarray(matplotlib.image.imread(path), dtype=np.float64)
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ReproError(f"{path}: not a readable image ({error}); {remedy}") from error
    if (width, height) != (strip.count * strip.width, strip.height):
        found = f"{width} x {height}"
        raise ReproError(f"{path}: {found} pixels, but its record says {strip.count} images of {strip.width} x {strip.height}; {remedy}")
    colour = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]
    images = colour.reshape(strip.height, strip.count, strip.width, 3).transpose(1, 0, 2, 3)
    return images[:MAX_IMAGES]


def _stacked(rows: Sequence[Image], methods: Sequence[str]) -> tuple[Image, list[float]]:
    """Lays rows of images on white, with more space between methods, and returns the canvas and the middle of each row in pixels."""
    gap = max(1, rows[0].shape[1] // 8)
    tops, y = [], 0
    for index, row in enumerate(rows):
        y += 3 * gap if index and methods[index] != methods[index - 1] else gap if index else 0
        tops.append(y)
        y += row.shape[1]
    canvas: Image = np.ones((y, max(row.shape[0] * (row.shape[2] + gap) - gap for row in rows), 3))
    for top, row in zip(tops, rows, strict=True):
        for index, image in enumerate(row):
            left = index * (image.shape[1] + gap)
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas, [top + (row.shape[1] - 1) / 2 for top, row in zip(tops, rows, strict=True)]
