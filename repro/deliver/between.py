"""Sizes between two recorded ones: found by bisection in a trained supernet, measured, and extracted."""

from dataclasses import replace
from pathlib import Path

from repro.deliver.candidates import quality_of
from repro.deliver.choose import METHOD, Between, Choice
from repro.deliver.device_costs import candidate_of, of_size
from repro.deliver.extract import check_new, extract_subnet, save_subnet
from repro.errors import ReproError
from repro.experiment.artefacts import check_inputs, read_manifest
from repro.experiment.cells import Cell, Experiment, base_cell, joint_cell
from repro.experiment.evaluate import draw_samples, judge
from repro.experiment.run import load_model
from repro.methods.plan import plan_of, ranking_scores, score_base
from repro.methods.train_once import load_supernet
from repro.ofa.supernet import Supernet
from repro.runtime.clock import Clock
from repro.runtime.distributed import device
from repro.runtime.precision import set_arithmetic
from repro.runtime.progress import CellProgress

SEARCH_STEPS = 10
BETWEEN = "between"
COMPARED = ("metric", "n_samples", "extractor", "reference", "sampler", "sampling_seeds")  # what a value depends on


def take(experiment: Experiment, choice: Choice, *, out: Path, between: bool, onnx: bool) -> Path:
    """Extracts what was chosen, or the size in between.

    Raises:
        ReproError: There is no size in between, nothing was trained here, or the folder is in the way.
    """
    set_arithmetic(experiment.config.compute)
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


def largest_between(experiment: Experiment, budget: dict[str, float], joint: Cell, lower: float, upper: float) -> Between | str:
    """Returns the largest size between two recorded ones that fits a budget, or why there is none.

    Args:
        experiment: The configuration and its folders.
        budget: The limits.
        joint: The cell of the trained supernet.
        lower: The size of the recorded subnet that fits.
        upper: The size of the next larger one, which does not.
    """
    set_arithmetic(experiment.config.compute)
    try:
        return _trained_between(experiment, budget, load_supernet(experiment, joint), lower, upper, joint.seed)
    except ReproError as error:  # a choice among the records needs no weights
        return f"a size in between needs the trained weights: {error}"


def _with_between(experiment: Experiment) -> Experiment:
    """Returns the experiment with the size in between as a method of its own: a subnet like those of the grid, and no cell of it."""
    return replace(experiment, methods={**experiment.methods, BETWEEN: replace(experiment.methods[METHOD], name=BETWEEN)})


def _needed(choice: Choice) -> Between:
    """Returns the size in between, where there is one."""
    if isinstance(choice.between, str):
        raise ReproError(f"--between, --measure: {choice.between}")
    return choice.between


def _trained_between(
    experiment: Experiment, budget: dict[str, float], trained: Supernet, lower: float, upper: float, seed: int
) -> Between | str:
    """Returns the largest trained size that fits and was not measured, or else the largest untrained one, or why there is none."""
    best = None
    for size in sorted(size for size in trained.sizes if lower < size < upper):  # trained, but not among those that are measured
        candidate = candidate_of(experiment, trained, size, budget)
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
        plan = plan_of(of_size(experiment, size), base, importance, scores)
        supernet = Supernet(trained.base, trained.pipes, plan)
        candidate = candidate_of(experiment, supernet, size, budget)
        if not candidate.fits(budget):
            fails = size
        else:
            fits, best = size, Between(candidate=candidate, supernet=supernet, trained=False)
    if best is None or best.supernet.plan.params[best.candidate.size] == trained.plan.params[lower]:
        return f"no whole unit of a pipe fits between P = {lower:g} and the budget"
    if not _nested(best.supernet, trained, lower, upper):
        return "the importances came out otherwise here than where the supernet was trained, so that the sizes would not be nested"
    return best


def _nested(between: Supernet, trained: Supernet, lower: float, upper: float) -> bool:
    """Says whether a size keeps all that the smaller one keeps and nothing that the larger one does not."""
    (kept,) = between.plan.kept.values()
    below, above = trained.plan.kept[lower], trained.plan.kept[upper]
    return all(set(below[pipe]) <= set(channels) <= set(above[pipe]) for pipe, channels in kept.items())
