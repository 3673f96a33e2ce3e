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
from paper_figures.evidence import CONFIDENCE, Grid, check_machine
from paper_figures.evidence_tables import HOW, ablations_table
from paper_figures.house_style import drawn
from paper_figures.methods import BUDGETS, INDEPENDENT, LAW_LOOKS, Look, family_look, look_of

LAW_FACTORS = ("sampling law", "loss weighting")
CURRENCIES = {"device_hours": "Device-hours for all sizes", "train_pflop": "Training PFLOP for all sizes"}


def ablations(grid: Grid, width: float = 7.0) -> Figure:
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
    narrow = width < 5  # names on two lines leave room for the intervals
    figure = Figure(figsize=(width, 1.1 + (0.33 if narrow else 0.27) * sum(heights) + 0.5 * len(references)))
    panels = figure.subplots(len(references), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, reference in zip(panels, references, strict=True):
        part = rows[rows["of"] == reference].reset_index(drop=True)
        y = np.arange(len(part))[::-1]
        middle = part["difference_pct"].to_numpy(float)
        spread = [middle - part["low_pct"].to_numpy(float), part["high_pct"].to_numpy(float) - middle]
        clear = (part["low_pct"] > 0) | (part["high_pct"] < 0)
        for these, colour in ((clear, look_of("ofa").colour), (~clear, "#999999")):
            axes.errorbar(
                middle[these], y[these], xerr=[side[these] for side in spread], color=colour, linestyle="none", marker="o", markersize=5
            )
        axes.axvline(0, color="#444444", linewidth=1.0, linestyle="--")
        names = [f"{row.factor}: {row.variant}" if row.factor != "method" else str(row.variant) for row in part.itertuples()]
        axes.set_yticks(y, [drawn(_on_two_lines(name) if narrow else name) for name in names])
        axes.set_ylim(-0.6, len(part) - 0.4)
        axes.set_title(f"against {look_of(reference).label}", loc="left")
    interval = f"({100 * CONFIDENCE:.0f} % interval over seeds; left is better)"
    figure.supxlabel(f"Difference in {grid.metric}, %{chr(10) if narrow else ' '}{interval}", fontsize=9)
    return figure


def _on_two_lines(name: str) -> str:
    """Returns a name on at most two lines, broken after its factor where both parts are short, else as evenly as may be."""
    factor, colon, variant = name.partition(": ")
    if len(name) <= 24 or (colon and max(len(factor), len(variant)) <= 26):
        return name if len(name) <= 24 else f"{factor}:\n{variant}"
    return next(text for width in range(12, len(name) + 1) if (text := textwrap.fill(name, width)).count("\n") <= 1)


def balance(grid: Grid, width: float = 5.6) -> Figure:
    """Draws, under each sampling law, each size's quality relative to the independently trained net of that size.

    Raises:
        MissingRecordsError: No law can be held against independent training.
    """
    present = [law for law in _laws(grid) if law in grid.of and len(grid.sizes(law, INDEPENDENT)) > 1]
    grid.check_scale(*present, INDEPENDENT)
    if len(present) < 2:
        raise MissingRecordsError(f"the figure balance: left out, no two sampling laws beside independent training; {HOW}")
    figure = Figure(figsize=(width, 4.2))
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
            shifted, ratios, yerr=spread, label=look.label, color=look.colour, marker=look.marker, linewidth=2.2 if law == "ofa" else None
        )
    axes.axhline(1, color="#444444", linestyle="--", linewidth=1.0, label="trained alone (Diff-Pruning)")
    axes.set_xticks(sizes)
    axes.set(xlabel="Size P", ylabel=f"{grid.metric} over that of the size trained alone\n(mean and standard error over seeds)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2)
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


def quality_vs_cost(grid: Grid, currencies: Sequence[str] = tuple(CURRENCIES), width: float = 7.4) -> Figure:
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
    figure = Figure(figsize=(width, 3.9))
    for axes, currency in zip(figure.subplots(1, len(currencies), sharey=True, squeeze=False)[0], currencies, strict=True):
        _draw_budgets(axes, grid, sizes, seeds, currency)
        rest = [size for size in sizes if size != 1.0]
        if rest and 1.0 in sizes:
            _draw_budgets(axes, grid.without_whole(), rest, seeds, currency, hollow=True)
        busy = currency == "device_hours" and any(cell.busy for cell in paid)
        axes.set(xlabel=CURRENCIES[currency] + (f" {BUSY} (busy machine)" if busy else ""))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel(f"{grid.metric}, geometric mean over sizes\n({len(seeds)} seed{'s' * (len(seeds) != 1)}, lower is better)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3 if width > 5 else 2)
    return figure


def _draw_budgets(axes: Axes, grid: Grid, sizes: Sequence[float], seeds: Sequence[int], currency: str, *, hollow: bool = False) -> None:
    """Draws a line for each family of budgets; a hollow one stands for fewer sizes and has no name of its own but the first."""
    if hollow:
        axes.errorbar([], [], color="#777777", marker="o", markerfacecolor="none", linestyle=":", label="without size 1")
    for family, methods in BUDGETS.items():
        points = [point for method in methods if (point := grid.point(method, sizes, seeds))]
        if not points:
            continue
        hours, pflop, y, error = zip(*points, strict=True)
        x = hours if currency == "device_hours" else pflop
        look = family_look(family)
        style = {"markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8} if hollow else {"label": family}
        axes.errorbar(x, y, yerr=error, color=look.colour, marker=look.marker, **style)
