"""Before the first step: the estimate and the question, and what is checked; each refusal is one line."""

import dataclasses
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from support.estimates import HERE, TINY, cells_of, experiment, folders
from support.record_factory import make_record

from repro.budget import preflight
from repro.budget.preflight import LONG_HOURS, SMALL_PFLOP
from repro.budget.throughput import Rate
from repro.cli import main
from repro.config import load_config
from repro.config.known_sets import KNOWN_SETS
from repro.diffusion.ddpm import sampling_scheduler
from repro.errors import ReproError
from repro.experiment.records import write_record
from repro.files.places import Places
from repro.grid import METHODS
from repro.models.denoiser import build_base, save_denoiser
from repro.runtime import distributed

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", ["total", "used", "free"])
ON_CIFAR10 = ["data.name=cifar10", "network.sample_size=32", "network.channels=3"]  # a tiny network: too little work for an estimate
CIFAR10 = os.environ.get("OFA_TEST_CIFAR10")
INCEPTION = os.environ.get("OFA_TEST_INCEPTION")
COPY_SHA256 = "a7051bcfbc5acdbf"


def repro(*arguments, program="repro"):
    """Runs a program on a machine without a GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    return done


def scaled(hours):
    """Returns a throughput at which the tiny configuration takes this long."""
    return dataclasses.replace(HERE, on_gpu=True, training=Rate(fixed_sec=0.0, sec_per_pflop=1e7 * hours))


def check(this, *, yes=False, names=("base",)):
    return preflight.preflight(this, cells_of(this.config, names), yes=yes)


@pytest.fixture
def long(tiny, tmp_path, monkeypatch):
    """The tiny experiment on a GPU so slow that it takes days."""
    monkeypatch.setattr(preflight, "SMALL_PFLOP", 0.0)
    monkeypatch.setattr(preflight, "measure", lambda _experiment: scaled(1e5))
    return experiment(tiny, tmp_path)


# Through the command line, without a GPU


@pytest.mark.slow
def test_without_a_gpu_the_run_ends_in_seconds_with_the_estimate_and_the_advice(tmp_path):
    begun = time.monotonic()
    done = repro("run", "--config", "cifar10", "--methods", "floor,noise,base,ofa,diff_pruning,random", *folders(tmp_path))
    assert time.monotonic() - begun < 120  # about 15 s on two idle cores
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for words in ("error: cifar10", "years", "no GPU", "nox -s reproduce_digits", "A trial on a CPU", "--yes"):
        assert words in line
    for words in (
        "ofa_joint: training",
        "102,400,000",
        "diff_pruning: training",
        "CPU-hours here",
        "GPU-hours A100",
        "GPU-hours H100/H200",
    ):
        assert words in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_nox_session_hands_on_the_exit_code_of_a_mistake():
    pytest.importorskip("nox")
    done = repro("-s", "reproduce_cifar10", "--", "--config", "cifar10_short", "--set", "evaluation.samples=1", program="nox")
    assert done.returncode == 2
    assert "evaluation.samples: must be at least 2" in done.stdout + done.stderr


# Through the command line, in this process


def test_estimate_prints_the_table_of_a_small_job_too_and_writes_nothing(tmp_path, capsys):
    assert main(["estimate", "--config", str(TINY), "--methods", "ofa", "--sizes", "0.5", *folders(tmp_path)]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[1:4] == ["base: training", "base: sampling", "ofa_joint: importance"]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sets", "words"),
    [
        (["--data-root", "nowhere"], ON_CIFAR10, ["nowhere", "no such folder"]),
        ([], ["data.sha256=" + "0" * 64], ["data.sha256", "digits"]),
        (["--inception-weights", "nowhere.pth"], ["evaluation.metric=fid"], ["nowhere.pth", "--inception-weights"]),
        (["--inception-weights", TINY], ["evaluation.metric=fid768"], [str(TINY), "not a file of weights"]),
        (["--inception-weights", TINY], ["evaluation.metric=fid"], [str(TINY), "not the official Inception weights"]),
        ([], ["base.source=path", "base.folder=nowhere"], ["base.folder nowhere", "no diffusers folder"]),
    ],
)
def test_wrong_data_or_weights_are_refused_in_one_line_before_anything_is_trained(tmp_path, capsys, arguments, sets, words):
    overrides = [word for value in sets for word in ("--set", value)]
    assert main(["run", "--config", str(TINY), *map(str, arguments), *folders(tmp_path), *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for each in words:
        assert each in line
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["celeba64_uvit", "ffhq64_edm", "imagenet64_edm"])
def test_a_known_data_set_that_is_missing_is_asked_for_before_anything_is_measured(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "measure", lambda _experiment: pytest.fail("measured"))
    assert main(["run", "--config", name, *folders(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    data = load_config(name).data
    assert line.startswith(f"error: data.folder: {data.folder}: no such file or folder; put there the images of ")
    assert KNOWN_SETS[data.holds].origin in line
    assert not any(tmp_path.iterdir())


# The estimate and the question


def test_small_job_is_neither_measured_nor_questioned(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "measure", lambda _experiment: pytest.fail("measured"))
    check(experiment(tiny, tmp_path), names=METHODS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["device", "disk", "data"]
    assert "1,797 images" in lines[2]


def test_embedded_default_is_a_small_job(tmp_path):
    config = load_config("digits")
    work = preflight.stages(experiment(config, tmp_path), cells_of(config))
    assert 0.01 < sum(stage.pflop for stage in work) < SMALL_PFLOP / 2  # 0.024


def test_job_of_less_than_a_day_shows_its_estimate_and_goes_on(long, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "measure", lambda _experiment: scaled(1.0))
    monkeypatch.setattr("builtins.input", lambda _question: pytest.fail("asked"))
    check(long)
    assert "base: training" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("Yes", True), ("n", False), ("", False), ("maybe", False)])
def test_job_of_days_asks_at_a_terminal(long, monkeypatch, capsys, answer, goes_on):
    questions = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answer)
    if goes_on:
        check(long)
    else:
        with pytest.raises(ReproError, match="stopped before the first step"):
            check(long)
    assert len(questions) == 1
    assert "tiny will take" in questions[0] and "go on? [y/N]" in questions[0]
    assert ("data: " in capsys.readouterr().out) == goes_on


def test_end_of_input_is_no_consent(long, monkeypatch):
    def ended(_question):
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ended)
    with pytest.raises(ReproError, match="stopped before the first step"):
        check(long)


def test_job_of_days_without_a_terminal_names_the_flag(long, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ReproError, match="add --yes to go on") as refused:
        check(long)
    assert refused.value.exit_code == 2


def test_job_of_days_without_a_gpu_is_refused_at_a_terminal_too(long, monkeypatch):
    monkeypatch.setattr(preflight, "measure", lambda _experiment: dataclasses.replace(scaled(1e5), on_gpu=False))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: pytest.fail("asked"))
    with pytest.raises(ReproError, match="no GPU"):
        check(long)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_yes_goes_on(long, monkeypatch, capsys, on_gpu):
    monkeypatch.setattr(preflight, "measure", lambda _experiment: dataclasses.replace(scaled(1e5), on_gpu=on_gpu))
    check(long, yes=True)
    assert "data: digits" in capsys.readouterr().out


def test_threshold_is_a_day_of_wall_time(long, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    parts = preflight.stages(long, cells_of(long.config, ["base"]))
    hours = preflight.Estimate(config=long.config, stages=parts, throughput=scaled(1.0)).total_wall_hours()
    each = preflight.Estimate(config=long.config, stages=parts, throughput=scaled(2.0)).total_wall_hours() - hours
    day = (LONG_HOURS - hours) / each + 1
    monkeypatch.setattr(preflight, "measure", lambda _experiment: scaled(day * 0.999))
    check(long)
    monkeypatch.setattr(preflight, "measure", lambda _experiment: scaled(day * 1.001))
    with pytest.raises(ReproError, match="add --yes"):
        check(long)
    monkeypatch.setattr(preflight, "measure", lambda _experiment: dataclasses.replace(scaled(day * 1.001), ranks=2))
    check(long)


def test_no_cell_pays_for_the_estimate(long, monkeypatch):
    monkeypatch.setattr(preflight, "measure", lambda _experiment: time.sleep(0.5) or scaled(1.0))
    load = preflight._check_weights
    monkeypatch.setattr(preflight, "_check_weights", lambda *arguments: time.sleep(0.5) or load(*arguments))
    begun = time.monotonic()
    unpaid = check(long)
    taken = time.monotonic() - begun
    assert 0.5 <= unpaid <= taken - 0.5


def test_nothing_is_checked_where_all_is_done(tiny, tmp_path, monkeypatch, capsys):
    this = experiment(tiny, tmp_path)
    write_record(this.results, make_record("noise", None, experiment="tiny") | {"provenance": {"config_sha256": tiny.sha256()}})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: Usage(1, 1, 0))
    assert check(this, names=["noise"]) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(ReproError, match="GB are free"):
        check(this, names=["noise", "floor"])


# Disk


def test_full_disk_is_named_with_what_is_needed_and_the_remedy(tiny, tmp_path, monkeypatch):
    this = experiment(tiny, tmp_path)
    work = preflight.stages(this, cells_of(tiny))
    needed = preflight.disk_gb(work) + len(cells_of(tiny)) * preflight.RECORD_GB
    names = list(dict.fromkeys(cell.method for cell in cells_of(tiny)))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: Usage(1e12, 0, 0.999e9 * needed))
    with pytest.raises(ReproError) as refused:
        check(this, names=names)
    for words in (str(this.runs), "GB are needed", "GB are free", "free some space", "--runs"):
        assert words in str(refused.value)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: Usage(1e12, 0, 1.001e9 * needed))
    check(this, names=names)
    assert not any(tmp_path.iterdir())


def test_each_disk_has_to_hold_its_own(tmp_path, monkeypatch):
    config = load_config("cifar10", ["sizes.trained=[1.0, 0.5]", "sizes.reported=[1.0, 0.5]"])
    this = experiment(config, tmp_path)
    cells, work = cells_of(config, ["ofa"]), preflight.stages(this, cells_of(config, ["ofa"]))
    for name in ("cache", "runs", "results"):
        (tmp_path / name).mkdir()
    disks = {tmp_path / "cache": 1, tmp_path / "runs": 2, tmp_path / "results": 2}
    existing = preflight._existing
    monkeypatch.setattr(preflight, "_existing", lambda folder: Fake(existing(folder), disks))
    cached = preflight.disk_gb([stage for stage in work if stage.in_cache])
    assert cached > 0.6  # archive, Inception, base, features of 50,000 images
    free = {1: cached - 0.01, 2: 100.0}
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: Usage(0, 0, 1e9 * free[folder.disk]))
    with pytest.raises(ReproError, match="--cache") as refused:
        preflight._check_disk(this, work, cells)
    assert str(tmp_path / "cache") in str(refused.value)
    free |= {1: cached + 0.01, 2: 0.5}
    with pytest.raises(ReproError, match="--runs"):
        preflight._check_disk(this, work, cells)


class Fake:
    """A folder on a disk of the test's choice."""

    def __init__(self, folder, disks):
        self.disk = disks[folder]

    def stat(self):
        return namedtuple("Stat", ["st_dev"])(self.disk)


# Ranks


@pytest.mark.parametrize(
    ("names", "sets", "key"),
    [
        (["base"], [], "base_training.batch_size"),
        (["ofa"], ["base_training.batch_size=15"], "ofa_training.batch_size"),
        (["random"], ["base_training.batch_size=15"], "baseline_training.batch_size"),
        (["noise"], [], "classifier.batch_size"),
    ],
)
def test_batch_that_the_ranks_cannot_share_is_named(tmp_path, monkeypatch, names, sets, key):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert distributed.ranks() == 3
    with pytest.raises(ReproError, match=rf"^{key}: .* 3 ranks; make it a multiple of 3$"):
        check(experiment(load_config(str(TINY), sets), tmp_path), names=names)


def test_batches_that_are_not_in_play_may_be_anything(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = load_config(str(TINY), ["classifier.batch_size=120"])
    check(experiment(config, tmp_path), names=["noise"])


# Data and weights


def test_base_of_a_folder_is_loaded_and_compared(tiny, tmp_path, capsys):
    folder = tmp_path / "pretrained"
    save_denoiser(build_base(tiny.network, seed=3), sampling_scheduler(tiny.diffusion, clip_sample=True), folder)
    found = dataclasses.replace(tiny, base=dataclasses.replace(tiny.base, source="path", folder=str(folder), weights="raw"))
    check(experiment(found, tmp_path))
    assert f"base: {folder}, 44,969 parameters, raw weights" in capsys.readouterr().out
    other = dataclasses.replace(found, network=dataclasses.replace(tiny.network, layers_per_block=2))
    with pytest.raises(ReproError, match="layers_per_block"):
        check(experiment(other, tmp_path))
    check(experiment(other, tmp_path), names=["noise"])  # needs no base


@pytest.mark.skipif(not CIFAR10, reason="OFA_TEST_CIFAR10 names no folder with train.npz and test.npz")
def test_real_images_are_named_with_their_number_and_hash(tmp_path, capsys):
    assert CIFAR10
    found = experiment(load_config(str(TINY), ON_CIFAR10), tmp_path)
    found = dataclasses.replace(found, places=Places(cache=tmp_path / "cache", data_root=Path(CIFAR10)))
    with pytest.raises(ReproError, match=rf"not the official CIFAR-10 .*{COPY_SHA256}"):
        check(found)
    sha256 = found_sha256(found)
    named = load_config(str(TINY), [*ON_CIFAR10, f"data.sha256={sha256}"])
    check(dataclasses.replace(found, config=named))
    assert f"data: cifar10, 50,000 images, sha256 {sha256[:16]}" in capsys.readouterr().out
    assert sha256.startswith(COPY_SHA256)


def found_sha256(this):
    """Returns the hash that the refusal names."""
    try:
        return this.images.sha256
    except ReproError as error:
        return str(error).rpartition("=")[2]


@pytest.mark.skipif(not INCEPTION, reason="OFA_TEST_INCEPTION names no file of Inception's weights")
def test_other_weights_serve_fid768_and_not_fid(tiny, tmp_path, capsys):
    assert INCEPTION
    places = Places(cache=tmp_path / "cache", inception_weights=Path(INCEPTION))
    metric = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, metric="fid768"))
    check(dataclasses.replace(experiment(metric, tmp_path), places=places))
    assert "layer 768, not official weights, sha256 " in capsys.readouterr().out
    metric = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, metric="fid"))
    with pytest.raises(ReproError, match="not the official Inception weights"):
        check(dataclasses.replace(experiment(metric, tmp_path), places=places))


def test_device_is_named(tiny, tmp_path, capsys):
    check(experiment(tiny, tmp_path))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("device: ")]
    assert line.endswith(", 1 rank")
    assert ("cores" in line) != torch.cuda.is_available()
