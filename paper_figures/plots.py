"""The figures of quality against MACs and parameters, drawn from the tables' own numbers, and how all figures are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from paper_figures.cells import MissingRecordsError
from paper_figures.comparable import IncomparableError
from paper_figures.curve_plots import curves
from paper_figures.curves import Curves
from paper_figures.evidence import Grid
from paper_figures.evidence_plots import ablations, balance, quality_vs_cost
from paper_figures.house_style import drawn, house_style, save_figure
from paper_figures.methods import REAL_OR_NOISE, look_of, sort_key
from paper_figures.overhead_plot import overhead
from paper_figures.published import Published
from paper_figures.published_points import Point, add_published_legend, draw_published
from paper_figures.sample_grid import samples
from paper_figures.tables import metrics_of, results_table
from repro.experiment.records import Record

LOG_FROM_RATIO = 20
ASK_FOR_RUN = "run `python -m repro run`"
WITH_CONTROLS, TRAINED_ONLY = "With untrained controls", "Trained only"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How wide a figure of qualities is, in inches, and which views of it stand side by side."""

    width: float
    views: tuple[str, ...]
    legend_columns: int


SIDE_BY_SIDE = Layout(width=7.0, views=(WITH_CONTROLS, TRAINED_ONLY), legend_columns=4)


def write_figures(
    folder: Path, records: Sequence[Record], published: Sequence[Published] = (), target: float | None = None
) -> tuple[list[Path], list[str]]:
    """Draws every figure that the records allow and returns the paths written and a line about each thing left out.

    Published figures that may be shown stand beside ours; curves show a target where one is asked for.

    Raises:
        ReproError: A record or sample strip is malformed, or the folder cannot be written.
    """
    table = results_table(records)
    drawings: dict[str, Callable[[], Figure]] = {
        "fid_vs_macs": lambda: fid_vs_macs(table, published),
        "fid_vs_params": lambda: fid_vs_params(table, published),
        "overhead": lambda: overhead(records),
        "samples": lambda: samples(folder, records),
        **evidence_drawings(records, target),
    }
    paths, notes = draw_all(folder, drawings)
    if metrics_of(table) and not (table["method"] == "floor").any():
        notes.append(f"the floor's dashed line: left out, no floor record; {ASK_FOR_RUN}")
    return paths, notes


def draw_all(folder: Path, drawings: Mapping[str, Callable[[], Figure]]) -> tuple[list[Path], list[str]]:
    """Draws figures in the project's style and returns the paths written and a line about each that the records do not allow."""
    paths, notes = [], []
    for name, draw in drawings.items():
        with house_style():
            try:
                paths += save_figure(draw(), folder, name)
            except MissingRecordsError as error:
                notes.append(str(error))
            except IncomparableError as error:
                notes.append(f"the figure {name}: left out, {error}")
    return paths, notes


def evidence_drawings(records: Sequence[Record], target: float | None = None) -> dict[str, Callable[[], Figure]]:
    """Returns the figures of the evidence, name -> how to draw it; none for an experiment without ablations and curves."""
    grid = Grid(records)
    drawings: dict[str, Callable[[], Figure]] = {}
    if grid.variants():
        drawings |= {"ablations": lambda: ablations(grid), "balance": lambda: balance(grid)}
        drawings |= {"quality_vs_cost": lambda: quality_vs_cost(grid)}
    if Curves(grid).of:
        drawings |= {"curves": lambda: curves(grid, target=target)}
    return drawings


def fid_vs_macs(table: pd.DataFrame, published: Sequence[Published] = (), layout: Layout = SIDE_BY_SIDE) -> Figure:
    """Draws quality against the MACs of one forward, a line per method; published points by torch-pruning's count.

    Raises:
        MissingRecordsError: No cell with a size has a quality.
    """
    scale, unit = (1e9, "G") if (table["macs"] >= 1e9).any() else (1e6, "M")
    points = [Point(entry=entry, x=entry.macs_torch_pruning / scale) for entry in published if entry.macs_torch_pruning]
    return quality_figure(table, "macs", scale, f"MACs of one denoiser forward on one image ({unit})", points, layout)


def fid_vs_params(table: pd.DataFrame, published: Sequence[Published] = (), layout: Layout = SIDE_BY_SIDE) -> Figure:
    """Draws quality against the number of parameters, a line per method.

    Raises:
        MissingRecordsError: No cell with a size has a quality.
    """
    points = [Point(entry=entry, x=entry.params / 1e6) for entry in published if entry.params]
    return quality_figure(table, "params", 1e6, "Parameters (M)", points, layout)


def quality_figure(
    table: pd.DataFrame, column: str, scale: float, xlabel: str, published: Sequence[Point] = (), layout: Layout = SIDE_BY_SIDE
) -> Figure:
    """Draws a panel for each scale: numbers of different metrics, extractors, references, samplers or sample counts share no axis.

    Raises:
        MissingRecordsError: No row has both a quality and a number in the column.
    """
    panels = [(metric, judged, _on_scale(table, judged)) for metric in metrics_of(table) for judged in _scales(table, metric, column)]
    if not panels:
        raise MissingRecordsError(f"the figure fid_vs_{column}: left out, no evaluated cell; {ASK_FOR_RUN}")
    figure = Figure(figsize=(layout.width, (4.6 if published else 3.7) * len(panels)))
    for part_of_figure, (metric, judged, part) in zip(figure.subfigures(len(panels), squeeze=False)[:, 0], panels, strict=True):
        n = part["n_samples"].iloc[0]
        # Cells that failed stay in as blanks: they break the line, so that no gap is bridged.
        failed = table[table["n_samples"].isna() & table["method"].isin(part["method"])]
        rows = pd.concat([part, failed]).sort_values("size", ascending=False, kind="stable")
        light = rows["method"].map(lambda method: look_of(method).light)
        # The untrained controls are so much worse that the trained networks need a panel of their own.
        both = {WITH_CONTROLS: rows, TRAINED_ONLY: rows[~light]}
        views = {"": rows} if light.all() or not light.any() else {view: both[view] for view in layout.views}
        axes_of = part_of_figure.subplots(1, len(views), squeeze=False)[0]
        beside = [point for point in published if (point.entry.protocol.metric, point.entry.protocol.n_samples) == (metric, n)]
        draw_published(axes_of[-1], beside)
        for axes, (title, shown) in zip(axes_of, views.items(), strict=True):
            _draw_quality(axes, shown, (metric, f"{metric}_std_error"), shown[column] / scale, _x_spread(shown, column, scale))
            axes.set_title(title, loc="left")
        told = _told(judged, [other for named, other, _ in panels if named == metric])
        axes_of[0].set_ylabel(drawn(f"{metric}, {int(n):,} samples (lower is better){told}"))
        _add_legend(part_of_figure, axes_of[0], layout.legend_columns)
        if beside:  # the part's own label would lie under the second legend
            for axes in axes_of:
                axes.set_xlabel(xlabel)
            counter = "Published points: MACs by torch-pruning's count" if column == "macs" else None
            add_published_legend(part_of_figure, beside, counter, layout.legend_columns // 2)
        else:
            part_of_figure.supxlabel(xlabel, fontsize=9)
    return figure


def _x_spread(rows: pd.DataFrame, column: str, scale: float) -> pd.DataFrame | None:
    """Returns how far the bars of a horizontal quantity reach down and up: to its quartiles, or one standard error; None without either."""
    if f"{column}_error" not in rows:
        return None
    spread = pd.DataFrame({side: rows[f"{column}_error"].astype(float).fillna(0.0) for side in ("down", "up")})
    if f"{column}_q1" in rows:
        quartiles = pd.DataFrame({"down": rows[column] - rows[f"{column}_q1"], "up": rows[f"{column}_q3"] - rows[column]})
        spread = quartiles.astype(float).fillna(spread)
    return spread / scale


def _scales(table: pd.DataFrame, metric: str, column: str) -> list[str]:
    """Returns the scales of the networks that a figure can show, those of fewer samples first."""
    rows = table[table[metric].notna() & table[column].notna()].sort_values("n_samples", kind="stable")
    return list(dict.fromkeys(rows["scale"]))


def _on_scale(table: pd.DataFrame, scale: str) -> pd.DataFrame:
    """Returns the rows of a scale; images that no network drew have no sampler, which is the last of its facts."""
    without_sampler = scale.partition("; sampler ")[0]
    return table[(table["scale"] == scale) | (table["method"].isin(REAL_OR_NOISE) & (table["scale"] == without_sampler))]


def _told(scale: str, scales: Sequence[str]) -> str:
    """Returns on a line of its own what tells a scale from the other panels'; nothing where there is one."""
    shared = set.intersection(*(set(other.split("; ")) for other in scales))
    own = [fact for fact in scale.split("; ") if fact not in shared and not fact.startswith("samples ")]
    return "\n" + ", ".join(own) if own else ""


def _add_legend(figure: SubFigure, axes: Axes, columns: int) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = sorted(handles, key=lambda label: label == look_of("floor").label)
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=columns)


def _draw_quality(
    axes: Axes, rows: pd.DataFrame, columns: tuple[str, str], x: "pd.Series[float]", x_error: pd.DataFrame | None = None
) -> None:
    """Draws a line per method (and device, where there are several), and the floor dashed; noise would only stretch the axis."""
    value, error = columns
    present = [method for method in dict.fromkeys(rows["method"]) if method not in REAL_OR_NOISE]
    several = rows.loc[rows[value].notna() & ~rows["method"].isin(REAL_OR_NOISE), "device"].nunique() > 1
    for method in sorted(present, key=lambda method: sort_key(method, None)):
        look = look_of(method)
        own = rows[rows["method"] == method]
        for device in dict.fromkeys(own.loc[own[value].notna(), "device"]):
            line = own[(own["device"] == device) | own[value].isna()]
            axes.errorbar(
                x.loc[line.index].astype(float),
                line[value].astype(float),
                yerr=line[error].astype(float).fillna(0.0) if line[error].notna().any() else None,
                xerr=x_error.loc[line.index].to_numpy().T if x_error is not None else None,
                color=look.colour,
                marker=look.marker,
                markersize=9 if method == "base" else None,
                linestyle="none" if method == "base" else ":" if look.light else "-",
                linewidth=1.0 if look.light else None if x_error is None else 0.6,  # what is spread both ways makes no smooth line
                elinewidth=None if x_error is None else 0.6,
                label=drawn(f"{look.label}, {device}") if several else look.label,
                zorder=2 if look.light else 4 if method == "base" else 3,
            )
    for floor in rows.loc[rows["method"] == "floor", value].dropna():
        axes.axhline(float(floor), color=look_of("floor").colour, linestyle="--", linewidth=1.0, label=look_of("floor").label, zorder=1)
    _scale_quality(axes, rows.loc[rows["method"] != "noise", value].dropna())


def _scale_quality(axes: Axes, drawn: "pd.Series[float]") -> None:
    if drawn.min() > 0 and drawn.max() / drawn.min() > LOG_FROM_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
    else:
        axes.set_ylim(bottom=0)
