"""The sample images of the page: for each size a row per network, the same seeds in every column."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from paper_figures.cells import Cell
from paper_figures.methods import look_of
from paper_figures.report.drawing import data_uri
from paper_figures.sample_grid import Image, cells_with_strips, images_of
from repro.experiment.records import Record

MOST_PIXELS = 2**18  # of a row: larger images are fewer


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network's images, side by side in one picture."""

    label: str
    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one size, and how many images they have at most."""

    title: str
    rows: tuple[Row, ...]


def sample_groups(folder: Path, records: Sequence[Record]) -> list[Group]:
    """Returns the sample images of the lowest seed, without ablations, from the largest size to the smallest; first what has no size.

    Raises:
        MissingRecordsError: No record names a strip that exists.
        ReproError: A strip is unreadable, is not of the recorded shape, or lies somewhere else.
    """
    groups: dict[float | None, list[Cell]] = {}
    for cell in cells_with_strips(folder, records):
        groups.setdefault(cell.size, []).append(cell)
    order = sorted(groups, key=lambda size: -2.0 if size is None else -size)
    return [
        Group(title="For reference" if size is None else f"P = {size:g}", rows=tuple(_row(folder, cell) for cell in groups[size]))
        for size in order
    ]


def _row(folder: Path, cell: Cell) -> Row:
    assert cell.strip
    images = images_of(folder, cell.strip)
    images = images[: max(1, MOST_PIXELS // (cell.strip.height * cell.strip.width))]
    picture = _side_by_side(images)
    buffer = io.BytesIO()
    # Re-encoded, so that nothing of the file but its pixels comes into the page.
    PIL.Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    label = "Real images" if cell.method == "floor" else look_of(cell.method).label
    of_what = label if cell.size is None else f"{label} at P = {cell.size:g}"
    alt = f"{len(images)} samples of {of_what}, seed {cell.seed}"
    return Row(label=label, uri=data_uri(buffer.getvalue(), "png"), alt=alt, width=picture.shape[1], height=picture.shape[0])


def _side_by_side(images: Image) -> "np.typing.NDArray[np.uint8]":
    """Lays images of shape (count, height, width, 3) in a row, a gap between them that shows the page."""
    count, height, width, _ = images.shape
    gap = max(1, width // 8)
    row = np.zeros((height, count * (width + gap) - gap, 4), dtype=np.uint8)
    for index, image in enumerate(images):
        left = index * (width + gap)
        row[:, left : left + width, :3] = np.round(image * 255)
        row[:, left : left + width, 3] = 255
    return row
