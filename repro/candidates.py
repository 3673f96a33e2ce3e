"""What there is to choose from: the recorded subnets of an experiment, what each costs on this machine, and how good it is."""

import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repro.harness.arithmetic import autocast, laid_out
from repro.harness.cells import Cell, Experiment
from repro.harness.cost import latency_ms, peak_bytes
from repro.harness.denoiser import build_base, with_widths
from repro.harness.distributed import device
from repro.harness.records import Record, read_records

MB = 1e6
UNITS = {"params": "parameters", "macs": "MACs", "latency_ms": "ms", "memory_mb": "MB"}


def amount(key: str, value: float) -> str:
    """Returns a cost or a limit with its unit."""
    return f"{value:,.0f} {UNITS[key]}" if key in ("params", "macs") else f"{value:,.3g} {UNITS[key]}"


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
    """

    size: float
    costs: dict[str, float]
    quality: Quality | None

    def excess(self, budget: dict[str, float]) -> list[str]:
        """Says which limits of a budget it breaks, and how."""
        return [f"more than {amount(key, budget[key])}" for key in UNITS if key in budget and self.costs[key] > budget[key]]


def recorded(experiment: Experiment, methods: Collection[str]) -> list[Record]:
    """Returns the measured records of some methods; the folder is read once."""
    return [
        record
        for record in read_records(experiment.results)
        if record["status"] == "done" and record["cell"]["method"] in methods and record.get("quality") and record.get("size")
    ]


def qualities(records: Iterable[Record]) -> dict[float, Quality]:
    """Returns the quality of every size over its seeds."""
    values: dict[float, list[list[float]]] = {}
    for record in records:
        values.setdefault(record["cell"]["size"], []).append(record["quality"]["values"])
    return {size: quality_of(per_seed) for size, per_seed in values.items()}


def candidates(experiment: Experiment, method: str, seed: int, budget: dict[str, float]) -> list[Candidate]:
    """Returns the recorded subnets of a method at a seed, largest first.

    Args:
        experiment: The configuration and its folders.
        method: Of the grid.
        seed: Whose subnets are offered; their quality is that over all seeds.
        budget: The limits; what they ask for is measured.

    Raises:
        ReproError: A record is corrupt, or another configuration made it.
    """
    records = recorded(experiment, (method,))
    quality, found = qualities(records), []
    for record in records:
        cell = record["cell"]
        experiment.record(Cell(method=method, size=cell["size"], seed=cell["seed"]))  # refuses those of another configuration
        if cell["seed"] != seed:
            continue
        costs = {"params": record["size"]["params"], "macs": record["size"]["macs"]}
        if budget.keys() & {"latency_ms", "memory_mb"}:
            model = with_widths(build_base(experiment.config.denoiser, seed=0), record["size"]["widths"])
            costs |= measured(experiment, model, budget)
        found.append(Candidate(size=cell["size"], costs=costs, quality=quality[cell["size"]]))
    return sorted(found, key=lambda candidate: -candidate.size)


def measured(experiment: Experiment, model: nn.Module, budget: dict[str, float]) -> dict[str, float]:
    """Returns what a budget asks for beside counts: the latency of one image here, and the memory of sampling one image.

    The memory is that of the weights and of the most activations that are alive at once in a forward pass, in float32; what a library
    keeps for itself is not in it.
    """
    costs: dict[str, float] = {}
    if "memory_mb" in budget:
        costs["memory_mb"] = peak_bytes(model, experiment.image_shape) / MB
    if "latency_ms" in budget:
        model = laid_out(model, experiment.config.compute, device())
        with autocast(experiment.config.evaluation.precision, device()):
            costs["latency_ms"] = latency_ms(model, experiment.image_shape, 1)
    return costs


def rivals(experiment: Experiment, methods: Collection[str], chosen: Candidate, budget: dict[str, float]) -> list[dict[str, Any]]:
    """Returns networks of other methods that score better within the same counts, best first, with the training that each took.

    Only parameters and MACs are compared, and only records of the same metric and as many samples.
    """
    assert chosen.quality is not None
    limits = {key: budget.get(key, math.inf) for key in ("params", "macs")}
    if not budget.keys() & limits.keys():
        limits = {key: 1.02 * chosen.costs[key] for key in limits}
    settings, found = experiment.config.evaluation, []
    comparable = [record for record in recorded(experiment, methods) if _comparable(record, settings.metric, settings.samples)]
    for method in methods:
        records = [record for record in comparable if record["cell"]["method"] == method]
        for size, quality in qualities(records).items():
            first = next(record for record in records if record["cell"]["size"] == size)
            fits = all(first["size"][key] <= limit for key, limit in limits.items())
            if fits and quality.mean < chosen.quality.mean:
                found.append({"method": method, "size": size, "quality": quality, "record": first})
    return sorted(found, key=lambda rival: float(rival["quality"].mean))


def _comparable(record: Record, metric: str, samples: int) -> bool:
    return bool(record["quality"]["metric"] == metric and record["quality"]["n_samples"] == samples)


def quality_of(per_seed: list[list[float]]) -> Quality:
    """Returns the mean over seeds of a metric's values, which are those of each seed's sampling seeds, with its standard error."""
    means = [statistics.fmean(values) for values in per_seed]
    spread = means if len(means) > 1 else per_seed[0]
    error = statistics.stdev(spread) / math.sqrt(len(spread)) if len(spread) > 1 else None
    return Quality(mean=statistics.fmean(means), std_error=error, seeds=len(means))


def within_noise(one: Quality, other: Quality) -> bool:
    """Says whether two means are closer than twice the standard error of their difference; unknown errors count as none."""
    return abs(one.mean - other.mean) <= 2 * math.hypot(one.std_error or 0.0, other.std_error or 0.0)


def threads() -> str:
    """Returns how many CPU threads a latency was measured with."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"
