"""Total cost of a cell: its own, and that of the runs that it shares with other sizes."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from paper_figures.cells import Cell

SHARED_SCORING = "holds an even share of the one pass that scores the channels for every pruned size"


class ByName(dict[str, Cell]):
    """The cells of an experiment by name; nothing is added later."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        super().__init__((cell.name, cell) for cell in cells)

    @cached_property
    def served(self) -> Counter[tuple[str, int, str]]:
        """How many cells of a (method, seed) a cell of some name delivers, counted once for all of them."""
        return Counter((cell.method, cell.seed, name) for cell in self.values() for name in set(cell.delivered_by))


@dataclass(frozen=True, kw_only=True)
class TotalCost:
    """Total cost of a cell: its own and that of the cells that deliver it; None where that is unknown."""

    device_hours: float | None
    train_pflop: float | None
    note: str
    busy: bool = False


def total_cost(cell: Cell, cells: ByName) -> TotalCost:
    """Sums the training overhead of a cell and its deliverers: each counts once, a scoring pass by an even share."""
    to_pay, note = deliverers([cell], cells)
    paid = [(part, _share(part, cell, cells)) for part in (cell, *to_pay)]
    if note:
        return TotalCost(device_hours=None, train_pflop=None, note=f"cost unknown: {note}")
    pflop = sum(share * (part.train_pflop or 0.0) for part, share in paid)
    hours = [share * part.device_hours for part, share in paid if part.device_hours is not None]
    if len(hours) < len(paid):
        return TotalCost(device_hours=None, train_pflop=pflop, note="device-hours were not recorded")
    devices = sorted({part.device for part, _ in paid})
    if len(devices) > 1:
        return TotalCost(device_hours=None, train_pflop=pflop, note=f"device-hours on {' and '.join(devices)} do not add up")
    shares = any(share < 1 for _, share in paid)
    return TotalCost(
        device_hours=sum(hours), train_pflop=pflop, note=SHARED_SCORING if shares else "", busy=any(part.busy for part, _ in paid)
    )


@dataclass(frozen=True, kw_only=True)
class SharedCost:
    """What delivers a cell and trains nothing, such as a pass that scores channels: its cells, and what the cell holds of their cost."""

    cells: tuple[Cell, ...]
    device_hours: float
    train_pflop: float


def shared_cost(cell: Cell, cells: ByName) -> SharedCost | None:
    """Returns what a cell holds of others that train nothing; None where one of them has no record, or none of its hours."""
    to_pay, note = deliverers([cell], cells)
    parts = [(part, _share(part, cell, cells)) for part in to_pay if not part.trains]
    if note or any(part.device_hours is None for part, _ in parts):
        return None
    return SharedCost(
        cells=tuple(part for part, _ in parts),
        device_hours=sum(share * (part.device_hours or 0.0) for part, share in parts),
        train_pflop=sum(share * (part.train_pflop or 0.0) for part, share in parts),
    )


def _share(part: Cell, of: Cell, cells: ByName) -> float:
    """Returns which part of a cell's cost falls on one size: of a pass that only scores, an even share over the method's sizes."""
    if part is of or part.trains:
        return 1.0
    return 1.0 / max(1, cells.served[of.method, of.seed, part.name])


def deliverers(cells: Iterable[Cell], by_name: Mapping[str, Cell]) -> tuple[list[Cell], str]:
    """Returns the cells that deliver others, directly or not, and a note when one of them is missing or failed."""
    held = {cell.name: cell for cell in cells}
    pending = [name for cell in held.values() for name in cell.delivered_by]
    found: dict[str, Cell] = {}
    while pending:
        name = pending.pop()
        if name in found or name in held:
            continue
        if name not in by_name:
            return [], f"{name} has no record"
        if not by_name[name].done:
            return [], f"{name} failed"
        found[name] = by_name[name]
        pending.extend(found[name].delivered_by)
    return [found[name] for name in sorted(found)], ""


def mean(numbers: Iterable[float | None]) -> float | None:
    """Returns the mean, or None when there is no number or one of them is unknown."""
    known = list(numbers)
    present = [number for number in known if number is not None]
    return statistics.fmean(present) if present and len(present) == len(known) else None
