"""The figures of the evidence: ablations, balance, and quality against cost."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.cells import BUSY, MissingRecordsError
from paper_figures.comparable import in_words
from paper_figures.evidence import CONFIDENCE, Grid, check_machine
from paper_figures.evidence_tables import HOW, ablations_table
from paper_figures.house_style import COLUMN, PAGE, WIDE, drawn, legend_columns
from paper_figures.methods import BUDGETS, INDEPENDENT, LAW_LOOKS, LONGER_OR_SHORTER, Look, family_look, look_of

LAW_FACTORS = ("sampling law", "loss weighting")
LEAVES_OUT_ZERO = {"the interval leaves out zero": "#0072B2", "the interval holds zero": "#999999"}
CURRENCIES = {"device_hours": "Device-hours for all sizes", "train_pflop": "Training PFLOP for all sizes"}


def ablations(grid: Grid, width: float = PAGE) -> Figure:
    """Draws every variant's difference from what it varies, with its interval, grouped by factor; `width` is in inches.

    Raises:
        MissingRecordsError: No variant has a record.
    """
    table = ablations_table(grid) if grid.variants() else None
    rows = table[table["factor"] != ""] if table is not None else None
    if rows is None or rows["difference_pct"].isna().all():
        raise MissingRecordsError(f"the figure ablations: left out, no ablation of at least two seeds; {HOW}")
    assert table is not None
    rows = rows[rows["difference_pct"].notna()]
    references = list(dict.fromkeys(rows["of"]))
    heights = [len(rows[rows["of"] == reference]) for reference in references]
    narrow = width < WIDE  # names on two lines leave room for the intervals
    figure = Figure(figsize=(width, 0.9 + (0.26 if narrow else 0.2) * sum(heights) + 0.4 * len(references)))
    panels = figure.subplots(len(references), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, reference in zip(panels, references, strict=True):
        part = rows[rows["of"] == reference].reset_index(drop=True)
        y = np.arange(len(part))[::-1]
        middle = part["difference_pct"].to_numpy(float)
        spread = [middle - part["low_pct"].to_numpy(float), part["high_pct"].to_numpy(float) - middle]
        clear = (part["low_pct"] > 0) | (part["high_pct"] < 0)
        for these, (label, colour) in zip((clear, ~clear), LEAVES_OUT_ZERO.items(), strict=True):
            bars = [side[these] for side in spread]
            axes.errorbar(middle[these], y[these], xerr=bars, color=colour, linestyle="none", marker="o", label=label)
        axes.axvline(0, color="#444444", linewidth=1.0, linestyle="--")
        names = [f"{row.factor}: {row.variant}" if row.factor != "method" else str(row.variant) for row in part.itertuples()]
        axes.set_yticks(y, [drawn(_on_two_lines(name) if narrow else name) for name in names])
        axes.set_ylim(-0.6, len(part) - 0.4)
        axes.set_title(f"against {look_of(reference).label}", loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, width))
    metric, break_ = drawn(in_words(grid.metric, grid.scale)), "\n" if narrow else " "
    figure.supxlabel(f"Difference in {metric}, %{break_}({100 * CONFIDENCE:.0f} % interval over seeds; left is better)")
    return figure


def _on_two_lines(name: str) -> str:
    """Returns a name on at most two lines, broken after its factor where both parts are short, else as evenly as may be."""
    factor, colon, variant = name.partition(": ")
    if len(name) <= 24 or (colon and max(len(factor), len(variant)) <= 26):
        return name if len(name) <= 24 else f"{factor}:\n{variant}"
    return next(text for width in range(12, len(name) + 1) if (text := textwrap.fill(name, width)).count("\n") <= 1)


def balance(grid: Grid, width: float = COLUMN) -> Figure:
    """Draws, under each sampling law, each size's quality relative to the independently trained net of that size.

    Raises:
        MissingRecordsError: No law can be held against independent training.
    """
    present = [law for law in _laws(grid) if law in grid.of and len(grid.sizes(law, INDEPENDENT)) > 1]
    grid.check_scale(*present, INDEPENDENT)
    if len(present) < 2:
        raise MissingRecordsError(f"the figure balance: left out, no two sampling laws beside independent training; {HOW}")
    figure = Figure(figsize=(width, 3.1))
    axes = figure.subplots()
    for index, law in enumerate(present):
        look = _law_look(grid, law)
        sizes, seeds = grid.sizes(law, INDEPENDENT), grid.seeds(law, INDEPENDENT)
        logs = [[math.log(grid.score(law, seed, size) / grid.score(INDEPENDENT, seed, size)) for seed in seeds] for size in sizes]
        means = [statistics.fmean(values) for values in logs]
        errors = [statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0 for values in logs]
        ratios = np.exp(means)
        spread = [ratios - np.exp(np.subtract(means, errors)), np.exp(np.add(means, errors)) - ratios]
        shifted = np.array(sizes) + 0.006 * (index - len(present) / 2)  # dodged, so that error bars do not overlap
        axes.errorbar(
            shifted, ratios, yerr=spread, label=look.label, color=look.colour, marker=look.marker, linewidth=2.0 if law == "ofa" else None
        )
    axes.axhline(1, color="#444444", linestyle="--", linewidth=1.0, label="trained alone (Diff-Pruning)")
    axes.set_xticks(sizes)
    axes.set(xlabel="Size P", ylabel=f"{drawn(in_words(grid.metric, grid.scale))},\nover that of the size trained alone")
    axes.set_ylim(bottom=0)
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(loc="outside upper center", ncols=legend_columns(labels, width))
    return figure


def _laws(grid: Grid) -> list[str]:
    """Returns the methods that a figure of sampling laws may show: the known ones, then every other variant of the law."""
    others = [method for method, cell in grid.variants().items() if cell.variant and cell.variant.factor in LAW_FACTORS]
    return list(dict.fromkeys([*LAW_LOOKS, *sorted(others)]))


def _law_look(grid: Grid, law: str) -> Look:
    if law in LAW_LOOKS:
        return LAW_LOOKS[law]
    variant, look = grid.variants()[law].variant, look_of(law)
    return replace(look, label=drawn(variant.label if variant else look.label))


def quality_vs_cost(grid: Grid, currencies: Sequence[str] = tuple(CURRENCIES), width: float = PAGE) -> Figure:
    """Draws the mean quality over all sizes against what they cost together, in device-hours and in PFLOP; `width` is in inches.

    Hollow and dotted: the same without size 1.

    Raises:
        MissingRecordsError: Fewer than two approaches have all sizes.
        IncomparableError: The qualities are on several scales, or the hours those of several machines.
    """
    sizes = grid.sizes("ofa", INDEPENDENT) if {"ofa", INDEPENDENT} <= grid.of.keys() else []
    if not sizes:
        raise MissingRecordsError(
            f"the figure quality_vs_cost: left out, OFA and {look_of(INDEPENDENT).label} have no size in common; {HOW}"
        )
    present = [method for methods in BUDGETS.values() for method in methods if method in grid.of]
    grid.check_scale(*present)
    seeds = grid.seeds(*present)  # the same for all, so that differences are paired
    paid = [cell for method in present for seed, cells in grid.paid(method, sizes).items() if seed in seeds for cell in cells]
    check_machine(paid if "device_hours" in currencies else [])
    down = len(currencies) if width < WIDE else 1
    figure = Figure(figsize=(width, 1.0 + 2.1 * down))
    panels = figure.subplots(down, len(currencies) // down, sharey=True, squeeze=False).flat
    for axes, currency in zip(panels, currencies, strict=True):
        _draw_budgets(axes, grid, sizes, seeds, currency)
        rest = [size for size in sizes if size != 1.0]
        if rest and 1.0 in sizes:
            _draw_budgets(axes, grid.without_whole(), rest, seeds, currency, hollow=True)
        busy = currency == "device_hours" and any(cell.busy for cell in paid)
        axes.set(xlabel=CURRENCIES[currency] + (f" {BUSY} (busy machine)" if busy else ""))
        axes.set_xlim(0, 1.14 * axes.dataLim.xmax)
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylim(bottom=0)
    metric = drawn(in_words(grid.metric, grid.scale))
    figure.supylabel(f"{metric},\ngeometric mean over sizes (lower is better)", multialignment="center")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, width))
    return figure


def _draw_budgets(axes: Axes, grid: Grid, sizes: Sequence[float], seeds: Sequence[int], currency: str, *, hollow: bool = False) -> None:
    """Draws a line for each family of budgets, with the other budget named; a hollow one stands for fewer sizes and has no names."""
    if hollow:
        axes.errorbar([], [], color="#777777", marker="o", markerfacecolor="none", linestyle=":", label="without size 1")
    for family, methods in BUDGETS.items():
        points = {method: point for method in methods if (point := grid.point(method, sizes, seeds))}
        if not points:
            continue
        hours, pflop, y, error = zip(*points.values(), strict=True)
        x = hours if currency == "device_hours" else pflop
        look = family_look(family)
        style = {"markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8} if hollow else {"label": family}
        axes.errorbar(x, y, yerr=error, color=look.colour, marker=look.marker, **style)
        for index, name in enumerate("" if hollow else LONGER_OR_SHORTER.get(method, "") for method in points):
            side, away = ("left", 5) if index else ("right", -5)  # beyond the ends of the line
            text = name.partition(", trained ")[2]
            axes.annotate(text, (x[index], y[index]), (away, 0), textcoords="offset points", ha=side, va="center", fontsize=7)
