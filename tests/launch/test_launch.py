"""Runs in several processes: ranks, hosts, cells side by side; and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from faults import crashes
from faults.lab import Experiment
from faults.ranks import equal_over_ranks
from support.commands import as_two_ranks

from repro.cli import main
from repro.errors import ReproError
from repro.launch.processes import read_hosts, run_hosts
from repro.models import memory
from repro.models.denoiser import build_base
from repro.program import MODULE

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
GIB = 2**30

pytestmark = pytest.mark.slow  # several processes each


def words(folder, *more):
    return ["run", "--config", str(TINY), "--results", str(folder / "results"), "--runs", str(folder / "runs"), *more]


def command(folder, *more):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, "-m", "repro", *words(folder, *more)], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results" / "tiny").glob("*.json")}


# What is refused


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--parallel-cells", "-1"], "--parallel-cells -1: must be at least 1"),
        (["--hostfile", "x", "--ranks", "2"], "--hostfile: goes without --ranks"),
        (["--slurm", "x", "--parallel-cells", "2"], "--slurm: goes without --parallel-cells"),
        (["--slurm", "x", "--hostfile", "y"], "--slurm: goes without --hostfile"),
        (["--submit"], "--submit: goes with --slurm DIR"),
        (["--hostfile", "nowhere"], "--hostfile nowhere: cannot be read"),
    ],
)
def test_contradicting_ways_to_start_are_refused_by_name(tmp_path, capsys, flags, named):
    assert main(words(tmp_path, *flags)) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_rank_starts_no_ranks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words(tmp_path, "--ranks", "2")) == 2
    assert "this process is a rank of a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "# nobody\n", "host\n", "host slots=many\n", "host gpus=2\n", "host slots=0\n", "a slots=2\na slots=2\n"]
)
def test_a_hostfile_without_hosts_is_refused_by_name(tmp_path, content):
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(ReproError, match=r"hosts: write a line `HOST slots=N`"):
        run_hosts(MODULE, [], tmp_path / "hosts")


def test_other_hosts_need_pdsh(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReproError, match="pdsh, which is not installed"):
        run_hosts(MODULE, [], tmp_path / "hosts")


def test_a_hostfile_is_read_with_its_remarks(tmp_path):
    (tmp_path / "hosts").write_text("# two nodes\nnode-1 slots=8  # the first rank\n\nnode-2   slots=16\n")
    assert read_hosts(tmp_path / "hosts") == {"node-1": 8, "node-2": 16}


def see(monkeypatch, gpus, visible=None):
    """Stands for a machine of some GPUs; whatever is started then fails the test."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    started = []
    monkeypatch.setattr("repro.launch.processes.start", lambda command, *_rest: started.append(command) or subprocess.Popen(["true"]))
    return started


@pytest.mark.parametrize(("gpus", "ranks", "starts"), [(8, 8, 8), (8, 9, 0), (1, 2, 0), (0, 3, 3)])
def test_more_ranks_than_gpus_are_refused_before_any_starts(tmp_path, capsys, monkeypatch, gpus, ranks, starts):
    started = see(monkeypatch, gpus)
    assert main(words(tmp_path, "--ranks", str(ranks))) == (0 if starts else 2)
    assert len(started) == starts
    line = f"--ranks {ranks}: {ranks} ranks need {ranks} GPUs, and {gpus} can be seen here; ask for {gpus} at most"
    assert (line in capsys.readouterr().err) == (not starts)


@pytest.mark.parametrize(
    ("host", "slots", "gpus", "visible", "line"),
    [
        ("localhost", 2, 2, None, ""),
        ("127.0.0.1", 2, 8, "0,1,2,3", ""),
        ("localhost", 2, 0, None, ""),
        (socket.gethostname(), 3, 2, None, "3 ranks need 3 GPUs, and 2 can be seen here"),
        ("localhost", 2, 2, "3,1", "the launcher takes GPUs 0 to 1, not those of CUDA_VISIBLE_DEVICES=3,1; start with --ranks 2"),
        ("192.0.2.7", 2, 2, None, "192.0.2.7 is not this machine"),
        ("no-such-host.invalid", 2, 2, None, "no-such-host.invalid is not this machine"),
    ],
)
def test_a_hostfile_of_one_host_is_held_against_this_machine(tmp_path, monkeypatch, host, slots, gpus, visible, line):
    started = see(monkeypatch, gpus, visible)
    (tmp_path / "hosts").write_text(f"{host} slots={slots}\n")
    if line:
        with pytest.raises(ReproError, match=line):
            run_hosts(MODULE, [], tmp_path / "hosts")
    else:
        assert run_hosts(MODULE, [], tmp_path / "hosts") == 0
    assert len(started) == (not line)


# Memory


def test_what_the_backward_pass_keeps_is_counted_by_hand():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(2, 5, 1, bias=False)

        def forward(self, x, _t, return_dict):
            return (self.layer(x),)

    # The convolution keeps its input, 2 channels of 4x4; the square keeps its input, 5 channels of 4x4; float32.
    assert memory.activation_bytes(Net().to("meta"), (2, 4, 4)) == 4 * 16 * (2 + 5)


def test_a_batch_is_accumulated_in_the_fewest_parts_that_fit():
    def parts(limit, subnets=1):
        return memory.accumulation(limit, batch_size=24, subnets=subnets, params=0, image_bytes=GIB)

    assert parts(1.25 * 24) == 1
    assert parts(1.25 * 23.9) == 2
    assert parts(1.25 * 7.9) == 4  # 8 would be too many, 24 / 4 = 6
    assert parts(1.25) == 24
    assert parts(1.25 * 7.9, subnets=3) == 4
    assert parts(1.25 * 5, subnets=4) == 6  # 24 / 5 is no whole number of images, and 24 / 4 no whole number of subnets' shares
    with pytest.raises(ReproError, match=r"execution\.memory_gib: a rank may use 1 GiB, and training needs 1\.25 GiB"):
        parts(1.0)


def test_a_memory_limit_leaves_the_weights_of_a_run_as_they_were(tmp_path, tiny):
    network = build_base(tiny.network, seed=0)
    fixed = 4 * memory.TENSORS_PER_PARAMETER * sum(p.numel() for p in network.parameters())
    limit = (fixed + 5 * memory.MARGIN * memory.activation_bytes(network.to("meta"), (1, 8, 8))) / GIB
    weights = {}
    for name, value in (("free", 0.0), ("tight", limit)):
        assert main([*words(tmp_path / name, "--methods", "base"), "--set", f"execution.memory_gib={value}"]) == 0
        weights[name] = torch.cat([p.flatten() for p in _load(tmp_path / name).values()])
        assert records(tmp_path / name)["base-1-seed0"]["training"]["accumulation"] == (1 if name == "free" else 4)
    assert 0 < (weights["free"] - weights["tight"]).abs().max() < 1e-4


def _load(folder):
    import safetensors.torch

    loaded = safetensors.torch.load_file(
        folder / "runs" / "tiny" / "base-1-seed0" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    )
    return {name: value for name, value in loaded.items() if not name.endswith("to_k.bias")}


# Cells side by side


@pytest.mark.timeout(400)
def test_cells_side_by_side_come_to_what_they_come_to_one_after_the_other(tmp_path):
    methods = ("--methods", "base,ofa,diff_pruning")
    done = command(tmp_path / "two", *methods, "--parallel-cells", "2")
    assert done.returncode == 0, done.stderr
    assert main(words(tmp_path / "one", *methods)) == 0
    ours, theirs = records(tmp_path / "two"), records(tmp_path / "one")
    assert ours.keys() == theirs.keys() and len(ours) == 7
    assert all(ours[name]["quality"] == theirs[name]["quality"] for name in ours)
    spans = sorted((record["provenance"]["started_utc"], record["provenance"]["ended_utc"]) for record in ours.values())
    assert any(later[0] < earlier[1] for earlier, later in pairwise(spans))  # two did run at once
    again = command(tmp_path / "two", *methods, "--parallel-cells", "2")
    assert again.returncode == 0 and "7 of 7 cells are done already" in again.stdout


def test_a_cell_that_fails_holds_back_only_those_that_need_it(tmp_path):
    done = command(
        tmp_path,
        "--methods",
        "base,ofa,diff_pruning",
        "--sizes",
        "0.5",
        "--parallel-cells",
        "2",
        "--set",
        "ofa_training.learning_rate=1e30",
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "ofa_joint-seed0: ended with code 1: error: ofa_joint-seed0: the loss became" in said
    assert "ofa-0.5-seed0: not begun, it needs ofa_joint-seed0" in said
    found = records(tmp_path)
    assert {name: record["status"] for name, record in found.items()} == {
        "base-1-seed0": "done",
        "diff_pruning_scores-seed0": "done",
        "diff_pruning-0.5-seed0": "done",
        "ofa_joint-seed0": "failed",
    }


# Ranks and hosts; the whole campaign is `nox -s faults`


@pytest.mark.timeout(600)
def test_one_two_and_four_ranks_and_two_hosts_give_the_same_weights(tmp_path):
    rows, agree = equal_over_ranks(tmp_path)
    assert agree, rows
    assert [row[:2] for row in rows[1:4]] == [["1", "1"], ["2", "1"], ["4", "1"]] and rows[4][1].startswith("2 (")


@pytest.mark.timeout(600)
def test_a_rank_that_stops_is_named_and_the_run_goes_on_to_the_same_weights(tmp_path):
    two = Experiment(tmp_path / "undisturbed", ranks=2)
    two.run()
    outcome = crashes.one_rank_stops(tmp_path / "stopped", two, few=True)
    assert outcome.survived == outcome.tried == 1, outcome.remarks


@pytest.mark.timeout(600)
def test_a_signal_ends_a_run_with_a_checkpoint_of_the_step_at_hand(tmp_path):
    alone = Experiment(tmp_path / "undisturbed")
    alone.run()
    outcome = crashes.terminated(tmp_path / "terminated", alone, few=True)
    assert outcome.survived == outcome.tried == 1, outcome.remarks


LEAVES = """
import os, signal, sys, torch.distributed as dist
from repro.cli.ending import ended
from repro.errors import InterruptionError
from repro.runtime import distributed
def command():
    distributed.engine_library().ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for gloo it would compile an operator
    distributed.start(rank_timeout_sec=300)
    if distributed.rank() == 1:
        raise InterruptionError(signal.SIGTERM)
    dist.new_group(backend="gloo")  # asks the store where the other listens; no connection to that one breaks
    return 0
sys.exit(ended(command))
"""


def test_a_rank_that_ends_is_not_waited_for_where_no_connection_to_it_breaks():
    ranks = as_two_ranks(LEAVES)
    said = [error for *_, error in ranks]
    assert [process.returncode for process, *_ in ranks] == [75, 75], said
    assert f"error: rank 1 (process {ranks[1][0].pid} on " in said[0] and "has ended: stopped by SIGTERM; rank 0 ends, too" in said[0]
    assert said[1] == "stopped by SIGTERM; run the same command again to go on\n"


def test_ranks_end_with_their_launcher_even_when_it_is_killed(tmp_path):
    run = Experiment(tmp_path, ranks=2)
    process = run.start()
    try:
        assert crashes.until(lambda: run.stage("base-1-seed0") == "training", process)
        ranks = crashes.children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(ranks) == 2
        assert crashes.gone(ranks, limit_sec=60)
    finally:
        crashes.kill(process)
    assert "stopped by SIGTERM" in run.said()
