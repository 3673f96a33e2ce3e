"""Which GPU a rank computes on, under every way in which GPUs are shown to it; a stand-in for CUDA where there is none."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.commands import as_two_ranks

from repro.cli import main
from repro.config import Execution
from repro.errors import ReproError
from repro.launch.parallel_cells import deal
from repro.models import memory
from repro.runtime import distributed, gpu, provenance

ROOT = Path(__file__).resolve().parents[2]
MACHINE = tuple(f"{index}{index}{index}{index}0000-0000-0000-0000-000000000000" for index in range(8))  # the UUIDs of its GPUs
SLICES = "MIG-aaaa,MIG-bbbb,MIG-cccc"


def shown(visible):
    """Returns the indices of the machine's GPUs that CUDA leaves: up to the first name that it does not know; of slices the first."""
    if visible is None:
        return list(range(len(MACHINE)))
    if visible.startswith("MIG-"):
        return [0]
    names = [name.strip() for name in visible.split(",")]
    found = [MACHINE.index(name[4:]) if name.startswith("GPU-") else int(name) for name in names if name]
    return found[: next((place for place, index in enumerate(found) if not 0 <= index < len(MACHINE)), len(found))]


@pytest.fixture
def cuda(monkeypatch):
    """A function that puts this process on a machine of 8 GPUs, of which CUDA_VISIBLE_DEVICES leaves some, as a rank."""

    def set_up(visible=None, local_rank=0):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        found = shown(visible)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=MACHINE[found[index]]))
        return found

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return set_up


# A rank's device


@pytest.mark.parametrize(
    ("visible", "local_rank", "index"),
    [
        (None, 0, 0),
        (None, 7, 7),
        ("3,1", 1, 1),
        ("5", 0, 0),
        ("5", 3, 0),  # a task of --gpus-per-task=1
        (f"GPU-{MACHINE[6]}", 2, 0),
        ("MIG-aaaa", 1, 0),
    ],
)
def test_a_rank_computes_on_the_gpu_of_its_local_rank_or_on_the_only_one_that_it_sees(cuda, visible, local_rank, index):
    cuda(visible, local_rank)
    assert distributed.device() == torch.device("cuda", index)


@pytest.mark.parametrize(("visible", "local_rank", "seen"), [(None, 8, 8), ("3,1", 2, 2), ("0,1,99,2", 2, 2)])
def test_more_ranks_than_gpus_are_told_in_one_line_with_the_remedy(cuda, visible, local_rank, seen):
    cuda(visible, local_rank)
    with pytest.raises(ReproError, match=rf"LOCAL_RANK={local_rank}: .* it sees {seen}; start at most {seen} ranks on a machine, or"):
        distributed.device()


@pytest.mark.parametrize("visible", ["", "-1"])
def test_without_a_visible_gpu_a_rank_computes_on_the_cpu(cuda, visible):
    cuda(visible, 3)
    assert distributed.device() == torch.device("cpu")
    assert gpu.count() == 0 and gpu.names() == ()


def test_a_gpu_is_told_from_others_by_its_uuid_and_a_slice_by_its_name(cuda):
    cuda("3,1")
    assert [gpu.identity(index) for index in range(2)] == [f"GPU-{MACHINE[3]}", f"GPU-{MACHINE[1]}"]
    cuda("MIG-bbbb")
    assert gpu.identity(0) == gpu.mig_slice(0) == "MIG-bbbb"


# Ranks that have met


def met(monkeypatch, places):
    monkeypatch.setattr(distributed, "gather", lambda own: [own, *places])


def test_two_ranks_that_see_the_same_gpu_are_refused_in_one_line(cuda, monkeypatch):
    cuda("5")
    met(monkeypatch, [["other", f"GPU-{MACHINE[5]}"], [socket.gethostname(), f"GPU-{MACHINE[2]}"]])
    distributed._check_gpus()
    met(monkeypatch, [[socket.gethostname(), f"GPU-{MACHINE[2]}"], [socket.gethostname(), f"GPU-{MACHINE[5]}"]])
    with pytest.raises(ReproError, match=rf"ranks 0 and 2 would compute on the same GPU of .*, GPU-{MACHINE[5]}; start fewer"):
        distributed._check_gpus()


def test_two_slices_of_a_gpu_are_two_devices_and_one_slice_is_one(cuda, monkeypatch):
    cuda("MIG-aaaa", 1)
    met(monkeypatch, [[socket.gethostname(), "MIG-bbbb"]])
    distributed._check_gpus()
    met(monkeypatch, [[socket.gethostname(), "MIG-aaaa"]])
    with pytest.raises(ReproError, match=r"ranks 0 and 1 .*MIG-aaaa"):
        distributed._check_gpus()


def test_a_machine_whose_gpu_is_not_seen_is_named(cuda, monkeypatch):
    cuda()
    met(monkeypatch, [["broken", ""]])
    with pytest.raises(ReproError, match="rank 1 sees no GPU on broken, and others do; leave that machine out"):
        distributed._check_gpus()
    cuda("")
    met(monkeypatch, [[socket.gethostname(), ""], ["alike", ""]])
    distributed._check_gpus()


# Two ranks on a machine whose GPUs are a stand-in; NCCL's place is gloo's.
START = """
import os, sys, threading, types, torch, torch.distributed as dist
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.get_device_properties = lambda _index: types.SimpleNamespace(uuid=os.environ["FAKE_UUID"])
torch.cuda.set_device = lambda _device: None
begin, groups = dist.init_process_group, []
def with_gloo(backend, **more):
    groups.append(backend)
    begin("gloo", **more)
dist.init_process_group = with_gloo
from repro.cli.ending import ended
from repro.runtime import distributed
def command():
    distributed.engine_library().ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for gloo it would compile an operator
    distributed.start(rank_timeout_sec=60)
    print(groups, distributed.device(), os.environ["LOCAL_RANK"])
    distributed.stop()
    return 0
code = ended(command, unread=0)
print("left" if not dist.is_initialized() and threading.active_count() == 1 else threading.enumerate())
sys.exit(code)
"""


@pytest.mark.parametrize(("uuids", "code"), [(("aaaa", "bbbb"), 0), (("aaaa", "aaaa"), 2)])
def test_ranks_that_start_find_out_whether_each_has_a_gpu_of_its_own(uuids, code):
    ranks = as_two_ranks(START, [{"FAKE_UUID": uuid} for uuid in uuids])
    said = [printed for _, *printed in ranks]
    assert [process.returncode for process, *_ in ranks] == [code, code], said
    for out, error in said:
        assert out.splitlines()[-1] == "left"  # a thread that meets the interpreter's end may abort the process
        if code:
            assert "error: ranks 0 and 1 would compute on the same GPU" in error and "Traceback" not in error
        else:
            assert out.splitlines()[0] == "['nccl'] cuda:0 0"  # DeepSpeed takes the GPU by LOCAL_RANK


# What is asked of a device


def test_memory_and_name_are_asked_of_the_ranks_own_gpu(cuda, monkeypatch):
    cuda("3,1", 1)
    own, asked = torch.device("cuda", 1), []

    def answers(value):
        return lambda device=None: asked.append(device) or value

    for name, value in (
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 3 * 2**30),
        ("get_device_name", "a GPU"),
        ("mem_get_info", (10 * 2**30, 80 * 2**30)),
    ):
        monkeypatch.setattr(torch.cuda, name, answers(value))
    monkeypatch.setattr(torch.cuda, "init", lambda: asked.append("init"))
    provenance.reset_peak_memory()
    assert asked == ["init", own]  # torch knows no statistics of a device before that
    assert provenance.peak_memory_gib() == 3
    assert provenance.device_name() == "a GPU"
    assert memory.limit_gib(Execution()) == pytest.approx(9)
    assert memory.limit_gib(Execution(memory_gib=5)) == 5
    assert asked[1:] == [own] * 4


# Cells side by side


@pytest.mark.parametrize(
    ("visible", "count", "ranks", "devices"),
    [
        (None, 2, 4, [("0", "1", "2", "3"), ("4", "5", "6", "7")]),
        ("3, 1", 2, 1, [("3",), ("1",)]),
        ("0,1,99,2", 2, 1, [("0",), ("1",)]),
        (f"GPU-{MACHINE[4]},GPU-{MACHINE[2]}", 1, 2, [(f"GPU-{MACHINE[4]}", f"GPU-{MACHINE[2]}")]),
        (SLICES, 3, 1, [("MIG-aaaa",), ("MIG-bbbb",), ("MIG-cccc",)]),
        ("", 5, 2, [()] * 5),
    ],
)
def test_gpus_are_dealt_to_cells_as_they_are_named(cuda, visible, count, ranks, devices):
    cuda(visible)
    assert [lane.devices for lane in deal(count, ranks)] == devices


@pytest.mark.parametrize(
    ("visible", "count", "ranks", "line"),
    [
        (None, 3, 3, "--parallel-cells 3: needs 9 GPUs, 8 are there; ask for fewer"),
        ("3,1", 3, 1, "needs 3 GPUs, 2 are there"),
        ("0,1,99,2", 3, 1, "needs 3 GPUs, 2 are there"),
        (SLICES, 4, 1, "needs 4 GPUs, 3 are there"),
        (SLICES, 1, 2, "--ranks 2: a process sees one MIG slice alone; leave it out"),
    ],
)
def test_too_few_gpus_for_cells_side_by_side_are_refused(cuda, visible, count, ranks, line):
    cuda(visible)
    with pytest.raises(ReproError, match=line):
        deal(count, ranks)


def test_too_few_gpus_are_told_before_anything_is_measured_or_begun(cuda, monkeypatch, tmp_path, capsys):
    cuda("3,1")
    monkeypatch.setattr(distributed, "engine_library", lambda: pytest.fail("begun"))
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert main(["run", "--config", str(ROOT / "tests" / "tiny.toml"), "--methods", "base", "--parallel-cells", "3", *folders]) == 2
    assert "error: --parallel-cells 3: needs 3 GPUs, 2 are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("NCCL communicator was aborted on rank 1.", True),
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer", True),
        ("Distributed package doesn't have NCCL built in", False),
        ("ncclInvalidUsage: This usually reflects invalid usage of NCCL library. Duplicate GPU detected", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_an_error_of_what_connects_the_ranks_is_a_lost_rank_unless_it_would_come_again(monkeypatch, said, lost):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.is_loss_of_a_rank(RuntimeError(said)) is lost
