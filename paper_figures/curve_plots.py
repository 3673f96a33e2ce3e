"""The figure of the curves: quality over what a training had taken."""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from paper_figures.cells import BUSY, some_of
from paper_figures.comparable import check_comparable, in_words
from paper_figures.curves import Curves, curves_of
from paper_figures.evidence import Grid, check_machine
from paper_figures.house_style import PAGE, WIDE, drawn, legend_columns
from paper_figures.methods import INDEPENDENT, look_of

# Of variants that are drawn beside what they vary: colours of their own, and not those of any name.
BUDGETS = {
    "ofa_long": ("#2B3A67", "h"),
    "ofa_half": ("#7F7F00", "<"),
    "ofa_open": ("#8C564B", "X"),
    "ofa_open_long": ("#5D3A9B", ">"),
}
PLAIN = FuncFormatter(lambda number, _: f"{number:,g}")  # the exponents of powers of ten would be of 5 pt
TITLES = {"device_hours": "Device-hours of the training", "images": "Images of the training", "train_pflop": "Training PFLOP"}


def curves(grid: Grid, width: float = PAGE, currency: str = "device_hours", target: float | None = None) -> Figure:
    """Draws a panel for each size, of many for some: the metric over what had been taken.

    Each method has a line, and a band from the least to the most seed. The dashed line is the target or, where there is none, what the
    independent runs come to in the end, the geometric mean over seeds.

    Args:
        grid: The judged cells.
        width: In inches.
        currency: `device_hours`, `train_pflop` or `images`.
        target: The quality that is asked for.

    Raises:
        MissingRecordsError: No training was judged on its way.
        IncomparableError: The curves are of several scales, or their hours of several machines.
    """
    found = curves_of(grid)
    sizes = some_of(size for by_seed in found.of.values() for by_size in by_seed.values() for size in by_size)[::-1]
    held = [curve for by_seed in found.of.values() for by_size in by_seed.values() for curve in by_size.values()]
    paid = list({cell.name: cell for curve in held for cell in curve.paid}.values())
    check_comparable((cell.points_scale for cell in paid if cell.points_scale), "the curves")
    if currency == "device_hours":
        check_machine(paid)
    rows = -(-len(sizes) // 2)
    figure = Figure(figsize=(width, 1.0 + (2.0 if width >= WIDE else 1.5) * rows))
    panels = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
    for axes, size in zip(panels, sizes, strict=False):
        for method in found.of:
            _draw(axes, found, method, size, currency)
        ends = [by_size[size].last for by_size in found.of.get(INDEPENDENT, {}).values() if size in by_size] if target is None else [target]
        if ends:
            axes.axhline(float(np.exp(np.mean(np.log(ends)))), color="#444444", linestyle="--", linewidth=1.0)
        axes.set(xscale="log", yscale="log", title=f"P = {size:g}")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda number, _: f"{number:,g}" if f"{number:e}"[0] in "25" else ""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels[len(sizes) :]:
        axes.set_axis_off()
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=legend_columns(list(handles), width))
    busy = currency == "device_hours" and any(cell.busy for cell in paid)
    figure.supxlabel(TITLES[currency] + (f" {BUSY} (busy machine)" if busy else ""))
    judged = next((cell.points_scale for cell in paid if cell.points_scale), None)
    figure.supylabel(f"{drawn(in_words(found.metric, judged))}\n(lower is better)", multialignment="center")
    return figure


def _draw(axes: Axes, found: Curves, method: str, size: float, currency: str) -> None:
    """Draws a method's line through the geometric means over seeds, and the band that its seeds lie in."""
    held = [by_size[size] for by_size in found.of[method].values() if size in by_size]
    if not held:
        return
    points = min(len(curve.points) for curve in held)
    x = np.exp(np.mean([np.log(curve.costs(currency)[-points:]) for curve in held], axis=0))
    logs = np.log([curve.values[-points:] for curve in held])
    colour, marker = BUDGETS.get(method, (look_of(method).colour, look_of(method).marker))
    look = replace(look_of(method), colour=colour, marker=marker)
    axes.plot(x, np.exp(logs.mean(axis=0)), color=look.colour, marker=look.marker, markersize=4, linewidth=1.4, label=look.label)
    if len(held) > 1:
        axes.fill_between(x, np.exp(logs.min(axis=0)), np.exp(logs.max(axis=0)), color=look.colour, alpha=0.15, linewidth=0)
