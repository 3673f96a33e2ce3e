"""Allocation: how many channels every pipe keeps at every size (paper, Formula 5 and Algorithm 1), and which.

A plan is computed once from the base. The channels of a pipe are ranked once, and a size keeps the first of that ranking, so every
smaller subnet is nested in every larger one.
"""

import dataclasses
import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.errors import ReproError
from repro.ofa.accounting import internal_params, realised_size
from repro.ofa.importance import Importance
from repro.ofa.pipes import Pipe
from repro.size_text import size_text

Units = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """For every size, the kept channels of every pipe.

    Attributes:
        kept: size -> pipe name -> ascending indices of the kept channels.
        params: size -> parameters of the subnet.
        params_base: Parameters of the base.
        params_internal: Parameters of the base that its pipes hold, so that params(P) = params_base - (1 - P) * params_internal.
    """

    kept: dict[float, dict[str, tuple[int, ...]]]
    params: dict[float, int]
    params_base: int
    params_internal: int

    def realised(self, size: float) -> float:
        """Returns the fraction of the prunable internal width that a size keeps, counted in parameters."""
        return realised_size(self.params[size], params_base=self.params_base, params_internal=self.params_internal)

    def to_json(self) -> str:
        """Returns the plan as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads the text of `to_json`.

        Raises:
            ValueError: It is no such text.
        """
        try:
            values = json.loads(text)
            kept = {float(size): {name: tuple(channels) for name, channels in pipes.items()} for size, pipes in values["kept"].items()}
            params = {float(size): int(count) for size, count in values["params"].items()}
            counts = {key: int(values[key]) for key in ("params_base", "params_internal")}
        except (AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if kept.keys() != params.keys() or not all(0 < size <= 1 for size in kept):
            raise ValueError("its sizes are not those of a plan")
        return cls(kept=kept, params=params, **counts)

    def check(self, widths: Mapping[str, int]) -> None:
        """Makes sure that a plan is one for these pipes.

        Args:
            widths: Pipe name -> channels.

        Raises:
            ReproError: It is another network's.
        """
        for size, pipes in self.kept.items():
            for name in sorted(pipes.keys() | widths.keys()):
                kept, width = pipes.get(name, ()), widths.get(name, 0)
                inside = all(type(channel) is int and 0 <= channel < width for channel in kept)
                if not kept or not inside or sorted({*kept}) != [*kept]:
                    named = f"the plan of size {size_text(size)}"
                    raise ReproError(f"{named} is another network's ({name}); delete its folder and run the cell again")


def make_plan(
    pipes: tuple[Pipe, ...],
    importance: Importance,
    sizes: tuple[float, ...],
    *,
    params_base: int,
    rule: str,
    floor: float,
    scores: Importance | None = None,
    groupnorm: str = "keep",
) -> Plan:
    """Computes the plan of a base.

    Args:
        pipes: The internal widths of the base.
        importance: For every pipe its channels' importances, shape [width]; says how many channels each pipe keeps.
        sizes: The sizes P, each in (0, 1].
        params_base: Parameters of the base.
        rule: "gradual", "formula5" or "uniform".
        floor: The least fraction of a pipe that any size keeps (0.25 in the paper).
        scores: What ranks the channels, likewise; says which ones a pipe keeps. The importances by default.
        groupnorm: "keep" or "regroup", see `ranking`.

    Raises:
        ReproError: A size is below what the floors of all pipes together allow.
    """
    internal = internal_params(pipes)
    chosen = {size: _allocate(pipes, importance, size, rule=rule, floor=floor) for size in sorted(sizes, reverse=True)}
    order = rankings(pipes, scores or importance, groupnorm=groupnorm)
    kept = {size: {pipe.name: kept_channels(order[pipe.name], units[pipe.name]) for pipe in pipes} for size, units in chosen.items()}
    params = {
        size: params_base - internal + sum(units[pipe.name] * pipe.params_per_unit for pipe in pipes) for size, units in chosen.items()
    }
    return Plan(kept=kept, params=params, params_base=params_base, params_internal=internal)


def rankings(pipes: tuple[Pipe, ...], scores: Importance, *, groupnorm: str = "keep") -> dict[str, Tensor]:
    """Ranks the channels of every pipe, see `ranking`."""
    return {pipe.name: ranking(pipe, scores[pipe.name], groupnorm=groupnorm) for pipe in pipes}


def ranking(pipe: Pipe, scores: Tensor, *, groupnorm: str = "keep") -> Tensor:
    """Ranks the channels of a pipe, best first; its first u units are the first u columns.

    "keep" ranks inside each normalisation group, so that every kept channel stays in the group that it was trained in. "regroup" ranks
    all channels of a conv pipe together, and those that are kept form new groups, other ones at every size. An attention's heads are
    ranked each for itself either way.

    Returns:
        Channel indices, shape [groups, units]; ties go to the lower index.
    """
    if groupnorm == "regroup" and pipe.kind == "conv":
        return scores.argsort(descending=True, stable=True).view(pipe.units, pipe.groups).T
    scores = scores.view(pipe.groups, pipe.units)
    offsets = torch.arange(pipe.groups, device=scores.device)[:, None] * pipe.units
    return scores.argsort(dim=1, descending=True, stable=True) + offsets


def kept_channels(order: Tensor, units: int) -> tuple[int, ...]:
    """Returns the channels of a pipe's first units, ascending: they stand in the order that they have in the base."""
    return tuple(sorted(order[:, :units].flatten().tolist()))


def floor_units(pipe: Pipe, floor: float) -> int:
    """Returns the least number of units that a pipe keeps: `floor` of it, rounded up, and never none."""
    return max(1, math.ceil(floor * pipe.units - 1e-9))


def _allocate(pipes: tuple[Pipe, ...], importance: Importance, size: float, *, rule: str, floor: float) -> Units:
    if rule == "gradual":
        return gradual(pipes, importance, size, floor=floor)
    if rule == "formula5":
        return formula5(pipes, importance, size, floor=floor)
    if rule == "uniform":
        return uniform(pipes, size)
    raise ReproError(f"allocation.rule: unknown rule '{rule}'; use gradual, formula5 or uniform")


def smallest_size(pipes: tuple[Pipe, ...], floor: float) -> float:
    """Returns the size P of a network whose pipes all keep their floors: `gradual` reaches no smaller one."""
    return sum(floor_units(pipe, floor) * pipe.params_per_unit for pipe in pipes) / internal_params(pipes)


def gradual(pipes: tuple[Pipe, ...], importance: Importance, size: float, *, floor: float) -> Units:
    """Hands out one unit at a time until the size is met (paper, Algorithm 1, read as an exact budget).

    Every pipe starts at its floor. The next unit goes to the pipe whose next unit is worth most: its channels' importance for each
    parameter that they cost. The order does not depend on the size, so plans are nested, and the parameters of the result lie within
    half a unit of params(P).

    Raises:
        ReproError: The size lies below the floors by more than half a unit.
    """
    units = {pipe.name: floor_units(pipe, floor) for pipe in pipes}
    cost = {pipe.name: pipe.params_per_unit for pipe in pipes}
    spent = sum(units[name] * cost[name] for name in units)
    target = size * internal_params(pipes)
    if target < spent - min(cost.values()) / 2:
        least = f"the smallest size under allocation.floor = {floor:g} is {smallest_size(pipes, floor):.4g}"
        raise ReproError(f"size {size_text(size)}: the plan cannot reach it; {least}")
    worth = {pipe.name: (unit_importance(pipe, importance[pipe.name]) / cost[pipe.name]).tolist() for pipe in pipes}
    # The pipes' next units, the one that is worth most on top; of several that are worth the same, that of the first pipe.
    queue = [(-worth[pipe.name][units[pipe.name]], place, pipe.name) for place, pipe in enumerate(pipes) if units[pipe.name] < pipe.units]
    heapq.heapify(queue)
    while spent < target:
        _, place, best = heapq.heappop(queue)
        if spent + cost[best] - target > target - spent:
            break
        units[best] += 1
        spent += cost[best]
        if units[best] < pipes[place].units:
            heapq.heappush(queue, (-worth[best][units[best]], place, best))
    return units


def unit_importance(pipe: Pipe, importance: Tensor) -> Tensor:
    """Returns the summed importance of a pipe's first, second, ... unit in its ranking, shape [units]."""
    return importance.flatten()[ranking(pipe, importance)].sum(dim=0)


def formula5(pipes: tuple[Pipe, ...], importance: Importance, size: float, *, floor: float) -> Units:
    """Shares the channels of a block of equal resolution by layer importance, literally (paper, Formula 5).

        C_l = max( min( I_l / sum_B I * K * P * |l| , |l| ) , floor * |l| )     rounded down to the unit

    What clipping takes away is not handed out again, so the realised size drifts from P.
    """
    blocks = defaultdict(list)
    for pipe in pipes:
        blocks[pipe.block].append(pipe)
    units = {}
    for members in blocks.values():
        scores = {pipe.name: float(importance[pipe.name].sum()) for pipe in members}
        total = sum(scores.values())
        for pipe in members:
            # A block without any importance is shared evenly.
            share = (scores[pipe.name] / total * len(members) if total else 1.0) * size * pipe.units
            units[pipe.name] = max(1, math.floor(max(min(share, pipe.units), floor * pipe.units) + 1e-9))
    return units


def uniform(pipes: tuple[Pipe, ...], size: float) -> Units:
    """Keeps the same fraction of every pipe, C_l = P * |l|, rounded to the nearest unit: the control."""
    return {pipe.name: max(1, math.floor(size * pipe.units + 0.5)) for pipe in pipes}
