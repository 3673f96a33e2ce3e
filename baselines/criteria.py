"""Pruning criteria: scores of the channels of a group of coupled layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_pruning import importance
from torch_pruning.dependency import Group
from torch_pruning.pruner import function

from baselines.pruning import Score
from repro.runtime.seeds import derive_seed

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.GroupNorm, nn.LayerNorm)
INPUTS = (function.prune_conv_in_channels, function.prune_linear_in_channels)


def magnitude() -> Score:
    """Scores a channel by | weight |, summed over its group of coupled layers: convolutions, linear layers and norms."""
    return lambda group: _summed(group, lambda weight: weight.detach().abs())


def taylor() -> Score:
    """Scores a channel by | weight * gradient |, summed over its group, norms included (Diff-Pruning); needs gradients."""
    return lambda group: _summed(group, _saliency)


def taylor_without_norms() -> Score:
    """Scores a channel by torch-pruning 1.6.1's default: as `taylor`, without norms."""
    score: Score = importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    return score


def random(seed: int) -> Score:
    """Scores channels at random, as a function of the seed and the group's first layer alone."""

    def score(group: Group) -> Tensor:
        stream = torch.Generator().manual_seed(derive_seed("random pruning", seed, group[0].dep.target.name))
        return torch.rand(len(group[0].idxs), generator=stream)

    return score


def _saliency(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs()


def _summed(group: Group, saliency: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Sums the scores of a group's weights by channel, shape [channels of the first layer]; None where it has none.

    Of a convolution or linear layer that makes the channels these are the rows, of one that takes them the columns, of a norm its scales.
    Biases are left out, as in Diff-Pruning's code.
    """
    total = None
    for item in group:
        layer = item.dep.target.module
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, LAYERS + NORMS) or weight is None or None in item.root_idxs:
            continue
        values = saliency(weight)
        values = (values.transpose(0, 1) if item.dep.handler in INPUTS else values).flatten(1).sum(dim=1) if values.ndim > 1 else values
        total = values.new_zeros(len(group[0].idxs)) if total is None else total
        total.index_add_(0, torch.tensor(item.root_idxs, device=values.device), values[item.idxs])
    return total


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
        value = loss.item()
        largest = max(largest, value)
        if value < threshold * largest:
            return timestep
        loss.backward()
    return train_timesteps
