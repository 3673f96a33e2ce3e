"""Means over seeds and costs of delivery: for `choose`. It does not import torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repro.experiment.records import Record


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a metric.

    Attributes:
        mean: Of the seeds' means.
        std_error: Of that mean, over what `spread_over` names; None where there is one value.
        spread_over: `seeds`, `sampling seeds` where one was trained, or empty.
    """

    mean: float
    std_error: float | None
    spread_over: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one network costs, on the mean over its seeds, with all that delivers it.

    Attributes:
        device_hours: Of training overhead; None where they are not known.
        device: What they were spent on.
        busy: Whether other processes took part of that machine, so that the hours read too high.
        note: Why they are not known; empty where they are.
    """

    device_hours: float | None
    device: str = ""
    busy: bool = False
    note: str = ""


def mean_of_seeds(per_seed: Sequence[Sequence[float]]) -> Mean:
    """Returns the mean of the seeds' means and its standard error.

    Args:
        per_seed: For each trained seed the values of its sampling seeds.
    """
    means = [statistics.fmean(values) for values in per_seed]
    spread = means if len(means) > 1 else per_seed[0]
    if len(spread) < 2:
        return Mean(mean=means[0], std_error=None, spread_over="")
    error = statistics.stdev(spread) / math.sqrt(len(spread))
    return Mean(mean=statistics.fmean(means), std_error=error, spread_over="seeds" if len(means) > 1 else "sampling seeds")


def cost_of(group: Sequence[Record], by_name: Mapping[str, Record]) -> Cost:
    """Returns the mean cost of the records of one method and size, one for each seed.

    A record's cost is its own and that of every cell that delivers it, once: the joint run of a subnet in full, of a pass that only scores
    channels an even share, since each pruned size of the seed pays one.

    Args:
        group: The records.
        by_name: Every record of the experiment by its cell's name.
    """
    hours: list[list[float | None]] = []
    paid_for: list[Record] = []
    for record in group:
        names = _paid_for(record, by_name)
        missing = [name for name in names if name not in by_name or by_name[name]["status"] != "done"]
        if missing:
            return Cost(device_hours=None, note=f"{missing[0]} has no record")
        parts = [record, *(by_name[name] for name in names)]
        hours.append([_shared(part, record, by_name) for part in parts])
        paid_for += parts
    devices = sorted({_device(part) for part in paid_for})
    if len(devices) > 1:
        return Cost(device_hours=None, note=f"device-hours on {' and '.join(devices)} do not add up")
    if any(None in own for own in hours):
        return Cost(device_hours=None, note="device-hours were not recorded")
    busy = any((_cost(part).get("busy") or {}).get("marked") for part in paid_for)
    sums = [sum(hour for hour in own if hour is not None) for own in hours]
    return Cost(device_hours=statistics.fmean(sums), device=devices[0], busy=busy)


def _shared(part: Record, of: Record, by_name: Mapping[str, Record]) -> float | None:
    """Returns the device-hours of a part of a record's cost that fall on the record."""
    hours: float | None = _cost(part).get("device_hours")
    training = part.get("training") or {}
    if part is of or hours is None or not training.get("scoring_pflop") or training["train_pflop"] > training["scoring_pflop"]:
        return hours
    method, seed, name = of["cell"]["method"], of["cell"]["seed"], part["cell"]["name"]
    served = [
        other
        for other in by_name.values()
        if (other["cell"]["method"], other["cell"]["seed"]) == (method, seed) and name in (other.get("delivered_by") or ())
    ]
    return hours / max(1, len(served))


def _paid_for(record: Record, by_name: Mapping[str, Record]) -> list[str]:
    """Returns the names of the cells that deliver one, and of those that deliver these."""
    found: dict[str, None] = {}
    pending = list(record.get("delivered_by") or ())
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = None
            pending += by_name[name].get("delivered_by") or () if name in by_name else ()
    return sorted(found)


def _device(record: Record) -> str:
    """Names the hardware and its ranks, where there were several."""
    cost = _cost(record)
    name, ranks = str(cost.get("device_name")), cost.get("ranks", 1)
    return name if ranks == 1 else f"{name}, {ranks} ranks"


def _cost(record: Record) -> Record:
    return record.get("cost") or {}
