"""Runs the cells of an experiment: finished ones are skipped, interrupted ones resume, failures are recorded."""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from repro.config import Training
from repro.data.images import Images
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.formulation import NoisyBatch
from repro.errors import BusyError, LostRankError, ReproError, RunError
from repro.experiment import evaluate
from repro.experiment.artefacts import Manifest, check_inputs, files_of, inputs_of, is_made, read_manifest, remedy, write_manifest
from repro.experiment.cells import Cell, Experiment, Method, Product, base_cell, training_summary
from repro.experiment.curves import BRANCHES, cool_down, folder_of_branch, judge_curves
from repro.experiment.outcome import blank_record, finish_record, latency_of_network, size_of_network
from repro.experiment.pretrained import origin
from repro.experiment.record_checks import meets_size
from repro.experiment.records import Record
from repro.experiment.stage import affine_costs
from repro.files.locks import held
from repro.files.writing import write_atomically
from repro.models import cost, memory
from repro.models.denoiser import PrunedDenoiser, load_denoiser, meta_base, save_denoiser
from repro.models.flop import train_pflop
from repro.ofa.accounting import size_of
from repro.runtime import distributed, gpu, provenance, signals
from repro.runtime.clock import Clock
from repro.runtime.heartbeat import HEARTBEAT
from repro.runtime.precision import checked_kernels, set_arithmetic
from repro.runtime.progress import CellProgress, say
from repro.runtime.watchers import Watchers
from repro.training.checkpoint import newest_environment, saved_steps
from repro.training.loop import CHECKPOINTS, Run, train

MODEL = "model"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"  # of a saved pipeline
ROUNDING = 1e-9
LEAST_SHARE = 0.05  # of the work, before the time left is worth a guess


def run_cells(experiment: Experiment, cells: list[Cell], *, started: float) -> None:
    """Runs cells in order, skipping those that are done.

    Args:
        experiment: The configuration, its methods and its folders.
        cells: What to run, each after those it needs.
        started: `time.monotonic()` when the process began; from there until the first cell begins is that cell's phase `start`.

    Raises:
        RunError: A cell failed; its record says why.
        ReproError: A record, checkpoint or artefact is in the way.
        BusyError: Another process works on a cell.
        InterruptionError: A signal asked to end.
    """
    check_writable(experiment)
    distributed.engine_library()
    set_arithmetic(experiment.config.compute)
    opened = cells_to_run(experiment, cells)
    # A rank that comes late finds what the first one has made already: all must decide alike.
    open_cells = [cells[index] for index in distributed.gather([cells.index(cell) for cell in opened])[0]]
    if len(open_cells) < len(cells):
        say(f"{len(cells) - len(open_cells)} of {len(cells)} cells are done already and skipped")
    weights = [work_of(experiment, cell) for cell in open_cells]
    begun = time.monotonic()
    introduced: set[str] = set()
    for index, cell in enumerate(open_cells):
        if cell.method not in introduced:
            introduced.add(cell.method)
            say(f"{cell.method}: {experiment.method_of(cell).summary}")
        with _held_by_all(experiment, cell):
            if distributed.gather(_is_done(experiment, cell) and is_made(experiment, cell))[0]:
                continue  # by another process, since
            record = _run_cell(experiment.of(cell), experiment.method_of(cell), cell, f"[{index + 1}/{len(open_cells)}]", started)
        started = time.monotonic()
        share = sum(weights[: index + 1]) / sum(weights)
        estimate = f"; about {_minutes((started - begun) * (1 - share) / share)} left" if LEAST_SHARE < share < 1 else ""
        say(f"[{index + 1}/{len(open_cells)}] {cell.name}: {_outcome(record)}{estimate}")


def train_cell(
    experiment: Experiment,
    cell: Cell,
    module: nn.Module,
    settings: Training,
    *,
    loss: Callable[[nn.Module, NoisyBatch, int], Tensor],
    macs: Callable[[int], float],
    clock: Clock,
    report: CellProgress,
    parts: tuple[nn.Module, ...] | None = None,
    subnets: int = 1,
    warm_up: tuple[int, ...] = (0,),
    scoring_pflop: float = 0.0,
) -> dict[str, Any]:
    """Trains a module in place for a cell, resumable, and returns what the record says of it.

    Args:
        experiment: The configuration and its folders.
        cell: The cell; its seed and identity are the run's.
        module: What is trained.
        settings: The budget.
        loss: The mean loss of a batch at a step.
        macs: MACs of one forward pass on one image at a step, summed over the subnets that the step trains.
        clock: The cell's clock.
        report: The cell's bar.
        parts: The modules that run, where they are not the module itself.
        subnets: How many of them share the images of a step.
        warm_up: Steps that between them use each of these.
        scoring_pflop: What scoring the channels took before.
    """
    config = experiment.config
    accumulation = memory.parts_of_batch(config, settings, subnets)
    pixels = math.prod(experiment.network_shape) if settings.loss_reduction == "sum" else 1
    curves = config.curves if experiment.method_of(cell).networks else None
    points = curves.steps(settings.steps) if curves else ()
    branches = {step: folder_of_branch(experiment, cell, step) for step in points} if curves and curves.cooldown else {}

    def work(steps: int) -> float:
        return sum(train_pflop(macs(step), settings.batch_size) for step in range(steps))

    run = Run(
        identity=experiment.identity(cell),
        seed=cell.seed,
        batches=training_batches(experiment, settings, cell.seed),
        loss=lambda trained, batch, step: pixels * loss(trained, batch, step),
        loss_unit=pixels,
        folder=experiment.folder(cell),
        inputs=inputs_of(experiment, cell),
        compute=config.compute,
        execution=config.execution,
        watch=report.watch.scalars,
        accumulation=accumulation,
        split=NoisyBatch.parts,
        snapshots=() if branches else points,
        branches=branches,
        about=lambda steps: {"images": steps * settings.batch_size, "train_pflop": scoring_pflop + work(steps)},
        compiled=(parts or (module,)) if config.compute.compile else (),
        warm_up=warm_up,
        last_seen=report.last_seen,
    )
    report.stage("training", settings.batch_size)
    curve = train(module, run, settings, clock, report)
    if curves and branches:
        with clock.phase("evaluate"):
            cool_down(module, run, settings, curves.cooldown, report)
    return training_summary(settings, pflop=work(settings.steps), scoring_pflop=scoring_pflop, curve=curve) | {"accumulation": accumulation}


def training_batches(experiment: Experiment, settings: Training, seed: int, images: Images | None = None) -> NoisyBatches:
    """Returns this rank's share of the batches of a training.

    Args:
        experiment: The configuration and its parts.
        settings: The budget.
        seed: The run's seed.
        images: The images in place of the experiment's.
    """
    return plain_batches(
        experiment,
        settings.batch_size,
        seed,
        images,
        condition_dropout=experiment.config.data.condition_dropout,
        horizontal_flip=settings.horizontal_flip,
        augment_probability=settings.augment_probability,
        antithetic=settings.timesteps == "antithetic",
        weighting=settings.loss_weighting,
        rank=distributed.rank(),
        ranks=distributed.ranks(),
    )


def plain_batches(experiment: Experiment, batch_size: int, seed: int, images: Images | None = None, **training: Any) -> NoisyBatches:
    """Returns batches of an experiment's parts: whole, and without augmentation and dropout, but for what `training` says.

    Args:
        experiment: The configuration and its parts.
        batch_size: Images of a batch.
        seed: The run's seed.
        images: The images in place of the experiment's.
        **training: Further arguments of `NoisyBatches`.
    """
    return NoisyBatches(
        images or experiment.images,
        experiment.formulation,
        batch_size=batch_size,
        seed=seed,
        device=distributed.device(),
        space=experiment.space,
        condition=experiment.condition,
        **training,
    )


def cells_to_run(experiment: Experiment, cells: list[Cell]) -> list[Cell]:
    """Returns those cells that are not done, and those done ones whose artefacts are missed by a cell that has yet to be made.

    Raises:
        ReproError: A record is corrupt, or another configuration made it.
    """
    opened = {cell for cell in cells if not _is_done(experiment, cell)}
    for cell in reversed(cells):
        if _is_missed(experiment, cell, opened):
            opened.add(cell)
    return [cell for cell in cells if cell in opened]


def load_model(experiment: Experiment, cell: Cell) -> PrunedDenoiser:
    """Loads the network that a cell made.

    Args:
        experiment: The configuration and its folders.
        cell: One that makes a network, such as `base_cell(config, 0)`.

    Raises:
        ReproError: The cell has not been run here, another configuration ran it, or its files are not what was written.
    """
    read_manifest(experiment, cell)
    return load_denoiser(experiment.folder(cell) / MODEL, experiment.config.denoiser)


def load_tensors(experiment: Experiment, cell: Cell, name: str) -> dict[str, Tensor]:
    """Loads a file of tensors that a cell left beside its network.

    Raises:
        ReproError: The cell has not been run here, another configuration ran it, or its files are not what was written.
    """
    read_manifest(experiment, cell)
    path = experiment.folder(cell) / name
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ReproError(f"{path}: not readable ({error}); delete the folder {path.parent} and run the command again") from error


def _run_cell(experiment: Experiment, method: Method, cell: Cell, label: str, started: float) -> Record:
    """Makes and judges a cell and writes its record, also when it fails."""
    provenance.reset_peak_memory()
    clock = Clock(started, distributed.ranks(), partial(gpu.synchronize, distributed.device()))
    with clock.phase("evaluate"):  # watching is no training
        watch = Watchers(experiment.config.execution.watchers, experiment.folder(cell), cell.name, experiment.identity(cell))
    report = CellProgress(f"{label} {cell.name}", clock, experiment.folder(cell), experiment.identity(cell), watch)
    record = blank_record(experiment, method, cell)
    try:
        product, made = _make(experiment, method, cell, clock, report)
        with clock.phase("evaluate"):
            record |= _judge(experiment, method, cell, product, made, report)
    except Exception as error:
        if distributed.is_loss_of_a_rank(error):
            signals.check()  # this one was asked to end as well
            said = str(error).splitlines()[0]
            raise LostRankError(f"{cell.name}: another rank has gone ({said}); run the same command again to go on") from error
        told = checked_kernels(error)
        reason = str(told) if isinstance(told, ReproError) else f"{type(error).__name__}: {error}"
        finish_record(experiment, record, clock, report, status="failed", reason=reason)
        if isinstance(error, RunError):
            raise RunError(f"{cell.name}: {error}") from error
        if told is not error:
            raise told from error
        raise
    finally:
        report.close()
        watch.close()
    record["training"] = product.training
    record["made"] = {"sha256": made.digest, "inputs": made.inputs}
    record["base"] = origin(experiment.config, cell.seed) | {"sha256": product.base_sha256} if product.base_sha256 else None
    finish_record(experiment, record, clock, report, status="done", reason=None)
    _clean(experiment.folder(cell))
    return record


def _make(experiment: Experiment, method: Method, cell: Cell, clock: Clock, report: CellProgress) -> tuple[Product, Manifest]:
    """Makes a cell's product, or takes up what an earlier life of the run left."""
    folder = experiment.folder(cell)
    if distributed.gather(is_made(experiment, cell))[0]:
        made = read_manifest(experiment, cell)
        check_inputs(experiment, cell, made)
        report.note_changes(provenance.changes(made.environment, distributed.ranks(), folder))
        clock.resume(made.device_seconds, report.last_seen)
        if not report.last_seen:
            clock.busy.resume(made.busy)
        model = load_denoiser(folder / MODEL, experiment.config.denoiser) if (folder / MODEL).exists() else None
        pixels = method.make(experiment, cell, clock, report).pixels if model is None and method.judged else None
        return Product(model=model, pixels=pixels, training=made.training, realised=made.realised, base_sha256=made.base_sha256), made
    inputs = inputs_of(experiment, cell)
    if distributed.gather(bool(saved_steps(folder / CHECKPOINTS)))[0]:
        report.note_changes(provenance.changes(newest_environment(folder / CHECKPOINTS), distributed.ranks(), folder))
    else:
        clock.resume({}, report.last_seen)
    product = method.make(experiment, cell, clock, report)
    if distributed.rank() == 0:
        _keep(experiment, method, cell, product, inputs, clock)
    distributed.wait_for_all()
    made = read_manifest(experiment, cell)
    return dataclasses.replace(product, base_sha256=made.base_sha256), made


def _keep(experiment: Experiment, method: Method, cell: Cell, product: Product, inputs: dict[str, str], clock: Clock) -> None:
    """Writes what a cell made into its folder, and its manifest last."""
    folder, params = experiment.folder(cell), None
    for name, content in product.files.items():
        write_atomically(folder / name, content)
    if product.model is not None:
        scheduler = experiment.formulation.scheduler(clip_sample=experiment.config.evaluation.clip_sample)
        save_denoiser(product.model, scheduler, folder / MODEL)
        params = cost.count_params(product.model.parameters())
    files, base_sha256 = files_of(folder), None
    if needed := method.needs(experiment.config, cell):
        base_sha256 = read_manifest(experiment, needed[0]).base_sha256
    elif cell == base_cell(experiment.config, cell.seed):
        base_sha256 = files[f"{MODEL}/{WEIGHTS}"]
    write_manifest(
        folder,
        Manifest(
            identity=experiment.identity(cell),
            files=files,
            inputs=inputs,
            environment=provenance.environment(distributed.ranks()),
            params=params,
            training=product.training,
            realised=product.realised,
            base_sha256=base_sha256,
            device_seconds=clock.device_seconds(),
            busy=dataclasses.asdict(clock.busy.tally),
        ),
    )


def _judge(experiment: Experiment, method: Method, cell: Cell, product: Product, made: Manifest, report: CellProgress) -> Record:
    """Returns the parts of a record that describe a network: its size, quality, latency and samples."""
    parts: Record = {}
    if product.model is not None and cell.size is not None:
        check_size(experiment, cell, product.model, made)
        parts["size"] = {"realised": product.realised} | size_of_network(experiment, product.model)
    if experiment.config.curves and method.networks:
        parts["curves"] = judge_curves(experiment, method, cell, made, report)
    if not method.judged:
        return parts
    if product.pixels is not None:
        pixels, reference = product.pixels
        sets = [pixels]
    else:
        assert product.model is not None, cell.name
        sets = evaluate.draw_samples(experiment, product.model, cell, made.digest, report)
        reference = experiment.images.pixels
    parts["quality"] = evaluate.judge(experiment, sets, reference, report, sampled=product.model is not None)
    if distributed.rank() == 0:
        parts["samples"] = evaluate.save_strip(sets[0], experiment.results, cell.name)
        images = product.training["images"] if product.training else 0
        report.watch.scalars({f"quality/{parts['quality']['metric']}": parts["quality"]["mean"]}, images)
        report.watch.image("samples", evaluate.strip_of(sets[0]), images)
        if product.model is not None:
            parts["latency"] = latency_of_network(experiment, product.model)
    return parts


def check_size(experiment: Experiment, cell: Cell, model: nn.Module, made: Manifest) -> None:
    """Makes sure that a network has the size that it is called.

    Raises:
        ReproError: Its parameters are not those that were made, or amount to another size than its cell's.
    """
    base = meta_base(experiment.config.denoiser)
    realised = size_of(base, model, experiment.config.allocation.resampling_units)
    params, folder = cost.count_params(model.parameters()), experiment.folder(cell)
    assert cell.size is not None, cell.name
    meets = meets_size(realised, cell.size, experiment.config.allocation.rule)
    if params != made.params or not meets or abs(realised - (made.realised or realised)) > ROUNDING:
        raise ReproError(
            f"{folder}: its network has {params:,} parameters, which is P = {realised:.3f}; {cell.name} was made with "
            f"{made.params or 0:,}, as P = {made.realised or cell.size:.3f}; {remedy(folder)}"
        )


def _clean(folder: Path) -> None:
    """Removes what only an interrupted run needs."""
    if distributed.rank() == 0:
        for name in ("samples", CHECKPOINTS, BRANCHES):  # what was found of a snapshot stays: a few kB, for a record that is lost
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / HEARTBEAT).unlink(missing_ok=True)


def _is_done(experiment: Experiment, cell: Cell) -> bool:
    record = experiment.record(cell)
    return record is not None and record["status"] == "done"


def _is_missed(experiment: Experiment, cell: Cell, opened: set[Cell]) -> bool:
    """Says whether a cell that has yet to be made needs artefacts of this one that are no longer there."""
    to_make = [other for other in opened if not is_made(experiment, other)]
    return not is_made(experiment, cell) and any(cell in experiment.needs(other) for other in to_make)


@contextmanager
def _held_by_all(experiment: Experiment, cell: Cell) -> Iterator[None]:
    """Keeps other processes from a cell while the ranks of this run work on it."""
    with ExitStack() as stack:
        reason = ""
        if distributed.rank() == 0:
            try:
                for path in experiment.locks(cell):
                    stack.enter_context(held(path, cell.name))
            except BusyError as error:
                reason = str(error)
        reason = distributed.gather(reason)[0]
        if reason:
            raise BusyError(reason)
        yield


def check_writable(experiment: Experiment) -> None:
    """Fails now rather than after hours of training."""
    if distributed.rank() == 0:
        for folder in (experiment.results, experiment.runs):
            write_atomically(folder / ".writable", b"")
            (folder / ".writable").unlink(missing_ok=True)  # another run may try the same at this moment


def work_of(experiment: Experiment, cell: Cell) -> float:
    """Returns a cell's PFLOP of training and sampling, MACs taken as affine in P: enough for the time left."""
    this, method, judged = experiment.of(cell), experiment.method_of(cell), experiment.config.evaluation
    sizes = [*this.config.sizes.trained, *([] if cell.size is None else [cell.size])]
    costs = affine_costs(this.config.denoiser, this.config.allocation.resampling_units, sizes)
    making = sum(stage.pflop for stage in method.work(this, [cell], costs))
    drawn = len(judged.sampling_seeds) * judged.samples * experiment.nfe if method.judged and cell.size is not None else 0
    return making + 2 * (1 + drawn) * costs.macs[cell.size or 1.0] / 1e15  # no cell is nothing


def _outcome(record: Record) -> str:
    quality = record["quality"]
    spent = f"{_minutes(3600 * record['cost']['device_hours'] / record['cost']['ranks'])} of training and preparation"
    return f"{quality['metric']} {quality['mean']:.2f}, {spent}" if quality else spent


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
