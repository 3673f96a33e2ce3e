"""Criteria: which channels of a group of coupled layers go first."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_pruning import importance
from torch_pruning.dependency import Group

from baselines.pruning import Score
from repro.harness.randomness import derive_seed


def magnitude() -> Score:
    """Scores a channel by the sum over its group of the absolute values of its weights."""
    score: Score = importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
    return score


def taylor() -> Score:
    """Scores a channel by | weight * gradient | summed over its group; gradients must be there (Diff-Pruning)."""
    score: Score = importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    return score


def random(seed: int) -> Score:
    """Scores channels at random, as a function of the seed and the group's first layer alone."""

    def score(group: Group) -> Tensor:
        stream = torch.Generator().manual_seed(derive_seed("random pruning", seed, group[0].dep.target.name))
        return torch.rand(len(group[0].idxs), generator=stream)

    return score


def accumulate_gradients(model: nn.Module, losses: Callable[[int], Tensor], *, train_timesteps: int, threshold: float) -> int:
    """Sums the gradients of the loss at t = 0, 1, 2, ... until it falls below `threshold` times the largest (Diff-Pruning, section 4).

    Args:
        model: Its parameters' gradients are set.
        losses: The loss at a timestep, a scalar.
        train_timesteps: How many timesteps there are.
        threshold: 0.05 in the paper's best row; 0 uses every timestep.

    Returns:
        How many timesteps were used.
    """
    model.zero_grad()
    largest = 0.0
    for timestep in range(train_timesteps):
        loss = losses(timestep)
        largest = max(largest, loss.item())
        if loss.item() < threshold * largest:
            return timestep
        loss.backward()
    return train_timesteps
