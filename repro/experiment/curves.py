"""Curves: a training judged at points on its way, from snapshots, once it is done; so its clock sees nothing of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Training, changed
from repro.data.images import Images
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.formulation import image_losses, predictor
from repro.errors import ReproError
from repro.experiment import evaluate
from repro.experiment.artefacts import Manifest, inputs_of
from repro.experiment.cells import Cell, Experiment, Method
from repro.runtime import distributed, gpu
from repro.runtime.clock import Clock, training_overhead
from repro.runtime.precision import autocast, laid_out
from repro.runtime.progress import CellProgress
from repro.size_text import size_text
from repro.training import snapshots
from repro.training.checkpoint import load_newest
from repro.training.loop import CHECKPOINTS, Run, train

BRANCHES = "branches"
MOST_BATCH = 256  # of the validation loss


def judge_curves(experiment: Experiment, method: Method, cell: Cell, made: Manifest, report: CellProgress) -> dict[str, Any]:
    """Judges every snapshot of a training, and returns what a record says of them.

    A snapshot that has been judged gives way to what was found, so a run that was killed goes on with the next.

    Args:
        experiment: The configuration and its folders.
        method: The cell's method, which makes the networks of a snapshot.
        cell: The cell of the training.
        made: Its manifest.
        report: The cell's bar.

    Raises:
        ReproError: A snapshot is missing, damaged, or of another run.
    """
    curves, folder = experiment.config.curves, experiment.folder(cell)
    assert curves is not None, cell.name
    assert method.networks is not None, cell.name
    measured = method.interference if curves.interference else None
    assert made.training is not None, cell.name
    steps = curves.steps(made.training["steps"])
    run, inputs = experiment.identity(cell), inputs_of(experiment, cell)
    by_metric = steps[max(0, len(steps) - curves.metric_points) :]
    points, interference, told = [], list[dict[str, Any]](), None
    for index, step in enumerate(steps):
        report.stage(f"point {index + 1} of {len(steps)}")
        weights, about = snapshots.read(folder, step, run, inputs)
        if not distributed.gather("sizes" in about)[0]:  # which all have read before it is closed
            found: dict[str, dict[str, Any]] = {}
            for size, extracted in method.networks(experiment, cell, weights).items():
                network = laid_out(extracted.to(distributed.device()), experiment.config.compute, distributed.device()).eval()
                found[size_text(size)] = {"validation_loss": validation_loss(experiment, network)}
                if step in by_metric:
                    quality, strip = _quality(experiment, network, cell, made.digest, report, of=f"{step}-{size_text(size)}")
                    report.watch.image(f"curve/{size_text(size)}/samples", strip, about["images"])
                    told = about_metric(quality)
                    found[size_text(size)]["value"] = quality.get("mean")
            about |= {"sizes": found, "metric": told}
            if measured:
                report.stage(f"interference at point {index + 1} of {len(steps)}")
                about["interference"] = measured(experiment, cell, weights, step == steps[-1])
                about["before"] = measured(experiment, cell, None, False) if index == 0 else None
            if distributed.rank() == 0:
                snapshots.close(folder, step, run, inputs, about)
            distributed.wait_for_all()
        told = about.pop("metric", None)
        if before := about.pop("before", None):
            interference.append({"step": 0, "images": 0} | before)
        if there := about.pop("interference", None):
            interference.append({"step": step, "images": about["images"]} | there)
        points.append({"step": step} | about)
        for size, values in about["sizes"].items():
            known = {f"curve/{size}/{name}": value for name, value in values.items() if value is not None}
            report.watch.scalars(known, about["images"])
    judged = {"validation": about_validation(experiment), "metric": told, "cooldown": curves.cooldown, "points": points}
    if interference:
        batches = {"batches": curves.interference, "batch_size": made.training["batch_size"]}
        judged["interference"] = batches | {"swaps": interference[-1].pop("swaps"), "points": interference}
    return judged


def validation_loss(experiment: Experiment, network: nn.Module) -> float:
    """Returns a network's mean loss on fixed held-out images, noise and noise levels, drawn independently and weighted uniformly.

    They are the same for every network, whatever its cell, seed and training. Every rank computes the same.
    """
    curves, images = experiment.config.curves, check_held_out(experiment)
    assert curves is not None
    batches = NoisyBatches(
        images,
        experiment.formulation,
        batch_size=min(MOST_BATCH, curves.triples),
        seed=0,
        device=distributed.device(),
        space=experiment.space,
        condition=experiment.condition,
    )
    losses = []
    with torch.no_grad(), autocast(experiment.config.evaluation.precision, distributed.device()):
        for step in range(-(-curves.triples // min(MOST_BATCH, curves.triples))):
            losses.append(image_losses(predictor(network), batches(step)))
    return float(torch.cat(losses)[: curves.triples].double().mean())


def about_validation(experiment: Experiment) -> dict[str, Any]:
    """Returns what a record says of the validation loss: on which images, and how many triples."""
    curves, images = experiment.config.curves, check_held_out(experiment)
    assert curves is not None
    return {"name": images.name, "n": len(images), "sha256": images.sha256, "triples": curves.triples}


def check_held_out(experiment: Experiment) -> Images:
    """Returns the images that nothing was trained on.

    Raises:
        ReproError: There are none.
    """
    images = experiment.images
    if images.test is None:
        tenth = max(1, len(images) // 10)
        raise ReproError(f"curves: {images.name} has no images that are never trained on; set data.held_out, such as {tenth}")
    return images.test


def about_metric(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the values of all points have in common."""
    return {key: value for key, value in quality.items() if key not in ("mean", "values", "kid")}


def _quality(
    experiment: Experiment, network: nn.Module, cell: Cell, digest: str, report: CellProgress, *, of: str
) -> tuple[dict[str, Any], Tensor]:
    """Judges a network as one that is finished, but by fewer samples, from one sampling seed; returns the first of them, too."""
    settings, curves = experiment.config.evaluation, experiment.config.curves
    assert curves is not None
    fewer = {"evaluation.samples": curves.samples, "evaluation.sampling_seeds": settings.sampling_seeds[:1]}
    this = dataclasses.replace(experiment, config=changed(experiment.config, fewer))
    sets = evaluate.draw_samples(this, network, cell, f"{digest} {of}", report, of=of)
    return evaluate.judge(this, sets, this.images.pixels, report, sampled=True, further=False), evaluate.strip_of(sets[0])


def folder_of_branch(experiment: Experiment, cell: Cell, step: int) -> Path:
    """Returns the folder of the branch in which the rate falls after a step."""
    return experiment.folder(cell) / BRANCHES / f"step-{step:09d}"


def cool_down(module: nn.Module, run: Run[Any], settings: Training, share: float, report: CellProgress) -> None:
    """Trains a branch from each point on, in which the rate falls to 0, and keeps what it ends in as the snapshot of that point.

    A branch goes on from the state at its point, optimiser included; it is the end of a run of that many steps and as many more.

    Args:
        module: What was trained; it is left as it is.
        run: The run, which has kept its state at the points.
        settings: Its budget.
        share: The steps of a branch over those before it.
        report: The cell's bar.

    Raises:
        ReproError: The state at a point is missing or damaged.
    """
    assert run.folder is not None
    ended = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for step, folder in run.branches.items():
        if distributed.gather(snapshots.is_kept(run.folder, step, run.identity, run.inputs))[0]:
            continue
        whole = distributed.rank() > 0 or load_newest(folder / CHECKPOINTS, run.identity, run.inputs) is not None
        if not distributed.gather(whole)[0]:
            raise ReproError(f"{folder}: no whole state to go on from; delete the folder {run.folder} and run the command again")
        more = max(1, round(share * step))
        report.stage(f"cool-down from step {step:,}", settings.batch_size)
        clock = Clock(None, distributed.ranks(), lambda: gpu.synchronize(distributed.device()))
        falling = dataclasses.replace(settings, steps=step + more, cooldown=more / (step + more), checkpoint_every_steps=more)
        with clock.phase("evaluate"):  # what a branch takes to begin; its training counts
            train(module, dataclasses.replace(run, folder=folder, branches={}, last_seen={}), falling, clock, report)
        about = run.about(step + more) | {"device_hours": training_overhead(clock.device_seconds()) / 3600}
        if distributed.rank() == 0:
            snapshots.keep(run.folder, step, run.identity, run.inputs, dict(module.named_parameters()), about)
        distributed.wait_for_all()
    snapshots.put_weights(module, ended)
