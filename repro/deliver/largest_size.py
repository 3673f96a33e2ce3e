"""The largest size P within a budget, trained or not: the answer of `python -m repro sizes --max-params`."""

import dataclasses
import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from repro.budget.estimate import Estimate
from repro.budget.throughput import measure
from repro.budget.work import stages
from repro.config import changed
from repro.deliver.candidates import UNITS, Candidate, amount, cost_text
from repro.deliver.choice_text import MEMORY, TITLES
from repro.deliver.choose import FLAGS, METHOD, check_budget
from repro.deliver.device_costs import candidate_of, of_size, timed_on
from repro.deliver.sizes import importance_here
from repro.errors import ReproError
from repro.experiment.cells import BASE, Experiment, plan_cells, with_size
from repro.methods.plan import plan_of
from repro.models.denoiser import build_base, meta_base
from repro.ofa.allocation import smallest_size
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime.provenance import device_name
from repro.size_text import size_text
from repro.text_table import text_table

STEPS = 1000  # P is searched for among its thousandths
RIVAL = "diff_pruning"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What it would take to train the network of a size.

    Attributes:
        command: That does so; its numbers are of a configuration of its own, so it names folders of its own.
        pflop: 10^15 FLOP of the training; of a joint run, those that its sizes share.
        device_hours: Of the same on this machine.
    """

    command: str
    pflop: float
    device_hours: float


def describe_largest(experiment: Experiment, budget: dict[str, float], *, as_json: bool) -> str:
    """Returns a table, or JSON: the largest P that keeps a budget, the trained sizes beside it, and what training exactly it would take.

    The allocation follows the trained base's importances where a base lies in the runs folder; before that, equal importances.

    Args:
        experiment: The configuration and its folders.
        budget: The limits, by `params`, `macs`, `latency_ms` or `memory_mb`; at least one.
        as_json: Whether to return JSON.

    Raises:
        ReproError: A limit is not positive, or no size keeps all of them; names what the smallest needs.
    """
    check_budget(budget)
    config = experiment.config
    base = build_base(config.denoiser, seed=0) if "latency_ms" in budget else meta_base(config.denoiser)
    pipes = pipes_of(base, config.allocation.resampling_units)
    importance, source = importance_here(experiment, pipes)

    @cache
    def candidate(size: float) -> Candidate:
        supernet = Supernet(base, pipes, plan_of(of_size(experiment, size), base, importance))
        return candidate_of(experiment, supernet, size, budget)

    least = smallest_size(pipes, config.allocation.floor) if config.allocation.rule == "gradual" else 0.0
    sizes = [step / STEPS for step in range(max(1, math.ceil(STEPS * least)), STEPS + 1)]
    fitting = bisect_left(sizes, True, key=lambda size: not candidate(size).fits(budget))
    if not fitting:
        raise ReproError(_refusal(candidate(sizes[0]), budget))
    size = sizes[fitting - 1]
    below = max((trained for trained in config.sizes.trained if trained <= size), default=None)
    above = min((trained for trained in config.sizes.trained if trained > size), default=None)
    rows = [candidate(row) for row in sorted({size, below or size, above or size}, reverse=True)]
    training = {} if below == size else _trainings(experiment, size)
    if as_json:
        content = {"config": config.name, "allocation": config.allocation.rule, "importance": source, "budget": budget, "size": size}
        costs = [{"size": row.size, "trained": row.size in config.sizes.trained, "fits": row.fits(budget)} | row.costs for row in rows]
        took = {method: dataclasses.asdict(each) for method, each in training.items()}
        return json.dumps(content | {"largest_trained": below, "sizes": costs, "training": took}, indent=2)
    limits = " and ".join(f"at most {amount(key, limit)}" for key, limit in budget.items())
    heading = f"{config.name}, {limits}: P = {size_text(size)} is the largest size that fits, of thousandths; by {source}"
    return "\n".join(
        [heading, "", *_table(config.sizes.trained, rows, size, budget), "", *_remarks(experiment, budget, size, below, training)]
    )


def _refusal(smallest: Candidate, budget: Mapping[str, float]) -> str:
    flag = next((FLAGS[key] for key in budget if smallest.excess({key: budget[key]})), FLAGS["latency_ms"])
    needs = smallest.undecided(dict(budget)) or ", ".join(amount(key, smallest.costs[key]) for key in budget)
    return f"{flag}: no size surely fits; the smallest, P = {size_text(smallest.size)}, needs {needs}; allow more"


def _trainings(experiment: Experiment, size: float) -> dict[str, Training]:
    """Returns what training takes with this size among the others of a joint run, and for this size alone."""
    sizes = experiment.config.sizes
    added = {f"sizes.{key}": tuple(dict.fromkeys([*getattr(sizes, key), size])) for key in ("trained", "reported")}
    this = dataclasses.replace(experiment, config=changed(experiment.config, added))
    words = " ".join(with_size(f"sizes.{key}", getattr(sizes, key), size) for key in ("trained", "reported"))
    folders = f"--results results/with-{size_text(size)} --runs runs/with-{size_text(size)}"
    throughput, found = measure(experiment), {}
    for method in (METHOD, RIVAL):
        cells = [cell for cell in plan_cells(this, [method], [size], [0]) if cell.method != BASE]
        work = [stage for stage in stages(this, cells, afresh=True) if stage.kind == "training"]
        estimate = Estimate(config=this.config, stages=work, throughput=throughput)
        found[method] = Training(
            command=f"{experiment.program.typed} run {experiment.source} --methods {method} --sizes {size_text(size)} {words} {folders}",
            pflop=sum(stage.pflop for stage in work),
            device_hours=sum(estimate.device_hours(stage)[0] for stage in work),
        )
    return found


def _table(trained: Sequence[float], rows: Sequence[Candidate], size: float, budget: dict[str, float]) -> list[str]:
    columns = [key for key in UNITS if key in rows[0].costs]
    table = [["", "P", *(TITLES[key] for key in columns), "trained", "fits"]]
    for row in rows:
        costs = [cost_text(key, row.costs[key]) for key in columns]
        mark, kind = "->" if row.size == size else "", "yes" if row.size in trained else "no"
        table.append([mark, size_text(row.size), *costs, kind, row.verdict(budget)])
    return text_table(table, f"lr{'r' * len(columns)}ll")


def _remarks(
    experiment: Experiment, budget: Mapping[str, float], size: float, below: float | None, training: Mapping[str, Training]
) -> list[str]:
    """Says which trained size to take, what training exactly this one takes, and what was counted."""
    lines = ["No trained size fits."]
    if below:
        taken = f"`{experiment.program.typed} extract {experiment.source} --size {size_text(below)} --out subnet`"
        lines = [f"The largest trained size that fits is P = {size_text(below)}; once trained, {taken} saves it."]
    for method, how in {METHOD: "with the others, in one joint run", RIVAL: "alone"}.items() if training else ():
        took = f"{training[method].pflop:.3g} PFLOP, about {training[method].device_hours:.2g} device-hours on {device_name()}"
        lines += [f"Training P = {size_text(size)} {how}: {took}:", f"  {training[method].command}"]
    lines += [f"ms: one image, the median of what was measured now on {timed_on()}."] if "latency_ms" in budget else []
    return lines + ([MEMORY] if "memory_mb" in budget else [])
