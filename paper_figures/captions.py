"""The captions of the figures: every mark, bar, line and colour that a figure itself does not explain."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from paper_figures.cells import BUSY
from paper_figures.comparable import Conditions, in_words
from paper_figures.evidence import CONFIDENCE, Grid
from paper_figures.markup import markdown_text
from paper_figures.methods import INDEPENDENT, look_of
from paper_figures.overhead import comparisons
from paper_figures.overhead_terms import overhead_terms
from paper_figures.published import Published
from paper_figures.tables import metrics_of
from repro.experiment.records import Record

BARS = "mean over seeds, bars of one standard error"
BUSY_HOURS = f"{BUSY}: other work ran on the machine at the time; device-hours read high."
WITHOUT_1 = "the same without size 1, at which nothing is pruned"
SAMPLES = (
    "Samples of one seed, a row for each network, under the name of its method and its size P. A column shares its initial noise and "
    "its sampler; images are not picked."
)


def page(captions: Mapping[str, str]) -> str:
    """Returns the captions of figures, by name, as Markdown."""
    return "# Captions\n" + "".join(f"\n## {name}\n\n{markdown_text(caption)}\n" for name, caption in captions.items())


def quality(table: pd.DataFrame, horizontal: str, published: Sequence[Published]) -> str:
    """Returns the caption of quality against MACs or parameters."""
    methods = set(table["method"])
    metrics = dict.fromkeys(in_prose(metric, scale) for metric in metrics_of(table) for scale in table.loc[table[metric].notna(), "scale"])
    counted = "of one forward pass on one image" if horizontal == "MACs" else "of the network"
    return _joined(
        f"{' and '.join(metrics)} against {horizontal} {counted}: {BARS}. A line joins the sizes of a method, and breaks where one failed.",
        "Star: the base, from which the others are made." if "base" in methods else "",
        "Dotted, grey: networks before any training, pruned by importance or at random."
        if any(look_of(method).light for method in methods)
        else "",
        "Dashed: the floor, the distance between two halves of the real images." if _floor_is_drawn(table) else "",
        "Hollow, grey: published figures of the same protocol, not measured here." if published else "",
    )


def _floor_is_drawn(table: pd.DataFrame) -> bool:
    """Says whether the floor is on the scale of a network; it has no sampler, the last of a scale's facts."""
    without_sampler = {scale.partition("; sampler ")[0] for scale in table.loc[table["size"].notna(), "scale"]}
    return bool(without_sampler & set(table.loc[table["method"] == "floor", "scale"]))


def overhead(records: Sequence[Record]) -> str:
    """Returns the caption of the cost of the first k sizes."""
    pairs = comparisons(overhead_terms(records)[0])
    versus = [pair.versus("device_hours") for pair in pairs]
    return _joined(
        "What networks of the k smallest sizes cost together, in device-hours of the machine in the title; means over seeds, without "
        "evaluation. Flat: OFA, whose one joint run and extractions serve every size. Rising: each size trained alone, what sizes share "
        "spread evenly. Dotted: k times the mean cost of a size. Ring and dashed line: break-even, the least k at which that is more than "
        "OFA; in brackets, the same without size 1, at which nothing is pruned.",
        BUSY_HOURS if any(side and side.busy for side in versus) else "",
    )


def ablations(grid: Grid) -> str:
    """Returns the caption of the ablations."""
    return (
        f"Each ablation against what it varies: the paired difference in {in_prose(grid.metric, grid.scale)}, the geometric mean over the "
        f"sizes of both, with its {100 * CONFIDENCE:.0f} % interval (Student's t) over seeds. Blue: the interval leaves out zero; grey: it "
        "holds zero. Left of the dashed line is better. Each interval stands for itself."
    )


def balance(grid: Grid) -> str:
    """Returns the caption of the balance between sizes."""
    return (
        f"Each size's {in_prose(grid.metric, grid.scale)} under a sampling law of the joint run, over that of the network of the same size "
        f"that {look_of(INDEPENDENT).label} trains alone (dashed: as good). Geometric means over seeds, bars of one standard error; points "
        "of one size are set side by side. A flat line serves all sizes alike; lower is better."
    )


def interference(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the caption of the cosines between gradients."""
    return (
        "Cosine between the mean gradients of two sizes on the weights that the smaller one holds: 1 where they ask for the same, 0 where "
        f"they have nothing to do with each other, below 0 where they fight. Of {runs[0]['batches']} batches of {runs[0]['batch_size']} "
        "training images under the training's own loss, freed of their noise by products of two halves. Left: all layers, at the base and "
        f"along the joint run, mean and range of {_seeds(runs)}. Right: the largest and the smallest size, each layer in order; "
        "hollow at the base, filled at the end. A layer whose gradient the noise hides is left out; one that noise carries beyond 1 is "
        "drawn at the edge."
    )


def swaps(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the caption of the exchanged weights."""
    return (
        "Which weights the largest size pays with: its validation loss against the base's. Dashed: after the joint run. Coloured bars: "
        "after it, with one group of weights given back to what it was in the base. Grey bars: the base, with that one group taken over "
        f"from the joint run. Mean of {_seeds(runs)}, bars from the least to the most. The loss is weighted uniformly, on images that "
        "nothing was trained on."
    )


def _seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(runs)} seed{'s' * (len(runs) > 1)}"


def quality_vs_cost(grid: Grid) -> str:
    """Returns the caption of quality against cost."""
    return (
        f"{in_prose(grid.metric, grid.scale)}, the geometric mean over all sizes, against what all sizes cost together, in device-hours "
        "and in training PFLOP: mean over the seeds that all approaches have, bars of one standard error. A line joins two budgets of an "
        "approach, the usual one and another: longer, OFA with the compute of all independent runs; shorter, independent runs with that "
        f"of one joint run. Hollow, dotted: {WITHOUT_1}. A {BUSY} at the axis: {BUSY_HOURS.removeprefix(f'{BUSY}: ')}"
    )


def curves(grid: Grid, target: float | None) -> str:
    """Returns the caption of the curves."""
    ends = f"what {look_of(INDEPENDENT).label} comes to in the end" if target is None else f"{target:g}, the target"
    return (
        "Quality of each size P over the device-hours that its training had taken; a joint run's are those of all its sizes. Lines: "
        f"geometric means over seeds; bands: from the least to the largest seed; dashed: {ends}. Both axes are logarithmic."
    )


def in_prose(metric: str, scale: Conditions | str | None) -> str:
    """Returns the name of a metric inside a sentence, such as `Fréchet distance (digits classifier)`."""
    name, comma, of = in_words(metric, scale).partition(", ")
    return f"{name} ({of})" if comma else name


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
