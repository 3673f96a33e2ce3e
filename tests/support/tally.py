"""What a device was asked for, counted by the place in the project's code that asked."""

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = f"{Path(__file__).resolve().parents[2]}/"
PROJECT = tuple(ROOT + name for name in ("repro/", "baselines/", "paper_figures/"))
TESTS, OURS = ROOT + "tests/", ROOT + "tests/support/"
LIBRARIES = "site-packages/"

KINDS = {
    "read": "the host needed a value, or a shape that depends on values: it waited",
    "wait": "the host was told to wait",
    "h2d": "a copy to the device that the host waited for: from memory that is not pinned, or not asked for as non_blocking",
    "h2d_async": "a copy to the device from pinned memory, non_blocking",
    "d2h": "a copy to the host that it waited for",
    "d2h_async": "a copy to the host that it did not wait for",
    "unrepeatable": "a kernel ran that adds up in any order",
}
WAITING = ("read", "wait", "h2d", "d2h")


def where() -> str:
    """Returns the innermost line of the project on the stack, and the innermost of a library that it called, torch left out."""
    place = _place(sys._getframe(1))
    main = threading.main_thread().ident
    if place.startswith("?") and threading.get_ident() != main:  # a backward pass has a thread of its own, and the main one waits for it
        return _place(sys._current_frames()[main])
    return place


def _place(frame: FrameType | None) -> str:
    library, test = "", ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PROJECT):
            return _line(name.removeprefix(ROOT), frame) + library
        if LIBRARIES in name:
            short = name.rpartition(LIBRARIES)[2]
            if not (library or short.startswith("torch/")):
                library = " > " + _line(short, frame)
        elif not test and name.startswith(TESTS) and not name.startswith(OURS):
            test = _line(name.removeprefix(ROOT), frame)
        frame = frame.f_back
    return (test or "?") + library


def _line(name: str, frame: FrameType) -> str:
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"


class Tally:
    """Counts of every kind of event, by label, what it was and where it came from.

    Attributes:
        label: What is counted goes under it, such as the phase of a clock.
    """

    def __init__(self) -> None:
        self.label = ""
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        self._on = True

    def add(self, kind: str, what: str) -> None:
        """Counts one event."""
        if self._on:
            self._counts[self.label, kind, what, where()] += 1

    def reset(self) -> None:
        """Forgets all."""
        self._counts.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing until the block ends: what a test itself looks at."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    @contextmanager
    def recording(self, label: str = "") -> Iterator["Tally"]:
        """Yields a tally of what happens until the block ends; it is also in this one."""
        part, before, name = Tally(), self._counts.copy(), self.label
        self.label = label or name
        try:
            yield part
        finally:
            part._counts, self.label = self._counts - before, name

    def totals(self) -> dict[str, int]:
        """Returns how many of every kind."""
        totals = dict.fromkeys(KINDS, 0)
        for (_, kind, _, _), count in self._counts.items():
            totals[kind] += count
        return totals

    def report(self) -> dict[str, dict[str, dict[str, int]]]:
        """Returns label -> kind -> "what, at place" -> count."""
        report: dict[str, dict[str, dict[str, int]]] = {}
        for (label, kind, what, place), count in sorted(self._counts.items()):
            report.setdefault(label, {}).setdefault(kind, {})[f"{what}, at {place}"] = count
        return report

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(json.dumps(self.report(), indent=1))


counts = Tally()
