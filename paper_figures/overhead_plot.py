"""The figure of the cost: cumulative device-hours against the number of sizes delivered."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from paper_figures.cells import BUSY, MissingRecordsError
from paper_figures.house_style import COLUMN, drawn
from paper_figures.methods import look_of
from paper_figures.overhead import Comparison, comparisons, total, why_not
from paper_figures.overhead_terms import Term, overhead_terms
from repro.experiment.records import Record


def overhead(records: Sequence[Record], width: float = COLUMN) -> Figure:
    """Draws cumulative device-hours against the number of sizes delivered, a panel per device; `width` is in inches.

    Raises:
        MissingRecordsError: OFA and the baselines cannot be compared.
        ReproError: A record is malformed.
    """
    terms, notes = overhead_terms(records)
    pairs = comparisons(terms)
    if not pairs:
        raise MissingRecordsError(why_not(terms, notes).replace("overhead:", "the figure overhead:"))
    devices = sorted({pair.device for pair in pairs})
    figure = Figure(figsize=(width, 3.4 * len(devices)))
    for part, device in zip(figure.subfigures(len(devices), squeeze=False)[:, 0], devices, strict=True):
        ofa = [term for term in terms if term.device == device and term.approach == "ofa"]
        _draw_overhead(part, [pair for pair in pairs if pair.device == device], ofa)
        part.suptitle(drawn(textwrap.fill(device, int(16 * width))), fontsize=8)
    return figure


def _draw_overhead(part: SubFigure, pairs: Sequence[Comparison], ofa: Sequence[Term]) -> None:
    """Draws OFA's flat line, each independent method's rising line, and a ring where the mean cost per size overtakes OFA."""
    axes = part.subplots()
    paid, busy = total(ofa, "device_hours") or 0.0, any(term.busy for term in ofa)
    n_sizes = max(len(pair.sizes) for pair in pairs)
    look = look_of("ofa")
    axes.axhline(paid, color=look.colour, linewidth=2.0, label=f"{look.label}: one run and every extraction" + BUSY * busy)
    for pair in pairs:
        look, versus = look_of(pair.method), pair.versus("device_hours")
        paid_up_to = pair.hours_up_to()
        label = look.label
        if versus:
            label += f": OFA cheaper from {versus.break_even} size{'s' * (versus.break_even > 1)}" + _without_whole(pair)
            label += BUSY * versus.busy
            n_sizes = max(n_sizes, min(versus.break_even, 2 * len(pair.sizes)))
        axes.plot(range(len(paid_up_to)), paid_up_to, color=look.colour, marker=look.marker, label=label, zorder=3)
    axes.plot([], [], color="#777777", linewidth=0.8, linestyle=":", label="k sizes at the mean cost of one")
    axes.plot([], [], color="#777777", marker="o", markersize=8, fillstyle="none", linestyle="", label="break-even: more than OFA")
    _ring_break_evens(axes, pairs, n_sizes)
    axes.set_xlim(-0.15, n_sizes + 0.35)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Sizes delivered (k), the smallest first", ylabel="Cumulative device-hours")
    part.legend(*axes.get_legend_handles_labels(), loc="outside lower center")


def _without_whole(pair: Comparison) -> str:
    """Says at how many sizes OFA is cheaper where size 1, at which nothing is pruned, is left out."""
    versus = pair.versus("device_hours", with_base_size=False)
    return f" ({versus.break_even} without size 1)" if versus and 1.0 in pair.sizes else ""


def _ring_break_evens(axes: Axes, pairs: Sequence[Comparison], n_sizes: int) -> None:
    """Rings the point (k, k times the mean cost per size) at break-even, with the thin line of mean costs that leads there."""
    labelled: set[int] = set()
    for pair in pairs:
        versus = pair.versus("device_hours")
        if versus is None:
            continue
        k, colour = versus.break_even, look_of(pair.method).colour
        end = min(max(k, versus.n_sizes), n_sizes)
        axes.plot([0, end], [0, end * versus.mean_per_size], color=colour, linewidth=0.8, linestyle=":", zorder=2)
        if k <= n_sizes:
            axes.plot([k], [k * versus.mean_per_size], color=colour, marker="o", markersize=9, fillstyle="none", linestyle="", zorder=4)
            if k not in labelled:
                axes.axvline(k, color="#777777", linewidth=0.8, linestyle="--", zorder=1)
                # Above the axes, where no line runs.
                axes.annotate(
                    f"break-even\nat {k}",
                    (k, 1.0),
                    (0, 2),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
            labelled.add(k)
