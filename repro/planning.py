"""From a base to a plan: how its channels are scored and ranked, and what a size comes to in parameters."""

import torch
from torch import nn

from repro.harness import distributed
from repro.harness.cells import Experiment
from repro.harness.cost import activation_gradient_pflop, count_macs, count_params
from repro.harness.denoiser import build_base
from repro.harness.diffusion import NoisyBatches, image_losses, predictor
from repro.harness.randomness import derive_seed
from repro.ofa.allocation import Plan, make_plan
from repro.ofa.importance import Importance, Scored, other_scores, pipe_importance
from repro.ofa.pipes import pipes_of


def score_base(experiment: Experiment, base: nn.Module, seed: int) -> Importance:
    """Scores the channels of a base on training images without augmentation (paper, Formula 4); the ranks share the batches."""
    settings, pipes = experiment.config.importance, pipes_of(base)
    batches = NoisyBatches(experiment.images, experiment.schedule, batch_size=settings.batch_size, seed=seed, device=distributed.device())
    count = settings.images // settings.batch_size
    mine = range(distributed.rank(), count, distributed.ranks())
    return pipe_importance(
        base, pipes, (batches(step) for step in mine), lambda model, batch: image_losses(predictor(model), batch), _of_all_ranks
    )


def scoring_pflop(experiment: Experiment, base: nn.Module) -> float:
    """Returns the work of `score_base`, in 10^15 FLOP."""
    return activation_gradient_pflop(count_macs(base, experiment.image_shape).total, experiment.config.importance.images)


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


def equal_importance(base: nn.Module) -> Importance:
    """Returns the same importance for every channel."""
    return {pipe.name: torch.ones(pipe.width) for pipe in pipes_of(base)}


def plan_of(experiment: Experiment, base: nn.Module, importance: Importance, scores: Importance | None = None) -> Plan:
    """Computes the plan of a base for the trained sizes; `scores` rank the channels where the importances do not."""
    settings = experiment.config.allocation
    return make_plan(
        pipes_of(base),
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
    ranking = experiment.config.allocation.ranking
    return importance if ranking == "importance" else other_scores(base, pipes_of(base), ranking, derive_seed("ranking", seed))


def check_sizes(experiment: Experiment) -> None:
    """Makes sure that the plan can reach every trained size, before anything is trained.

    Raises:
        ReproError: It cannot; names the smallest size that it can.
    """
    with torch.device("meta"):
        base = build_base(experiment.config.denoiser, seed=0)
    plan_of(experiment, base, equal_importance(base))
