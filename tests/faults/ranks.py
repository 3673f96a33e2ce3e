"""How results and speed depend on the number of ranks, and on the hosts that they are on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch

from faults.lab import CELLS, ROOT, wait

BASE = CELLS[0]
NAMESPACES = ("ofa-host-a", "ofa-host-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LOOPBACKS = ("127.0.0.1", "127.0.0.2")
TOLERANCE = 1e-4
# Enough arithmetic that a step is more than its overhead: the network and batch of the digits.
WORDS = [
    "--config",
    "digits",
    "--methods",
    "base",
    "--set",
    "base.source=train",
    "--set",
    "base_training.steps=60",
    "--set",
    "evaluation.samples=64",
    "--set",
    "classifier.steps=20",
    "--set",
    "classifier.least_accuracy=0",
]


def equal_over_ranks(folder: Path) -> tuple[list[list[str]], bool]:
    """Trains the base with 1, 2 and 4 ranks on one host, and 4 on two; returns a table and whether all agree."""
    rows, agree, first = [["ranks", "hosts", "largest difference of a weight", "training img/s", "speed-up"]], True, 0.0
    for ranks in (1, 2, 4):
        place = folder / str(ranks)
        several = ["--ranks", str(ranks)] if ranks > 1 else []
        assert _run(["run", *WORDS, *_places(place), *several]) == 0
        difference, rate = _difference(place, folder / "1"), _rate(place)
        first = first or rate
        agree &= difference <= TOLERANCE
        rows.append([str(ranks), "1", f"{difference:.1e}", f"{rate:.0f}", f"{rate / first:.2f}"])
    with _two_hosts() as (kind, prefixes, addresses):
        place = folder / "hosts"
        begun = [
            subprocess.Popen(
                [
                    *prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", f"--node-rank={index}",
                    f"--master-addr={addresses[0]}", "--master-port=29517", f"--local-addr={address}",
                    "-m", "repro", "run", *WORDS, *_places(place),
                ],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for index, (prefix, address) in enumerate(zip(prefixes, addresses, strict=True))
        ]  # fmt: skip
        codes = [wait(process) for process in begun]
        assert codes == [0, 0], f"two hosts ended with {codes}"
        difference, rate = _difference(place, folder / "1"), _rate(place)
        exact = _difference(place, folder / "4")
        agree &= difference <= TOLERANCE and exact == 0
        rows.append(["4", f"2 ({kind})", f"{difference:.1e}; {exact:g} to 4 on one host", f"{rate:.0f}", f"{rate / first:.2f}"])
    return rows, agree


def _run(words: list[str]) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "repro", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return wait(process)


def _places(folder: Path) -> list[str]:
    return ["--results", str(folder / "results"), "--runs", str(folder / "runs"), "--set", "trial=true"]


def _difference(ours: Path, theirs: Path) -> float:
    """Returns the largest difference; a bias of keys is left out: softmax takes it away, so Adam makes whole steps of rounding errors."""
    name = Path("runs") / "digits" / BASE / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    mine, other = (safetensors.torch.load_file(folder / name) for folder in (ours, theirs))
    return max(float((mine[key] - other[key]).abs().max()) for key in other if not key.endswith("to_k.bias"))


def _rate(folder: Path) -> float:
    """Returns the images that were trained on in a second of wall time."""
    record = json.loads((folder / "results" / "digits" / f"{BASE}.json").read_text())
    seconds = 3600 * record["cost"]["phases_device_hours"]["train"] / record["cost"]["ranks"]
    return record["training"]["images"] / seconds


@contextmanager
def _two_hosts() -> Iterator[tuple[str, list[list[str]], tuple[str, str]]]:
    """Yields what two hosts are here, what a command on each begins with, and their addresses."""
    if os.geteuid() != 0 or not shutil.which("ip") or _ip("netns", "add", NAMESPACES[0]).returncode:
        yield "two loopback addresses", [[], []], LOOPBACKS
        return
    try:
        _ip("netns", "add", NAMESPACES[1])
        _ip("-n", NAMESPACES[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", NAMESPACES[1])
        for name, address in zip(NAMESPACES, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")
        yield "network namespaces", [["ip", "netns", "exec", name] for name in NAMESPACES], ADDRESSES
    finally:
        for name in NAMESPACES:
            _ip("netns", "del", name)


def _ip(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["ip", *words], check=False, capture_output=True)
