"""Processes that die, stop, are asked to stop, or are started twice."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from faults.lab import CELLS, INTERRUPTED, Experiment, Outcome, assert_same, children, kill, moment, until, wait

BASE, JOINT, _, SMALL = CELLS
# In the order in which a run comes to them, so that one run can be killed in each, one life after the other.
MOMENTS: dict[str, Callable[[Experiment], object]] = {
    "while it starts": lambda run: True,
    "training of the base": lambda run: run.stage(BASE) == "training",
    "writing a checkpoint": lambda run: any((run.runs / BASE / "checkpoints").glob(".*.tmp")),
    "sampling": lambda run: run.stage(BASE) == "sampling",
    "training of the classifier": lambda run: run.stage(BASE) == "classifier",
    "features": lambda run: run.stage(BASE) in ("features", "reference features"),
    "after a record": lambda run: (run.results / f"{BASE}.json").exists(),
    "importance": lambda run: run.stage(JOINT) == "importance",
    "joint training": lambda run: run.stage(JOINT) == "training",
    "joint training, again": lambda run: run.beat(JOINT).get("done", 0) > 90,
    "sampling of a size": lambda run: run.stage(SMALL) == "sampling",
    "evaluation of a size": lambda run: run.stage(SMALL) in ("classifier", "features", "reference features", "distance"),
}
AT_ONCE = ("writing a checkpoint", "after a record")


def killed(folder: Path, undisturbed: Experiment, seed: int) -> Outcome:
    """SIGKILL at a random moment of each phase of one run, life after life; records are compared after each."""
    outcome, stream = Outcome("SIGKILL, at a random moment of every phase"), random.Random(seed)
    run = Experiment(folder)
    for name, ready in MOMENTS.items():
        before = run.records()
        process = run.start()
        if not until(lambda ready=ready: ready(run), process):
            assert wait(process) == 0, f"before '{name}': {run.said()[-1500:]}"
            continue  # the run ended before it: its moment was too short to be met
        with outcome.trial(name):
            moment(0.0 if name in AT_ONCE else 3.0 if name == "while it starts" else 0.5, stream)
            kill(process)
            after = run.records()
            assert all(after.get(cell) == content for cell, content in before.items()), "a record was lost or changed"
            assert all(run.record(cell)["status"] == "done" for cell in after), "a crash was recorded as a failure"
    with outcome.trial("end"):
        run.run()
        assert_same(run, undisturbed)
    outcome.tried -= 1  # the last life is no fault, but all of them are judged by it
    outcome.survived = outcome.survived - 1 if not outcome.remarks else 0
    return outcome


def terminated(folder: Path, undisturbed: Experiment, *, few: bool = False) -> Outcome:
    """SIGTERM and SIGINT: a checkpoint of the step at hand, the code that a scheduler requeues, and the same end."""
    outcome = Outcome("SIGTERM, as of a scheduler; SIGINT")
    for number, code in ((signal.SIGTERM, INTERRUPTED), (signal.SIGINT, 130))[: 1 if few else None]:
        for cell, stage in ((BASE, "training"), (SMALL, "sampling"))[: 1 if few else None]:
            with outcome.trial(f"{number.name}, {stage}"):
                run = Experiment(folder / f"{number.name}-{stage}")
                process = run.start()
                assert until(lambda run=run, cell=cell, stage=stage: run.stage(cell) == stage and run.beat(cell)["done"] > 5, process)
                process.send_signal(number)
                assert wait(process) == code, run.said()[-500:]
                if stage == "training":
                    (newest,) = run.checkpoints(cell)[-1:]
                    assert int(newest.stem.removeprefix("step-")) % 40, "no checkpoint of the step at hand"
                assert "Traceback" not in run.said()
                run.run()
                assert_same(run, undisturbed)
                assert run.record(BASE)["cost"]["phases_device_hours"]["lost"] * 3600 < 1.5
    return outcome


def one_rank_dies(folder: Path, undisturbed: Experiment) -> Outcome:
    """SIGKILL of one of two ranks: the other does not wait for it, and the next command goes on."""
    outcome = Outcome("a rank of two killed")
    moments = ((BASE, "training", 1), (JOINT, "training", 0), (SMALL, "sampling", 1))
    for index, (cell, stage, rank) in enumerate(moments):
        with outcome.trial(f"rank {rank}, {stage}"):
            run = Experiment(folder / str(index), ranks=2)
            process = run.start()
            assert until(lambda run=run, cell=cell, stage=stage: run.stage(cell) == stage, process)
            _signal(children(process.pid)[rank], signal.SIGKILL)
            assert wait(process, 90) == INTERRUPTED, run.said()[-500:]
            assert "error: " in run.said() and "run the same command again" in run.said()
            run.run()
            assert_same(run, undisturbed)
    return outcome


def one_rank_stops(folder: Path, undisturbed: Experiment, *, few: bool = False) -> Outcome:
    """SIGSTOP of one of two ranks, as a machine or network that hangs: it is named, and the run ends."""
    outcome = Outcome("a rank of two stopped (SIGSTOP)")
    for rank in (1,) if few else (1, 0):
        with outcome.trial(f"rank {rank}"):
            run = Experiment(folder / str(rank), ranks=2, overrides=("execution.rank_timeout_sec=6",))
            process = run.start()
            assert until(lambda run=run: run.stage(BASE) == "training" and run.beat(BASE)["done"] > 5, process)
            _signal(children(process.pid)[rank], signal.SIGSTOP)
            assert wait(process, 60) == INTERRUPTED, run.said()[-500:]
            assert f"rank {rank} (process" in run.said() and "no sign of life" in run.said(), run.said()[-500:]
            run.run()
            assert_same(run, undisturbed)
    return outcome


def other_ranks(folder: Path, undisturbed: Experiment) -> Outcome:
    """A run that goes on with another number of ranks; equal within rounding."""
    outcome = Outcome("resumed on another number of ranks")
    for before, after in ((2, 1), (1, 2)):
        with outcome.trial(f"{before}, then {after}"):
            place = folder / f"{before}-{after}"
            run = Experiment(place, ranks=before)
            process = run.start()
            assert until(lambda run=run: len(run.checkpoints(BASE)) > 0, process)
            kill(process)
            run = Experiment(place, ranks=after)
            run.run()
            record, other = run.record(BASE), undisturbed.record(BASE)
            assert record["provenance"]["lives"] == 2 and record["cost"]["ranks"] == after
            difference = abs(record["quality"]["mean"] / other["quality"]["mean"] - 1)
            assert difference < 1e-3, f"quality differs by {difference:.2e}"
    return outcome


def started_twice(folder: Path, undisturbed: Experiment) -> Outcome:
    """Two of the same command at once: one does the work, the other says who does and stops."""
    outcome = Outcome("two launches at once")
    for attempt in range(3):
        with outcome.trial(str(attempt)):
            run = Experiment(folder / str(attempt))
            processes = [run.start(), run.start()]
            codes = sorted(wait(process) for process in processes)
            assert codes == [0, INTERRUPTED], f"{codes}: {run.said()[-500:]}"
            assert "is working on it" in run.said() and any(f"process {process.pid} " in run.said() for process in processes)
            assert_same(run, undisturbed)
    return outcome


def gone(processes: list[int], limit_sec: float) -> bool:
    """Waits until processes have ended, and returns whether they have."""
    deadline = time.monotonic() + limit_sec
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes):
            return True
        time.sleep(0.1)
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
