"""The evidence: claims and ablations as paired comparisons over seeds, each with a confidence interval.

Two methods are compared seed by seed: at a seed they start from the same base, see the same batches and draw their samples from the same
noise. The rule by which an interval becomes a verdict is stated in results/README.md.
"""

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from paper_figures.cells import Cell, cells_of
from paper_figures.comparable import Conditions, check_comparable, most_common
from paper_figures.methods import INDEPENDENT
from paper_figures.total_cost import deliverers
from repro.experiment.records import Record

CONFIDENCE = 0.95
UNDECIDED = "undecided"
LEAST_SEEDS = 3

Scores = dict[float, float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and its confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    std_error: float
    n_seeds: int

    def map(self, function: Callable[[float], float]) -> "Interval":
        """Returns the interval on another, increasing scale; the standard error has no meaning there and becomes NaN."""
        ends = function(self.mean), function(self.low), function(self.high)
        return Interval(mean=ends[0], low=ends[1], high=ends[2], std_error=math.nan, n_seeds=self.n_seeds)


def interval(values: Sequence[float]) -> Interval | None:
    """Returns the mean of one value for each seed with its interval; None for fewer than two seeds."""
    n = len(values)
    if n < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(n)
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Interval(mean=mean, low=mean - half, high=mean + half, std_error=error, n_seeds=n)


def verdict(found: Interval | None, boundary: float, side: str) -> str:
    """Returns what an interval says of the claim that the true value lies `below` or `above` a boundary."""
    if found is None or found.n_seeds < LEAST_SEEDS or found.low <= boundary <= found.high:
        return UNDECIDED
    return "supported" if (found.high < boundary) == (side == "below") else "contradicted"


class Grid:
    """The judged cells of an experiment, by method and seed.

    What compares qualities of several scales, or device-hours of several machines, raises an IncomparableError.

    Args:
        records: All records of the experiment.

    Attributes:
        cells: All cells that are done.
        of: The judged ones: method -> seed -> size.
        left_out: The sizes that are left out of `of`.

    Raises:
        ReproError: A record is malformed.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.cells = [cell for cell in cells_of(records) if cell.done]
        self._by_name = {cell.name: cell for cell in self.cells}
        self.left_out = frozenset[float]()
        self.of: dict[str, dict[int, dict[float, Cell]]] = {}
        judged = [cell for cell in self.cells if cell.size is not None and cell.metric]
        for cell in judged:
            self.of.setdefault(cell.method, {}).setdefault(cell.seed, {})[cell.size or 0.0] = cell
        self.scale = most_common(cell.scale for cell in judged)
        usual = next((cell for cell in judged if cell.scale == self.scale), None)
        self.metric, self.n_samples = (usual.metric or "", usual.n_samples or 0) if usual else ("", 0)

    def without_whole(self) -> "Grid":
        """Returns the grid without size 1, at which nothing is pruned; the runs that serve all sizes stay."""
        grid = copy.copy(self)
        grid.left_out = frozenset({1.0})
        grid.of = {
            method: {seed: {size: cell for size, cell in by_size.items() if size != 1.0} for seed, by_size in by_seed.items()}
            for method, by_seed in self.of.items()
        }
        return grid

    def check_scale(self, *methods: str) -> None:
        """Refuses methods that were judged on several scales, or that start from other bases at a seed.

        Raises:
            IncomparableError: They were, or do.
        """
        cells = [cell for method in methods for by_size in self.of.get(method, {}).values() for cell in by_size.values()]
        check_comparable((cell.scale for cell in cells if cell.scale), f"the qualities of {_listed(methods)}")
        for seed in self.seeds(*methods):
            bases = [cell.base for method in methods for cell in self.of[method][seed].values() if cell.base]
            check_comparable((Conditions((("base", base),)) for base in bases), f"at seed {seed} the networks of {_listed(methods)}")

    def seeds(self, *methods: str) -> list[int]:
        """Returns the seeds at which every method has a cell, ascending."""
        return sorted(set.intersection(*(set(self.of.get(method, ())) for method in methods))) if methods else []

    def sizes(self, *methods: str) -> list[float]:
        """Returns the sizes that every method has at every seed that all of them share, ascending."""
        held = [set(self.of[method][seed]) for method in methods for seed in self.seeds(*methods)]
        return sorted(set.intersection(*held)) if held else []

    def compared(self, *methods: str) -> list[Cell]:
        """Returns the cells of which the quality is compared: those of the common seeds and sizes."""
        sizes = self.sizes(*methods)
        return [self.of[method][seed][size] for method in methods for seed in self.seeds(*methods) for size in sizes]

    def score(self, method: str, seed: int, size: float) -> float:
        """Returns a cell's quality, the mean over its sampling seeds."""
        return statistics.fmean(self.of[method][seed][size].values)

    def log_ratios(self, method: str, reference: str) -> list[float]:
        """Returns, for each common seed, the mean over the common sizes of ln(quality of the method / that of the reference)."""
        self.check_scale(method, reference)
        sizes = self.sizes(method, reference)
        return [
            statistics.fmean(math.log(self.score(method, seed, size) / self.score(reference, seed, size)) for size in sizes)
            for seed in self.seeds(method, reference)
            if sizes
        ]

    def imbalances(self, method: str) -> dict[int, float]:
        """Returns for each seed the imbalance of a method: 0 where its smallest size does as well as its largest.

        It is | ln r(P_min) - ln r(P_max) | with r the quality over that of the independently trained net of the same size.
        """
        self.check_scale(method, INDEPENDENT)
        sizes = self.sizes(method, INDEPENDENT)
        if len(sizes) < 2:
            return {}

        def relative(seed: int, size: float) -> float:
            return math.log(self.score(method, seed, size) / self.score(INDEPENDENT, seed, size))

        return {seed: abs(relative(seed, sizes[0]) - relative(seed, sizes[-1])) for seed in self.seeds(method, INDEPENDENT)}

    def costs(self, method: str, sizes: Sequence[float], currency: str) -> dict[int, float]:
        """Returns for each seed the total cost of all sizes, each deliverer counted once; seeds that lack any of it are left out.

        Args:
            method: The method.
            sizes: The sizes that are to be had.
            currency: `device_hours` or `train_pflop`; what has no PFLOP trains nothing, unknown hours leave out their seed.

        Raises:
            IncomparableError: The hours are those of several machines.
        """
        paid = self.paid(method, sizes)
        if currency == "device_hours":
            check_machine([cell for cells in paid.values() for cell in cells])
            paid = {seed: cells for seed, cells in paid.items() if all(cell.device_hours is not None for cell in cells)}
        return {seed: sum(getattr(cell, currency) or 0.0 for cell in cells) for seed, cells in paid.items()}

    def paid(self, method: str, sizes: Sequence[float]) -> dict[int, list[Cell]]:
        """Returns for each seed the cells of the sizes and their deliverers; seeds that lack any of them are left out."""
        found = {}
        for seed, by_size in self.of.get(method, {}).items():
            held = [by_size[size] for size in sizes if size in by_size]
            to_pay, missing = deliverers(held, self._by_name)
            paid = [*held, *to_pay]
            if held and len(held) == len(sizes) and not missing:
                found[seed] = paid
        return found

    def point(self, method: str, sizes: Sequence[float], seeds: Sequence[int]) -> tuple[float, float, float, float] | None:
        """Returns the total cost and the mean quality of a method over the sizes, at some seeds; None where it lacks a size at all of them.

        Returns:
            Mean over seeds of device-hours, of PFLOP and of the geometric mean of the quality over the sizes, and that one's standard
            error, 0 for a single seed.

        Raises:
            IncomparableError: The hours are those of several machines, or the qualities are on several scales.
        """
        self.check_scale(method)
        paid = [self.costs(method, sizes, currency) for currency in ("device_hours", "train_pflop")]
        hours, pflop = ({seed: cost for seed, cost in costs.items() if seed in seeds} for costs in paid)
        if not hours:
            return None
        scores = [math.exp(statistics.fmean(math.log(self.score(method, seed, size)) for size in sizes)) for seed in hours]
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return statistics.fmean(hours.values()), statistics.fmean(pflop.values()), statistics.fmean(scores), error

    def noise(self) -> tuple[float, float] | None:
        """Returns two standard deviations of ln(quality), pooled: over sampling seeds within a trained cell, and over training seeds."""
        within = [
            statistics.variance([math.log(value) for value in cell.values])
            for by_seed in self.of.values()
            for by_size in by_seed.values()
            for cell in by_size.values()
            if len(cell.values) > 1
        ]
        between = [
            statistics.variance([math.log(self.score(method, seed, size)) for seed in by_seed])
            for method, by_seed in self.of.items()
            if len(by_seed) > 1
            for size in self.sizes(method)
            if len({by_size[size].scale for by_size in by_seed.values()}) == 1
        ]
        return (math.sqrt(statistics.fmean(within)), math.sqrt(statistics.fmean(between))) if within and between else None

    def variants(self) -> Mapping[str, Cell]:
        """Returns a cell of each ablation and rival that has any, by method."""
        return {cell.method: cell for cell in self.cells if cell.variant and cell.size is not None and cell.method in self.of}


def check_machine(cells: Sequence[Cell]) -> None:
    """Refuses to compare device-hours of several machines.

    Raises:
        IncomparableError: They are.
    """
    check_comparable((cell.machine for cell in cells), f"the machines of the device-hours of {_listed(cell.family for cell in cells)}")


def _listed(methods: Iterable[str]) -> str:
    """Returns the names of methods, each once."""
    *others, last = dict.fromkeys(methods) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def percent(log_ratio: float) -> float:
    """Returns a ratio's distance from 1, in per cent."""
    return 100 * math.expm1(log_ratio)
