"""The whole flow, once, on a configuration of seconds; then everything that it left."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.models.attention_processor import Attention
from support.commands import typed
from support.record_factory import rewrite
from support.trained import METHODS, ROOT, TINY
from torch import nn

from paper_figures.__main__ import main as paper_figures
from repro.cli import main
from repro.config import load_config
from repro.models.denoiser import build_base, load_denoiser
from repro.ofa.allocation import Plan
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import named_law
from repro.ofa.supernet import Supernet

BASELINES = ("diff_pruning", "magnitude", "random", "scratch")
SCORES = "diff_pruning_scores-seed0"
CELLS = (
    SCORES,
    *("floor-seed0", "noise-seed0", "base-1-seed0", "untrained-0.5-seed0", "untrained_random-0.5-seed0", "ofa_joint-seed0"),
    *(f"{method}-0.5-seed0" for method in ("ofa", *BASELINES)),
    *(f"{method}-1-seed0" for method in ("ofa", "diff_pruning", "scratch")),  # unpruned, the other two would be diff_pruning again
)
KEYS = {
    *("schema_version", "experiment", "trial", "cell", "status", "reason", "delivered_by", "starts_from", "base", "made"),
    *("variant", "size", "training", "quality", "latency", "samples", "cost", "provenance", "sha256"),
}
PHASES = {"start", "prepare", "importance", "train", "checkpoint", "lost", "evaluate"}
SIZED = [name for name in CELLS if name.count("-") == 2]
TRAINED = ["base-1-seed0", "ofa_joint-seed0", *(name for name in CELLS if name.startswith(tuple(f"{method}-" for method in BASELINES)))]
UNJUDGED = ("ofa_joint-seed0", SCORES)


def python(*arguments, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    return done


def words(verb, *arguments, runs="runs"):
    return verb, "--config", TINY, "--results", "results", "--runs", runs, *arguments


def repro(verb, *arguments, cwd, runs="runs"):
    return typed(main, *words(verb, *arguments, runs=runs), cwd=cwd)


@pytest.fixture(scope="module")
def flow(trained, tmp_path_factory):
    """The finished flow: a copy of its own, and its records as they were first written."""
    found = dataclasses.replace(trained, folder=trained.copied(tmp_path_factory.mktemp("flow")))
    assert found.records  # are read now
    return found


@pytest.fixture
def copy(flow, tmp_path):
    """A copy of the finished flow, to spoil."""
    return flow.copied(tmp_path)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Records


def test_every_cell_is_done_and_nothing_else_is_written(flow):
    assert set(flow.records) == set(CELLS)
    assert {record["status"] for record in flow.records.values()} == {"done"}
    assert flow.left == ["results", "runs"]
    assert flow.elsewhere == []
    assert not [path for path in flow.folder.rglob("*") if (path.name.startswith(".") and path.suffix != ".lock") or path.suffix == ".tmp"]
    assert not [path for path in flow.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]


@pytest.mark.parametrize("name", CELLS)
def test_record_is_complete(flow, name):
    record = flow.records[name]
    assert set(record) == KEYS
    assert record["schema_version"] == 2
    assert record["trial"] is True
    assert record["reason"] is None
    assert record["cell"]["name"] == name
    provenance = record["provenance"]
    assert {
        "git_commit",
        "git_dirty",
        "packages",
        "python",
        "config",
        "config_sha256",
        "command",
        "started_utc",
        "ended_utc",
        "lives",
    } == set(provenance)
    assert provenance["lives"] == 1
    assert provenance["config_sha256"] == load_config(str(TINY)).sha256()
    assert provenance["started_utc"] <= provenance["ended_utc"]
    assert provenance["packages"]["torch"] == torch.__version__
    assert f"--methods {record['cell']['method']}" in provenance["command"]
    cost = record["cost"]
    assert set(cost["phases_device_hours"]) == PHASES
    assert cost["ranks"] == 1
    assert set(cost["busy"]) == {"load_average", "cores", "cpu_share", "marked"}
    assert cost["busy"]["load_average"] > 0 and 0 < cost["busy"]["cpu_share"] < 1.2 and cost["busy"]["cores"] == os.cpu_count()
    assert cost["busy"]["marked"] in (True, False)
    assert (cost["gpu_hours"] is None) == (cost["device"] == "cpu")
    assert cost["peak_memory_gib"] is None or 0.05 < cost["peak_memory_gib"] < 8


@pytest.mark.parametrize("name", SIZED)
def test_network_is_described_and_judged(flow, tiny, name):
    record = flow.records[name]
    size, quality = record["size"], record["quality"]
    assert {"realised", "params", "macs", "macs_conv_linear", "macs_torch_pruning", "widths"} == set(size)
    assert quality["metric"] == "fid_classifier"
    assert quality["n_samples"] == 40
    assert quality["reference"]["n"] == 1797
    sampler = {"name": "ddim", "steps": 3, "nfe": 3, "spacing": "quadratic", "eta": 0.0, "clip_sample": True, "precision": "float32"}
    assert quality["sampler"] == sampler
    assert quality["mean"] == pytest.approx(sum(quality["values"]) / len(quality["values"]))
    assert [row["batch"] for row in record["latency"]] == list(tiny.evaluation.latency_batches)
    assert all(0 < row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1] for row in record["latency"])
    assert all(row["busy"] in (True, False) for row in record["latency"])
    assert (flow.results / record["samples"]["file"]).read_bytes().startswith(b"\x89PNG")
    if record["cell"]["size"] == 1:
        assert size["widths"] == {}
        assert size["params"] == 44969
        assert size["realised"] == 1
    else:
        assert size["widths"]
        assert size["realised"] == pytest.approx(0.5, abs=0.05)
        assert size["params"] < 44969


def test_phases_sum_to_the_training_overhead_and_evaluation(flow):
    for record in flow.records.values():
        phases = record["cost"]["phases_device_hours"]
        assert sum(phases.values()) == pytest.approx(record["cost"]["device_hours"] + phases["start"] + phases["evaluate"])
        assert phases["lost"] == 0
        assert phases["prepare"] > 0
        assert (phases["train"] > 0) == (record["cell"]["name"] in TRAINED)
        assert (phases["evaluate"] > 1e-5) == (record["cell"]["name"] not in UNJUDGED)


def test_a_process_starts_once_and_that_is_in_no_total(flow):
    starts = {name: 3600 * record["cost"]["phases_device_hours"]["start"] for name, record in flow.records.items()}
    first = max(starts, key=starts.get)
    assert starts[first] > 1  # torch and diffusers are imported
    assert sum(starts.values()) - starts[first] < 0.5 * starts[first]
    cost = flow.records[first]["cost"]
    assert cost["device_hours"] == pytest.approx(sum(cost["phases_device_hours"].values()) - sum(_not_charged(cost)))


def _not_charged(cost):
    return [cost["phases_device_hours"][name] for name in ("start", "evaluate")]


def test_phases_of_all_cells_sum_to_the_wall_time(flow):
    seconds = 3600 * sum(sum(record["cost"]["phases_device_hours"].values()) for record in flow.records.values())
    assert 0.9 * flow.wall_sec < seconds < flow.wall_sec


def test_ofa_cells_are_delivered_by_the_joint_run_and_pruned_ones_by_their_gradients_and_no_others_are(flow):
    delivered = {"ofa-1-seed0": ["ofa_joint-seed0"], "ofa-0.5-seed0": ["ofa_joint-seed0"], "diff_pruning-0.5-seed0": [SCORES]}
    for name, record in flow.records.items():
        assert record["delivered_by"] == delivered.get(name, [])  # at size 1 nothing is pruned, so nothing is scored
        assert record["starts_from"] == (None if name in ("floor-seed0", "noise-seed0", "base-1-seed0") else "base-1-seed0")
        assert (record["training"] is not None) == (name in (*TRAINED, SCORES))


def hand_counted_macs(model):
    """Counts MACs of convolutions and linear layers from the shapes of what passes through them, and of attention's two products."""
    counts = {"conv_linear": 0, "attention": 0}

    def hook(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            counts["conv_linear"] += output.numel() * inputs[0].shape[1] * module.kernel_size[0] * module.kernel_size[1]
        elif isinstance(module, nn.Linear):
            counts["conv_linear"] += output.numel() * inputs[0].shape[-1]
        else:
            tokens = inputs[0].shape[-1] * inputs[0].shape[-2]
            counts["attention"] += 2 * tokens * tokens * module.to_q.out_features

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Attention):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    return counts["conv_linear"], counts["attention"]


def test_training_work_of_the_base_is_counted_by_hand(flow, tiny):
    record = flow.records["base-1-seed0"]
    conv_linear, attention = hand_counted_macs(build_base(tiny.network, seed=0))
    assert record["size"]["macs_conv_linear"] == conv_linear
    assert record["size"]["macs"] == conv_linear + attention
    assert record["training"]["images"] == 12 * 16
    assert record["training"]["train_pflop"] == pytest.approx(6 * (conv_linear + attention) * 12 * 16 / 1e15, rel=1e-9)


def test_training_work_of_a_baseline_counts_its_own_macs(flow):
    record = flow.records["magnitude-0.5-seed0"]
    assert record["training"]["train_pflop"] == pytest.approx(6 * record["size"]["macs"] * 4 * 16 / 1e15, rel=1e-9)
    assert record["training"]["scoring_pflop"] == 0


def test_the_joint_run_counts_what_it_draws_and_what_scores_its_channels(flow):
    joint, full = flow.records["ofa_joint-seed0"]["training"], flow.records["base-1-seed0"]["size"]["macs"]
    assert joint["images"] == 8 * 16
    assert joint["scoring_pflop"] == pytest.approx(4 * full * 64 / 1e15, rel=1e-9)  # forward and one backward pass over 64 images
    supernet = supernet_of(flow)
    drawn = [named_law("linear", m=3.0, sandwich_random=2).draw(supernet.sizes, seed=0, step=step) for step in range(8)]
    macs = [sum(hand_counted_macs(supernet.extract(size))) for (size,) in drawn]
    assert joint["train_pflop"] - joint["scoring_pflop"] == pytest.approx(sum(6 * each * 16 for each in macs) / 1e15, rel=1e-9)


def test_the_gradient_pass_counts_every_timestep_that_the_threshold_left(flow):
    record, full = flow.records[SCORES], flow.records["base-1-seed0"]["size"]["macs"]
    work = record["training"]
    assert 0 < work["timesteps"] < 1000 and work["images"] == 8 * work["timesteps"]
    assert work["train_pflop"] == work["scoring_pflop"] == pytest.approx(6 * full * work["images"] / 1e15, rel=1e-9)
    assert record["size"] is None and record["quality"] is None and record["cell"]["size"] is None
    assert record["cost"]["phases_device_hours"]["importance"] > 0
    gradients = safetensors.torch.load_file(flow.runs / SCORES / "gradients.safetensors")
    base = load_denoiser(flow.runs / "base-1-seed0" / "model")
    assert {name: tensor.shape for name, tensor in gradients.items()} == {name: weight.shape for name, weight in base.named_parameters()}


@pytest.mark.parametrize("method", BASELINES)
def test_baseline_has_the_parameter_size_of_the_ofa_subnet(flow, method):
    ours, theirs = (flow.records[f"{name}-0.5-seed0"]["size"]["params"] for name in ("ofa", method))
    assert theirs == pytest.approx(ours, rel=0.05)


def test_saved_network_has_the_parameters_of_its_record(flow):
    for name in SIZED:
        file = flow.runs / name / "model" / "unet" / "diffusion_pytorch_model.safetensors"
        assert sum(tensor.numel() for tensor in safetensors.torch.load_file(file).values()) == flow.records[name]["size"]["params"]


# Running again


def test_second_run_skips_everything_and_changes_nothing(flow):
    results, runs = contents(flow.results), times(flow.runs)
    begun = time.monotonic()
    done = python("-m", "repro", *words("run", "--methods", METHODS), cwd=flow.folder)
    assert time.monotonic() - begun < 30
    assert done.returncode == 0
    assert "15 of 15 cells are done already and skipped" in done.stdout
    assert contents(flow.results) == results
    assert times(flow.runs) == runs


def test_status_counts_what_is_done(flow):
    done = repro("status", cwd=flow.folder)
    *rows, counts = done.stdout.splitlines()
    assert {row.split()[0] for row in rows} == set(CELLS)
    assert counts.startswith("15 done, 0 running, 0 interrupted, 0 failed, 0 missing")


def test_deleted_record_runs_its_cell_again_and_no_other(flow, copy):
    path = copy / "results" / "tiny" / "magnitude-0.5-seed0.json"
    path.unlink()
    before = times(copy)
    assert repro("run", "--methods", METHODS, cwd=copy).returncode == 0
    changed = {name.as_posix() for name, moment in times(copy).items() if before.get(name) != moment}
    assert {name for name in changed if "magnitude-0.5-seed0" not in name} == set()
    assert "results/tiny/magnitude-0.5-seed0.json" in changed
    assert json.loads(path.read_text())["quality"] == flow.records["magnitude-0.5-seed0"]["quality"]


def test_base_whose_folder_is_gone_is_run_again_for_an_open_cell(flow, copy):
    (copy / "results" / "tiny" / "random-0.5-seed0.json").unlink()
    for name in ("base-1-seed0", "random-0.5-seed0"):
        shutil.rmtree(copy / "runs" / "tiny" / name)
    before = times(copy)
    done = repro("run", "--methods", METHODS, cwd=copy)
    assert done.returncode == 0, done.stderr[-2000:]
    changed = {name.as_posix() for name, moment in times(copy).items() if before.get(name) != moment}
    assert {re.search(r"[a-z_]+-[0-9.]*-?seed0", name)[0] for name in changed} == {"base-1-seed0", "random-0.5-seed0"}
    for name in ("base-1-seed0", "random-0.5-seed0"):
        assert json.loads((copy / "results" / "tiny" / f"{name}.json").read_text())["quality"] == flow.records[name]["quality"]


def test_whole_chain_whose_folders_are_gone_is_run_again_for_an_open_cell(flow, copy):
    (copy / "results" / "tiny" / "ofa-0.5-seed0.json").unlink()
    for name in ("base-1-seed0", "ofa_joint-seed0", "ofa-0.5-seed0"):
        shutil.rmtree(copy / "runs" / "tiny" / name)
    done = repro("run", "--methods", "ofa", cwd=copy)
    assert done.returncode == 0, done.stderr[-500:]
    again = json.loads((copy / "results" / "tiny" / "ofa-0.5-seed0.json").read_text())
    assert again["quality"] == flow.records["ofa-0.5-seed0"]["quality"]


# Extracting


def supernet_of(flow):
    joint = flow.runs / "ofa_joint-seed0"
    base = load_denoiser(joint / "model")
    return Supernet(base, pipes_of(base), Plan.from_json((joint / "plan.json").read_text())).eval()


@pytest.fixture(scope="module")
def extracted(flow):
    """The folder of the extracted half-size subnet."""
    out = flow.folder / "extracted" / "half"
    done = repro("extract", "--size", "0.5", "--out", out, cwd=flow.folder)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == out
    return out


def test_extracted_subnet_is_loaded_and_sampled_as_its_card_says(flow, extracted):
    card = (extracted / "README.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    code += "\nprint(sorted(images.shape))"
    done = python("-c", code, cwd=extracted.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[1, 8, 8, 16]"
    params = flow.records["ofa-0.5-seed0"]["size"]["params"]
    assert f"| {params:,} of the base's 44,969 |" in card
    assert f"fid_classifier {flow.records['ofa-0.5-seed0']['quality']['mean']:.2f}" in card
    assert not [
        path for path in extracted.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json", ".md", ".png", ".py")
    ]


def test_extracted_subnet_computes_what_the_supernet_does_bit_for_bit(flow, extracted):
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(3, 1, 8, 8, generator=generator), "t": torch.tensor([0.0, 10.0, 999.0])}
    safetensors.torch.save_file(inputs, flow.folder / "inputs.safetensors")
    code = (
        "import sys, torch, safetensors.torch as st, repro.harness.denoiser\n"
        "from diffusers import DDIMPipeline\n"
        "torch.set_num_threads(1)\n"
        "unet = DDIMPipeline.from_pretrained(sys.argv[1]).unet.eval()\n"
        "inputs = st.load_file(sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    st.save_file({'y': unet(inputs['x'], inputs['t']).sample}, sys.argv[3])\n"
    )
    done = python("-c", code, extracted, flow.folder / "inputs.safetensors", flow.folder / "outputs.safetensors", cwd=flow.folder)
    assert done.returncode == 0, done.stderr[-2000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = supernet_of(flow)(0.5, inputs["x"], inputs["t"]).sample
    torch.set_num_threads(threads)
    assert torch.equal(safetensors.torch.load_file(flow.folder / "outputs.safetensors")["y"], expected)


def test_extracted_weights_are_the_kept_rows_and_columns_of_the_joint_weights(flow, extracted):
    name = "diffusion_pytorch_model.safetensors"
    joint = safetensors.torch.load_file(flow.runs / "ofa_joint-seed0" / "model" / "unet" / name)
    half = safetensors.torch.load_file(extracted / "unet" / name)
    kept = json.loads((flow.runs / "ofa_joint-seed0" / "plan.json").read_text())["kept"]["0.5"]
    unit = min((pipe for pipe in kept if "resnets" in pipe), key=lambda pipe: len(kept[pipe]) / joint[f"{pipe}.conv1.weight"].shape[0])
    assert len(kept[unit]) < joint[f"{unit}.conv1.weight"].shape[0]
    for tensor in ("conv1.weight", "conv1.bias", "time_emb_proj.weight", "time_emb_proj.bias", "norm2.weight", "norm2.bias"):
        assert torch.equal(half[f"{unit}.{tensor}"], joint[f"{unit}.{tensor}"][kept[unit]])
    assert torch.equal(half[f"{unit}.conv2.weight"], joint[f"{unit}.conv2.weight"][:, kept[unit]])
    for tensor in ("conv2.bias", "norm1.weight"):
        assert torch.equal(half[f"{unit}.{tensor}"], joint[f"{unit}.{tensor}"])


@pytest.mark.parametrize(
    ("size", "out", "runs", "names"),
    [
        ("0.6", "new", "runs", ["--size 0.6", "1, 0.75, 0.5, 0.25"]),
        ("0.5", "full", "runs", ["full", "name a new folder"]),
        ("0.5", "file", "runs", ["file", "name a new folder"]),
        ("0.5", "new", "elsewhere", ["ofa_joint", "run `python -m repro run"]),
    ],
)
def test_extract_is_refused_in_one_line(flow, tmp_path, size, out, runs, names):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    done = repro("extract", "--size", size, "--out", tmp_path / out, cwd=flow.folder, runs=runs)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for name in names:
        assert name in line
    assert contents(tmp_path) == before


# Tables and figures


def test_trial_records_are_in_no_table_and_it_is_said(flow, copy):
    done = typed(paper_figures, "--results", copy / "results", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert "trial" in done.stdout
    for path in copy.rglob("results.*"):
        assert "diff_pruning" not in path.read_text()


def test_records_that_are_no_trial_become_tables_and_figures(flow, copy):
    folder = copy / "results" / "tiny"
    for path in folder.glob("*.json"):
        rewrite(path, trial=False, config={"trial": False})
    done = python("-m", "paper_figures", "--results", copy / "results", cwd=copy)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "tables" / "results.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} >= {"base", "ofa", *BASELINES}
    params = {int(float(row["params"])) for row in rows if row["method"] == "ofa"}
    assert params == {flow.records[f"ofa-{size}-seed0"]["size"]["params"] for size in ("1", "0.5")}
    for name in ("fid_vs_macs", "fid_vs_params", "overhead", "samples"):
        for suffix in ("pdf", "png"):
            assert (folder / "figures" / f"{name}.{suffix}").stat().st_size > 1000
    for name in ("results.md", "results.tex", "overhead.csv"):
        assert (folder / "tables" / name).stat().st_size > 0


# A base that was trained elsewhere


def test_every_record_names_the_base_that_its_network_descends_from(flow):
    weights = flow.runs / "base-1-seed0" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for name, record in flow.records.items():
        expected = None if name.startswith(("floor", "noise")) else {"source": "train", "weights": "ema", "sha256": digest}
        assert record["base"] == expected, name


def test_a_base_from_a_folder_costs_no_training_and_is_the_start_of_what_follows(flow, tmp_path):
    folder = flow.runs / "base-1-seed0" / "model"
    source = ["--set", "base.source=path", "--set", f"base.folder={folder}", "--set", "base.weights=unknown"]
    source += ["--set", "evaluation.latency_batches=[1, 64]"]
    done = repro("run", "--methods", "base,ofa_joint", *source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    base, joint = (json.loads((tmp_path / "results" / "tiny" / f"{name}.json").read_text()) for name in ("base-1-seed0", "ofa_joint-seed0"))
    assert base["training"] is None
    assert base["base"]["source"] == "path" and base["base"]["folder"] == str(folder) and base["base"]["weights"] == "unknown"
    assert joint["base"] == base["base"]
    theirs = flow.records["base-1-seed0"]
    assert base["base"]["sha256"] == theirs["base"]["sha256"]
    assert [row["batch"] for row in base["latency"]] == [1, 64]
    assert base["quality"]["values"] == theirs["quality"]["values"]  # the same network draws the same samples
