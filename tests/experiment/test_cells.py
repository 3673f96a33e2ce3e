"""The grid: what a cell is called, how it is asked for, and under which configuration it runs."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from repro.cli import main
from repro.config import changed
from repro.data import images
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, plan_cells
from repro.grid import METHODS
from repro.size_text import size_text

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
THIRD = 1 / 3


def experiment_of(config, folder=Path()):
    return Experiment(config=config, methods=METHODS, results=folder / "results", runs=folder / "runs", source="--config tiny")


# What a cell is called, and the words that ask for it


@pytest.mark.parametrize("size", [1.0, 0.5, 0.25, 0.708333, THIRD, 2 / 3, 0.1 + 0.2, 1e-05])
def test_a_size_is_written_so_that_it_reads_back_exactly(size):
    assert float(size_text(size)) == size


def test_names_of_todays_sizes_stay_and_close_sizes_have_names_of_their_own():
    names = [Cell(method="ofa", size=size, seed=0).name for size in (1.0, 0.875, 0.75, 0.5, 0.25, 0.708333, 0.02)]
    assert names == [f"ofa-{text}-seed0" for text in ("1", "0.875", "0.75", "0.5", "0.25", "0.708333", "0.02")]
    close = {Cell(method="ofa", size=size, seed=0).name for size in (0.333333, 0.3333334, THIRD)}
    assert len(close) == 3


def test_words_of_a_cell_ask_for_it():
    assert Cell(method="ofa", size=THIRD, seed=2).words() == ["--methods", "ofa", "--sizes", "0.3333333333333333", "--seeds", "2"]
    assert Cell(method="ofa_joint", size=None, seed=0).words() == ["--methods", "ofa_joint", "--seeds", "0"]
    assert Cell(method="base", size=1.0, seed=0).words() == ["--methods", "base", "--seeds", "0"]  # 1 need not be reported


def thirds(folder, *more):
    places = ["--results", str(folder / "results"), "--runs", str(folder / "runs")]
    sizes = ["--set", "sizes.trained=[1.0, 0.3333333333333333, 0.25]", "--set", "sizes.reported=[0.3333333333333333]"]
    return ["--config", str(TINY), *sizes, *places, *more]


@pytest.mark.parametrize("typed", ["0.333333", "0.33"])
def test_a_rounded_size_is_refused_with_the_text_to_type(tmp_path, capsys, typed):
    assert main(["status", *thirds(tmp_path, "--methods", "ofa", "--sizes", typed)]) == 2
    refused = f"--sizes {typed}: not among the reported sizes (0.3333333333333333); write --sizes 0.3333333333333333"
    assert refused in capsys.readouterr().err
    assert main(["status", *thirds(tmp_path, "--methods", "ofa", "--sizes", "0.3333333333333333")]) == 0


HEAVY = ("torch", "torchvision", "diffusers", "deepspeed", "sklearn", "scipy")


@pytest.mark.parametrize("module", ["repro.cli", "repro.experiment.cells", "repro.runtime.heartbeat", "repro.experiment.records"])
def test_what_names_the_cells_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == []


# Under which configuration a cell runs


@pytest.mark.parametrize(
    ("method", "rule"), [("ofa", "gradual"), ("ofa_uniform", "uniform"), ("ofa_formula5", "formula5"), ("slimmable", "uniform")]
)
def test_a_cell_of_a_variant_runs_varied_however_the_experiment_was_made(tiny, method, rule):
    experiment = experiment_of(tiny)
    cell = Cell(method=method, size=0.5, seed=0)
    assert experiment.config_of(cell).allocation.rule == experiment.of(cell).config.allocation.rule == rule


def test_an_experiment_without_methods_cannot_be_made(tiny):
    with pytest.raises(TypeError, match="methods"):
        Experiment(config=tiny, results=Path(), runs=Path(), source="")


def test_a_method_that_the_experiment_lacks_is_an_error_never_the_configuration_as_written(tiny):
    experiment = experiment_of(tiny)
    for ask in (experiment.config_of, experiment.of, experiment.identity, experiment.needs):
        with pytest.raises(ReproError, match="ofa_unifrom: no such method; did you mean 'ofa_uniform'"):
            ask(Cell(method="ofa_unifrom", size=0.5, seed=0))
    with pytest.raises(ReproError, match="ofa_unifrom: no such method"):
        plan_cells(experiment, ["ofa_unifrom"], None, [0])


def test_variants_share_the_images_and_nothing_is_loaded_before_it_is_asked_for(tiny, monkeypatch):
    loaded = []
    monkeypatch.setattr(images, "load_images", lambda *asked: loaded.append(asked) or object())
    experiment = experiment_of(tiny)
    varied = experiment.of(Cell(method="ofa_uniform", size=0.5, seed=0))
    assert varied is not experiment and not loaded
    assert varied.images is experiment.images is dataclasses.replace(varied, config=tiny).images
    assert len(loaded) == 1
    other = dataclasses.replace(experiment, config=changed(tiny, {"data.sha256": "0" * 64}))  # other images are not taken for these
    assert other.images is not experiment.images


def test_how_many_images_are_judged_is_a_property_of_the_method(tiny):
    settings = tiny.evaluation
    assert METHODS["floor"].pixels(settings, 1797) == 1796
    assert METHODS["noise"].pixels(settings, 1797) == settings.samples
    assert all(method.pixels is None for name, method in METHODS.items() if name not in ("floor", "noise"))


def repro(*words, cwd=ROOT):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "repro", *words]
    return subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_a_third_is_made_side_by_side_and_again_by_its_records_command(tmp_path):
    done = repro("run", *thirds(tmp_path, "--methods", "untrained", "--parallel-cells", "2"))
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results" / "tiny" / "untrained-0.3333333333333333-seed0.json"
    record = json.loads(path.read_text())
    assert record["cell"]["size"] == THIRD
    words = shlex.split(record["provenance"]["command"])
    again = repro("status", *words[words.index("run") + 1 :], "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"))
    assert "untrained-0.3333333333333333-seed0  done" in again.stdout, again.stderr


def test_a_third_in_a_job_array_is_asked_for_exactly(tmp_path):
    assert main(["run", *thirds(tmp_path, "--methods", "ofa", "--slurm", str(tmp_path / "jobs"), "--set", "cluster.gpus_per_node=0")]) == 0
    cell = "cell=(--methods ofa --sizes 0.3333333333333333 --seeds 0) ;; # ofa-0.3333333333333333-seed0"
    assert cell in (tmp_path / "jobs" / "cells.sbatch").read_text()
