"""What every fault is tried on: one small experiment, run by the command that a user types, beside an undisturbed run of the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
OVERRIDES = (
    "base_training.steps=120",
    "base_training.checkpoint_every_steps=40",
    "ofa_training.steps=120",
    "ofa_training.checkpoint_every_steps=40",
    "importance.images=512",
    "evaluation.samples=160",
    "evaluation.batch_size=8",
    "evaluation.sampler_steps=6",
    "classifier.steps=120",
)
CELLS = ("base-1-seed0", "ofa_joint-seed0", "ofa-1-seed0", "ofa-0.5-seed0")
INTERRUPTED = 75
LIMIT_SEC = 180.0


@dataclass
class Outcome:
    """How often a fault was tried, how often it was survived, and what went wrong otherwise."""

    fault: str
    tried: int = 0
    survived: int = 0
    remarks: list[str] = field(default_factory=list)

    @contextmanager
    def trial(self, name: str) -> Iterator[None]:
        """Counts a trial, survived unless something in it fails."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            self.remarks.append(f"{name}: {type(error).__name__}: {str(error)[:600]}")
        else:
            self.survived += 1


class Experiment:
    """The experiment in a folder of its own."""

    def __init__(self, folder: Path, *, ranks: int = 1, methods: str = "base,ofa", overrides: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.results = folder / "results" / "tiny"
        self.runs = folder / "runs" / "tiny"
        self.output = folder / "output.txt"
        folder.mkdir(parents=True, exist_ok=True)
        sets = [word for value in (*OVERRIDES, *overrides) for word in ("--set", value)]
        places = ["--results", str(folder / "results"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")]
        several = ["--ranks", str(ranks)] if ranks > 1 else []
        self.words = ["run", "--config", str(TINY), "--methods", methods, *places, *sets, *several]

    def start(self, *, prefix: tuple[str, ...] = (), **variables: str) -> "subprocess.Popen[bytes]":
        """Starts the command; what it prints is added to the output."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        with self.output.open("ab") as output:
            command = [*prefix, sys.executable, "-m", "repro", *self.words]
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)

    def run(self, expected: int = 0, **variables: str) -> str:
        """Runs the command to its end and returns what this life printed."""
        before = self.said()
        code = wait(self.start(**variables))
        said = self.said()[len(before) :]
        assert code == expected, f"ended with code {code}, not {expected}: {said[-500:]}"
        assert "Traceback" not in said, said[-1500:]
        return said

    def said(self) -> str:
        """Returns everything that all lives printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def stage(self, cell: str) -> str:
        """Returns the stage of a cell that is being worked on."""
        return str(self.beat(cell).get("stage", ""))

    def beat(self, cell: str) -> dict:
        """Returns the last sign of life of a cell; empty where there is none."""
        try:
            return json.loads((self.runs / cell / "heartbeat.json").read_text())
        except (OSError, ValueError):
            return {}

    def checkpoints(self, cell: str) -> list[Path]:
        """Returns the checkpoints of a cell, the newest last."""
        return sorted((self.runs / cell / "checkpoints").glob("step-*.safetensors"))

    def records(self) -> dict[str, bytes]:
        """Returns every record's bytes."""
        return {path.stem: path.read_bytes() for path in self.results.glob("*.json")}

    def record(self, cell: str) -> dict:
        """Returns a record."""
        return json.loads((self.results / f"{cell}.json").read_text())

    def weights(self, cell: str) -> bytes:
        """Returns the file of a network's weights."""
        return (self.runs / cell / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def assert_same(ours: Experiment, theirs: Experiment) -> None:
    """Makes sure that a run came to the results of an undisturbed one: weights to the bit, qualities to the last digit."""
    assert ours.records().keys() == theirs.records().keys(), f"records {sorted(ours.records())}"
    for cell in theirs.records():
        mine, other = ours.record(cell), theirs.record(cell)
        assert mine["status"] == "done", f"{cell}: {mine['reason']}"
        assert ours.weights(cell) == theirs.weights(cell), f"{cell}: other weights"
        for key in ("quality", "size", "base"):
            assert mine[key] == other[key], f"{cell}: another {key}"
        if other["training"]:
            np.testing.assert_allclose(mine["training"]["curve"], other["training"]["curve"], atol=1e-6)
        phases = mine["cost"]["phases_device_hours"]
        assert all(0 <= value < 1 for value in phases.values()), f"{cell}: {phases}"


def wait(process: "subprocess.Popen[bytes]", limit_sec: float = LIMIT_SEC) -> int:
    """Returns the exit code of a process; one that does not end is killed, which is a failure."""
    try:
        return process.wait(limit_sec)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"still running after {limit_sec:g} s") from error
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kills a process with all that it started."""
    for child in [*children(process.pid), process.pid]:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def until(ready: Callable[[], object], process: "subprocess.Popen[bytes]", limit_sec: float = LIMIT_SEC) -> bool:
    """Waits until something is so; returns whether it came to that before the process ended."""
    deadline = time.monotonic() + limit_sec
    while time.monotonic() < deadline:
        if ready():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise AssertionError("never came to the moment of the fault")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills with SIGKILL, as a power failure would: process and children at once."""
    end(process)


def children(pid: int) -> list[int]:
    """Returns the processes that a process started, in order."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def moment(longest_sec: float, stream: random.Random) -> None:
    """Lets a random time pass."""
    time.sleep(stream.uniform(0.0, longest_sec))
