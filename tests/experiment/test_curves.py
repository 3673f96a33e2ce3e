"""Trainings that are judged on their way: what a record holds of it, that it changes nothing, and what survives a kill."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.commands import typed

from repro.cli import main
from repro.config import Curves, Training, load_config
from repro.data.images import digits, load_images
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.formulations import FORMULATIONS
from repro.errors import ReproError
from repro.files.places import Places
from repro.models.denoiser import load_denoiser
from repro.training.loop import _rates

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
HELD_OUT = ("data.held_out=97",)
CURVES = (*HELD_OUT, "curves.points=3", "curves.span=4", "curves.metric_points=2", "curves.samples=20", "curves.triples=64")
METHODS = "ofa,ofa_half,diff_pruning"


def words(*settings, methods=METHODS):
    sets = [word for setting in settings for word in ("--set", setting)]
    return "run", "--config", TINY, "--results", "results", "--runs", "runs", "--methods", methods, *sets


def run(folder, *settings, methods=METHODS):
    folder.mkdir(exist_ok=True)
    return typed(main, *words(*settings, methods=methods), cwd=folder)


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results" / "tiny").glob("*.json")}


def weights(folder):
    """Returns the bytes of every network that was made."""
    files = (folder / "runs" / "tiny").glob("*/model/unet/*.safetensors")
    return {path.parts[-4]: safetensors.torch.load(path.read_bytes()) for path in files}


def made(folder, *settings):
    done = run(folder, *settings)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return made(tmp_path_factory.mktemp("judged"), *CURVES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain"), *HELD_OUT)


def test_points_are_evenly_spaced_on_a_logarithmic_scale_and_end_with_the_training():
    assert Curves(points=7, span=64).steps(800) == (12, 25, 50, 100, 200, 400, 800)
    assert Curves(points=8, span=64).steps(200_000)[-1] == 200_000
    ratios = [later / before for before, later in itertools.pairwise(Curves(points=8, span=64).steps(200_000))]
    assert all(math.isclose(ratio, 64 ** (1 / 7), rel_tol=1e-3) for ratio in ratios)
    assert Curves(points=8, metric_points=8, span=64).steps(40) == (1, 2, 4, 7, 12, 22, 40)
    assert Curves(points=5, span=1000).steps(3) == (1, 3)  # a training has no point twice, and none before its first step


def test_curves_change_no_weight_of_a_training(judged, plain):
    ours, theirs = weights(judged), weights(plain)
    assert ours.keys() == theirs.keys() and len(ours) == 9
    for name, tensors in ours.items():
        assert all(torch.equal(tensor, theirs[name][key]) for key, tensor in tensors.items()), name
    with_curves, without = records(judged), records(plain)
    for name, record in with_curves.items():
        assert record["training"] == without[name]["training"] and record["quality"] == without[name]["quality"], name
    assert {name for name, record in with_curves.items() if "curves" in record} == {
        *("ofa_joint-seed0", "ofa_half_joint-seed0", "diff_pruning-1-seed0", "diff_pruning-0.5-seed0")
    }
    assert not any("curves" in record for record in without.values())


def test_a_record_holds_what_had_been_taken_at_each_point(judged):
    found = records(judged)
    joint, alone = found["ofa_joint-seed0"]["curves"], found["diff_pruning-0.5-seed0"]["curves"]
    assert [point["step"] for point in joint["points"]] == [2, 4, 8] and [point["step"] for point in alone["points"]] == [1, 2, 4]
    assert [point["images"] for point in joint["points"]] == [32, 64, 128]
    macs = found["diff_pruning-0.5-seed0"]["size"]["macs"]
    assert [point["train_pflop"] for point in alone["points"]] == pytest.approx([6 * macs * 16 * step / 1e15 for step in (1, 2, 4)])
    assert joint["points"][-1]["train_pflop"] == pytest.approx(found["ofa_joint-seed0"]["training"]["train_pflop"])
    for name, curves in (("ofa_joint-seed0", joint), ("diff_pruning-0.5-seed0", alone)):
        hours = [point["device_hours"] for point in curves["points"]]
        assert hours == sorted(hours) and hours[0] > 0 and hours[-1] <= found[name]["cost"]["device_hours"]
    assert all(set(point["sizes"]) == {"1", "0.5"} for point in joint["points"])
    assert all(set(point["sizes"]) == {"0.5"} for point in alone["points"])
    valued = [["value" in judged for judged in point["sizes"].values()] for point in joint["points"]]
    assert valued == [[False, False], [True, True], [True, True]]
    assert joint["metric"]["n_samples"] == 20 and joint["metric"]["sampling_seeds"] == [0]
    assert joint["metric"]["reference"]["n"] == 1700
    assert (joint["validation"]["n"], joint["validation"]["triples"]) == (97, 64)
    kept = list((judged / "runs").rglob("snapshots/*"))
    assert len(kept) == 4 * 3 and all(path.stat().st_size < 3000 for path in kept)  # what was found, and no weights
    assert not list((judged / "runs").rglob("samples"))


def test_a_point_at_a_constant_rate_is_the_end_of_a_shorter_run(judged):
    found = records(judged)
    longer = {point["step"]: point["sizes"] for point in found["ofa_joint-seed0"]["curves"]["points"]}
    shorter = {point["step"]: point["sizes"] for point in found["ofa_half_joint-seed0"]["curves"]["points"]}
    assert longer[4]["0.5"] == shorter[4]["0.5"] and longer[4]["1"] == shorter[4]["1"]
    assert shorter[2]["1"]["value"] > 0 and "value" not in longer[2]["1"]


def test_the_last_point_is_the_network_that_is_delivered_on_images_that_nothing_was_trained_on(judged):
    config = load_config(str(TINY), list(CURVES))
    images = load_images(config.data, (1, 8, 8), Places())
    held_out = images.test
    whole = {bytes(image.numpy().tobytes()) for image in digits().pixels}
    ours = [image.numpy().tobytes() for image in images.pixels]
    assert (len(images), len(held_out)) == (1700, 97) and {*ours, *(image.numpy().tobytes() for image in held_out.pixels)} == whole
    formulation = FORMULATIONS["ddpm"](config.diffusion)
    batches = NoisyBatches(held_out, formulation, batch_size=64, seed=0, device=torch.device("cpu"))
    batch = batches(0)
    for name in ("ofa-0.5-seed0", "diff_pruning-0.5-seed0"):
        model = load_denoiser(judged / "runs" / "tiny" / name / "model", config.denoiser).eval()
        with torch.no_grad():
            predicted = model(batch.noisy, batch.timesteps).sample
        expected = ((predicted - batch.target) ** 2).double().mean()
        record = records(judged)[name if name.startswith("diff") else "ofa_joint-seed0"]
        assert record["curves"]["points"][-1]["sizes"]["0.5"]["validation_loss"] == pytest.approx(float(expected), rel=1e-6)


KILL = """
import os, signal, sys
import repro
from repro.experiment import curves
judge, left = curves.validation_loss, int(sys.argv.pop(1))
def watched(*given):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(*given)
curves.validation_loss = watched
from repro.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_killed_while_a_point_is_judged_loses_nothing(judged, tmp_path):
    arguments = [str(word) for word in words(*CURVES, methods="ofa")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILL, "3", *arguments], check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=280
    )
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "runs" / "tiny" / "ofa_joint-seed0"
    left = {path.name: path.stat().st_size for path in (folder / "snapshots").glob("*.safetensors")}
    assert len(left) == 3 and left["step-000000002.safetensors"] < left["step-000000008.safetensors"] / 10  # judged: its weights are gone
    done = run(tmp_path, *CURVES, methods="ofa")
    assert done.returncode == 0, done.stderr
    ours, theirs = records(tmp_path)["ofa_joint-seed0"], records(judged)["ofa_joint-seed0"]
    assert ours["provenance"]["lives"] == 2
    assert ours["cost"]["phases_device_hours"]["lost"] < 0.1 / 3600  # between the training's end and the manifest
    assert [point["sizes"] for point in ours["curves"]["points"]] == [point["sizes"] for point in theirs["curves"]["points"]]
    assert [point["train_pflop"] for point in ours["curves"]["points"]] == [point["train_pflop"] for point in theirs["curves"]["points"]]
    assert ours["training"] == theirs["training"]
    (tmp_path / "results" / "tiny" / "ofa_joint-seed0.json").unlink()
    assert run(tmp_path, *CURVES, methods="ofa").returncode == 0  # a record that is lost is made again without training
    assert records(tmp_path)["ofa_joint-seed0"]["curves"] == ours["curves"]


@pytest.mark.slow
def test_two_ranks_judge_what_one_does(judged, tmp_path):
    arguments = [str(word) for word in words(*CURVES, methods="ofa,diff_pruning")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "repro", *arguments, "--sizes", "0.5", "--ranks", "2"]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for name in ("ofa_joint-seed0", "diff_pruning-0.5-seed0"):
        ours, theirs = records(tmp_path)[name], records(judged)[name]
        assert (ours["cost"]["ranks"], theirs["cost"]["ranks"]) == (2, 1)
        for mine, one in zip(ours["curves"]["points"], theirs["curves"]["points"], strict=True):
            assert mine["images"] == one["images"] and mine["train_pflop"] == pytest.approx(one["train_pflop"])
            for size in mine["sizes"]:  # the sums over a batch are rounded otherwise
                assert mine["sizes"][size]["validation_loss"] == pytest.approx(one["sizes"][size]["validation_loss"], rel=1e-3)
                assert mine["sizes"][size].get("value", 1.0) == pytest.approx(one["sizes"][size].get("value", 1.0), rel=0.02)


def test_a_joint_run_says_how_its_sizes_interfere_and_is_not_changed_by_it(plain, tmp_path):
    measured = made(tmp_path, *CURVES, "curves.interference=4")
    ours, theirs = weights(measured), weights(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name][key]) for name, tensors in ours.items() for key, tensor in tensors.items())
    found = records(measured)
    assert {name for name, record in found.items() if "interference" in record.get("curves", {})} == {
        "ofa_joint-seed0",
        "ofa_half_joint-seed0",
    }
    told = found["ofa_joint-seed0"]["curves"]["interference"]
    assert (told["batches"], told["batch_size"]) == (4, 16)
    assert [(point["step"], point["images"]) for point in told["points"]] == [(0, 0), (2, 32), (4, 64), (8, 128)]
    pairs = {"0.75,1", "0.5,1", "0.25,1", "0.5,0.75", "0.25,0.75", "0.25,0.5"}
    model = load_denoiser(measured / "runs" / "tiny" / "base-1-seed0" / "model", load_config(str(TINY)).denoiser)
    layers = {"all", *(name.rpartition(".")[0] for name, _ in model.named_parameters())}
    for point in told["points"]:
        assert point["cosines"].keys() == pairs and all(of.keys() == layers for of in point["cosines"].values())
    assert found["ofa_half_joint-seed0"]["curves"]["interference"]["points"][0] == told["points"][0]  # at the base, on the same batches
    swaps = told["swaps"]
    assert sum(group["params"] for group in swaps["groups"].values()) == found["base-1-seed0"]["size"]["params"]
    assert swaps["after"] == found["ofa_joint-seed0"]["curves"]["points"][-1]["sizes"]["1"]["validation_loss"]
    assert swaps["before"] != swaps["after"]
    again = run(tmp_path, *CURVES, "curves.interference=4")
    assert again.returncode == 0 and "done already" in again.stdout


def flipped(folder):
    path = folder / "step-000000004.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def swapped(folder):
    one, other = folder / "step-000000004.safetensors", folder / "step-000000008.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def missing(folder):
    (folder / "step-000000004.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [(flipped, "damaged"), (swapped, "the snapshot of another run or step"), (missing, "there is no snapshot")],
)
def test_a_snapshot_that_is_not_what_was_written_is_refused_in_one_line(judged, tmp_path, harm, said):
    arguments = [str(word) for word in words(*CURVES, methods="ofa")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", KILL, "0", *arguments], check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=280
    )
    harm(tmp_path / "runs" / "tiny" / "ofa_joint-seed0" / "snapshots")
    done = run(tmp_path, *CURVES, methods="ofa")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "step-000000004.safetensors" in line]
    assert len(lines) == 1 and said in lines[0] and re.search("delete the folder .*ofa_joint-seed0 and run the command again", lines[0])


@pytest.mark.slow
def test_a_branch_is_the_end_of_a_run_whose_rate_falls(judged, tmp_path):
    branched = run(tmp_path / "branched", *CURVES, "curves.cooldown=0.5", methods="diff_pruning")
    assert branched.returncode == 0, branched.stderr
    steps, falling = "baseline_training.steps=6", "baseline_training.cooldown=0.34"
    alone = run(tmp_path / "alone", *HELD_OUT, steps, falling, methods="diff_pruning")
    assert alone.returncode == 0, alone.stderr
    found = records(tmp_path / "branched")["diff_pruning-0.5-seed0"]
    point = found["curves"]["points"][-1]
    assert (point["step"], point["images"], found["curves"]["cooldown"]) == (4, 6 * 16, 0.5)
    assert point["train_pflop"] == pytest.approx(found["training"]["train_pflop"] * 6 / 4)
    config = load_config(str(TINY), list(HELD_OUT))
    held_out = load_images(config.data, (1, 8, 8), Places()).test
    batch = NoisyBatches(held_out, FORMULATIONS["ddpm"](config.diffusion), batch_size=64, seed=0, device=torch.device("cpu"))(0)
    model = load_denoiser(tmp_path / "alone" / "runs" / "tiny" / "diff_pruning-0.5-seed0" / "model", config.denoiser).eval()
    with torch.no_grad():
        loss = ((model(batch.noisy, batch.timesteps).sample - batch.target) ** 2).double().mean()
    assert point["sizes"]["0.5"]["validation_loss"] == pytest.approx(float(loss), rel=1e-6)
    ours, theirs = (weights(folder)["diff_pruning-0.5-seed0"] for folder in (tmp_path / "branched", judged))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())  # the training itself is as without branches
    assert not list((tmp_path / "branched" / "runs").rglob("branches"))


CUT = """
import sys
import repro
from repro.experiment import curves
load = curves.load_newest
def looked(folder, *rest):
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    return load(folder, *rest)
curves.load_newest = looked
from repro.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_branch_that_cannot_go_on_from_its_point_does_not_begin_anew(tmp_path):
    arguments = [str(word) for word in words(*CURVES, "curves.cooldown=0.5", methods="diff_pruning")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CUT, *arguments], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(r"step-000000001: no whole state to go on from; delete the folder .*diff_pruning-1-seed0 and run", done.stderr)


def test_a_falling_rate_ends_just_above_nothing():
    rates = _rates(Training(steps=10, batch_size=1, learning_rate=1.0, warmup_steps=2, cooldown=0.4))
    assert [rates(step) for step in range(10)] == pytest.approx([0, 0.5, 1, 1, 1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([*CURVES, "ofa_training.schedule=cosine"], r"ofa_training.schedule: must be 'constant'.* is not the end of a shorter run"),
        ([*CURVES, "baseline_training.cooldown=0.34"], r"baseline_training.cooldown: must be 0 where there are"),
        ([*CURVES, "curves.points=1"], r"curves.points: must lie in \[2, 64\]"),
        ([*CURVES, "curves.span=1"], r"curves.span: must be more than 1"),
        ([*CURVES, "curves.metric_points=4"], r"curves.metric_points: must lie in \[0, 3\]"),
        ([*CURVES, "curves.interference=3"], r"curves.interference: must be an even number of batches"),
        ([*CURVES, "curves.cooldown=1.5"], r"curves.cooldown: must lie in \[0, 1\]"),
        ([*CURVES, "curves.sample=3"], r"unknown key 'curves.sample'; did you mean 'curves.samples'"),
        (["ofa_training.schedule=cosine", "ofa_training.cooldown=0.34"], r"cooldown: goes with schedule = 'constant'"),
        (["ofa_training.cooldown=1.0"], r"ofa_training.cooldown: must lie in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_curve_are_refused_by_name(settings, said):
    with pytest.raises(ReproError, match=said):
        load_config(str(TINY), settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (CURVES[1:], "curves: digits has no images that are never trained on; set data.held_out, such as 179"),
        ([*CURVES[1:], "data.held_out=1796"], "data.held_out: 1,796, and digits has 1,797 images; hold fewer out"),
    ],
)
def test_without_held_out_images_nothing_is_begun(tmp_path, settings, said):
    done = run(tmp_path, *settings)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))
