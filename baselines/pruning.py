"""Pruning a network to a parameter size, on torch-pruning's dependency graph.

A UNet is pruned whole, the residual stream too; `conv_out` is left alone (Diff-Pruning, Fang et al., 2023). Of a network that does not say
what to leave alone, the widths inside its units are pruned: a transformer's residual stream takes fixed positions, and what modulates it
comes in six parts.

A channel that a GroupNorm or several heads hold belongs to a run: the channels of one group or head. Diff-Pruning ranks inside each run,
and every run gives up as many. torch-pruning 1.6.1 averages scores over the runs and cuts the same places out of each, a weaker choice.
"""

import copy
import warnings
from collections.abc import Callable, Iterator

import torch
import torch_pruning
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch_pruning.dependency import Group

from repro.errors import ReproError
from repro.models.denoiser import count_params
from repro.models.narrowed import refresh_widths
from repro.ofa.pipes import pipes_of

Score = Callable[[Group], Tensor | None]
Example = tuple[Tensor, ...] | dict[str, Tensor]
SEARCH_STEPS = 14
OUTPUTS = (torch_pruning.prune_conv_out_channels,)


def prune_to_params(model: nn.Module, target: int, score: Score, example: Example, *, channels: str = "in_groups") -> nn.Module:
    """Prunes a copy of a network to the parameter size nearest to a target.

    A `pruning_ratio` is no size: what it realises depends on rounding to the normalisation groups. So the ratio is searched by bisection,
    with the groups of coupled layers staggered by up to one of their units, so that they do not all give way at once.

    Args:
        model: Left as it is; gradients that `score` reads must be on its parameters.
        target: Parameters wanted.
        score: Scores the channels of a group of coupled layers; the lowest are pruned.
        example: Images [1, C, H, W], timesteps [1] and what else the network takes, to trace it with (`example_of`).
        channels: "in_groups" ranks inside each normalisation group and head, as Diff-Pruning does; "averaged" averages over them first.

    Raises:
        ReproError: The network's units scale and shift, and "averaged" is asked for; or the target is above the network's own size, or
            below what is left when all that may be pruned is.
    """
    if target > count_params(model.parameters()):
        raise ReproError(f"cannot prune to {target} parameters: the base has {count_params(model.parameters())}; ask for a smaller size")
    scaled = any(isinstance(unit, ResnetBlock2D) and unit.time_embedding_norm == "scale_shift" for unit in model.modules())
    if scaled and channels == "averaged":
        raise ReproError("pruning.channels: 'averaged' cannot prune units that scale and shift (scale_shift); set in_groups")
    roots = _roots(model, score, example)
    best, low, high, least = copy.deepcopy(model), 0.0, 1.0, count_params(model.parameters())
    _refresh(best)
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        pruned = _prune(model, roots, ratio, score, example, channels)
        params = count_params(pruned.parameters())
        least = min(least, params)
        if abs(params - target) < abs(count_params(best.parameters()) - target):
            best = pruned
        low, high = (ratio, high) if params > target else (low, ratio)
    if least > target:  # otherwise the best is within a unit of it
        raise ReproError(f"cannot prune to {target:,} parameters: {least:,} are left when all that may be pruned is; ask for a larger size")
    return best


def _roots(model: nn.Module, score: Score, example: Example) -> list[tuple[str, int]]:
    """Returns the root layer of every group of coupled layers and how many units it can lose."""
    pruner = _pruner(model, score, example, {})
    names = {module: name for name, module in model.named_modules()}
    return [(names[group[0].dep.target.module], len(group[0].idxs) // pruner._get_channel_groups(group)) for group in _groups(pruner)]


def _groups(pruner: torch_pruning.BasePruner) -> Iterator[Group]:
    """Yields the groups of coupled layers, each from a layer that holds every channel once.

    What scales and shifts a normalisation (`scale_shift`) comes from one linear layer of twice the width: seen from there, a channel could
    lose its scale and keep its shift.
    """
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types):
        width = len(group[0].idxs)
        once = [
            dep for dep, channels in group if isinstance(dep.target.module, nn.Conv2d) and dep.handler in OUTPUTS and len(channels) < width
        ]
        yield (
            pruner.DG.get_pruning_group(once[0].target.module, once[0].handler, list(range(once[0].target.module.out_channels)))
            if once
            else group
        )


def _prune(model: nn.Module, roots: list[tuple[str, int]], ratio: float, score: Score, example: Example, channels: str) -> nn.Module:
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
    """Removes the lowest channels of every run; all are scored before any is removed."""
    chosen = []
    for group in list(_groups(pruner)):
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


def _pruner(model: nn.Module, score: Score, example: Example, ratios: dict[nn.Module, float]) -> torch_pruning.BasePruner:
    heads = {layer: unit.heads for unit in model.modules() if isinstance(unit, Attention) for layer in (unit.to_q, unit.to_k, unit.to_v)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # positions of tokens are part of a stream that stays
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
    """Returns the layers whose output channels stay: those that a network names itself (`left_alone`), or all that make no pipe."""
    if named := ("conv_out",) if isinstance(model, UNet2DModel) else getattr(model, "left_alone", ()):
        return [layer for name in named if (layer := getattr(model, name)) is not None]
    made = {name.rpartition(".")[0] for pipe in pipes_of(model) for name, dimension in pipe.slices if dimension == 0}
    pruned = {model.get_submodule(name) for name in made}
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding) and layer not in pruned]


def _copy_with_gradients(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()
    return twin


def _refresh(model: nn.Module) -> None:
    """Updates the width attributes of diffusers' modules, and drops the criterion's gradients."""
    refresh_widths(model)
    for parameter in model.parameters():
        parameter.grad = None
