"""Terms of each approach's training overhead, by phase or size, averaged over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paper_figures.cells import Cell, cells_of
from paper_figures.methods import look_of, sort_key
from paper_figures.total_cost import deliverers, mean
from repro.experiment.records import Record
from repro.runtime.clock import CHARGED, PHASES


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of an approach's training overhead, averaged over seeds.

    `size` is None for what several sizes share, which are then those that it `serves`; `phase` is None for all phases of a cell.
    """

    device: str
    approach: str
    term: str
    size: float | None
    device_hours: float | None
    train_pflop: float | None
    n_seeds: int
    names: tuple[str, ...]  # of the cells that it was made from
    phase: str | None = None
    serves: tuple[float, ...] = ()
    busy: bool = False  # whether a cell of it was timed on a busy machine


def overhead_terms(records: Iterable[Record]) -> tuple[list[Term], list[str]]:
    """Returns every approach's terms (base, OFA, independent methods) per device, and notes about what was left out.

    Raises:
        ReproError: A record is malformed.
    """
    cells = cells_of(records)
    by_name = {cell.name: cell for cell in cells}
    done = [cell for cell in cells if cell.done and cell.own and cell.device_hours is not None]
    terms, notes = [], []
    for device in sorted({cell.device for cell in done}):
        here = [cell for cell in done if cell.device == device]
        terms += _terms_per_size([cell for cell in here if cell.method == "base"], "size")
        for method, what in _approaches(here, by_name).items():
            found, note = _approach_terms([cell for cell in here if cell.method == method], what, by_name)
            terms += found
            notes += [f"{look_of(method).label} is left out on {device}: {note}"] if note else []
    return terms, notes


def _approaches(cells: Iterable[Cell], by_name: Mapping[str, Cell]) -> dict[str, str]:
    """Returns OFA and every method that trains each size alone, in the order of the tables, and what each does for a size."""
    alone = {cell.method: "size" for cell in cells if _is_independent(cell, by_name)}
    held = alone | {cell.method: "extract" for cell in cells if cell.method == "ofa"}
    return dict(sorted(held.items(), key=lambda item: sort_key(item[0], None)))


def _is_independent(cell: Cell, by_name: Mapping[str, Cell]) -> bool:
    """Says whether a network was trained for its own size, not extracted from another training; a scoring pass is no training."""
    delivered = any(by_name[name].trains for name in cell.delivered_by if name in by_name)
    return cell.size is not None and cell.trains and not delivered and cell.method != "base"


def _terms_per_size(cells: Sequence[Cell], what: str) -> list[Term]:
    """Returns one term for each (method, size), averaged over seeds; another one for what was trained elsewhere."""
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in cells:
        if cell.size is not None:
            groups.setdefault((cell.method, cell.size, cell.trained_on), []).append(cell)
    return [
        Term(
            device=group[0].device,
            approach=method,
            term=f"{what} {size:g}" + (f" (trained once, on {elsewhere})" if elsewhere else ""),
            size=size,
            device_hours=mean(cell.device_hours for cell in group),
            train_pflop=mean(cell.train_pflop for cell in group),
            n_seeds=len(group),
            names=tuple(cell.name for cell in group),
            busy=any(cell.busy for cell in group),
        )
        for (method, size, elsewhere), group in sorted(groups.items(), key=lambda item: (sort_key(*item[0][:2]), item[0][2]))
    ]


def _approach_terms(networks: Sequence[Cell], what: str, by_name: Mapping[str, Cell]) -> tuple[list[Term], str]:
    """Returns the terms of an approach on one device: each phase of what its sizes share, then each size; or why there are none."""
    shared, note = deliverers(networks, by_name)
    elsewhere = [cell for cell in shared if cell.device != networks[0].device]
    if note or elsewhere:
        return [], note or f"{elsewhere[0].name} ran on {elsewhere[0].device}, and device-hours of different devices do not add up"
    terms = []
    for method in sorted({cell.method for cell in shared}):
        runs = [cell for cell in shared if cell.method == method]
        serves = _served(networks, {run.name for run in runs}, by_name)
        terms += [_phase_term(networks[0].method, runs, phase, serves) for phase in _phases(runs)]
    return terms + _terms_per_size(networks, what), ""


def _served(networks: Sequence[Cell], names: set[str], by_name: Mapping[str, Cell]) -> tuple[float, ...]:
    """Returns the sizes of the networks that need some runs, directly or through others."""
    return tuple(sorted({cell.size for cell in networks if cell.size is not None and names & _needed(cell, by_name)}))


def _needed(cell: Cell, by_name: Mapping[str, Cell]) -> set[str]:
    return {needed.name for needed in deliverers([cell], by_name)[0]}


def _phases(runs: Sequence[Cell]) -> list[str]:
    """Returns the phases that are charged: all known ones of a training run, of a scoring pass those that it had, and unknown ones."""
    spent = {phase for run in runs for phase, hours in run.phases_device_hours.items() if hours}
    known = [phase for phase in CHARGED if any(run.trains for run in runs) or phase in spent or phase == "importance"]
    return [*known, *sorted(spent - set(PHASES))]


def _phase_term(approach: str, runs: Sequence[Cell], phase: str, serves: tuple[float, ...]) -> Term:
    """Returns one phase of the runs that sizes of an approach share, one run a seed."""
    return Term(
        device=runs[0].device,
        approach=approach,
        term=f"{runs[0].method} {phase}",
        size=None,
        device_hours=mean(run.phases_device_hours.get(phase, 0.0) for run in runs),
        train_pflop=mean(_pflop_of(run, phase) for run in runs),
        n_seeds=len(runs),
        names=tuple(run.name for run in runs),
        phase=phase,
        serves=serves,
        busy=any(run.busy for run in runs),
    )


def _pflop_of(run: Cell, phase: str) -> float | None:
    """Returns the part of a run's work that a phase did: scoring is that of `importance`, the rest that of `train`."""
    if phase == "importance":
        return run.scoring_pflop
    return None if phase != "train" or run.train_pflop is None else run.train_pflop - (run.scoring_pflop or 0.0)
