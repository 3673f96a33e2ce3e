"""Scores and ranks the channels of a base, and plans which of them each size keeps."""

import torch
from torch import nn

from repro.diffusion.formulation import image_losses, predictor
from repro.experiment.cells import Experiment
from repro.experiment.run import plain_batches
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import meta_base
from repro.models.flop import activation_gradient_pflop
from repro.ofa.allocation import Plan, make_plan
from repro.ofa.importance import Importance, Scored, equal_importance, other_scores, pipe_importance
from repro.ofa.pipes import pipes_of
from repro.runtime import distributed
from repro.runtime.seeds import derive_seed


def score_base(experiment: Experiment, base: nn.Module, seed: int) -> Importance:
    """Scores the channels of a base on training images without augmentation (paper, Formula 4); the ranks share the batches.

    Args:
        experiment: The configuration, whose section `importance` says on how many images, and its data.
        base: The network, on its device.
        seed: Draws images, noise and noise levels.

    Returns:
        Pipe name -> importances of its channels, shape [width], on the CPU.
    """
    settings, pipes = experiment.config.importance, pipes_of(base, experiment.config.allocation.resampling_units)
    batches = plain_batches(experiment, settings.batch_size, seed)
    count = settings.images // settings.batch_size
    mine = range(distributed.rank(), count, distributed.ranks())
    scores = pipe_importance(
        base, pipes, (batches(step) for step in mine), lambda model, batch: image_losses(predictor(model), batch), _of_all_ranks
    )
    together = torch.cat(list(scores.values())).cpu()  # where plans are made
    return dict(zip(scores, together.split([len(score) for score in scores.values()]), strict=True))


def scoring_pflop(experiment: Experiment, base: nn.Module) -> float:
    """Returns the work of `score_base`, in 10^15 FLOP."""
    return activation_gradient_pflop(count_macs(base, experiment.network_shape).total, experiment.config.importance.images)


def _of_all_ranks(scored: list[Scored]) -> list[Scored]:
    """Returns the scored batches of all ranks, which were dealt out one after the other, in the order of the batches."""
    if distributed.ranks() == 1:
        return scored
    rows = [torch.cat([torch.tensor([float(images)]), *(score.cpu() for score in scores.values())]) for images, scores in scored]
    layouts = distributed.gather([[name, len(score)] for name, score in scored[0][1].items()] if scored else [])
    names, widths = zip(*layouts[0], strict=True)  # the first rank always has a batch
    parts = distributed.gather_tensors(torch.stack(rows) if rows else torch.empty(0, 1 + sum(widths)))
    ordered = [part[index] for index in range(len(parts[0])) for part in parts if index < len(part)]
    device = distributed.device()
    return [(int(row[0]), dict(zip(names, row[1:].to(device).split(list(widths)), strict=True))) for row in ordered]


def plan_of(experiment: Experiment, base: nn.Module, importance: Importance, scores: Importance | None = None) -> Plan:
    """Computes the plan of a base for the trained sizes: which channels of each pipe every size keeps.

    Args:
        experiment: The configuration, whose section `allocation` has the rule and the floor.
        base: The network, which may lie on the meta device.
        importance: Pipe name -> importances of its channels, shape [width]; they say how many channels a pipe keeps.
        scores: Pipe name -> what ranks its channels, likewise; the importances by default.

    Raises:
        ReproError: A size is below what the floors of all pipes together allow.
    """
    settings = experiment.config.allocation
    return make_plan(
        pipes_of(base, settings.resampling_units),
        importance,
        experiment.config.sizes.trained,
        params_base=count_params(base.parameters()),
        rule=settings.rule,
        floor=settings.floor,
        scores=scores,
        groupnorm=settings.groupnorm,
    )


def ranking_scores(experiment: Experiment, base: nn.Module, importance: Importance, seed: int) -> Importance:
    """Returns what ranks the channels of every pipe: the importances, or what stands in for them."""
    settings = experiment.config.allocation
    if settings.ranking == "importance":
        return importance
    return other_scores(base, pipes_of(base, settings.resampling_units), settings.ranking, derive_seed("ranking", seed))


def planned(experiment: Experiment, base: nn.Module, seed: int) -> tuple[Plan, Importance]:
    """Scores the channels of a base and computes its plan; returns the plan, and what ranked the channels."""
    importance = score_base(experiment, base, seed)
    scores = ranking_scores(experiment, base, importance, seed)
    return plan_of(experiment, base, importance, scores), scores


def check_sizes(experiment: Experiment) -> None:
    """Makes sure that the plan can reach every trained size, before anything is trained.

    Raises:
        ReproError: It cannot; names the smallest size that it can.
    """
    base = meta_base(experiment.config.denoiser)
    plan_of(experiment, base, equal_importance(pipes_of(base, experiment.config.allocation.resampling_units)))
