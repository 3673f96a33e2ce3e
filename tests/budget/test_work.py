"""A method from outside counts by what it says of itself: in the estimate, in the steps that fit `hours`, in the time left."""

import dataclasses

import pytest
from support.estimates import HERE, experiment

from repro.api import Law, Method, Stage, formula4_work, needs_base, trained_once, training_stage
from repro.budget import throughput
from repro.budget.estimate import Estimate
from repro.budget.hours import set_budget
from repro.budget.throughput import Rate
from repro.budget.work import stages
from repro.config import changed
from repro.config.sections import BUDGETS
from repro.experiment.cells import Cell, plan_cells
from repro.experiment.run import work_of
from repro.experiment.stage import costs_of
from repro.methods.names import COMPARED

pytestmark = pytest.mark.quick

pytestmark = pytest.mark.quick

HOURS = 2.0
SIZES = (0.6, 0.5)  # the first is none of the trained sizes
OWN_STEPS = 2000


def never(*_):
    raise AssertionError("an estimate makes nothing")


def own_work(experiment, cells, costs):
    """Probes the base at every seed, then trains by steps that no section holds."""
    probed = Stage(name="own: probe", kind="training", images=5, passes=5, pflop=5 * costs.macs[1.0] / 1e15, seconds=3.0)
    settings = dataclasses.replace(experiment.config.baseline_training, steps=OWN_STEPS)
    return [probed, training_stage(experiment, cells, costs, settings)]


PLAIN = Method(
    name="own",
    summary="says no more than its budget",
    sizes=lambda _config: SIZES,
    make=never,
    needs=needs_base,
    budget=lambda _config: "baseline_training",
)
TOLD = dataclasses.replace(PLAIN, work=own_work, rule=lambda config: config.allocation.rule)


def with_own(config, tmp_path, *methods):
    plain = experiment(config, tmp_path)
    return dataclasses.replace(plain, methods={**plain.methods, **{method.name: method for method in methods}})


def rows(this, *names):
    return {stage.name: stage for stage in stages(this, plan_cells(this, list(names), None, [0]))}


# The estimate


def test_a_method_without_work_trains_its_budget_at_the_sizes_of_its_cells(tiny, tmp_path):
    this = with_own(tiny, tmp_path, PLAIN)
    found, uniform = rows(this, "own"), costs_of(this.config, "uniform", SIZES)
    images = tiny.baseline_training.steps * tiny.baseline_training.batch_size
    training = found["own: training"]
    assert (training.images, training.budget) == (2 * images, "baseline_training")
    assert training.pflop == pytest.approx(6 * sum(uniform.macs[size] for size in SIZES) * images / 1e15)
    assert training.kept_gb == pytest.approx(4 * sum(uniform.params[size] for size in SIZES) / 1e9)
    assert found["own: sampling"].images == 2 * tiny.evaluation.samples


def test_a_method_with_work_counts_by_it_and_by_its_rule(tiny, tmp_path):
    this = with_own(tiny, tmp_path, TOLD)
    found, planned = rows(this, "own"), costs_of(this.config, tiny.allocation.rule, SIZES)
    images = OWN_STEPS * tiny.baseline_training.batch_size
    assert (found["own: probe"].images, found["own: probe"].seconds) == (5, 3.0)
    assert (found["own: training"].images, found["own: training"].budget) == (2 * images, "")
    assert found["own: training"].pflop == pytest.approx(6 * sum(planned.macs[size] for size in SIZES) * images / 1e15)


def test_scoring_by_formula4_is_charged_to_whoever_says_so(tiny, tmp_path):
    scored = dataclasses.replace(PLAIN, work=formula4_work)
    found = rows(with_own(tiny, tmp_path, scored), "own")
    assert found["own: importance"].images == 2 * tiny.importance.images
    assert found["own: training"] == rows(with_own(tiny, tmp_path, PLAIN), "own")["own: training"]


def test_a_law_of_ones_own_shares_the_images(tiny, tmp_path):
    class Extremes(Law):
        def shares(self, sizes):
            return {size: 0.5 * (size in (min(sizes), max(sizes))) for size in sizes}

    this = with_own(tiny, tmp_path, *trained_once("extremes", "trains two sizes alone", law=Extremes()))
    macs, images = costs_of(this.config, tiny.allocation.rule).macs, tiny.ofa_training.steps * tiny.ofa_training.batch_size
    expected = 6 * (macs[1.0] + macs[0.25]) / 2 * images / 1e15
    assert rows(this, "extremes")["extremes_joint: training"].pflop == pytest.approx(expected)


# The hours


@pytest.fixture
def timed(tiny, monkeypatch):
    """A configuration with two hours, on a machine of known speed."""
    found = dataclasses.replace(HERE, on_gpu=True, training=Rate(fixed_sec=0.01, sec_per_pflop=1e6))
    monkeypatch.setattr(throughput, "measure", lambda _experiment: found)
    steps = {"base_training": 4000, "ofa_training": 2000, "baseline_training": 1000}
    return dataclasses.replace(changed(tiny, {f"{section}.steps": count for section, count in steps.items()}), hours=HOURS)


@pytest.mark.parametrize("own", [PLAIN, TOLD])
def test_hours_hold_a_method_of_ones_own(timed, tmp_path, own):
    this, alone = with_own(timed, tmp_path, own), experiment(timed, tmp_path)
    found = set_budget(this, keep=False)
    cells = plan_cells(this, [*COMPARED, "own"], None, [0])
    hours = Estimate(config=found.config, stages=stages(found, cells), throughput=throughput.measure(found)).total_wall_hours()
    assert 0.98 * HOURS < hours <= HOURS
    less, more = ([getattr(each.config, section).steps for section in BUDGETS] for each in (found, set_budget(alone, keep=False)))
    assert less < more


# The time left


def test_the_time_left_counts_what_the_method_says(tiny, tmp_path):
    cell, scores = Cell(method="own", size=0.5, seed=0), Cell(method="diff_pruning_scores", size=None, seed=0)
    heavy = dataclasses.replace(PLAIN, work=lambda *_: [Stage(name="own: all", kind="training", pflop=1.0)])
    this = with_own(tiny, tmp_path, heavy)
    assert 1.0 < work_of(this, cell) < 1.01
    uniform = costs_of(this.config, "uniform")
    (expected,) = [stage.pflop for stage in rows(this, "diff_pruning").values() if "importance" in stage.name]
    assert work_of(this, scores) == pytest.approx(expected, rel=1e-3)
    trained = 6 * uniform.macs[0.5] * tiny.baseline_training.steps * tiny.baseline_training.batch_size / 1e15
    drawn = 2 * uniform.macs[0.5] * tiny.evaluation.samples * tiny.evaluation.sampler_steps / 1e15
    assert work_of(with_own(tiny, tmp_path, PLAIN), cell) == pytest.approx(trained + drawn, rel=0.15)
