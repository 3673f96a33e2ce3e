"""Formats the answer of `choose`: the choice, its reasons, its neighbours and its rivals."""

from baselines.names import RECIPES
from repro.deliver.averages import Cost
from repro.deliver.candidates import UNITS, Candidate, amount, cost_text, rivals, within_noise
from repro.deliver.choose import METHOD, Choice
from repro.experiment.cells import Experiment
from repro.size_text import size_text
from repro.text_table import text_table

TITLES = {"params": "params", "macs": "MACs", "latency_ms": "ms", "memory_mb": "MB"}
MEMORY = "MB: weights and the most activations alive at once in one forward pass on one image, float32."


def choice_text(experiment: Experiment, choice: Choice) -> str:
    """Returns the answer of `choose`."""
    limits = " and ".join(f"at most {amount(key, limit)}" for key, limit in choice.budget.items())
    lines = [f"{experiment.config.name}, {limits}: take P = {size_text(choice.chosen.size)} of seed {choice.seed}", ""]
    columns = [key for key in UNITS if key in choice.chosen.costs]
    table = [["", "P", *(TITLES[key] for key in columns), experiment.config.evaluation.metric, "fits"]]
    for candidate in choice.all:
        table.append(_row("->" if candidate is choice.chosen else "", candidate, columns, choice.budget))
        if not isinstance(choice.between, str) and candidate.size == _next_larger(choice):
            table.append(_row("~", choice.between.candidate, columns, choice.budget))
    lines += [*text_table(table, f"lr{'r' * len(columns)}ll"), ""]
    lines += [*_why(experiment, choice), *_between(choice), *_rivals(experiment, choice)]
    if "latency_ms" in choice.budget:
        from repro.deliver.device_costs import timed_on

        busy = ", while other processes took part of it" if any(one.latency and one.latency.busy for one in choice.all) else ""
        lines.append(f"ms: one image, the median of what was measured now on {timed_on()}{busy}.")
    if "memory_mb" in choice.budget:
        lines.append(MEMORY)
    return "\n".join(lines)


def _why(experiment: Experiment, choice: Choice) -> list[str]:
    settings, chosen = experiment.config.evaluation, choice.chosen
    assert chosen.quality is not None
    fitting = [candidate for candidate in choice.all if candidate.fits(choice.budget)]
    drawn = f"{settings.sampler_steps} DDIM steps, {settings.spacing} spacing"
    if settings.sampler != "ddim":  # the others do not read the spacing
        drawn = f"{settings.sampler_steps} steps of the sampler {settings.sampler}"
    drawn += f", guidance {settings.guidance:g}" if settings.guidance != 1 else ""
    protocol = f"{settings.samples:,} samples, {drawn}"
    lines = [f"Why: the lowest mean {settings.metric} ({protocol}) of the {len(fitting)} recorded sizes that fit; lower is better."]
    for other in fitting:
        if other is not chosen and other.quality and within_noise(chosen.quality, other.quality):
            lines.append(f"P = {size_text(other.size)} cannot be told from it: the difference lies within twice its standard error.")
    for other in choice.all:
        if not other.excess(choice.budget) and (doubt := other.undecided(choice.budget)):
            lines.append(f"P = {size_text(other.size)} is {doubt}; measure again when the machine is quiet.")
    return lines


def _between(choice: Choice) -> list[str]:
    if isinstance(choice.between, str):
        return [f"In between: {choice.between}."]
    quality = choice.between.candidate.quality
    said = "its quality was measured just now" if quality else "--measure measures its quality"
    size = f"~ P = {choice.between.candidate.size:g}"
    what = "trained, but not measured" if choice.between.trained else "never trained at this size, with the supernet's weights"
    return [f"{size}: in between, {what}; {said}, --between takes it."]


def _rivals(experiment: Experiment, choice: Choice) -> list[str]:
    found = rivals(experiment, choice.records, RECIPES, choice.chosen, choice.budget)
    if not found:
        return []
    best = found[0]
    return [
        f"Better within the same counts, but trained for that one size: {best.method} at P = {size_text(best.size)}, "
        f"{best.params:,} parameters, {best.quality.text()}; {_hours(best.cost)}. {METHOD}'s sizes share one training."
    ]


def _hours(cost: Cost) -> str:
    """Returns the training cost of one network, over the same seeds as its quality."""
    if cost.device_hours is None:
        return f"its cost is not known ({cost.note})"
    return f"{cost.device_hours:.3g} device-hours on {cost.device} each{', which was busy' if cost.busy else ''}"


def _next_larger(choice: Choice) -> float:
    """Returns the size under which the one in between stands."""
    return min(candidate.size for candidate in choice.all if not candidate.fits(choice.budget))


def _row(mark: str, candidate: Candidate, columns: list[str], budget: dict[str, float]) -> list[str]:
    costs = [cost_text(key, candidate.costs[key]) for key in columns]
    quality = candidate.quality.text() if candidate.quality else "not measured"
    return [mark, f"{candidate.size:g}", *costs, quality, candidate.verdict(budget)]
