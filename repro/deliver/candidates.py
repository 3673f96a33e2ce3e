"""Candidates of `choose`: the recorded subnets of an experiment with costs and quality.

Records alone answer a budget of parameters and MACs: torch is imported where latency or memory is asked for.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repro.deliver.averages import Cost, cost_of, mean_of_seeds
from repro.experiment.cells import Cell, Experiment
from repro.experiment.records import Record

if TYPE_CHECKING:
    from repro.models.cost import Latency

UNITS = {"params": "parameters", "macs": "MACs", "latency_ms": "ms", "memory_mb": "MB"}


def amount(key: str, value: float) -> str:
    """Returns a cost or a limit with its unit."""
    return f"{cost_text(key, value)} {UNITS[key]}"


def cost_text(key: str, value: float) -> str:
    """Returns a cost without its unit."""
    return f"{value:,.0f}" if key in ("params", "macs") else f"{value:,.3g}"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A metric over the recorded seeds.

    Attributes:
        mean: Of the seeds' means; lower is better.
        std_error: Of that mean, over seeds, or over the sampling seeds of the only one; None where there is one value.
        seeds: How many were trained.
    """

    mean: float
    std_error: float | None
    seeds: int

    def text(self) -> str:
        """Returns it as a table shows it."""
        error = "" if self.std_error is None else f" ± {self.std_error:.2f}"
        return f"{self.mean:.2f}{error} ({self.seeds} seed{'s' if self.seeds > 1 else ''})"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A subnet that could be taken.

    Attributes:
        size: P.
        costs: `params`, `macs`, and where a budget asks for them `latency_ms` (batch 1) and `memory_mb`, both of this machine.
        quality: None where it has not been measured.
        latency: What the median in `costs` is of, where a budget asks for it.
    """

    size: float
    costs: dict[str, float]
    quality: Quality | None
    latency: "Latency | None" = None

    def excess(self, budget: dict[str, float]) -> list[str]:
        """Says which limits of a budget it surely breaks, and how."""
        least = self.costs | ({"latency_ms": self.latency.quartiles[0]} if self.latency else {})
        return [f"more than {amount(key, budget[key])}" for key in UNITS if key in budget and least[key] > budget[key]]

    def undecided(self, budget: dict[str, float]) -> str:
        """Says which limit lies between the measured quartiles, so that nobody knows whether it is kept; empty where none does."""
        limit = budget.get("latency_ms")
        if limit is None or self.latency is None or not self.latency.quartiles[0] <= limit < self.latency.quartiles[1]:
            return ""
        where = " on a busy machine" if self.latency.busy else ""
        return f"undecided: latency {spread(self.latency.ms, self.latency.quartiles)} against {limit:,.3g} ms{where}"

    def fits(self, budget: dict[str, float]) -> bool:
        """Says whether it surely keeps every limit of a budget."""
        return not self.excess(budget) and not self.undecided(budget)

    def verdict(self, budget: dict[str, float]) -> str:
        """Says whether it keeps a budget, and which limits it breaks."""
        excess = self.excess(budget)
        return f"no: {', '.join(excess)}" if excess else "undecided" if self.undecided(budget) else "yes"


def spread(ms: float, quartiles: Sequence[float]) -> str:
    """Returns a latency with its quartiles."""
    low, high = quartiles
    return f"{ms:,.3g} ms ({low:,.3g} to {high:,.3g})"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A network of another method, on the mean over its seeds.

    Attributes:
        method: Of the grid.
        size: P.
        params: Of its first seed's network.
        quality: Over its seeds.
        cost: Over the same seeds.
    """

    method: str
    size: float
    params: int
    quality: Quality
    cost: Cost


def measured_of(records: Iterable[Record], methods: Collection[str]) -> list[Record]:
    """Returns the measured ones among records, of some methods."""
    return [
        record
        for record in records
        if record["status"] == "done" and record["cell"]["method"] in methods and record.get("quality") and record.get("size")
    ]


def qualities(records: Iterable[Record]) -> dict[float, Quality]:
    """Returns the quality of every size over its seeds."""
    values: dict[float, list[list[float]]] = {}
    for record in records:
        values.setdefault(record["cell"]["size"], []).append(record["quality"]["values"])
    return {size: quality_of(per_seed) for size, per_seed in values.items()}


def candidates(experiment: Experiment, every: Sequence[Record], method: str, seed: int, budget: dict[str, float]) -> list[Candidate]:
    """Returns the recorded subnets of a method at a seed, largest first.

    Args:
        experiment: The configuration and its folders.
        every: The records of its folder.
        method: Of the grid.
        seed: Whose subnets are offered; their quality is that over all seeds.
        budget: The limits; what they ask for is measured.

    Raises:
        ReproError: A record is corrupt, or another configuration made it.
    """
    records = measured_of(every, (method,))
    for record in records:  # refuses those of another configuration
        experiment.record(Cell(method=method, size=record["cell"]["size"], seed=record["cell"]["seed"]))
    quality, offered = qualities(records), [record for record in records if record["cell"]["seed"] == seed]
    found = [
        Candidate(
            size=record["cell"]["size"],
            costs={"params": record["size"]["params"], "macs": record["size"]["macs"]},
            quality=quality[record["cell"]["size"]],
        )
        for record in offered
    ]
    if budget.keys() & {"latency_ms", "memory_mb"}:
        from repro.deliver.device_costs import measured, networks_of

        found = measured(experiment, found, networks_of(experiment, offered), budget)
    return sorted(found, key=lambda candidate: -candidate.size)


def rivals(
    experiment: Experiment, every: Sequence[Record], methods: Collection[str], chosen: Candidate, budget: dict[str, float]
) -> list[Rival]:
    """Returns networks of other methods that score better within the same counts, best first, with what each cost.

    Only parameters and MACs are compared, and only records of the same metric and as many samples.
    """
    assert chosen.quality is not None
    limits = {key: budget.get(key, math.inf) for key in ("params", "macs")}
    if not budget.keys() & limits.keys():
        limits = {key: 1.02 * chosen.costs[key] for key in limits}
    settings, found = experiment.config.evaluation, []
    by_name = {record["cell"]["name"]: record for record in every}
    comparable = [record for record in measured_of(every, methods) if _comparable(record, settings.metric, settings.samples)]
    for method in methods:
        records = [record for record in comparable if record["cell"]["method"] == method]
        for size, quality in qualities(records).items():
            group = [record for record in records if record["cell"]["size"] == size]
            counts = group[0]["size"]
            if quality.mean < chosen.quality.mean and all(counts[key] <= limit for key, limit in limits.items()):
                cost = cost_of(group, by_name)
                found.append(Rival(method=method, size=size, params=counts["params"], quality=quality, cost=cost))
    return sorted(found, key=lambda rival: rival.quality.mean)


def _comparable(record: Record, metric: str, samples: int) -> bool:
    return bool(record["quality"]["metric"] == metric and record["quality"]["n_samples"] == samples)


def quality_of(per_seed: list[list[float]]) -> Quality:
    """Returns the mean over seeds of a metric's values, which are those of each seed's sampling seeds, with its standard error."""
    found = mean_of_seeds(per_seed)
    return Quality(mean=found.mean, std_error=found.std_error, seeds=len(per_seed))


def within_noise(one: Quality, other: Quality) -> bool:
    """Says whether two means are closer than twice the standard error of their difference; unknown errors count as none."""
    return abs(one.mean - other.mean) <= 2 * math.hypot(one.std_error or 0.0, other.std_error or 0.0)
