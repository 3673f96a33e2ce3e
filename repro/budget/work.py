"""Counts the work of cells, stage by stage: images, PFLOP and GB.

Nothing is run: training costs 6 x MACs x images (forward, and twice that backward), sampling 2 x MACs x NFE x images.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path

from repro.config.known_sets import KNOWN_SETS
from repro.data.image_folder import undecoded_bytes
from repro.data.image_source import image_source
from repro.experiment.artefacts import is_made
from repro.experiment.cells import Cell, Experiment, base_cell, state_of
from repro.experiment.stage import CHECKPOINT_TENSORS, GB, Costs, Stage, costs_of, training_stage, weights_gb
from repro.metrics.metric import Metric
from repro.models.flop import train_pflop

CIFAR10_GB = 0.171
IMAGES = {"digits": 1797, "cifar10": 50_000}
# What a cell takes besides, on two cores with 35.7 M parameters: DeepSpeed's start 2 s; the search for a pruning ratio 15 s, and the
# statistics and distance of 50,000 x 2,048 features 19 s.
START_SEC, OTHER_SEC_PER_PARAMETER = 2, 28 / 35.7e6


def unfinished(experiment: Experiment, cells: list[Cell]) -> list[Cell]:
    """Returns the cells that have no record of success.

    Raises:
        ReproError: A record is corrupt, or another configuration made it.
    """
    return [cell for cell in cells if state_of(experiment, cell)[0] != "done"]


def stages(experiment: Experiment, cells: list[Cell], *, afresh: bool = False) -> list[Stage]:
    """Lists what is to be computed for cells, in the order in which it is.

    Args:
        experiment: The configuration, its methods and its folders.
        cells: What is to be done. What an interrupted cell has behind it is not taken off.
        afresh: Whether networks that lie in the runs folder count as well.
    """
    config = experiment.config
    planned = partial(costs_of, config)
    whole = planned(config.allocation.rule)
    rows, on_the_way = [_downloads(experiment, cells, whole)], 0
    for name in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == name]
        to_make = [cell for cell in mine if afresh or not is_made(experiment, cell)]
        this, method = experiment.of(mine[0]), experiment.method_of(mine[0])
        sizes = {*this.config.sizes.trained, *(cell.size for cell in mine if cell.size is not None)}
        costs = planned(method.rule(config), tuple(sorted(sizes)))
        rows += method.work(this, to_make, costs) if to_make else []
        rows += [_sampling(experiment, mine, costs)] if method.judged else []
        curves = _curves(this, mine, costs) if this.config.curves and method.networks else []
        on_the_way += curves[-1].images if curves else 0
        rows += curves
    judged = [cell for cell in cells if experiment.method_of(cell).judged]
    for metric in experiment.metrics:
        first = metric is experiment.metrics[0]  # which alone judges what is on the way
        rows += [_extractor(experiment, metric, judged), _features(experiment, metric, judged, on_the_way if first else 0)]
    rows += [_other(cells, whole)]
    return [row for row in rows if row.images or row.pflop or row.seconds or row.kept_gb]


def training_images(experiment: Experiment) -> int:
    """Returns how many images are trained on, without loading them."""
    return _read_images(experiment) - experiment.config.data.held_out


def _read_images(experiment: Experiment) -> int:
    """Returns how many images are read; of a known data set, which need not be at hand, its own number."""
    data = experiment.config.data
    if data.holds:
        return KNOWN_SETS[data.holds].training
    if data.name in IMAGES:
        return IMAGES[data.name]
    with image_source(Path(data.folder).expanduser()) as source:
        return len(source.names)


def _downloads(experiment: Experiment, cells: list[Cell], costs: Costs) -> Stage:
    """What is fetched or decoded into the cache, where it does not lie there already."""
    config, places = experiment.config, experiment.places
    data = config.data.name == "cifar10" and places.data_root is None and not (places.cache / "data" / "cifar-10-python.tar.gz").exists()
    base = config.base.source == "hub" and base_cell(config, 0) in cells and not (places.cache / "hub").exists()
    gb = CIFAR10_GB * data + sum(metric.download_bytes(places) for metric in experiment.metrics) / GB + base * 4 * costs.params[1.0] / GB
    if config.data.name == "folder":
        gb += undecoded_bytes(_read_images(experiment), experiment.image_shape, places.cache / "data") / GB
    return Stage(name="data and weights", kind="other", kept_gb=gb, in_cache=True)


def _sampling(experiment: Experiment, cells: list[Cell], costs: Costs) -> Stage:
    settings = experiment.config.evaluation
    each = settings.samples * len(settings.sampling_seeds)
    return _drawing(experiment, f"{cells[0].method}: sampling", [cell.size for cell in cells if cell.size is not None], each, costs)


def _drawing(experiment: Experiment, name: str, drawn: list[float], each: int, costs: Costs) -> Stage:
    """The images of networks of some sizes, as many of each."""
    nfe, decoding = experiment.nfe, experiment.space.flop(experiment.network_shape)
    return Stage(
        name=name,
        kind="sampling",
        images=each * len(drawn),
        passes=float(each * len(drawn) * nfe),
        pflop=sum((2 * costs.macs[size] * nfe + decoding) * each / 1e15 for size in drawn),
        passing_gb=each * math.prod(experiment.image_shape) / GB,
    )


def _curves(experiment: Experiment, cells: list[Cell], costs: Costs) -> list[Stage]:
    """What judging trainings on their way takes: branches of falling rate, samples, the validation loss, and snapshots on the disk."""
    curves, settings = experiment.config.curves, getattr(experiment.config, experiment.method_of(cells[0]).budget(experiment.config))
    assert curves is not None
    name, steps = cells[0].method, curves.steps(settings.steps)
    drawn = [size for cell in cells for size in ([cell.size] if cell.size is not None else experiment.config.sizes.reported)]
    samples = _drawing(experiment, f"{name}: curves", drawn, min(len(steps), curves.metric_points) * curves.samples, costs)
    passes = len(steps) * curves.triples
    kept = len(steps) * weights_gb(max(costs.params[cell.size or 1.0] for cell in cells)) * (CHECKPOINT_TENSORS if curves.cooldown else 1)
    judged = dataclasses.replace(
        samples,
        passes=samples.passes + passes * len(drawn),
        pflop=samples.pflop + sum(2 * costs.macs[size] * passes / 1e15 for size in drawn),
        passing_gb=samples.passing_gb + kept,
    )
    if curves.interference and experiment.method_of(cells[0]).interference:  # a forward and a backward pass of every size
        seen = len(cells) * (len(steps) + 1) * curves.interference * settings.batch_size
        work = sum(train_pflop(costs.macs[size], seen) for size in experiment.config.sizes.trained)
        judged = dataclasses.replace(
            judged, pflop=judged.pflop + work, passes=judged.passes + 3 * seen * len(experiment.config.sizes.trained)
        )
    if not curves.cooldown:
        return [judged]
    branches = dataclasses.replace(settings, steps=max(1, round(curves.cooldown * sum(steps))), cooldown=0.0)
    return [dataclasses.replace(training_stage(experiment, cells, costs, branches), name=f"{name}: cool-downs", kept_gb=0.0), judged]


def _extractor(experiment: Experiment, metric: Metric, judged: list[Cell]) -> Stage:
    """The training of a metric's feature extractor, where it has to be trained."""
    images, flop = metric.training(experiment.image_shape, experiment.config) if judged else (0, 0.0)
    return Stage(name=f"{metric.section or metric.name}: training", kind="features", images=images, pflop=flop / 1e15)


def _features(experiment: Experiment, metric: Metric, judged: list[Cell], on_the_way: int) -> Stage:
    """Every set that is judged, the images on the way of trainings, and the reference once, which is kept."""
    settings = experiment.config.evaluation
    reference = min(settings.reference_images or training_images(experiment), training_images(experiment))
    each = settings.samples * len(settings.sampling_seeds)
    own = [experiment.method_of(cell).pixels for cell in judged]
    images = (reference if judged else 0) + sum(each if pixels is None else pixels(settings, reference) for pixels in own) + on_the_way
    kept = 4 * reference * metric.cached_width / GB
    pflop = metric.flop(experiment.image_shape, experiment.config) * images / 1e15
    return Stage(name=f"features for {metric.name}", kind="features", images=images, pflop=pflop, kept_gb=kept, in_cache=True)


def _other(cells: list[Cell], costs: Costs) -> Stage:
    each = START_SEC + OTHER_SEC_PER_PARAMETER * costs.params[1.0]
    return Stage(name="all else", kind="other", seconds=each * len(cells))
