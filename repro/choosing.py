"""The right subnet for a device: the answer of `python -m repro choose`."""

from dataclasses import dataclass, replace
from pathlib import Path

from repro.candidates import Candidate, amount, candidates, measured, quality_of
from repro.errors import ReproError
from repro.extraction import check_new, extract_subnet, save_subnet
from repro.harness.cells import Cell, Experiment, base_cell, joint_cell
from repro.harness.clock import Clock
from repro.harness.cost import count_macs, count_params
from repro.harness.distributed import device
from repro.harness.evaluation import draw_samples, judge
from repro.harness.experiment import load_model
from repro.harness.manifest import check_inputs, is_made, read_manifest
from repro.harness.progress import CellProgress
from repro.joint import load_supernet
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.planning import plan_of, ranking_scores, score_base
from repro.sections import MOST_SEED, not_negative
from repro.size_text import size_text

METHOD = "ofa"
SEARCH_STEPS = 10
BETWEEN = "between"
COMPARED = ("metric", "n_samples", "extractor", "reference", "sampler", "sampling_seeds")  # what a value depends on
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
    supernet: Supernet
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to take within a budget.

    Attributes:
        chosen: The best recorded subnet that fits.
        all: Every recorded one, largest first.
        between: The largest size that fits between two recorded ones, or why there is none.
    """

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
    for key, limit in budget.items():
        if not limit > 0:
            raise ReproError(f"{FLAGS[key]} {limit:g}: must be positive")
    found = candidates(experiment, METHOD, seed, budget)
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
    return Choice(budget=budget, seed=seed, chosen=chosen, all=found, between=_between(experiment, budget, seed, found))


def take(experiment: Experiment, choice: Choice, *, out: Path, between: bool, onnx: bool) -> Path:
    """Extracts what was chosen, or the size in between.

    Raises:
        ReproError: There is no size in between, nothing was trained here, or the folder is in the way.
    """
    check_new(out)
    if not between:
        return extract_subnet(experiment, size=choice.chosen.size, seed=choice.seed, out=out, onnx=onnx)
    found = _needed(choice)
    if found.trained:
        return extract_subnet(experiment, size=found.candidate.size, seed=choice.seed, out=out, onnx=onnx)
    cell = Cell(method=BETWEEN, size=found.candidate.size, seed=choice.seed)
    subnet = found.supernet.extract(found.candidate.size)
    return save_subnet(_with_between(experiment), cell, subnet, found.supernet.base, out=out, onnx=onnx, recorded=False)


def measure_between(experiment: Experiment, choice: Choice) -> Choice:
    """Measures the quality of the size in between by the protocol of the experiment, as a cell of the grid would be.

    Raises:
        ReproError: There is no size in between.
    """
    experiment, found = _with_between(experiment), _needed(choice)
    size = found.candidate.size
    cell = Cell(method=BETWEEN, size=size, seed=choice.seed)
    joint = joint_cell(cell)
    manifest = read_manifest(experiment, joint)
    check_inputs(experiment, joint, manifest)
    report = CellProgress(cell.name, Clock(), experiment.folder(cell), experiment.identity(cell))
    try:
        sets = draw_samples(experiment, found.supernet.extract(size), cell, f"{cell.name} of {manifest.digest}", report)
        quality = judge(experiment, sets, experiment.images.pixels, report, sampled=True)
    finally:
        report.close()
    recorded = experiment.record(Cell(method=METHOD, size=choice.chosen.size, seed=choice.seed))
    for key in COMPARED:
        if recorded and recorded["quality"].get(key) != quality[key]:
            raise ReproError(f"--measure: its {key} is not that of the records, so that the values cannot be compared; run the cells again")
    candidate = replace(found.candidate, quality=quality_of([quality["values"]]))
    return replace(choice, between=replace(found, candidate=candidate))


def _with_between(experiment: Experiment) -> Experiment:
    """Returns the experiment with the size in between as a method of its own: a subnet like those of the grid, and no cell of it."""
    return replace(experiment, methods={**experiment.methods, BETWEEN: replace(experiment.methods[METHOD], name=BETWEEN)})


def _needed(choice: Choice) -> Between:
    """Returns the size in between, where there is one."""
    if isinstance(choice.between, str):
        raise ReproError(f"--between, --measure: {choice.between}")
    return choice.between


def _between(experiment: Experiment, budget: dict[str, float], seed: int, found: list[Candidate]) -> Between | str:
    """Returns the largest size that fits between two recorded ones, or why there is none."""
    lower = max(candidate.size for candidate in found if candidate.fits(budget))
    upper = min((candidate.size for candidate in found if candidate.size > lower), default=0.0)
    if not upper:
        return f"no size lies in between: the largest recorded one, P = {lower:g}, fits the budget"
    joint = joint_cell(Cell(method=METHOD, size=lower, seed=seed))
    if not (is_made(experiment, joint) and is_made(experiment, base_cell(experiment.config, joint.seed))):
        return f"a size in between needs the trained weights, which do not lie in {experiment.runs}"
    try:
        return _trained_between(experiment, budget, load_supernet(experiment, joint), lower, upper, seed)
    except ReproError as error:  # a choice among the records needs no weights
        return f"a size in between needs the trained weights: {error}"


def _trained_between(
    experiment: Experiment, budget: dict[str, float], trained: Supernet, lower: float, upper: float, seed: int
) -> Between | str:
    """Returns the largest trained size that fits and was not measured, or else the largest untrained one, or why there is none."""
    best = None
    for size in sorted(size for size in trained.sizes if lower < size < upper):  # trained, but not among those that are measured
        candidate = _candidate(experiment, trained, size, budget)
        if not candidate.fits(budget):
            upper = size
            break
        lower, best = size, Between(candidate=candidate, supernet=trained, trained=True)
    return best or _untrained(experiment, budget, seed, trained, lower, upper)


def _untrained(experiment: Experiment, budget: dict[str, float], seed: int, trained: Supernet, lower: float, upper: float) -> Between | str:
    """Returns the largest size that fits between two trained ones, of which the larger does not, or why there is none."""
    base = load_model(experiment, base_cell(experiment.config, seed)).to(device())
    importance = score_base(experiment, base, seed)
    scores = ranking_scores(experiment, base, importance, seed)
    fits, fails, best = lower, upper, None
    for _ in range(SEARCH_STEPS):
        size = round((fits + fails) / 2, 4)
        plan = plan_of(_with_sizes(experiment, size), base, importance, scores)
        supernet = Supernet(trained.base, pipes_of(trained.base), plan)
        candidate = _candidate(experiment, supernet, size, budget)
        if not candidate.fits(budget):
            fails = size
        else:
            fits, best = size, Between(candidate=candidate, supernet=supernet, trained=False)
    if best is None or best.supernet.plan.params[best.candidate.size] == trained.plan.params[lower]:
        return f"no whole unit of a pipe fits between P = {lower:g} and the budget"
    if not _nested(best.supernet, trained, lower, upper):
        return "the importances came out otherwise here than where the supernet was trained, so that the sizes would not be nested"
    return best


def _candidate(experiment: Experiment, supernet: Supernet, size: float, budget: dict[str, float]) -> Candidate:
    """Returns a subnet of a supernet with what it costs, its quality not measured."""
    subnet = supernet.eval().extract(size)
    counts = {"params": float(count_params(subnet.parameters())), "macs": float(count_macs(subnet, experiment.image_shape).total)}
    (candidate,) = measured(experiment, [Candidate(size=size, costs=counts, quality=None)], [subnet], budget)
    return candidate


def _with_sizes(experiment: Experiment, size: float) -> Experiment:
    sizes = replace(experiment.config.sizes, trained=(size,), reported=(size,))
    return replace(experiment, config=replace(experiment.config, sizes=sizes))


def _nested(between: Supernet, trained: Supernet, lower: float, upper: float) -> bool:
    """Says whether a size keeps all that the smaller one keeps and nothing that the larger one does not."""
    (kept,) = between.plan.kept.values()
    below, above = trained.plan.kept[lower], trained.plan.kept[upper]
    return all(set(below[pipe]) <= set(channels) <= set(above[pipe]) for pipe, channels in kept.items())
