"""Runs independent cells in parallel, each in a process of its own, on GPUs of its own where there are any."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, state_of
from repro.experiment.run import cells_to_run, check_writable, work_of
from repro.launch.processes import POLL_SEC, ended_with_this, last_words, start, threads_for
from repro.runtime import gpu
from repro.runtime.progress import bar_style, say


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A place where one cell runs at a time; `devices` are its GPUs, none on a CPU."""

    devices: tuple[str, ...] = ()


def deal(count: int, ranks: int) -> list[Lane]:
    """Returns lanes for so many cells at a time, each with a GPU for each of its ranks where there are any.

    Raises:
        ReproError: There are too few GPUs, or the ranks of a cell would be slices of GPUs.
    """
    devices = gpu.names()
    if not devices:
        return [Lane()] * count
    if count * ranks > len(devices):
        raise ReproError(f"--parallel-cells {count}: needs {count * ranks} GPUs, {len(devices)} are there; ask for fewer")
    if ranks > 1 and devices[0].startswith(gpu.SLICE):
        raise ReproError(f"--ranks {ranks}: a process sees one MIG slice alone; leave it out, so that each cell has a slice of its own")
    return [Lane(devices=devices[lane * ranks : (lane + 1) * ranks]) for lane in range(count)]


def cell_arguments(shared: Sequence[str], cell: Cell) -> list[str]:
    """Returns what comes after the program to run one cell, given the words that all cells share."""
    return ["run", *shared, *cell.words(), "--yes"]


def run_side_by_side(experiment: Experiment, cells: list[Cell], shared: Sequence[str], *, lanes: Sequence[Lane], ranks: int) -> int:
    """Runs cells in processes of their own, the longest first among those whose needs are met; returns 1 where one failed, else 0.

    Args:
        experiment: The configuration, its methods and its folders.
        cells: What to run, each after those it needs.
        shared: The words of the command that all cells share.
        lanes: Where they run, one at a time in each.
        ranks: Ranks of each.
    """
    free = list(lanes)
    torch.cuda.empty_cache()  # the memory of the estimate's measurement is for the cells
    check_writable(experiment)
    todo = cells_to_run(experiment, cells)
    if len(todo) < len(cells):
        say(f"{len(cells) - len(todo)} of {len(cells)} cells are done already and skipped")
    work = {cell: work_of(experiment, cell) for cell in todo}
    waiting, failed = sorted(todo, key=lambda cell: -work[cell]), set[Cell]()
    running: dict[Cell, tuple[subprocess.Popen[bytes], Lane]] = {}
    processes: list[subprocess.Popen[bytes]] = []
    style = bar_style() | {"bar_format": "{desc}: {percentage:.0f} %, {remaining} left"}
    with ended_with_this(processes), tqdm(total=sum(work.values()), **style) as bar:
        while waiting or running:
            for cell, (process, lane) in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    free.append(lane)
                    bar.update(work[cell])
                    if not _ended_well(experiment, cell, process.returncode, f"[{len(todo) - len(waiting) - len(running)}/{len(todo)}]"):
                        failed.add(cell)
            for cell in list(waiting):
                needs = set(experiment.needs(cell))
                if needs & failed:
                    waiting.remove(cell)
                    failed.add(cell)
                    say(f"{cell.name}: not begun, it needs {', '.join(needed.name for needed in needs & failed)}")
                elif free and not needs & {*waiting, *running}:
                    waiting.remove(cell)
                    lane = free.pop(0)
                    process = _begin(experiment, cell, shared, lane, count=len(lanes), ranks=ranks)
                    processes.append(process)
                    running[cell] = (process, lane)
            bar.set_description_str(", ".join(cell.name for cell in running), refresh=False)
            time.sleep(POLL_SEC)
    return 1 if failed else 0


def log_of(experiment: Experiment, cell: Cell) -> Path:
    """Returns the log file of a cell's process."""
    return experiment.runs / "logs" / f"{cell.name}.log"


def _begin(experiment: Experiment, cell: Cell, shared: Sequence[str], lane: Lane, *, count: int, ranks: int) -> "subprocess.Popen[bytes]":
    log = log_of(experiment, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {gpu.VARIABLE: ",".join(lane.devices)} if lane.devices else {}
    command = [sys.executable, *experiment.program.words, *cell_arguments(shared, cell), *(["--ranks", str(ranks)] if ranks > 1 else [])]
    with log.open("ab") as output:
        return start(command, variables | {"OMP_NUM_THREADS": threads_for(count * ranks)}, output)


def _ended_well(experiment: Experiment, cell: Cell, code: int, label: str) -> bool:
    """Prints how a cell ended, and returns whether it is done."""
    state, remark = state_of(experiment, cell)
    if code == 0 and state == "done":
        say(f"{label} {cell.name}: {remark or 'done'}")
        return True
    log = log_of(experiment, cell)
    say(f"{label} {cell.name}: ended with code {code}: {last_words(log)} ({log})", to_stderr=True)
    return False
