"""The clock: device-hours, split into phases that add up to the wall time.

    device_hours = ranks * wall seconds of the slowest rank / 3600

The clock is always in exactly one phase. Training overhead is every phase but `evaluate`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("prepare", "importance", "train", "checkpoint", "lost", "evaluate")


class Clock:
    """Counts the seconds that this rank spends in each phase; starts in `prepare`.

    A run may go on with another number of ranks, so what passes from life to life is device-seconds: ranks * seconds.

    Args:
        started: `time.monotonic()` at the start, when that lies before the call.
        ranks: How many ranks spend that time.
    """

    def __init__(self, started: float | None = None, ranks: int = 1) -> None:
        self._ranks = ranks
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "prepare"
        self._since = time.monotonic() if started is None else started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of a block under a phase, then returns to the phase before."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> str:
        assert name in PHASES, name
        now = time.monotonic()
        before = self._phase
        self._seconds[before] += now - self._since
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
            last_seen: The phases at the last sign of life, likewise. What evaluation did since is kept; all else between was lost.
        """
        for name, value in saved.items():
            self._seconds[name] += value / self._ranks
        if training_overhead(last_seen) > training_overhead(saved):
            self._seconds["lost"] += (training_overhead(last_seen) - training_overhead(saved)) / self._ranks
        self._seconds["evaluate"] += max(0.0, last_seen.get("evaluate", 0.0) - saved.get("evaluate", 0.0)) / self._ranks


def device_hours(seconds: dict[str, float], ranks: int) -> dict[str, float]:
    """Turns the phases of the slowest rank into device-hours."""
    return {name: ranks * value / 3600 for name, value in seconds.items()}


def training_overhead(phases: dict[str, float]) -> float:
    """Returns the sum of every phase but `evaluate`, in the unit of `phases`."""
    return sum(value for name, value in phases.items() if name != "evaluate")
