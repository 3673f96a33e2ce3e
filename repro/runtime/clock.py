"""The clock: device-hours, split into phases that add up to the wall time.

    device_hours = ranks * wall seconds of the slowest rank / 3600

The clock is always in exactly one phase. Training overhead is every phase but `start` and `evaluate`: a process starts once, however many
cells it runs, and a network is judged for the sake of the comparison.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repro.runtime.busy import BusyMeter

PHASES = ("start", "prepare", "importance", "train", "checkpoint", "lost", "evaluate")
NOT_CHARGED = ("start", "evaluate")
CHARGED = tuple(phase for phase in PHASES if phase not in NOT_CHARGED)


class Clock:
    """Counts the seconds that this rank spends in each phase; it is in `prepare` once it is made.

    A run may go on with another number of ranks, so what passes from life to life is device-seconds: ranks * seconds.

    Args:
        started: `time.monotonic()` when the process began; from then until the clock is made is the phase `start`.
        ranks: How many ranks spend that time.
        settle: Returns once the device has done what it was given; it is called where a phase begins and where it ends, so that no work
            is counted under the phase after it.

    Attributes:
        busy: What this process saw of its machine in the phases that are charged.
    """

    def __init__(self, started: float | None = None, ranks: int = 1, settle: Callable[[], object] = lambda: None) -> None:
        self._ranks, self._settle = ranks, settle
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "prepare", time.monotonic()
        self._seconds["start"] = 0.0 if started is None else self._since - started
        self.busy = BusyMeter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of a block under a phase, then returns to the phase before."""
        self._settle()
        before = self._switch(name)
        try:
            yield
        finally:
            self._settle()
            self._switch(before)

    def _switch(self, name: str) -> str:
        assert name in PHASES, name
        now = time.monotonic()
        before = self._phase
        self._seconds[before] += now - self._since
        self.busy.note(now - self._since, charged=before not in NOT_CHARGED)
        self._phase, self._since = name, now
        return before

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase until now."""
        self._switch(self._phase)
        return dict(self._seconds)

    def device_seconds(self) -> dict[str, float]:
        """Returns the device-seconds of each phase until now, if all ranks were as slow as this one."""
        return {name: self._ranks * value for name, value in self.seconds().items()}

    def resume(self, saved: dict[str, float], last_seen: dict[str, float]) -> None:
        """Takes over the clock of an earlier life of the run.

        Args:
            saved: The phases, in device-seconds, where the run goes on from; empty when it starts over.
            last_seen: The phases at the last sign of life, likewise. What starting and evaluation took since is kept; all else between
                was lost.
        """
        for name, value in saved.items():
            self._seconds[name] += value / self._ranks
        if training_overhead(last_seen) > training_overhead(saved):
            self._seconds["lost"] += (training_overhead(last_seen) - training_overhead(saved)) / self._ranks
        for name in NOT_CHARGED:
            self._seconds[name] += max(0.0, last_seen.get(name, 0.0) - saved.get(name, 0.0)) / self._ranks


def device_hours(seconds: dict[str, float], ranks: int) -> dict[str, float]:
    """Turns the phases of the slowest rank into device-hours."""
    return {name: ranks * value / 3600 for name, value in seconds.items()}


def training_overhead(phases: dict[str, float]) -> float:
    """Returns the sum of every phase but `start` and `evaluate`, in the unit of `phases`."""
    return sum(value for name, value in phases.items() if name not in NOT_CHARGED)
