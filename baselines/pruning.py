"""Pruning a network to a parameter size, on torch-pruning's dependency graph.

A UNet is pruned whole, the residual stream too; `conv_out` is left alone (Diff-Pruning, Fang et al., 2023). Of a transformer the widths
inside attention and feed-forward units are pruned: its residual stream takes fixed positions, and what modulates it comes in six parts.

A channel that a GroupNorm or several heads hold belongs to a run: the channels of one group or head. Diff-Pruning ranks inside each run,
and every run gives up as many. torch-pruning 1.6.1 averages scores over the runs and cuts the same places out of each, a weaker choice.
"""

import copy
from collections.abc import Callable

import torch
import torch_pruning
from diffusers import UNet2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch_pruning.dependency import Group

from repro.errors import ReproError
from repro.harness.denoiser import count_params
from repro.harness.narrowed import refresh_widths

Score = Callable[[Group], Tensor | None]
SEARCH_STEPS = 14


def prune_to_params(
    model: nn.Module, target: int, score: Score, example: tuple[Tensor, Tensor], *, channels: str = "in_groups"
) -> nn.Module:
    """Prunes a copy of a network to the parameter size nearest to a target.

    A `pruning_ratio` is no size: what it realises depends on rounding to the normalisation groups. So the ratio is searched by bisection,
    with the groups of coupled layers staggered by up to one of their units, so that they do not all give way at once.

    Args:
        model: Left as it is; gradients that `score` reads must be on its parameters.
        target: Parameters wanted.
        score: Scores the channels of a group of coupled layers; the lowest are pruned.
        example: Images [1, C, H, W] and timesteps [1], to trace the network with.
        channels: "in_groups" ranks inside each normalisation group and head, as Diff-Pruning does; "averaged" averages over them first.

    Raises:
        ReproError: The target is above the network's own size.
    """
    if target > count_params(model.parameters()):
        raise ReproError(f"cannot prune to {target} parameters: the base has {count_params(model.parameters())}; ask for a smaller size")
    roots = _roots(model, score, example)
    best, low, high = copy.deepcopy(model), 0.0, 1.0
    _refresh(best)
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        pruned = _prune(model, roots, ratio, score, example, channels)
        params = count_params(pruned.parameters())
        if abs(params - target) < abs(count_params(best.parameters()) - target):
            best = pruned
        low, high = (ratio, high) if params > target else (low, ratio)
    return best


def _roots(model: nn.Module, score: Score, example: tuple[Tensor, Tensor]) -> list[tuple[str, int]]:
    """Returns the root layer of every group of coupled layers and how many units it can give away one by one."""
    pruner = _pruner(model, score, example, {})
    names = {module: name for name, module in model.named_modules()}
    groups = pruner.DG.get_all_groups(ignored_layers=_left_alone(model), root_module_types=pruner.root_module_types)
    return [(names[group[0].dep.target.module], len(group[0].idxs) // pruner._get_channel_groups(group)) for group in groups]


def _prune(
    model: nn.Module, roots: list[tuple[str, int]], ratio: float, score: Score, example: tuple[Tensor, Tensor], channels: str
) -> nn.Module:
    """Prunes a copy of a network with one ratio, staggered over its groups."""
    pruned = _copy_with_gradients(model)
    ratios: dict[nn.Module, float] = {}
    for index, (name, units) in enumerate(roots):
        offset = (index / max(1, len(roots) - 1) - 0.5) / units
        # int(units * (1 - ratio)) units stay: never less than one.
        ratios[pruned.get_submodule(name)] = min(max(ratio + offset, 0.0), 1 - 1 / units)
    pruner = _pruner(pruned, score, example, ratios)
    if channels == "averaged":
        pruner.step()
    else:
        _prune_in_groups(pruner, ratios)
    _refresh(pruned)
    return pruned


@torch.no_grad()
def _prune_in_groups(pruner: torch_pruning.BasePruner, ratios: dict[nn.Module, float]) -> None:
    """Takes out of every run of channels its lowest ones; all are scored before any is taken out."""
    chosen = []
    for group in list(pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types)):
        root, scores = group[0].dep, pruner.estimate_importance(group)
        if scores is not None:
            lowest = lowest_of_each_run(scores, pruner._get_channel_groups(group), ratios[root.target.module])
            chosen.append((root.target.module, root.handler, lowest))
    for module, handler, lowest in chosen:
        if lowest:
            pruner.DG.get_pruning_group(module, handler, lowest).prune()


def lowest_of_each_run(scores: Tensor, runs: int, ratio: float) -> list[int]:
    """Returns the channels to take out: of each run those with the lowest scores, in every run as many.

    Args:
        scores: One for each channel, [C]; a run is C / runs neighbours.
        runs: Normalisation groups, or heads.
        ratio: The share to take out; int(C / runs * (1 - ratio)) channels of a run stay.
    """
    units = len(scores) // runs
    order = scores.view(runs, units).argsort(dim=1, stable=True)[:, : units - int(units * (1 - ratio))]
    offsets = torch.arange(runs, device=scores.device)[:, None] * units
    return sorted((order + offsets).flatten().tolist())


def _pruner(model: nn.Module, score: Score, example: tuple[Tensor, Tensor], ratios: dict[nn.Module, float]) -> torch_pruning.BasePruner:
    heads = {layer: unit.heads for unit in model.modules() if isinstance(unit, Attention) for layer in (unit.to_q, unit.to_k, unit.to_v)}
    return torch_pruning.BasePruner(
        model,
        example,
        importance=score,
        pruning_ratio=0.0,
        pruning_ratio_dict=ratios,
        ignored_layers=_left_alone(model),
        num_heads=heads,
        prune_head_dims=True,
    )


def _left_alone(model: nn.Module) -> list[nn.Module]:
    """Returns the layers whose output channels stay."""
    if isinstance(model, UNet2DModel):
        return [model.conv_out]
    pruned = set()
    for unit in model.modules():
        if isinstance(unit, Attention):
            pruned |= {unit.to_q, unit.to_k, unit.to_v}
        elif isinstance(unit, FeedForward):
            pruned.add(unit.net[0].proj)
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding) and layer not in pruned]


def _copy_with_gradients(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()
    return twin


def _refresh(model: nn.Module) -> None:
    """Brings what diffusers remembers of the widths up to date, and drops the gradients that the criterion needed."""
    refresh_widths(model)
    for parameter in model.parameters():
        parameter.grad = None
