"""Paired timing: two implementations alternate in one process, so that a slow machine slows both."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from repro.runtime.distributed import device
from repro.runtime.gpu import settled_time

LEAST_ROUNDS = 3  # of what is slow, however few are asked for: a median needs a spread
Timed = Callable[[], float]  # does its work and returns the seconds of a unit of it


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a ratio should be.

    Attributes:
        limit: The bound.
        at_most: Whether it is the highest that will do, not the lowest.
    """

    limit: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Says whether a value will do."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        what: The two things whose ratio it is, "this / that", or the one thing that is measured.
        value: The median over the rounds.
        low: Their lower quartile.
        high: Their upper quartile.
        rounds: How many there were.
        unit: Of the value; empty for a ratio.
        target: What it should be; None where nothing is asked.
        parts: The medians of the two things, with their unit: `{"step_ms": [this, that]}`; and whatever explains them.
        note: What a reader has to know.
    """

    what: str
    value: float
    low: float
    high: float
    rounds: int
    unit: str = ""
    target: Target | None = None
    parts: dict[str, object] | None = None
    note: str = ""


def in_turn(first: Timed, second: Timed, rounds: int) -> tuple[list[float], list[float]]:
    """Times two things in turn, each going first every other time, after a round that is not counted.

    Returns:
        The seconds of each in every round.
    """
    first(), second()
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            found[which].append((first, second)[which]())
    return found


def ratio(what: str, this: list[float], that: list[float], *, target: Target | None = None, note: str = "", unit_ms: str = "ms") -> Row:
    """Returns the row of this divided by that, round by round.

    Args:
        what: Names the two.
        this: Seconds in every round.
        that: Likewise, in the same rounds.
        target: What the ratio should be.
        note: What a reader has to know.
        unit_ms: The name under which the two medians are kept, in milliseconds.
    """
    medians = [1000 * statistics.median(times) for times in (this, that)]
    return spread(what, [a / b for a, b in zip(this, that, strict=True)], target=target, parts={unit_ms: medians}, note=note)


def spread(
    what: str, values: list[float], *, unit: str = "", target: Target | None = None, parts: dict[str, object] | None = None, note: str = ""
) -> Row:
    """Returns the row of one thing's values: their median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Row(what=what, value=middle, low=low, high=high, rounds=len(values), unit=unit, target=target, parts=parts, note=note)


def now() -> float:
    """Returns the time, once the device has done what it was given."""
    return settled_time(device())


def timed(work: Callable[[], object], units: int = 1) -> Timed:
    """Returns a thing to time: the seconds of a unit of some work."""

    def seconds() -> float:
        begun = now()
        work()
        return (now() - begun) / units

    return seconds
