"""Time to quality: what each method's training had taken by the time that a size was as good as a target.

A crossing is interpolated between two points, linear in ln(quality) over ln(cost). Where there is none, what is known of it is kept as
bounds, never dropped: a target that was not reached by the last point takes at least what that point took, one that was reached by the
first takes at most what that one took. Bounds go through sums, ratios and intervals.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from paper_figures.cells import Cell, MissingRecordsError, Point
from paper_figures.comparable import Conditions, check_comparable
from paper_figures.evidence import Grid, Interval, check_machine, interval
from paper_figures.methods import INDEPENDENT, sort_key
from paper_figures.total_cost import ByName, SharedCost, shared_cost

HOW = "run `nox -s evidence`, or a configuration with [curves]"
LONGEST = ("ofa_long", "ofa")  # the joint runs whose way to the independent runs' quality is looked at, the first of them that is there


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A number of which bounds are known: both are the number itself where it was observed."""

    low: float
    observed: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether it was observed."""
        return self.low == self.high


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The way of one size in one training.

    Attributes:
        cell: The cell of the training: of this size alone, or of all sizes.
        points: Those at which the metric was taken, ascending.
        shared: What the size holds of a pass that serves several, such as Diff-Pruning's gradients.
    """

    cell: Cell
    points: tuple[Point, ...]
    shared: SharedCost

    @property
    def paid(self) -> tuple[Cell, ...]:
        """The cells whose costs it has."""
        return (self.cell, *self.shared.cells)

    def costs(self, currency: str) -> list[float]:
        """Returns what had been taken at each point, in `images`, `device_hours` or `train_pflop`."""
        return [own + self._shared(currency) for own in self._own(currency)]

    @property
    def values(self) -> list[float]:
        """The metric at each point."""
        return [point.value for point in self.points if point.value is not None]

    @property
    def last(self) -> float:
        """The metric at the end."""
        return self.values[-1]

    def taken(self, target: float, currency: str) -> Bounded:
        """Returns what had been taken when the metric first was the target or lower."""
        return sum_of([crossing(self._own(currency), self.values, target)], self._shared(currency))

    def _own(self, currency: str) -> list[float]:
        return [getattr(point, currency) for point in self.points]

    def _shared(self, currency: str) -> float:
        return 0.0 if currency == "images" else float(getattr(self.shared, currency))


def crossing(costs: Sequence[float], values: Sequence[float], target: float) -> Bounded:
    """Returns the cost at which values first come down to a target, interpolated in ln(value) over ln(cost).

    Args:
        costs: Ascending, positive.
        values: Of as many points, positive.
        target: Positive.
    """
    if values[0] <= target:
        return Bounded(low=0.0, observed=costs[0], high=costs[0])
    for (cost, value), (next_cost, next_value) in pairwise(zip(costs, values, strict=True)):
        if next_value <= target:
            share = (math.log(value) - math.log(target)) / (math.log(value) - math.log(next_value))
            found = next_cost if next_value == target else cost * (next_cost / cost) ** share
            return Bounded(low=found, observed=found, high=found)
    return Bounded(low=costs[-1], observed=costs[-1], high=math.inf)


def mean_log(costs: Sequence[float], values: Sequence[float], first: float, last: float) -> float:
    """Returns the area under ln(value) over ln(cost) from one cost to another, over its width: the mean of ln(value)."""
    x, y = np.log(costs), np.log(values)
    inside = [cost for cost in costs if first < cost < last]
    at = np.log([first, *inside, last])
    heights = np.interp(at, x, y)
    return float(np.sum(np.diff(at) * (heights[1:] + heights[:-1]) / 2) / (at[-1] - at[0]))


def interval_of(values: Sequence[Bounded]) -> Interval | None:
    """Returns the mean of one number for each seed with its interval.

    The lower end is that of the mean of the lower bounds, which the true mean is not below, the upper end that of the upper ones; an end is
    infinite where one of its bounds is.
    """
    found = interval([value.observed for value in values])
    if found is None:
        return None
    lows, highs = [value.low for value in values], [value.high for value in values]
    low, high = (interval(ends) if all(map(math.isfinite, ends)) else None for ends in (lows, highs))
    return replace(found, low=low.low if low else -math.inf, high=high.high if high else math.inf)


def ratio(ours: Bounded, theirs: Bounded) -> Bounded:
    """Returns ln(one number / another)."""
    return Bounded(low=_log(ours.low, theirs.high), observed=_log(ours.observed, theirs.observed), high=_log(ours.high, theirs.low))


def _log(over: float, under: float) -> float:
    """Returns ln(over / under), also of 0 and of infinity."""
    if over == 0 or under == math.inf:
        return -math.inf
    return math.inf if over == math.inf or under == 0 else math.log(over / under)


def mean_of(numbers: Sequence[Bounded]) -> Bounded:
    """Returns the mean of numbers."""
    return Bounded(**{key: statistics.fmean(getattr(number, key) for number in numbers) for key in ("low", "observed", "high")})


def sum_of(numbers: Sequence[Bounded], more: float = 0.0) -> Bounded:
    """Returns the sum of numbers and of what is known exactly."""
    return Bounded(**{key: math.fsum([more, *(getattr(number, key) for number in numbers)]) for key in ("low", "observed", "high")})


def largest_of(numbers: Sequence[Bounded]) -> Bounded:
    """Returns the largest of numbers."""
    return Bounded(**{key: max(getattr(number, key) for number in numbers) for key in ("low", "observed", "high")})


class Curves:
    """The curves of an experiment.

    Args:
        grid: Its judged cells.

    Attributes:
        of: Method -> seed -> size.
        metric: What they are judged by.
        notes: A line about each training that is left out.
    """

    def __init__(self, grid: Grid) -> None:
        found: dict[str, dict[int, dict[float, Curve]]] = {}
        by_name = ByName(grid.cells)
        self.notes: list[str] = []
        for cell in grid.cells:
            shared = shared_cost(cell, by_name) if cell.points else None
            if cell.points and shared is None:
                self.notes.append(f"{cell.name} is left out: what it costs is not known, for a cell that delivers it has no record")
            for size, points in cell.points.items():
                judged = tuple(point for point in points if point.value is not None)
                if judged and shared and size not in grid.left_out:
                    found.setdefault(cell.family, {}).setdefault(cell.seed, {})[size] = Curve(cell=cell, points=judged, shared=shared)
        self.of = {method: found[method] for method in sorted(found, key=lambda method: sort_key(method, None))}
        self.metric = next((cell.points_scale.get("metric") for cell in grid.cells if cell.points_scale), "")

    def sizes(self, *methods: str) -> list[float]:
        """Returns the sizes that all of some methods have at a seed."""
        seeds = set.intersection(*(set(self.of.get(method, {})) for method in methods))
        return sorted({size for seed in seeds for size in set.intersection(*(set(self.of[method][seed]) for method in methods))})

    def seeds(self, *methods: str, size: float | None = None) -> list[int]:
        """Returns the seeds at which all of some methods have a size, or all the sizes that they have at any seed in common."""
        sizes = set(self.sizes(*methods)) if size is None else {size}
        held = [{seed for seed, by_size in self.of.get(method, {}).items() if sizes and sizes <= by_size.keys()} for method in methods]
        return sorted(set.intersection(*held))

    def pairs(self, method: str, reference: str, size: float) -> list[tuple[Curve, Curve]]:
        """Returns a method's curve of a size and a reference's, at every seed that has both."""
        return [(self.of[method][seed][size], self.of[reference][seed][size]) for seed in self.seeds(method, reference, size=size)]

    def cells(self, *methods: str) -> list[Cell]:
        """Returns the trainings of some methods at the seeds that they are compared at, and what these share, each once."""
        seeds = {seed for size in self.sizes(*methods) for seed in self.seeds(*methods, size=size)}
        found = [cell for seed in sorted(seeds) for method in methods for curve in self.of[method][seed].values() for cell in curve.paid]
        return list({cell.name: cell for cell in found}.values())

    def check(self, *methods: str, currency: str = "images") -> None:
        """Refuses methods that were judged on several scales, start from other bases, or whose hours are those of several machines.

        Raises:
            IncomparableError: They were, do, or are.
        """
        cells, named = self.cells(*methods), " and ".join(dict.fromkeys(methods))
        check_comparable((cell.points_scale for cell in cells if cell.points_scale), f"the curves of {named}")
        for seed in {cell.seed for cell in cells}:
            bases = [Conditions((("base", cell.base),)) for cell in cells if cell.seed == seed and cell.base]
            check_comparable(bases, f"at seed {seed} the curves of {named}")
        if currency == "device_hours":
            check_machine(cells)

    def to_last_of(self, method: str, reference: str, currency: str) -> list[Bounded]:
        """Returns, for each common seed, ln(what a method took / what a reference took) to the reference's own last value.

        The mean over the common sizes.
        """
        self.check(method, reference, currency=currency)
        sizes = self.sizes(method, reference)
        found = []
        for seed in self.seeds(method, reference):
            ours, theirs = self.of[method][seed], self.of[reference][seed]
            ratios = [ratio(*(curve[size].taken(theirs[size].last, currency) for curve in (ours, theirs))) for size in sizes]
            found.append(mean_of(ratios))
        return found

    @property
    def longest(self) -> str | None:
        """The joint run that is held against the independent runs: the one with the most seeds in common, the longer of those alike."""
        seeds = {method: len(self.seeds(method, INDEPENDENT)) for method in LONGEST}
        best = max(LONGEST, key=lambda method: seeds[method])  # the first of those alike
        return best if seeds[best] else None

    def until_all(self, currency: str, target: float | None = None) -> list[tuple[Bounded, Bounded]]:
        """Returns, for each seed, what OFA took until every size was as good as a target, and what the independent runs took until theirs.

        The first is the cost of the joint run when the last size got there, the second the sum of the others' costs.

        Args:
            currency: `images`, `device_hours` or `train_pflop`.
            target: What each independent run came to in the end, where there is none.
        """
        joint = self.longest
        if joint is None:
            return []
        self.check(joint, INDEPENDENT, currency=currency)
        sizes, found = self.sizes(joint, INDEPENDENT), []
        for seed in self.seeds(joint, INDEPENDENT):
            ours, alone = self.of[joint][seed], self.of[INDEPENDENT][seed]
            to = {size: alone[size].last if target is None else target for size in sizes}
            once, each = ([curves[size].taken(to[size], currency) for size in sizes] for curves in (ours, alone))
            found.append((largest_of(once), sum_of(each)))
        return found

    def saved(self, currency: str) -> list[Bounded]:
        """Returns, for each seed, ln(what the independent runs took until their own last values / what OFA took until all of them)."""
        return [ratio(independent, joint) for joint, independent in self.until_all(currency)]

    def compared_with_independent(self) -> list[Cell]:
        """Returns the trainings that `saved` looks at."""
        return self.cells(self.longest, INDEPENDENT) if self.longest else []


_OF_GRIDS: WeakKeyDictionary[Grid, Curves] = WeakKeyDictionary()


def curves_in(grid: Grid) -> Curves:
    """Returns the curves of an experiment, made once for a grid: every claim about time asks for them several times."""
    if grid not in _OF_GRIDS:
        _OF_GRIDS[grid] = Curves(grid)
    return _OF_GRIDS[grid]


def curves_of(grid: Grid) -> Curves:
    """Returns the curves of an experiment.

    Raises:
        MissingRecordsError: It has none.
    """
    found = curves_in(grid)
    if not found.of:
        raise MissingRecordsError(f"time to quality: left out, no training was judged on its way; {HOW}")
    return found


def common_range(curves: Iterable[Curve]) -> tuple[float, float]:
    """Returns the first and the last number of images that all of some curves have between their ends."""
    ends = [(curve.points[0].images, curve.points[-1].images) for curve in curves]
    return max(first for first, _ in ends), min(last for _, last in ends)
