"""Before the first step: what the run takes, and whether disk, data, weights and ranks will do."""

import os
import shutil
import sys
import time
from pathlib import Path

from repro.errors import ReproError
from repro.estimate import Estimate, disk_gb
from repro.harness import classifier, distributed, evaluation
from repro.harness.arithmetic import check_threads
from repro.harness.cells import Cell, Experiment, base_cell
from repro.harness.cost import count_params
from repro.harness.heartbeat import duration
from repro.harness.inception import LAYERS, inception_layer
from repro.harness.manifest import is_made
from repro.harness.pretrained import load_pretrained
from repro.harness.progress import say
from repro.harness.provenance import device_name
from repro.joint import check_shares
from repro.sections import BUDGETS
from repro.stages import GB, Stage, stages, unfinished
from repro.throughput import measure

SMALL_PFLOP = 1.0  # hours at most, on any machine: not worth an estimate
LONG_HOURS = 24.0
RECORD_GB = 2e-4  # a record and its strip of samples


def preflight(experiment: Experiment, cells: list[Cell], *, yes: bool) -> float:
    """Says what cells will take and checks what they need; nothing is written but downloads.

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
    _check_ranks(experiment, todo)
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
            "`nox -s reproduce_digits`, or a trial (README, section 'CIFAR-10 on your GPUs'); --yes goes on nonetheless"
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
    config, ranks = experiment.config, distributed.ranks()
    used = {experiment.method_of(cell).budget(config) for cell in cells if not is_made(experiment, cell)}
    in_play = {key: getattr(config, key).batch_size for key in BUDGETS if key in used}
    if config.evaluation.metric == "fid_classifier":
        in_play["classifier"] = config.classifier.batch_size
    for key, batch_size in in_play.items():
        if batch_size % ranks:
            raise ReproError(f"{key}.batch_size: {batch_size} images cannot be shared by {ranks} ranks; make it a multiple of {ranks}")
    for cell in cells:
        if experiment.method_of(cell).budget(config) == "ofa_training":
            check_shares(experiment.config_of(cell), experiment.law_of(cell))


def _check_disk(experiment: Experiment, work: list[Stage], cells: list[Cell]) -> None:
    """Makes sure that every disk has room for all that goes there."""
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
    """Makes sure that there are images enough for the metric, and labels where it needs them."""
    judged = [cell for cell in cells if experiment.method_of(cell).judged]
    if judged:
        config, images = experiment.config, experiment.images
        evaluation.check_images(config.evaluation, images, halved=any(cell.method == "floor" for cell in judged))
        if config.evaluation.metric == "fid_classifier":
            classifier.check_images(images, config.classifier)


def _check_weights(experiment: Experiment, cells: list[Cell]) -> None:
    """Makes sure that the weights which are not made here can be had and are the right ones."""
    config, places = experiment.config, experiment.places
    base = base_cell(config, 0)
    if config.base.source in ("hub", "path") and base in cells and not is_made(experiment, base):
        model = load_pretrained(config, places.cache)
        name = config.base.repository or config.base.folder
        say(f"base: {name}, {count_params(model.parameters()):,} parameters, {config.base.weights} weights")
    if config.evaluation.metric in LAYERS:
        about = inception_layer(config.evaluation.metric, places).about
        kind = "official" if about["official"] else "not official"
        say(f"features: {about['name']}, layer {about['layer']}, {kind} weights, sha256 {about['sha256'][:16]}")
