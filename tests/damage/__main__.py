"""Damages every file that a finished run leaves and prints a table: kind, damages, noticed, accepted in silence, tracebacks.

    python -m damage

Exit code 1 where a damage was accepted in silence or ended in a traceback, or where an undamaged copy was refused.
"""

import contextlib
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from damage.kinds import all_trials
from damage.lab import Trial, Verdict, commands, make_run, tried, typed

LANES = 2  # processes of one thread each, on two cores
MADE_AGAIN = ("ofa-0.5-seed0", "diff_pruning-0.5-seed0")  # in an undamaged copy


def main() -> int:
    """Runs the campaign."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        folder = Path(name)
        finished = folder / "finished"
        make_run(finished)
        trials = all_trials(finished)
        alarms = [*false_alarms(finished, folder / "copy", shutil.copytree), *false_alarms(finished, folder / "clone", _cloned)]
        verdicts = campaign(trials, finished, folder)
    print(table(verdicts))
    bad = [verdict for verdict in verdicts if verdict.traceback or not verdict.noticed]
    for alarm in alarms:
        print(f"false alarm: {alarm}", file=sys.stderr)
    print(f"{len(verdicts)} damages, {len(bad)} not noticed; {len(alarms)} false alarms; {time.monotonic() - begun:.0f} s")
    return 1 if bad or alarms else 0


def campaign(trials: list[Trial], finished: Path, folder: Path) -> list[Verdict]:
    """Tries every damage, two at a time; the processes are forked, so that each knows the trials."""
    lanes = multiprocessing.get_context("fork")
    tasks, verdicts = lanes.SimpleQueue(), lanes.SimpleQueue()
    for index in [*range(len(trials)), *[None] * LANES]:
        tasks.put(index)

    def work() -> None:
        while (index := tasks.get()) is not None:
            verdicts.put(tried(trials[index], finished, folder / f"trial{index}"))

    workers = [lanes.Process(target=work) for _ in range(LANES)]
    for worker in workers:
        worker.start()
    found = []
    for index in range(len(trials)):
        found.append(verdict := verdicts.get())
        if verdict.traceback or not verdict.noticed:
            said = f"ends in a traceback: {verdict.said}" if verdict.traceback else "accepted in silence"
            print(f"{verdict.name}: {said}", file=sys.stderr, flush=True)
        if (index + 1) % 50 == 0:
            print(f"{index + 1} of {len(trials)} damages tried", file=sys.stderr, flush=True)
    for worker in workers:
        worker.join()
    return found


def false_alarms(finished: Path, folder: Path, copied: Callable[[Path, Path], object]) -> list[str]:
    """Returns what is said against an undamaged copy of the run, by every verb, and after some of its cells were made again."""
    copied(finished, folder)
    for cell in MADE_AGAIN:
        (folder / "results" / "tiny" / f"{cell}.json").unlink()
    found = []
    for verb in ("run", "records", "report"):
        for command, words in commands(verb):
            with contextlib.chdir(folder):
                code, said = typed(command, words)
            if code or "error: " in said or "drawn again" in said:
                found.append(f"{folder.name}, {' '.join(words[:2])}: {said[-500:]}")
    return found


def _cloned(finished: Path, folder: Path) -> None:
    """Commits a run to git and clones it."""
    source = folder.with_name("repository")
    shutil.copytree(finished, source)
    name = ["-c", "user.name=damage", "-c", "user.email=damage@example.com"]
    for words in (["init", "--quiet"], ["add", "--all", "--force"], [*name, "commit", "--quiet", "--message", "a run"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    subprocess.run(["git", "clone", "--quiet", source, folder], check=True)


def table(verdicts: list[Verdict]) -> str:
    """Returns the counts of each kind."""
    rows = [("what was damaged", "damages", "noticed", "in silence", "tracebacks")]
    for kind in dict.fromkeys(verdict.kind for verdict in sorted(verdicts, key=lambda each: each.kind)):
        mine = [verdict for verdict in verdicts if verdict.kind == kind]
        noticed, broke = sum(verdict.noticed for verdict in mine), sum(verdict.traceback for verdict in mine)
        rows.append((kind, str(len(mine)), str(noticed), str(len(mine) - noticed), str(broke)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
