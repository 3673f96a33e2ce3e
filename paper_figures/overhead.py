"""Training overhead of all sizes: one joint training against one independent training per size."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from paper_figures.cells import MissingRecordsError
from paper_figures.methods import sort_key
from paper_figures.overhead_terms import Term, overhead_terms
from repro.experiment.records import Record
from repro.files.writing import write_atomically

CSV_COLUMNS = ("device", "approach", "term", "device_hours", "busy", "train_pflop", "n_seeds")


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
    """Returns the terms of some sizes: their own, and those that any of them shares."""
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
