"""Checks before the first step: time, disk, data, weights and ranks."""

import os
import shutil
import sys
import time
from pathlib import Path

from repro.budget.batches import check_batches
from repro.budget.estimate import Estimate, disk_gb
from repro.budget.throughput import measure
from repro.budget.work import stages, unfinished
from repro.config.known_sets import KNOWN_SETS
from repro.data.image_folder import check_there
from repro.errors import ReproError
from repro.experiment import evaluate
from repro.experiment.artefacts import is_made
from repro.experiment.cells import Cell, Experiment, base_cell
from repro.experiment.curves import check_held_out
from repro.experiment.pretrained import load_pretrained
from repro.experiment.stage import GB, Stage
from repro.methods.train_once import check_shares
from repro.models.cost import count_params
from repro.runtime import distributed
from repro.runtime.heartbeat import duration
from repro.runtime.precision import check_threads
from repro.runtime.progress import say
from repro.runtime.provenance import device_name
from repro.runtime.watchers import check_watchers

SMALL_PFLOP = 1.0  # hours at most, on any machine: not worth an estimate
LONG_HOURS = 24.0
RECORD_GB = 2e-4  # a record and its strip of samples


def preflight(experiment: Experiment, cells: list[Cell], *, yes: bool) -> float:
    """Prints the estimate of cells and checks their requirements; nothing is written but downloads.

    Args:
        experiment: The configuration, its methods and its folders.
        cells: What is to be run; what is done already is left out.
        yes: Whether to go on however long it takes.

    Returns:
        The seconds that the estimate and the question took, which are no cell's.

    Raises:
        ReproError: It takes more than a day and nobody agreed, or something that it needs is missing, wrong or too small.
    """
    todo = unfinished(experiment, cells)
    if not todo:
        return 0.0
    begun = time.monotonic()
    check_threads(experiment.config.compute)
    experiment.check_parts()
    check_watchers(experiment.config.execution.watchers)
    _check_ranks(experiment, todo)
    data = experiment.config.data
    check_there(Path(data.folder).expanduser(), KNOWN_SETS.get(data.holds))
    work = stages(experiment, todo)
    if sum(stage.pflop for stage in work) >= SMALL_PFLOP:
        _confirm(Estimate(config=experiment.config, stages=work, throughput=measure(experiment)), yes=yes)
    unpaid = time.monotonic() - begun
    ranks = distributed.ranks()
    say(f"device: {device_name()}, {ranks} rank{'s' * (ranks > 1)}")
    _check_disk(experiment, work, todo)
    images = experiment.images
    say(f"data: {images.name}, {len(images):,} images, sha256 {images.sha256[:16]}")
    _check_images(experiment, todo)
    if experiment.config.curves:
        check_held_out(experiment)
    classes = getattr(experiment.config.denoiser, "num_class_embeds", 0)
    experiment.condition.check(images, classes, dropped=experiment.config.data.condition_dropout > 0)
    _check_weights(experiment, todo)
    return unpaid


def _confirm(found: Estimate, *, yes: bool) -> None:
    """Shows the estimate; asks to go on when it exceeds a day."""
    say(found.text())
    hours, name = found.total_wall_hours(), found.config.name
    if hours <= LONG_HOURS or yes:
        return
    if not found.throughput.on_gpu:
        raise ReproError(
            f"{name} would take {duration(hours)} on this machine, which has no GPU; run it on a machine with GPUs, or here: "
            "`nox -s reproduce_digits`, or a trial (docs/reproduce.md, section 'A trial on a CPU'); --yes goes on nonetheless"
        )
    if distributed.ranks() > 1 or not sys.stdin.isatty():
        raise ReproError(f"{name} will take {duration(hours)} (table above); add --yes to go on")
    if not _agreed(f"{name} will take {duration(hours)}; go on? [y/N] "):
        raise ReproError("stopped before the first step, as you said; lower the budgets with --set, or ask for fewer --methods or --sizes")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _check_ranks(experiment: Experiment, cells: list[Cell]) -> None:
    """Makes sure that every batch which is still to be trained on can be shared by the ranks, and by the subnets of a step."""
    check_batches(experiment, cells, distributed.ranks())
    for cell in cells:
        if experiment.method_of(cell).budget(experiment.config) == "ofa_training":
            check_shares(experiment.config_of(cell), experiment.law_of(cell))


def _check_disk(experiment: Experiment, work: list[Stage], cells: list[Cell]) -> None:
    """Checks the free space of every disk that is written to."""
    needs = {
        "--runs": (experiment.runs, disk_gb([stage for stage in work if not stage.in_cache])),
        "--cache": (experiment.places.cache, disk_gb([stage for stage in work if stage.in_cache])),
        "--results": (experiment.results, RECORD_GB * len(cells)),
    }
    disks: dict[int, list[str]] = {}
    for flag, (folder, _) in needs.items():
        disks.setdefault(_existing(folder).stat().st_dev, []).append(flag)
    for flags in disks.values():
        largest = max(flags, key=lambda flag: needs[flag][1])
        folder, needed = needs[largest][0], sum(needs[flag][1] for flag in flags)
        free = shutil.disk_usage(_existing(folder)).free / GB
        if needed > free:
            raise ReproError(
                f"{folder}: {needed:.3g} GB are needed there, {free:.3g} GB are free; free some space, or name a folder on another disk "
                f"with {largest}"
            )
        say(f"disk: {needed:.2g} GB needed for {', '.join(flags)}, {free:,.0f} GB free")


def _existing(folder: Path) -> Path:
    """Returns the nearest folder that is there already."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def _check_images(experiment: Experiment, cells: list[Cell]) -> None:
    """Checks that the metric has enough images, and labels where it needs them."""
    judged = [cell for cell in cells if experiment.method_of(cell).judged]
    if judged:
        config, images = experiment.config, experiment.images
        evaluate.check_images(config.evaluation, images, halved=any(cell.method == "floor" for cell in judged))
        for metric in experiment.metrics:
            metric.check_images(images, config)


def _check_weights(experiment: Experiment, cells: list[Cell]) -> None:
    """Checks that pretrained weights are at hand and are the right ones."""
    config, places = experiment.config, experiment.places
    base = base_cell(config, 0)
    if config.base.source in ("hub", "path") and base in cells and not is_made(experiment, base):
        model = load_pretrained(config, places.cache)
        name = config.base.repository or config.base.folder or config.base.file
        say(f"base: {name}, {count_params(model.parameters()):,} parameters, {config.base.weights} weights")
    for weights in filter(None, (metric.check_weights(places) for metric in experiment.metrics)):
        say(f"features: {weights}")
