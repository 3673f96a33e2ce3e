"""The figures of the page: those of `paper_figures`, each narrow enough for a phone, and two of its own: latency and training curves."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figures.cells import BUSY, Cell, MissingRecordsError, some_of
from paper_figures.comparable import IncomparableError
from paper_figures.curve_plots import curves as quality_curves
from paper_figures.evidence import CONFIDENCE, Grid
from paper_figures.evidence_plots import CURRENCIES, ablations, balance, quality_vs_cost
from paper_figures.house_style import drawn
from paper_figures.latency import LatencyRow, batches_of, latency_table
from paper_figures.methods import look_of, sort_key
from paper_figures.overhead_plot import overhead
from paper_figures.plots import ASK_FOR_RUN, TRAINED_ONLY, WITH_CONTROLS, fid_vs_macs, fid_vs_params, quality_figure
from paper_figures.published_selection import Literature
from paper_figures.report.drawing import Picture, picture
from paper_figures.tables import metrics_of, results_table
from repro.experiment.records import Record

WIDTH = 3.85  # inches: on a phone its letters are as large as those of a caption
WINDOW = 5  # points of a training curve
MOST_RUNS = 20  # of a method whose curves are drawn one by one; the mean is over all
SPREAD = "mean over seeds, bars of one standard error"

Drawing = tuple[Callable[[], Figure], str, str]


def quality(records: Sequence[Record], literature: Literature, latencies: Sequence[LatencyRow]) -> tuple[list[Picture], list[str]]:
    """Draws quality against MACs, latency and parameters, and returns what could be drawn and a line about each that could not."""
    table, shown = results_table(records), literature.entries
    trained, all_of_them = (TRAINED_ONLY,), (WITH_CONTROLS,)
    best = _in_words(table) if metrics_of(table) else ""
    drawings: list[Drawing] = [
        (
            lambda: fid_vs_macs(table, shown, WIDTH, trained),
            f"Line plot of quality against MACs. {best}",
            f"Quality against MACs: {SPREAD}.",
        ),
    ]
    if latencies:
        times = latency_table(latencies)
        busy = f" {BUSY} (busy machine)" if (times["busy_machine"] == "yes").any() else ""
        for batch in batches_of(latencies):
            label = f"Latency of one forward pass, batch {batch} (ms)" + busy
            drawings.append(
                (
                    partial(quality_figure, times, f"latency_ms_{batch}", 1.0, label, (), WIDTH, trained),
                    f"Plot of quality against latency at batch {batch}; the table of latencies has its numbers.",
                    f"Quality against latency at batch {batch}: {SPREAD}; of latency the quartiles, where recorded. No line joins "
                    "them: noise may be what orders times that lie close.",
                )
            )
    drawings.append(
        (
            lambda: fid_vs_params(table, shown, WIDTH, trained),
            "Line plot of quality against parameters; its numbers are in the table of results.",
            f"Quality against parameters: {SPREAD}.",
        )
    )
    if table["method"].map(lambda method: look_of(method).light).any():
        drawings.append(
            (
                lambda: fid_vs_macs(table, shown, WIDTH, all_of_them),
                "The first plot again with untrained controls, which lie far above the trained networks.",
                "With the untrained controls, on a logarithmic axis: what training is worth.",
            )
        )
    return drawn_of(drawings)


def cost(records: Sequence[Record], grid: Grid) -> tuple[list[Picture], list[str]]:
    """Draws the break-even, and quality against cost in both currencies."""
    drawings: list[Drawing] = [
        (
            lambda: overhead(records, WIDTH),
            "Line plot of cumulative device-hours against sizes delivered: OFA's is flat, the others rise. The table has the break-even.",
            "What sizes cost together. OFA pays once; ringed is where one network for each size costs more.",
        )
    ]
    for currency, title in CURRENCIES.items():
        label = title[0].lower() + title[1:]
        drawings.append(
            (
                partial(quality_vs_cost, grid, (currency,), WIDTH),
                f"Plot of the mean quality over all sizes against {label}; the table of the quality that the cost buys has its numbers.",
                f"Quality against {label}; a line joins the budgets of one approach. Hollow: without size 1.",
            )
        )
    return drawn_of(drawings)


def time_to_quality(grid: Grid, target: float | None = None) -> tuple[list[Picture], list[str]]:
    """Draws the quality of each size over what its training had taken, in hours and in PFLOP."""
    return drawn_of(
        (
            partial(quality_curves, grid, WIDTH, currency, target),
            f"Line plots, one for each size, of the quality over the {title} that the training had taken; the table has the crossings.",
            f"Quality over {title}, both on logarithmic axes: mean over seeds, the band holds all of them. "
            f"Dashed: {'what the independent runs come to in the end' if target is None else f'{target:g}, as asked for'}.",
        )
        for currency, title in (("device_hours", "device-hours"), ("train_pflop", "PFLOP"))
    )


def evidence(grid: Grid) -> tuple[list[Picture], list[str]]:
    """Draws the ablations and the balance between sizes."""
    interval = f"{100 * CONFIDENCE:.0f} % intervals"
    return drawn_of(
        [
            (
                lambda: ablations(grid, WIDTH),
                "Plot of the difference that each ablation makes, with its interval; the table of ablations has its numbers.",
                f"What each factor is worth: differences with {interval}, blue where the interval leaves out zero.",
            ),
            (
                lambda: balance(grid, WIDTH),
                "Line plot of each size's quality over that of the same size trained alone, a line per sampling law.",
                "How evenly the sampling laws serve the sizes: a flat line is balanced.",
            ),
        ]
    )


def curves(cells: Sequence[Cell]) -> tuple[list[Picture], list[str]]:
    """Draws the training loss, a figure for the runs that serve all sizes, and for each size, of many for some, that is trained alone."""
    held = [cell for cell in cells if cell.done and cell.own and len(cell.curve) > 1]
    if not held:
        return [], [f"training curves: left out, no record holds one; {ASK_FOR_RUN}"]
    groups: dict[str, list[Cell]] = {}
    alone = some_of(cell.size for cell in held if cell.size is not None and cell.method != "base")
    for cell in held:
        shared = cell.method == "base" or cell.size is None
        if not shared and cell.size not in alone:
            continue
        groups.setdefault("The base, and runs for all sizes" if shared else f"P = {cell.size:g}, trained alone", []).append(cell)
    return drawn_of(
        (
            partial(curve_figure, title, group),
            f"Line plot of the training loss against steps: {', '.join(_labels(group))}.",
            f"Runs: {', '.join(f'{n} of {name}' for name, n in _labels(group).items())}.",
        )
        for title, group in groups.items()
    )


def curve_figure(title: str, cells: Sequence[Cell]) -> Figure:
    """Draws every run's loss thinly and, for each method, the running mean of the mean over seeds boldly."""
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = figure.subplots()
    for family in sorted({cell.family for cell in cells}, key=lambda family: sort_key(family, None)):
        look, runs = look_of(family), [cell.curve for cell in cells if cell.family == family]
        for run in runs[:MOST_RUNS]:
            axes.plot(*zip(*run, strict=True), color=look.colour, linewidth=0.5, alpha=0.35)
        losses: dict[float, list[float]] = {}
        for step, loss in (point for run in runs for point in run):
            losses.setdefault(step, []).append(loss)
        steps = sorted(step for step, values in losses.items() if len(values) == len(runs))  # where every seed has a point
        means = [statistics.fmean(losses[step]) for step in steps]
        axes.plot(steps, running_mean(means), color=look.colour, linewidth=1.8, label=drawn(look.label))
    top = np.quantile([loss for cell in cells for _, loss in cell.curve], 0.98)
    axes.set_ylim(0, 1.15 * float(top))
    axes.set(xlabel="Step", ylabel="Training loss")
    axes.set_title(drawn(title), loc="left")
    axes.legend(loc="upper right", ncols=2)
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Returns the mean over each point and its neighbours, `WINDOW` points where there are as many on both sides."""
    reach = WINDOW // 2
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def drawn_of(drawings: Iterable[Drawing]) -> tuple[list[Picture], list[str]]:
    """Draws what the records allow, and returns a line about each thing that they do not."""
    pictures, notes = [], []
    for draw, alt, caption in drawings:
        try:
            pictures.append(picture(draw, alt, caption))
        except (MissingRecordsError, IncomparableError) as error:
            notes.append(str(error))
    return pictures, notes


def _labels(cells: Iterable[Cell]) -> dict[str, int]:
    """Returns how many runs each method has, by its label."""
    found: dict[str, int] = {}
    for cell in cells:
        label = look_of(cell.family).label
        found[label] = found.get(label, 0) + 1
    return found


def _in_words(table: pd.DataFrame) -> str:
    """Says for each method where its line begins and ends."""
    metric = metrics_of(table)[0]
    rows = table[table[metric].notna() & table["size"].notna() & ~table["method"].map(lambda method: look_of(method).light)]
    parts = []
    for method, own in rows.groupby("method", sort=False):
        by_size = sorted(zip(own["size"], own[metric], strict=True), reverse=True)
        ends = [by_size[0], by_size[-1]][: len(by_size)]
        parts.append(f"{look_of(str(method)).label} " + ", ".join(f"{value:.2f} at P = {size:g}" for size, value in ends))
    return f"{metric}: {'; '.join(parts)}."
