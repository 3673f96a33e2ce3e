"""The figures of an experiment: how each is drawn, how wide it is, and what its caption says."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from paper_figures import captions
from paper_figures.cells import MissingRecordsError
from paper_figures.comparable import IncomparableError
from paper_figures.curve_plots import curves
from paper_figures.curves import curves_in
from paper_figures.evidence import Grid
from paper_figures.evidence_plots import ablations, balance, quality_vs_cost
from paper_figures.house_style import COLUMN, METADATA, PAGE, house_style, save_figure
from paper_figures.interference_plots import interference, measured, swaps
from paper_figures.overhead_plot import overhead
from paper_figures.plots import ASK_FOR_RUN, fid_vs_macs, fid_vs_params
from paper_figures.published import Published
from paper_figures.sample_grid import samples
from paper_figures.tables import metrics_of, results_table
from repro.experiment.records import Record
from repro.files.writing import write_atomically

EVIDENCE = ("ablations", "balance", "quality_vs_cost", "curves", "interference", "swaps")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure that is yet to be drawn: how, in a width in inches; its own width; and its caption."""

    draw: Callable[[float], Figure]
    width: float
    caption: str


def drawings_of(
    folder: Path, records: Sequence[Record], published: Sequence[Published] = (), target: float | None = None
) -> dict[str, Drawing]:
    """Returns every figure of an experiment by name; those of the evidence only where there are ablations or curves.

    Published figures that may be shown stand beside ours; curves show a target where one is asked for.

    Raises:
        ReproError: A record is malformed.
    """
    table, grid = results_table(records), Grid(records)
    found = {
        "fid_vs_macs": Drawing(
            draw=lambda width: fid_vs_macs(table, published, width), width=PAGE, caption=captions.quality(table, "MACs", published)
        ),
        "fid_vs_params": Drawing(
            draw=lambda width: fid_vs_params(table, published, width), width=PAGE, caption=captions.quality(table, "parameters", published)
        ),
        "overhead": Drawing(draw=lambda width: overhead(records, width), width=COLUMN, caption=captions.overhead(records)),
        "samples": Drawing(draw=lambda width: samples(folder, records, width), width=COLUMN, caption=captions.SAMPLES),
    }
    if grid.variants():
        found |= {
            "ablations": Drawing(draw=lambda width: ablations(grid, width), width=PAGE, caption=captions.ablations(grid)),
            "balance": Drawing(draw=lambda width: balance(grid, width), width=COLUMN, caption=captions.balance(grid)),
            "quality_vs_cost": Drawing(
                draw=lambda width: quality_vs_cost(grid, width=width), width=PAGE, caption=captions.quality_vs_cost(grid)
            ),
        }
    if curves_in(grid).of:
        caption = captions.curves(grid, target)
        found["curves"] = Drawing(draw=lambda width: curves(grid, width, target=target), width=PAGE, caption=caption)
    if runs := measured(records):
        found["interference"] = Drawing(draw=lambda width: interference(runs, width), width=PAGE, caption=captions.interference(runs))
        found["swaps"] = Drawing(draw=lambda width: swaps(runs, width), width=PAGE, caption=captions.swaps(runs))
    return found


def write_figures(
    folder: Path, drawings: Mapping[str, Drawing], names: Collection[str], width: float | None = None
) -> tuple[list[Path], list[str]]:
    """Draws figures in the project's style, and the captions of all that the folder then holds.

    Args:
        folder: The experiment's.
        drawings: All of its figures.
        names: Those that are drawn.
        width: In inches, of all; None takes each one's own.

    Returns:
        The paths written, and a line about each figure that the records do not allow.

    Raises:
        ReproError: A record or sample strip is malformed, or the folder cannot be written.
    """
    paths, notes = [], []
    for name, drawing in drawings.items():
        if name not in names:
            continue
        with house_style():
            try:
                paths += save_figure(drawing.draw(width or drawing.width), folder, name)
            except MissingRecordsError as error:
                notes.append(str(error))
            except IncomparableError as error:
                notes.append(f"the figure {name}: left out, {error}")
    held = [name for name in drawings if all((folder / "figures" / f"{name}.{suffix}").is_file() for suffix in METADATA)]
    if held:
        paths.append(folder / "figures" / "captions.md")
        write_atomically(paths[-1], captions.page({name: drawings[name].caption for name in held}).encode())
    return paths, notes


def no_floor(records: Sequence[Record]) -> list[str]:
    """Says that the figures of quality lack the floor's line, where they do."""
    table = results_table(records)
    lacks = metrics_of(table) and not (table["method"] == "floor").any()
    return [f"the floor's dashed line: left out, no floor record; {ASK_FOR_RUN}"] if lacks else []
