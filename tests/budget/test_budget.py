"""The key `hours`: steps that fit a time, measured once and used by every later command."""

import dataclasses
import tomllib

import pytest
from support.estimates import HERE, TINY, cells_of, experiment, folders

from repro.budget import throughput
from repro.budget.estimate import Estimate
from repro.budget.hours import set_budget, with_budget
from repro.budget.throughput import Rate
from repro.budget.work import stages
from repro.cli import main
from repro.config import load_config
from repro.config.sections import BUDGETS
from repro.errors import ReproError
from repro.methods.names import COMPARED

HOURS = 2.0


@pytest.fixture
def timed(tiny, tmp_path, monkeypatch):
    """The tiny experiment with proportions in its steps and two hours, on a machine of known speed."""
    found = dataclasses.replace(HERE, on_gpu=True, training=Rate(fixed_sec=0.01, sec_per_pflop=1e6))
    monkeypatch.setattr(throughput, "measure", lambda _experiment: found)
    steps = {"base_training": 4000, "ofa_training": 2000, "baseline_training": 1000, "finetuning": 100}
    changed = {section: dataclasses.replace(getattr(tiny, section), steps=count) for section, count in steps.items()}
    return experiment(dataclasses.replace(tiny, **changed, hours=HOURS), tmp_path)


def steps_of(config):
    return {section: getattr(config, section).steps for section in BUDGETS}


def test_steps_fill_the_hours_and_keep_their_proportions(timed):
    found = set_budget(timed, keep=True)
    steps = steps_of(found.config)
    assert all(count % 100 == 0 for count in steps.values())
    cells = cells_of(timed.config, COMPARED)
    hours = Estimate(config=found.config, stages=stages(found, cells), throughput=throughput.measure(found)).total_wall_hours()
    assert 0.98 * HOURS < hours <= HOURS
    factor = steps["base_training"] / 4000
    assert factor > 2
    for section, count in steps.items():
        assert count == pytest.approx(factor * getattr(timed.config, section).steps, abs=100)


def test_only_the_steps_change(timed):
    found = set_budget(timed, keep=True).config
    assert found.hours == HOURS
    changed = {section: dataclasses.replace(getattr(found, section), steps=1) for section in BUDGETS}
    written = {section: dataclasses.replace(getattr(timed.config, section), steps=1) for section in BUDGETS}
    assert dataclasses.replace(found, **changed) == dataclasses.replace(timed.config, **written)


def test_half_the_hours_give_less_than_half_the_steps(timed, tmp_path):
    whole = steps_of(set_budget(timed, keep=False).config)["base_training"]
    less = dataclasses.replace(timed, config=dataclasses.replace(timed.config, hours=HOURS / 2))
    assert 0.3 * whole < steps_of(set_budget(less, keep=False).config)["base_training"] < 0.5 * whole


def test_budget_is_kept_and_used_again_without_measuring(timed, monkeypatch):
    found = set_budget(timed, keep=True)
    monkeypatch.setattr(throughput, "measure", lambda _experiment: pytest.fail("measured again"))
    assert with_budget(timed).config == found.config
    assert with_budget(timed).config.sha256() == found.config.sha256() != timed.config.sha256()
    assert set_budget(with_budget(timed), keep=True).config == found.config
    kept = tomllib.loads((timed.results / "budget.toml").read_text())
    assert kept["steps"] == steps_of(found.config)
    assert (kept["hours"], kept["device"], kept["ranks"], kept["training_img_per_sec"]) == (HOURS, "a device", 1, 10)
    assert kept["measured_utc"].endswith("Z")
    assert kept["factor"] * 4000 == pytest.approx(kept["steps"]["base_training"], abs=100)


def test_what_lies_in_the_runs_folder_does_not_change_the_budget(timed):
    first = set_budget(timed, keep=False).config
    for cell in cells_of(timed.config, COMPARED):
        timed.folder(cell).mkdir(parents=True)
        (timed.folder(cell) / "made.json").touch()
    assert set_budget(timed, keep=False).config == first


def test_estimate_keeps_nothing(timed):
    set_budget(timed, keep=False)
    assert not timed.results.exists()
    assert with_budget(timed) is timed


def test_steps_stay_as_written_without_hours(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "measure", lambda _experiment: pytest.fail("measured"))
    this = experiment(tiny, tmp_path)
    assert with_budget(this) is set_budget(this, keep=True) is this
    assert not any(tmp_path.iterdir())


def test_no_training_gets_less_than_a_hundred_steps(timed):
    config = dataclasses.replace(timed.config, baseline_training=dataclasses.replace(timed.config.baseline_training, steps=1))
    assert steps_of(set_budget(dataclasses.replace(timed, config=config), keep=False).config)["baseline_training"] == 100


@pytest.mark.parametrize("on_gpu", [True, False])
def test_hours_that_leave_too_little_for_training_are_refused(timed, monkeypatch, capsys, on_gpu):
    slow = dataclasses.replace(
        throughput.measure(timed), on_gpu=on_gpu, sampling=Rate(fixed_sec=HOURS * 3600 / (6 * 40 * 3), sec_per_pflop=0.0)
    )
    monkeypatch.setattr(throughput, "measure", lambda _experiment: slow)
    with pytest.raises(ReproError, match=r"hours = 2: .* lower evaluation.samples or raise hours") as refused:
        set_budget(timed, keep=True)
    assert ("no GPU" in str(refused.value)) != on_gpu
    assert "ofa: sampling" in capsys.readouterr().out
    assert not timed.results.exists()


@pytest.mark.parametrize(
    "text",
    [
        "no toml",
        "",
        "[steps]\nbase_training = 1",
        'steps = "many"',
        "CUT",
        "steps.base_training = 100",
        "base_training = 0",
        "base_training = true",
    ],
)
def test_damaged_budget_is_refused_and_kept(timed, text):
    set_budget(timed, keep=True)
    path = timed.results / "budget.toml"
    whole = path.read_text()
    line = next(line for line in whole.splitlines() if line.startswith("base_training = "))
    damaged = whole.replace(line, text) if text.startswith("base_training") else whole[:200] if text == "CUT" else text
    path.write_text(damaged)
    with pytest.raises(ReproError, match="not a readable budget") as refused:
        with_budget(timed)
    assert str(path) in str(refused.value) and "delete it" in str(refused.value)
    assert path.read_text() == damaged


def test_budget_of_another_configuration_is_refused(timed):
    set_budget(timed, keep=True)
    other = dataclasses.replace(timed.config, evaluation=dataclasses.replace(timed.config.evaluation, samples=41))
    with pytest.raises(ReproError, match=r"budget\.toml: made for another configuration; delete it"):
        with_budget(dataclasses.replace(timed, config=other))


def test_shipped_hour_is_a_budget_of_this_kind(tmp_path):
    config = load_config("cifar10_short")
    assert config.hours == 1
    assert all(stage.budget in ("", *BUDGETS) for stage in stages(experiment(config, tmp_path), cells_of(config, COMPARED)))


def test_run_measures_once_and_every_later_command_reads_the_steps(tmp_path, capsys):
    asked = ["--config", str(TINY), *folders(tmp_path), "--set"]
    assert main(["run", "--methods", "noise", *asked, "hours=1.0"]) == 0
    assert "budget for 1 h on " in capsys.readouterr().out
    path = tmp_path / "results" / "tiny" / "budget.toml"
    kept = path.read_bytes()
    assert tomllib.loads(kept.decode())["steps"]["base_training"] > 100
    assert main(["status", "--methods", "noise", *asked, "hours=1.0"]) == 0  # the record's configuration is the one with these steps
    assert "1 done" in capsys.readouterr().out
    assert main(["run", "--methods", "noise", *asked, "hours=1.0"]) == 0
    output = capsys.readouterr().out
    assert "budget" not in output and "skipped" in output
    assert path.read_bytes() == kept
    assert main(["sizes", *asked, "hours=1.1"]) == 2
    assert "budget.toml: made for another configuration" in capsys.readouterr().err
