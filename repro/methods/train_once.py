"""Trains a supernet jointly, on a chain of sizes or an open set, and extracts its subnets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Config
from repro.diffusion.formulation import NoisyBatch, predictor
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, Product, base_cell, joint_cell
from repro.experiment.run import load_model, train_cell
from repro.experiment.stage import base_macs
from repro.methods.plan import planned, scoring_pflop
from repro.methods.train_alone import losses_of, train_alone
from repro.models.cost import count_macs
from repro.models.denoiser import set_dropout
from repro.ofa.accounting import size_of
from repro.ofa.allocation import Plan, floor_units, kept_channels, rankings
from repro.ofa.importance import Importance
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law, Sandwich, draw_widths
from repro.ofa.supernet import Supernet
from repro.runtime import distributed, gpu
from repro.runtime.clock import Clock
from repro.runtime.progress import CellProgress
from repro.training.snapshots import put_weights

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A subnet that a step trains.

    Attributes:
        subnet: What the supernet is called with.
        weight: The factor on its loss.
    """

    subnet: Any
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What the steps of a joint run train, and what each of them works.

    Attributes:
        draws: Step -> the subnets that share its images.
        macs: Step -> MACs of one forward pass on one image, on the mean over these subnets.
    """

    draws: Callable[[int], list[Draw]]
    macs: Callable[[int], float]


def check_shares(config: Config, law: Law) -> None:
    """Makes sure that the subnets of a step can share its batch out evenly.

    Raises:
        ReproError: They cannot.
    """
    batch_size, count = config.ofa_training.batch_size, _subnets_of_a_step(config, law)
    if batch_size // distributed.ranks() % count:
        other = "sampling_law.sandwich_random" if isinstance(law, Sandwich) else "how many sizes the law draws"
        raise ReproError(
            f"ofa_training.batch_size: the {count} subnets of a {type(law).__name__.lower()} step cannot share {batch_size} images among "
            f"{distributed.ranks()} rank(s) evenly; make it a multiple of {count * distributed.ranks()}, or change {other}"
        )


def _subnets_of_a_step(config: Config, law: Law) -> int:
    return 1 if config.sizes.candidates == "open" else law.subnets(config.sizes.trained)


def load_supernet(experiment: Experiment, joint: Cell) -> Supernet:
    """Loads a trained supernet.

    Raises:
        ReproError: The joint training has not been run here, or its files are damaged.
    """
    base = load_model(experiment, joint)
    path = experiment.folder(joint) / PLAN
    try:
        plan = Plan.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproError(f"{path}: not a readable plan ({error}); delete the folder {path.parent} and run the command again") from error
    return Supernet(base, pipes_of(base, experiment.config.allocation.resampling_units), plan).eval()


def make_joint(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the supernet, one run for all sizes, which its sampling law draws."""
    config, settings, law = experiment.config, experiment.config.ofa_training, experiment.law_of(cell)
    check_shares(config, law)
    base = load_model(experiment, base_cell(config, cell.seed)).to(distributed.device())
    report.stage("importance")
    with clock.phase("importance"):
        plan, scores = planned(experiment, base, cell.seed)
    scored = scoring_pflop(experiment, base)
    losses, taught = losses_of(experiment, base, settings)
    set_dropout(base, settings.dropout)
    supernet = Supernet(base, pipes_of(base, config.allocation.resampling_units), plan)
    if config.sizes.candidates == "open":
        candidates = _open_set(experiment, supernet, scores, cell.seed)
    else:
        candidates = _chain(experiment, supernet, cell.seed, law)

    def loss(module: nn.Module, batch: NoisyBatch, step: int) -> Tensor:
        drawn = candidates.draws(step)
        shared = zip(drawn, batch.shares(len(drawn)), strict=True)
        return torch.stack([draw.weight * losses(predictor(module, draw.subnet), part).mean() for draw, part in shared]).mean()

    training = train_cell(
        experiment,
        cell,
        supernet,
        settings,
        loss=loss,
        macs=lambda step: candidates.macs(step) + taught,
        clock=clock,
        report=report,
        parts=supernet.skeletons,
        subnets=_subnets_of_a_step(config, law),
        warm_up=_first_steps(candidates.draws, supernet.sizes, settings.steps) if config.compute.compile else (),
        scoring_pflop=scored,
    )
    return Product(model=base, training=training, files={PLAN: plan.to_json().encode()})


def _chain(experiment: Experiment, supernet: Supernet, seed: int, law: Law) -> Candidates:
    """Returns what the steps train where the candidates are the chain of the trained sizes (the paper's restricted set)."""
    macs = {size: count_macs(supernet.extract(size), experiment.network_shape).total for size in supernet.sizes}

    def drawn(step: int) -> tuple[float, ...]:
        return law.draw(supernet.sizes, seed=seed, step=step)

    return Candidates(
        draws=lambda step: [Draw(subnet=size, weight=law.weight(size, supernet.sizes)) for size in drawn(step)],
        macs=lambda step: fmean(macs[size] for size in drawn(step)),
    )


def _open_set(experiment: Experiment, supernet: Supernet, scores: Importance, seed: int) -> Candidates:
    """Returns what the steps train where every pipe has a random width of its own at every step, its channels by the same ranking."""
    pipes = supernet.pipes
    ranked = rankings(pipes, scores, groupnorm=experiment.config.allocation.groupnorm)
    order = {name: channels.cpu() for name, channels in ranked.items()}  # a draw must not wait for a GPU
    units = {pipe.name: pipe.units for pipe in pipes}
    floors = {pipe.name: floor_units(pipe, experiment.config.allocation.floor) for pipe in pipes}
    counted = base_macs(experiment.config.denoiser, experiment.config.allocation.resampling_units)

    def drawn(step: int) -> dict[str, int]:
        return draw_widths(units, floors, seed=seed, step=step)

    def draws(step: int) -> list[Draw]:
        chosen = {name: kept_channels(order[name], width) for name, width in drawn(step).items()}
        together = gpu.copied(torch.tensor([channel for channels in chosen.values() for channel in channels]), distributed.device())
        parts = together.split([len(channels) for channels in chosen.values()])
        return [Draw(subnet=dict(zip(chosen, parts, strict=True)))]

    def macs(step: int) -> float:
        return counted.keeping({name: width / units[name] for name, width in drawn(step).items()})

    return Candidates(draws=draws, macs=macs)


def _first_steps(draws: Callable[[int], list[Draw]], sizes: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Returns the first step of each size."""
    first: dict[float, int] = {}
    for step in range(steps):
        for draw in draws(step):
            first.setdefault(draw.subnet, step)
        if len(first) == len(sizes):
            break
    return tuple(sorted(set(first.values())))


def make_subnet(method: str, experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Extracts a size from the trained supernet of a method."""
    supernet = load_supernet(experiment, joint_cell(cell, method))
    model = extracted(supernet, cell)
    return Product(model=model, realised=size_of(supernet.base, model, experiment.config.allocation.resampling_units))


def networks_of_all(experiment: Experiment, cell: Cell, weights: Mapping[str, Tensor]) -> dict[float, nn.Module]:
    """Returns the subnets of a snapshot of a joint training, by reported size."""
    supernet = load_supernet(experiment, cell)
    put_weights(supernet, weights)
    return {size: supernet.extract(size) for size in experiment.config.sizes.reported}


def make_finetuned(method: str, experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Extracts a size from the trained supernet of a method and trains it on, alone."""
    supernet = load_supernet(experiment, joint_cell(cell, method))
    model = extracted(supernet, cell)
    settings = experiment.config.finetuning
    set_dropout(model, settings.dropout)
    base = load_model(experiment, base_cell(experiment.config, cell.seed))
    training = train_alone(experiment, cell, model, settings, clock, report, base)
    return Product(model=model, training=training, realised=size_of(supernet.base, model, experiment.config.allocation.resampling_units))


def extracted(supernet: Supernet, cell: Cell) -> Any:
    """Returns the subnet of a cell's size as a network of its own."""
    assert cell.size is not None, cell.name
    return supernet.extract(cell.size)
