"""Marks times that were measured while other processes loaded the machine.

The load average is an exponential moving average, over about a minute, of the threads that run or wait for a core, this process's among
them. Its lag is corrected by its change: `load = mean of the load average + 60 s x its change / seconds` is free of the minute before, as
long as the time is not too short for the system's sampling interval of five seconds.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

MEMORY_SEC = 60.0
LEAST_SEC = 30.0  # for less, the load average is taken as it is
SPARE_CORES = 0.5
LEAST_CPU_SHARE = 0.9
LEAST_SHARE_SEC = 1.0  # for less, one read of a file or one migration between cores weighs too much


@dataclass(frozen=True, kw_only=True)
class Tally:
    """CPU time and load average over the charged time of a process, summed over all of its lives.

    Attributes:
        seconds: That time.
        cpu_seconds: CPU time of all of its threads in it.
        load_seconds: The load average times the seconds that it stood; None where the system has no load average.
        load_change: By how much the load average rose meanwhile; None likewise.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    load_seconds: float | None = 0.0
    load_change: float | None = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        """Adds two lives, or two stretches of one."""
        return Tally(
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            load_seconds=_sum(self.load_seconds, other.load_seconds),
            load_change=_sum(self.load_change, other.load_change),
        )

    def load(self) -> float | None:
        """Returns the mean number of threads that ran or waited for a core, without the lag."""
        if self.load_seconds is None or self.load_change is None or not self.seconds:
            return None
        late = MEMORY_SEC * self.load_change if self.seconds >= LEAST_SEC else 0.0
        return max(0.0, (self.load_seconds + late) / self.seconds)

    def cpu_share(self, threads: int) -> float | None:
        """Returns CPU time over the charged time of that many threads."""
        return self.cpu_seconds / (self.seconds * threads) if self.seconds else None


class BusyMeter:
    """Keeps the tally of a process.

    Attributes:
        tally: Of the charged time until the last `note`, and of earlier lives once they were added.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self._then = (time.process_time(), load_average())

    def note(self, seconds: float, *, charged: bool) -> None:
        """Takes in the stretch since the last call.

        Args:
            seconds: How long it was.
            charged: Whether it counts.
        """
        cpu_then, load_then = self._then
        cpu, load = self._then = (time.process_time(), load_average())
        if not charged:
            return
        loads: dict[str, float | None] = {"load_seconds": None, "load_change": None}
        if load is not None and load_then is not None:
            loads = {"load_seconds": seconds * (load + load_then) / 2, "load_change": load - load_then}
        self.tally += Tally(seconds=seconds, cpu_seconds=cpu - cpu_then, **loads)

    def resume(self, earlier: Mapping[str, float | None] | None) -> None:
        """Adds what earlier lives saw, by the keys of a tally; None where it was not kept."""
        if earlier:
            self.tally += Tally(**earlier)  # type: ignore[arg-type]  # a heartbeat's seconds are never None


def is_busy(load: float | None, cpu_share: float | None = None, *, cores: int) -> bool:
    """Says whether other processes competed with this one for at least half a core.

    That is where the load, this run's own threads among it, is more than half a process above the cores; or where a run of one thread
    on a CPU computed for less than nine tenths of its time, since something else had its core.

    Args:
        load: Threads that ran or waited; None where the system has no load average.
        cpu_share: Of a run of one thread on a CPU; None elsewhere, where threads wait for one another or for a GPU.
        cores: Of the machine that the load is of.
    """
    return (load is not None and load > cores + SPARE_CORES) or (cpu_share is not None and cpu_share < LEAST_CPU_SHARE)


def load_average() -> float | None:
    """Returns the system's load average over a minute; None where it has none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def cores() -> int:
    """Returns the number of cores of this machine."""
    return os.cpu_count() or 1


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
