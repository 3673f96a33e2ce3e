"""Two folders of records side by side: what differs in how they were made, and paired differences of quality and cost."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from paper_figures.cells import Cell
from paper_figures.comparable import said, short
from paper_figures.evidence import Grid, interval, percent
from paper_figures.markup import BUSY_NOTE, markdown, marked
from paper_figures.methods import look_of, sort_key
from paper_figures.total_cost import ByName, total_cost
from repro.errors import ReproError
from repro.experiment.records import Record

UNSTATED = "not stated"
A, B = "A", "B"
MOST_VALUES = 3  # of a key that differs, which are shown


@dataclass(frozen=True, kw_only=True)
class Side:
    """The records of one folder.

    Attributes:
        name: What it is called.
        records: All of them, trials left out.
        grid: The judged cells.
        by_name: All cells that are done, by name.
    """

    name: str
    records: Sequence[Record]
    grid: Grid
    by_name: ByName

    @classmethod
    def of(cls, name: str, records: Sequence[Record]) -> "Side":
        """Sorts the records of a folder.

        Raises:
            ReproError: No network of it has been judged, or a record is malformed.
        """
        grid = Grid(records)
        if not grid.of:
            raise ReproError(f"{name}: no judged network in it; name the folder of an experiment whose cells have run")
        kept = [record for record in records if not record.get("trial")]
        return cls(name=name, records=kept, grid=grid, by_name=ByName(grid.cells))


def compare_text(one: Side, other: Side, pairs: Mapping[str, str] | None = None) -> str:
    """Returns what differs between two folders, and a row for each network that both have.

    Args:
        one: What is compared with.
        other: What is compared.
        pairs: Methods of the one -> methods of the other; None takes those of the same name.

    Raises:
        ReproError: A method is on neither side, or nothing is on both.
    """
    pairs = _paired(one, other, pairs)
    table, notes = _table(one, other, pairs)
    if table.empty:
        raise ReproError(f"{one.name}, {other.name}: no network at a common size and seed; name methods that both have, as ofa=mine")
    alone = [
        f"Only in {letter}: {', '.join(missing)}"
        for letter, side, held in ((A, one, set(pairs)), (B, other, set(pairs.values())))
        if (missing := sorted(set(side.grid.of) - held, key=lambda method: sort_key(method, None)))
    ]
    heading = f"A: {one.name}\nB: {other.name}\n\n"
    if differing := _differing(one, other):
        how = markdown(pd.DataFrame(differing, columns=["", A, B]), [], "How they were made: what differs", left=3)
    else:
        how = "# How they were made\n\nIn one way: settings, versions, devices and extractors agree.\n"
    return heading + how + "\n" + markdown(table, [*notes, *alone], "What they came to: B against A")


def _paired(one: Side, other: Side, pairs: Mapping[str, str] | None) -> Mapping[str, str]:
    if pairs is None:
        both = sorted(set(one.grid.of) & set(other.grid.of), key=lambda method: sort_key(method, None))
        return {method: method for method in both}
    for mine, theirs in pairs.items():
        for side, method in ((one, mine), (other, theirs)):
            if method not in side.grid.of:
                raise ReproError(f"--pair {mine}={theirs}: {side.name} has no {method}; it has {', '.join(sorted(side.grid.of))}")
    return pairs


def _table(one: Side, other: Side, pairs: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Returns a row for each method and size, and the notes on all of them."""
    rows, equal, cells_in_both, notes = [], 0, 0, dict[str, None]()
    for method, theirs in pairs.items():
        mine, others = one.grid.of[method], other.grid.of[theirs]
        for size in sorted({size for held in mine.values() for size in held}, reverse=True):
            seeds = [seed for seed in sorted(set(mine) & set(others)) if size in mine[seed] and size in others[seed]]
            if not seeds:
                continue
            pairs_of_cells = [(mine[seed][size], others[seed][size]) for seed in seeds]
            cells_in_both += len(seeds)
            equal += sum(a.values == b.values and a.scale == b.scale for a, b in pairs_of_cells)
            row, why = _row(one, other, pairs_of_cells)
            label = look_of(method).label if method == theirs else f"{look_of(theirs).label} against {look_of(method).label}"
            rows.append({"Method": label, "Size": f"{size:g}"} | row | {"Seeds": str(len(seeds))})
            notes |= dict.fromkeys(why)
    table = pd.DataFrame(rows)
    if table.empty:
        return table, []
    busy = table.pop("busy")
    judged = [cell for side, held in ((one, pairs), (other, pairs.values())) for cell in side.grid.cells if cell.method in held]
    metrics = dict.fromkeys(cell.metric for cell in judged if cell.metric)
    table["Device-hours"] = marked(list(table["Device-hours"]), busy)
    return table, [
        f"Quality: {' and '.join(metrics)}, lower is better; mean over seeds",
        "Difference: of B from A, paired over seeds, with its 95 % interval of Student's t from two seeds on; negative is better",
        "Device-hours, PFLOP: of B over those of A, with the runs that deliver a network, shared ones included",
        f"{equal} of {cells_in_both} cells have the same values to the last digit",
        *notes,
        *([BUSY_NOTE] if busy.any() else []),
    ]


def _row(one: Side, other: Side, pairs: Sequence[tuple[Cell, Cell]]) -> tuple[dict[str, Any], list[str]]:
    """Returns the numbers of one network, and why some are left out."""
    values = [(statistics.fmean(a.values), statistics.fmean(b.values)) for a, b in pairs]
    scales = [scale for cells in pairs for scale in (cells[0].scale, cells[1].scale) if scale is not None]
    notes, difference = [], ""
    if apart := said(scales):
        notes.append(f"Qualities on several scales are not compared: {apart}")
    else:
        logs = [math.log(b / a) for a, b in values]
        found = interval(logs)
        difference = f"{percent(statistics.fmean(logs)):+.1f} %"
        difference += f" ({percent(found.low):+.1f} .. {percent(found.high):+.1f})" if found else ""
    if any(a.base != b.base for a, b in pairs if a.base and b.base):
        notes.append("Bases differ: the differences hold their chance, too")
    paid = [(total_cost(a, one.by_name), total_cost(b, other.by_name)) for a, b in pairs]
    return {
        "Quality, A": f"{statistics.fmean(a for a, _ in values):.2f}",
        "Quality, B": f"{statistics.fmean(b for _, b in values):.2f}",
        "Difference": difference,
        "Device-hours": _ratio((a.device_hours, b.device_hours) for a, b in paid),
        "PFLOP": _ratio((a.train_pflop, b.train_pflop) for a, b in paid),
        "busy": any(a.busy or b.busy for a, b in paid),
    }, notes


def _ratio(pairs: Iterable[tuple[float | None, float | None]]) -> str:
    """Returns the sum of the second over that of the first; empty where one is unknown or nothing."""
    held = list(pairs)
    if any(a is None or b is None for a, b in held):
        return ""
    below, above = (sum(pair[side] or 0.0 for pair in held) for side in (0, 1))
    return f"{above / below:.2f} x" if below > 0 else ""


def _differing(one: Side, other: Side) -> list[tuple[str, str, str]]:
    """Returns what is not the same in how two folders were made: commits, settings, devices, versions, extractors."""
    ours, theirs = (_how(side) for side in (one, other))
    names = dict.fromkeys([*ours, *theirs])
    return [(name, _shown(ours.get(name)), _shown(theirs.get(name))) for name in names if ours.get(name) != theirs.get(name)]


def _how(side: Side) -> dict[str, tuple[str, ...]]:
    """Returns the values that each fact has over the records, sorted."""
    facts: dict[str, set[str]] = {}
    for cell in side.grid.cells:
        for conditions in (cell.machine if cell.device else None, cell.scale if cell.metric else None):
            for name, value in conditions.facts if conditions else ():
                facts.setdefault(name, set()).add(value)
    for record in side.records:
        provenance = record["provenance"]
        if record.get("variant") is None:
            for name, value in _flat(provenance.get("config") or {}):
                facts.setdefault(name, set()).add(value)
        if commit := provenance.get("git_commit"):
            facts.setdefault("commit", set()).add(str(commit))
    return {name: tuple(sorted(values)) for name, values in facts.items() if name != "name"}


def _flat(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)


def _shown(values: tuple[str, ...] | None) -> str:
    if not values:
        return UNSTATED
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    return ", ".join(short(value) for value in values[:MOST_VALUES]) + more
