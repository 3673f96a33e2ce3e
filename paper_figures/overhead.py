"""What it costs to have every size: one joint training against one independent training per size."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from paper_figures.bills import deliverers, mean
from paper_figures.cells import Cell, MissingRecordsError, cells_of, sort_key
from paper_figures.look import look_of
from repro.harness.records import Record
from repro.harness.storage import write_atomically

PHASES = ("prepare", "importance", "train", "checkpoint", "lost")
NOT_CHARGED = ("evaluate", "start")  # phases that are recorded and no part of the training overhead
CSV_COLUMNS = ("device", "approach", "term", "device_hours", "busy", "train_pflop", "n_seeds")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One item on an approach's bill, averaged over seeds.

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


@dataclass(frozen=True, kw_only=True)
class Versus:
    """OFA against one independent method over the same sizes, in one currency; `busy` where a part was timed on a busy machine."""

    ofa: float
    independent: float
    n_sizes: int
    busy: bool = False

    @property
    def ratio(self) -> float:
        """How many times the independent trainings cost what OFA costs."""
        return self.independent / self.ofa

    @property
    def mean_per_size(self) -> float:
        """The mean cost of one independently delivered size."""
        return self.independent / self.n_sizes

    @property
    def break_even(self) -> int:
        """The least number of sizes that cost more than OFA when each is delivered independently at the mean cost."""
        k = max(1, math.floor(self.ofa / self.mean_per_size))
        # Rounding may ask for one more than the next; of astronomical numbers all are alike.
        return next((k + more for more in range(3) if (k + more) * self.mean_per_size > self.ofa), k)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One independent method next to OFA on one device: `sizes` are those that both have."""

    device: str
    method: str
    sizes: tuple[float, ...]
    left_out: tuple[float, ...]
    ofa: tuple[Term, ...]
    independent: tuple[Term, ...]

    def versus(self, currency: str, *, with_base_size: bool = True) -> Versus | None:
        """Compares the totals in `device_hours` or `train_pflop`, with or without size 1.0; None where either is unknown."""
        sizes = [size for size in self.sizes if with_base_size or size != 1.0]
        sides = [serving(terms, sizes) for terms in (self.ofa, self.independent)]
        ofa, independent = (total(terms, currency) for terms in sides)
        busy = currency == "device_hours" and any(term.busy for terms in sides for term in terms)
        return Versus(ofa=ofa, independent=independent, n_sizes=len(sizes), busy=busy) if ofa and independent else None

    def hours_up_to(self) -> list[float]:
        """Returns the independent method's hours for 0, 1, 2, ... sizes, the smallest first; what they share is spread evenly."""
        by_size = {size: sum(_share_of(term, size, self.sizes) for term in self.independent) for size in self.sizes}
        return [sum(by_size[size] for size in self.sizes[:k]) for k in range(len(self.sizes) + 1)]


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


def comparisons(terms: Sequence[Term]) -> list[Comparison]:
    """Pairs every independent method with OFA on the same device, over the sizes that both have."""
    pairs = []
    for device, method in sorted({(t.device, t.approach) for t in terms}, key=lambda pair: (pair[0], sort_key(pair[1], None))):
        ofa = [term for term in terms if term.device == device and term.approach == "ofa"]
        independent = [term for term in terms if term.device == device and term.approach == method]
        sizes = {term.size for term in ofa if term.size is not None} & {term.size for term in independent if term.size is not None}
        if method in ("base", "ofa") or not sizes:
            continue
        either = {term.size for term in [*ofa, *independent] if term.size is not None}
        pairs.append(
            Comparison(
                device=device,
                method=method,
                sizes=tuple(sorted(sizes)),
                left_out=tuple(sorted(either - sizes)),
                ofa=tuple(serving(ofa, sizes)),
                independent=tuple(serving(independent, sizes)),
            )
        )
    return pairs


def serving(terms: Iterable[Term], sizes: Collection[float | None]) -> list[Term]:
    """Returns the terms that are paid for some sizes: their own, and what any of them shares."""
    return [term for term in terms if term.size in sizes or any(size in sizes for size in term.serves)]


def _share_of(term: Term, size: float, sizes: Collection[float]) -> float:
    """Returns the part of a term's device-hours that falls on one of several sizes."""
    served = [term.size] if term.size is not None else [other for other in term.serves if other in sizes]
    return (term.device_hours or 0.0) / len(served) if size in served else 0.0


def total(terms: Iterable[Term], currency: str) -> float | None:
    """Adds up one currency; a term without PFLOP trains nothing, a term without hours makes the total unknown."""
    amounts: list[float | None] = [getattr(term, currency) for term in terms]
    known = [amount for amount in amounts if amount is not None]
    return None if not known or (currency == "device_hours" and len(known) < len(amounts)) else sum(known)


def why_not(terms: Sequence[Term], notes: Sequence[str]) -> str:
    """Says in one line why the records hold nothing to compare, and what to run."""
    ofa = sorted({term.device for term in terms if term.approach == "ofa"})
    others = sorted({term.device for term in terms if term.approach not in ("base", "ofa")})
    if notes and not (ofa and others):
        return "overhead: left out, " + "; ".join(notes)
    if not ofa:
        return "overhead: left out, no OFA records; run `python -m repro run`"
    if not others:
        return "overhead: left out, no baseline records; run `nox -s baselines`"
    if not set(ofa) & set(others):
        return (
            f"overhead: left out, OFA ran on {' and '.join(ofa)} but the baselines on {' and '.join(others)}, and device-hours of "
            "different devices are never compared; run both on one device with the same number of ranks"
        )
    return "overhead: left out, OFA and the baselines have no size in common; run `nox -s baselines`"


def write_overhead(folder: Path, records: Iterable[Record]) -> list[Path]:
    """Writes `tables/overhead.csv`, every term of every approach, and returns its path.

    Raises:
        MissingRecordsError: OFA and the baselines cannot be compared.
        ReproError: A record is malformed, or the folder cannot be written.
    """
    terms, notes = overhead_terms(records)
    if not comparisons(terms):
        raise MissingRecordsError(why_not(terms, notes))
    frame = pd.DataFrame([{column: getattr(term, column) for column in CSV_COLUMNS} for term in terms], columns=list(CSV_COLUMNS))
    path = folder / "tables" / "overhead.csv"
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n").encode())
    return [path]


def _approaches(cells: Iterable[Cell], by_name: Mapping[str, Cell]) -> dict[str, str]:
    """Returns OFA and every method that trains each size alone, in the order of the tables, and what each does for a size."""
    alone = {cell.method: "size" for cell in cells if _is_independent(cell, by_name)}
    held = alone | {cell.method: "extract" for cell in cells if cell.method == "ofa"}
    return dict(sorted(held.items(), key=lambda item: sort_key(item[0], None)))


def _is_independent(cell: Cell, by_name: Mapping[str, Cell]) -> bool:
    """Tells a net that was trained for its own size from one that another cell's training delivered, or none; a scoring pass is none."""
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
    known = [phase for phase in PHASES if any(run.trains for run in runs) or phase in spent or phase == "importance"]
    return [*known, *sorted(spent - {*PHASES, *NOT_CHARGED})]


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
