"""Progress bar of a cell, and its heartbeat, which `status` and a resumed run read."""

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from repro.files.writing import write_atomically
from repro.runtime import distributed, rank_watch, signals
from repro.runtime.clock import Clock
from repro.runtime.energy import EnergyMeter
from repro.runtime.heartbeat import HEARTBEAT, read_heartbeat
from repro.runtime.provenance import device_name, now_utc
from repro.runtime.watchers import Watchers

HEARTBEAT_SEC = 1.0
PLAIN_LINE_SEC = 30.0


@dataclass(frozen=True, kw_only=True)
class Life:
    """What earlier lives of a run left, up to their last heartbeat.

    Attributes:
        device_seconds: The phases; empty when there was no earlier life.
        busy: What they saw of their machines, by the keys of a `Tally`; None where there was no earlier life.
        kwh: Energy that its GPUs drew; None where a life had no counter.
        devices: What it ran on, each once, in order.
        lives: How many processes have worked on the cell.
        started_utc: When the first of them began; empty where there was none.
        changed: What was no longer the same in a later one.
    """

    device_seconds: dict[str, float] = field(default_factory=dict)
    busy: Mapping[str, float | None] | None = None
    kwh: float | None = 0.0
    devices: tuple[str, ...] = ()
    lives: int = 0
    started_utc: str = ""
    changed: tuple[str, ...] = ()


class CellProgress:
    """A bar for one cell: its stage, step, loss and time left; and its heartbeat.

    Args:
        label: What stands before the bar.
        clock: The cell's clock, whose phases go into the heartbeat.
        folder: Where the heartbeat is written.
        identity: Names the run; the heartbeat of another one is not taken up.
        watch: Who is shown the cell's numbers and images besides; nobody by default.

    Attributes:
        watch: The same.
        last_seen: The phases, in device-seconds, at the last heartbeat of an earlier life; empty where there was none.
        lives: How many processes have worked on the cell, this one included.
        devices: What they ran on.
        started_utc: When the first of them began.
        changed: What was no longer the same in a later one, for the record.
    """

    def __init__(self, label: str, clock: Clock, folder: Path, identity: str, watch: Watchers | None = None) -> None:
        self.watch = watch or Watchers()
        self._label = label
        self._clock = clock
        self._folder = folder
        self._identity = identity
        self._earlier = _earlier_life(folder, identity)
        clock.busy.resume(self._earlier.busy)
        self.last_seen = self._earlier.device_seconds
        self.lives = self._earlier.lives + 1
        self.started_utc = self._earlier.started_utc or now_utc()
        self.changed = self._earlier.changed
        self.devices = tuple(dict.fromkeys((*self._earlier.devices, device_name())))
        self._meter = EnergyMeter()
        self._bar: Any = None
        self._stage = "preparing"
        self._images = 0
        self._begun = (0, 0.0)
        self._beat = 0.0

    def note_changes(self, changes: list[str]) -> None:
        """Says what is not as it was in an earlier life, and keeps it for the record."""
        for change in changes:
            say(f"{self._label} goes on: {change}")
        self.changed = tuple(dict.fromkeys((*self.changed, *changes)))

    def stage(self, name: str, images: int = 0) -> None:
        """Ends the bar and starts another for what comes now.

        Args:
            name: What comes now.
            images: How many images a unit of it is, over all ranks; 0 where it is not counted in images.
        """
        signals.check()
        self.close()
        self._stage, self._images = name, images
        self._write(0, 0)

    def __call__(self, done: int, total: int, loss: float = math.nan) -> None:
        """Shows how far the stage is."""
        signals.check()
        now = time.monotonic()
        if self._bar is None:
            self._begun = (max(0, done - 1), now)
            self._bar = self._new_bar(total, done)
        self._bar.update(done - self._bar.n)
        if not math.isnan(loss):
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        rank_watch.note(f"{self._label} {self._stage} {done}/{total}")
        if now - self._beat >= HEARTBEAT_SEC or done == total:
            self._beat = now
            self._write(done, total)

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def kwh(self) -> float | None:
        """Returns the energy of the cell over all lives and ranks; a killed life counts up to its last heartbeat."""
        drawn = distributed.gather(self._meter.kwh())
        known = [self._earlier.kwh, *drawn]
        return None if None in known else sum(known)

    def _new_bar(self, total: int, done: int) -> Any:
        about = f"{self._label} {self._stage}"
        return tqdm(total=total, initial=max(0, done - 1), desc=about, disable=distributed.rank() != 0, **bar_style())

    def _write(self, done: int, total: int) -> None:
        if distributed.rank() != 0:
            return
        first, since = self._begun
        seconds = time.monotonic() - since
        rate = (done - first) / seconds if done > first and seconds > 0 else None
        beat = {"stage": self._stage, "done": done, "total": total, "identity": self._identity, "lives": self.lives}
        beat |= {"img_per_sec": rate * self._images if rate and self._images else None, "sec_left": (total - done) / rate if rate else None}
        # The other ranks' GPUs are assumed to draw as much: a heartbeat synchronises no rank.
        drawn = self._meter.kwh()
        kwh = None if drawn is None or self._earlier.kwh is None else self._earlier.kwh + distributed.ranks() * drawn
        beat |= {"device_seconds": self._clock.device_seconds(), "kwh": kwh, "devices": self.devices}
        beat |= {"started_utc": self.started_utc, "changed": self.changed}
        beat["busy"] = asdict(self._clock.busy.tally)
        write_atomically(self._folder / HEARTBEAT, json.dumps(beat).encode())


class _Lines:
    """A stream on which a bar writes whole lines without control characters."""

    def write(self, text: str) -> None:
        """Writes what is left of a text on a line of its own."""
        if line := text.replace("\r", "").strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Passes on what was written."""
        sys.stderr.flush()


def bar_style() -> Any:
    """Returns how a bar is drawn: in place on a terminal, as a plain line every half minute elsewhere."""
    if sys.stderr.isatty():
        return {"leave": False, "mininterval": 0.2, "dynamic_ncols": True}
    form = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
    return {"leave": False, "mininterval": PLAIN_LINE_SEC, "delay": PLAIN_LINE_SEC, "bar_format": form, "file": _Lines()}


def _earlier_life(folder: Path, identity: str) -> Life:
    beat = read_heartbeat(folder)
    try:
        if beat["identity"] == identity:
            about = {key: beat[key] for key in ("device_seconds", "busy", "kwh", "lives", "started_utc")}
            return Life(devices=tuple(beat["devices"]), changed=tuple(beat["changed"]), **about)
    except KeyError:
        pass  # none, or one of another version of this program
    return Life()


def say(line: str, *, to_stderr: bool = False) -> None:
    """Prints a line above the bar, from the first rank."""
    if distributed.rank() == 0:
        tqdm.write(line, file=sys.stderr if to_stderr else sys.stdout)
        sys.stdout.flush()
