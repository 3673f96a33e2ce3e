"""The figures of quality against MACs and parameters, drawn from the tables' own numbers."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from paper_figures.cells import MissingRecordsError
from paper_figures.comparable import in_words
from paper_figures.house_style import PAGE, WIDE, drawn, legend_columns
from paper_figures.methods import REAL_OR_NOISE, look_of, sort_key
from paper_figures.published import Published
from paper_figures.published_points import Point, add_published_legend, draw_published
from paper_figures.tables import metrics_of

LOG_FROM_RATIO = 20
ASK_FOR_RUN = "run `python -m repro run`"
WITH_CONTROLS, TRAINED_ONLY = "With untrained controls", "Trained only"
VIEWS = (WITH_CONTROLS, TRAINED_ONLY)


def fid_vs_macs(table: pd.DataFrame, published: Sequence[Published] = (), width: float = PAGE, views: Sequence[str] = VIEWS) -> Figure:
    """Draws quality against the MACs of one forward, a line per method; published points by torch-pruning's count.

    Raises:
        MissingRecordsError: No cell with a size has a quality.
    """
    scale, unit = (1e9, "G") if (table["macs"] >= 1e9).any() else (1e6, "M")
    points = [Point(entry=entry, x=entry.macs_torch_pruning / scale) for entry in published if entry.macs_torch_pruning]
    return quality_figure(table, "macs", scale, f"MACs of one denoiser forward on one image ({unit})", points, width, views)


def fid_vs_params(table: pd.DataFrame, published: Sequence[Published] = (), width: float = PAGE, views: Sequence[str] = VIEWS) -> Figure:
    """Draws quality against the number of parameters, a line per method.

    Raises:
        MissingRecordsError: No cell with a size has a quality.
    """
    points = [Point(entry=entry, x=entry.params / 1e6) for entry in published if entry.params]
    return quality_figure(table, "params", 1e6, "Parameters (M)", points, width, views)


def quality_figure(
    table: pd.DataFrame,
    column: str,
    scale: float,
    xlabel: str,
    published: Sequence[Point] = (),
    width: float = PAGE,
    views: Sequence[str] = VIEWS,
) -> Figure:
    """Draws a part for each scale: numbers of different metrics, extractors, references, samplers or sample counts share no axis.

    Args:
        table: The rows; a failed cell is one without a quality.
        column: What is drawn on the horizontal axis, over `scale` and under the name `xlabel`.
        scale: The unit of the horizontal axis, such as 1e6.
        xlabel: The name of the horizontal axis.
        published: Points of the literature, for the last panel.
        width: Of the figure, in inches.
        views: The panels: with the untrained controls, without them, or both.

    Raises:
        MissingRecordsError: No row has both a quality and a number in the column.
    """
    panels = [(metric, judged, _on_scale(table, judged)) for metric in metrics_of(table) for judged in _scales(table, metric, column)]
    if not panels:
        raise MissingRecordsError(f"the figure fid_vs_{column}: left out, no evaluated cell; {ASK_FOR_RUN}")
    light = table["method"].map(lambda method: look_of(method).light)
    down = len(views) if width < WIDE and light.any() and not light.all() else 1
    figure = Figure(figsize=(width, (0.9 + 2.0 * down + (0.9 if published else 0.0)) * len(panels)))
    for part_of_figure, (metric, judged, part) in zip(figure.subfigures(len(panels), squeeze=False)[:, 0], panels, strict=True):
        n = part["n_samples"].iloc[0]
        # Cells that failed stay in as blanks: they break the line, so that no gap is bridged.
        failed = table[table["n_samples"].isna() & table["method"].isin(part["method"])]
        rows = pd.concat([part, failed]).sort_values("size", ascending=False, kind="stable")
        panels_of = _views(rows, views)
        axes_of = part_of_figure.subplots(len(panels_of) if down > 1 else 1, 1 if down > 1 else len(panels_of), squeeze=False).flat
        for axes, (title, shown) in zip(axes_of, panels_of.items(), strict=True):
            _draw_quality(axes, shown, (metric, f"{metric}_std_error"), shown[column] / scale, _x_spread(shown, column, scale))
            axes.set_title(title, loc="left")
        told = _told(judged, [other for named, other, _ in panels if named == metric])
        part_of_figure.supylabel(drawn(f"{in_words(metric, judged)}\n({int(n):,} samples, lower is better){told}"), multialignment="center")
        _add_legend(part_of_figure, axes_of[0], width)
        beside = [point for point in published if (point.entry.protocol.metric, point.entry.protocol.n_samples) == (metric, n)]
        if beside:  # the part's own label would lie under the second legend
            draw_published(axes_of[-1], beside)
            for axes in axes_of:
                axes.set_xlabel(xlabel)
            counter = "Published points: MACs by torch-pruning's count" if column == "macs" else None
            add_published_legend(part_of_figure, beside, counter, width)
        else:
            part_of_figure.supxlabel(xlabel)
    return figure


def _views(rows: pd.DataFrame, views: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Returns the rows of each panel by its title: the untrained controls are so much worse that the others need one of their own."""
    light = rows["method"].map(lambda method: look_of(method).light)
    if light.all() or not light.any():
        return {"": rows}
    return {view: {WITH_CONTROLS: rows, TRAINED_ONLY: rows[~light]}[view] for view in views}


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


def _add_legend(figure: SubFigure, axes: Axes, width: float) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = sorted(handles, key=lambda label: label == look_of("floor").label)
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=legend_columns(labels, width))


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
                markersize=11 if method == "base" else None,
                markerfacecolor="white" if method == "base" else None,
                # Of what is spread both ways, the order along the axis may be chance: no line.
                linestyle="none" if method == "base" or x_error is not None else ":" if look.light else "-",
                linewidth=1.0 if look.light else None,
                elinewidth=None if x_error is None else 0.6,
                label=drawn(f"{look.label}, {device}") if several else look.label,
                zorder=2 if look.light or method == "base" else 4 if method == "ofa" else 3,  # the base lies behind: others share its place
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
