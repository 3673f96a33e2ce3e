"""The figures of interference: how the gradients of the sizes agree along a joint run, and what each group of its weights did."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.house_style import PAGE, WIDE, legend_columns
from paper_figures.methods import look_of
from repro.experiment.records import Record

MEASURED = "ofa_joint"  # the run that is looked at
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F00")
BESIDE = 1.15  # a cosine that noise carried further is drawn there
ALL = "all"


def measured(records: Sequence[Record]) -> list[Mapping[str, Any]]:
    """Returns what the records of finished joint runs hold of interference, one for each seed, in the order of the seeds."""
    found = [record for record in records if record["cell"]["method"] == MEASURED and record["status"] == "done"]
    by_seed = sorted(found, key=lambda record: record["cell"]["seed"])
    return [curves["interference"] for record in by_seed if (curves := record.get("curves")) and curves.get("interference")]


def interference(runs: Sequence[Mapping[str, Any]], width: float = PAGE) -> Figure:
    """Draws the cosine between the gradients of every two sizes along the run, and of the two furthest apart layer by layer.

    Args:
        runs: What `measured` returns, of at least one seed.
        width: In inches.
    """
    rows, columns = (1, 2) if width >= WIDE else (2, 1)
    figure = Figure(figsize=(width, 2.9 * rows))
    along, by_layer = figure.subplots(rows, columns, squeeze=False).flat
    _draw_along(along, runs)
    _draw_layers(by_layer, runs)
    handles, labels = along.get_legend_handles_labels()
    figure.legend(handles, labels, title="Sizes", loc="outside upper center", ncols=legend_columns(labels, width))
    return figure


def _draw_along(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    """Draws a line for each pair of sizes, its band from the least to the most seed."""
    images = [point["images"] for point in runs[0]["points"]]
    places = range(len(images))
    for pair, colour in zip(runs[0]["points"][0]["cosines"], cycle(COLOURS), strict=False):
        at = {place: _values(runs, place, pair, ALL) for place in places}
        shown = [place for place in places if at[place]]
        axes.plot(
            shown,
            [statistics.fmean(at[place]) for place in shown],
            color=colour,
            marker="o",
            markersize=3,
            label=pair.replace(",", " and "),
        )
        least, most = ([end(at[place]) for place in shown] for end in (min, max))
        axes.fill_between(shown, least, most, color=colour, alpha=0.08, linewidth=0)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_xticks(places, ["base", *map(_thousands, images[1:])])
    axes.set(xlabel="Images of the joint run", ylabel="Cosine between mean gradients", title="All layers")


def _draw_layers(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    """Draws the layers in the network's order, at the base and at the end, of the largest and the smallest size."""
    first = runs[0]["points"][0]["cosines"]
    pair = min(first, key=lambda text: float(text.split(",")[0]) / float(text.split(",")[1]))
    layers = [layer for layer in first[pair] if layer != ALL]
    for label, place, filled, colour in (("base", 0, "none", "#7A7A7A"), ("end", -1, "full", look_of("ofa").colour)):
        found = {number: values for number, layer in enumerate(layers) if (values := _values(runs, place, pair, layer))}
        heights = [max(-BESIDE, min(BESIDE, statistics.fmean(values))) for values in found.values()]
        axes.plot(list(found), heights, color=colour, marker="o", markersize=3.5, fillstyle=filled, linestyle="", label=label)
    _name_blocks(axes, layers)
    axes.axhline(0, color="#444444", linewidth=0.8)
    small, large = pair.split(",")
    axes.set(
        ylim=(-BESIDE - 0.05, BESIDE + 0.05), title=f"Layer by layer, sizes {small} and {large}", ylabel="Cosine between mean gradients"
    )
    axes.legend(loc="lower right", ncols=2)


def _values(runs: Sequence[Mapping[str, Any]], place: int, pair: str, layer: str) -> list[float]:
    """Returns the cosines of the seeds in which the noise hides none."""
    found = [run["points"][place]["cosines"][pair][layer] for run in runs]
    return [value for value in found if value is not None]


def _name_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Names the blocks that the layers lie in, below them, a line between each two."""
    blocks: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        blocks.setdefault(_block(layer), []).append(number)
    axes.set_xticks([statistics.fmean(numbers) for numbers in blocks.values()], list(blocks), rotation=90)
    axes.tick_params(axis="x", length=0)
    for numbers in list(blocks.values())[1:]:
        axes.axvline(min(numbers) - 0.5, color="#BBBBBB", linewidth=0.6)
    axes.grid(visible=False, axis="x")


def _block(layer: str) -> str:
    """Returns the block of a layer in words: `down_blocks.1.resnets.0.conv1` lies in `down 1`."""
    first, _, rest = layer.partition(".")
    name = first.removesuffix("_blocks").removesuffix("_block").removesuffix("_embedding")
    return f"{name} {rest.partition('.')[0]}" if first.endswith("_blocks") else "in, out" if first.startswith("conv_") else name


def swaps(runs: Sequence[Mapping[str, Any]], width: float = PAGE) -> Figure:
    """Draws what each group of weights did to the largest size's validation loss, in % of the base's.

    Args:
        runs: What `measured` returns, of at least one seed.
        width: In inches.
    """
    groups = list(runs[0]["swaps"]["groups"])
    figure = Figure(figsize=(width, 0.9 + 0.42 * len(groups)))
    axes = figure.subplots()
    after = [_percent(run, run["swaps"]["after"]) for run in runs]
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.axvline(statistics.fmean(after), color=look_of("ofa").colour, linestyle="--", linewidth=1.2, label="after the joint run")
    for offset, key, colour, label in (
        (-0.19, "given_back", look_of("ofa").colour, "joint run, this group given back"),
        (0.19, "taken_over", "#9A9A9A", "base, this group taken over"),
    ):
        changes = [[_percent(run, run["swaps"]["groups"][group][key]) for run in runs] for group in groups]
        means = [statistics.fmean(each) for each in changes]
        below = [mean - min(each) for mean, each in zip(means, changes, strict=True)]
        above = [max(each) - mean for mean, each in zip(means, changes, strict=True)]
        places = [place + offset for place in range(len(groups))]
        axes.barh(places, means, 0.36, xerr=[below, above], color=colour, label=label, error_kw={"linewidth": 0.8})
    shares = [runs[0]["swaps"]["groups"][group]["params"] for group in groups]
    axes.set_yticks(range(len(groups)), [f"{group}, {share / sum(shares):.0%}" for group, share in zip(groups, shares, strict=True)])
    axes.invert_yaxis()
    axes.set_ylabel("Group of weights, its share")
    figure.supxlabel("Largest size's loss above the base's, %")
    figure.legend(loc="outside upper center", ncols=3 if width >= WIDE else 1)
    return figure


def _percent(run: Mapping[str, Any], loss: float) -> float:
    """Returns how far a loss lies above the base's, in %."""
    return float(100 * (loss / run["swaps"]["before"] - 1))


def _thousands(count: int) -> str:
    return f"{count / 1000:,.3g}k" if count >= 1000 else f"{count}"
