"""Tries every fault on real runs and prints a table: fault, times tried, times survived.

    python -m faults [NAME ...]

Exit code 1 where one was not survived.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import crashes, disks, intruders
from faults.lab import Experiment, Outcome
from faults.ranks import equal_over_ranks

LANES = 2  # processes of one thread each, on two cores
SEED = 0
KILLED_RUNS = 3


def main(chosen: list[str]) -> int:
    """Runs the campaign, or the named faults of it."""
    begun, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        alone, two = Experiment(folder / "undisturbed"), Experiment(folder / "undisturbed-2", ranks=2)
        with ThreadPoolExecutor(LANES) as lanes:
            list(lanes.map(Experiment.run, (alone, two)))
        faults: dict[str, Callable[[Path], Outcome]] = {
            f"killed{index}": lambda place, index=index: crashes.killed(place, alone, SEED + index) for index in range(KILLED_RUNS)
        }
        faults |= {
            "terminated": lambda place: crashes.terminated(place, alone),
            "one_rank_dies": lambda place: crashes.one_rank_dies(place, two),
            "one_rank_stops": lambda place: crashes.one_rank_stops(place, two),
            "other_ranks": lambda place: crashes.other_ranks(place, alone),
            "started_twice": lambda place: crashes.started_twice(place, alone),
            "torn": lambda place: disks.torn_checkpoints(place, alone, SEED),
            "full_disk": lambda place: disks.full_disk(place, alone),
            "read_only": lambda place: disks.read_only_results(place, alone),
            "clock": lambda place: disks.clock_jumps(place, alone),
            "data": intruders.corrupt_data,
            "archives": intruders.hostile_archives,
            "configurations": intruders.hostile_configurations,
        }
        wanted = {key: fault for key, fault in faults.items() if not chosen or key.rstrip("0123456789") in chosen}
        # What redirects this process's own output goes last and alone.
        own = [key for key in ("data", "archives", "configurations") if key in wanted]

        def tried(key: str) -> Outcome:
            started = time.monotonic()
            try:
                outcome = wanted[key](folder / key)
            except Exception as error:
                outcome = Outcome(key, tried=1, remarks=[f"broke off: {type(error).__name__}: {error}"])
            print(f"{key}: {outcome.survived} of {outcome.tried} survived, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            return outcome

        with ThreadPoolExecutor(LANES) as lanes:
            outcomes = list(lanes.map(tried, [key for key in wanted if key not in own]))
        outcomes += [tried(key) for key in own]
        merged: dict[str, Outcome] = {}
        for outcome in outcomes:
            into = merged.setdefault(outcome.fault, Outcome(outcome.fault))
            into.tried, into.survived = into.tried + outcome.tried, into.survived + outcome.survived
            into.remarks += outcome.remarks
        rows = [[each.fault, str(each.tried), str(each.survived)] for each in merged.values()]
        total = [str(sum(getattr(each, key) for each in merged.values())) for key in ("tried", "survived")]
        print(_table([["fault", "tried", "survived"], *rows, ["all", *total]]))
        for each in merged.values():
            for remark in each.remarks:
                bad += 1
                print(f"NOT SURVIVED: {each.fault}: {remark}")
        if not chosen or "ranks" in chosen:
            table, agree = equal_over_ranks(folder / "ranks")
            bad += not agree
            print(f"\n{_table(table)}")
    print(f"\n{time.monotonic() - begun:.0f} s")
    return 1 if bad else 0


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
