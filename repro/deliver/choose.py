"""The right subnet for a device: the answer of `python -m repro choose`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repro.config.sections import MOST_SEED, not_negative
from repro.deliver.candidates import Candidate, amount, candidates
from repro.errors import ReproError
from repro.experiment.artefacts import is_made
from repro.experiment.cells import Cell, Experiment, base_cell, joint_cell
from repro.experiment.records import Record
from repro.grid import known_records
from repro.size_text import size_text

if TYPE_CHECKING:
    from repro.ofa.supernet import Supernet

METHOD = "ofa"
FLAGS = {"params": "--max-params", "macs": "--max-macs", "latency_ms": "--max-latency-ms", "memory_mb": "--max-memory-mb"}


@dataclass(frozen=True, kw_only=True)
class Between:
    """The largest subnet between two recorded sizes that fits a budget.

    Attributes:
        candidate: What it is and costs.
        supernet: The trained weights with a plan that holds this size.
        trained: Whether it is one of the trained sizes, which was not measured; else its size was never trained.
    """

    candidate: Candidate
    supernet: "Supernet"
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to take within a budget.

    Attributes:
        records: What there was to choose from, and beside.
        budget: The limits.
        seed: Whose subnets are offered.
        chosen: The best recorded subnet that fits.
        all: Every recorded one, largest first.
        between: The largest size that fits between two recorded ones, or why there is none.
    """

    records: Sequence[Record]
    budget: dict[str, float]
    seed: int
    chosen: Candidate
    all: list[Candidate]
    between: Between | str


def choose(experiment: Experiment, budget: dict[str, float], *, seed: int) -> Choice:
    """Picks the recorded subnet of the lowest mean metric within a budget, and the largest one between two recorded sizes.

    Args:
        experiment: The configuration and its folders.
        budget: The limits, by `params`, `macs`, `latency_ms` or `memory_mb`; at least one.
        seed: The seed of the joint training run whose subnets are offered.

    Raises:
        ReproError: No budget was given, the seed is out of range, nothing has been recorded, or nothing fits; names what the smallest
            needs.
    """
    not_negative("--seed", seed, MOST_SEED)
    if not budget:
        raise ReproError(f"choose: give a budget: {', '.join(FLAGS.values())}")
    check_budget(budget)
    records = known_records(experiment.results)
    found = candidates(experiment, records, METHOD, seed, budget)
    if not found:
        raise ReproError(
            f"{experiment.results}: no measured subnet of {METHOD} at seed {seed}; make them with `{experiment.program.typed} run "
            f"{experiment.source} --methods {METHOD} --seeds {seed}`, or name another folder with --results"
        )
    fitting = [candidate for candidate in found if candidate.fits(budget)]
    if not fitting and (doubt := found[-1].undecided(budget)):
        raise ReproError(
            f"{FLAGS['latency_ms']}: no recorded subnet surely fits; the smallest, P = {size_text(found[-1].size)}, is {doubt}; measure "
            "again when the machine is quiet, or allow more"
        )
    if not fitting:
        needs = ", ".join(amount(key, found[-1].costs[key]) for key in budget)
        flag = next((FLAGS[key] for key in budget if found[-1].excess({key: budget[key]})), ", ".join(FLAGS[key] for key in budget))
        raise ReproError(f"{flag}: no recorded subnet fits; the smallest, P = {size_text(found[-1].size)}, needs {needs}; allow more")
    chosen = min(fitting, key=lambda candidate: candidate.quality.mean if candidate.quality else float("inf"))
    return Choice(records=records, budget=budget, seed=seed, chosen=chosen, all=found, between=_between(experiment, budget, seed, found))


def check_budget(budget: dict[str, float]) -> None:
    """Makes sure that limits are positive and finite.

    Raises:
        ReproError: One is not.
    """
    for key, limit in budget.items():
        if not 0 < limit < math.inf:
            raise ReproError(f"{FLAGS[key]} {limit:g}: must be positive and finite")


def _between(experiment: Experiment, budget: dict[str, float], seed: int, found: list[Candidate]) -> Between | str:
    """Returns the largest size that fits between two recorded ones, or why there is none."""
    lower = max(candidate.size for candidate in found if candidate.fits(budget))
    upper = min((candidate.size for candidate in found if candidate.size > lower), default=0.0)
    if not upper:
        return f"no size lies in between: the largest recorded one, P = {lower:g}, fits the budget"
    joint = joint_cell(Cell(method=METHOD, size=lower, seed=seed))
    if not (is_made(experiment, joint) and is_made(experiment, base_cell(experiment.config, joint.seed))):
        return f"a size in between needs the trained weights, which do not lie in {experiment.runs}"
    from repro.deliver.between import largest_between

    return largest_between(experiment, budget, joint, lower, upper)
