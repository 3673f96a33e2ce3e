"""The claims of the paper, each with the comparison that decides it."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from paper_figures.cells import Cell
from paper_figures.curves import Bounded, Curves, curves_in, interval_of
from paper_figures.evidence import UNDECIDED, Grid, check_machine, interval, percent, verdict
from paper_figures.methods import INDEPENDENT

EQUAL_COMPUTE_PCT = 5.0  # "equal" total compute may be off by this much without a word
COST_FACTOR = 2.0  # "far less" is at most half
QUALITY_MARGIN_PCT = 10.0  # "satisfactory" is at most this much worse
NO_RECORDS = "no records"
READS = {"device_hours": "cost.device_hours", "train_pflop": "training.train_pflop"}  # where a record holds them


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and what decides it.

    Attributes:
        key: The letter under which the paper's claim is discussed, and a number where it has several parts.
        says: The claim.
        measure: What is measured, and of what.
        values: One value for each seed.
        scale: From the scale on which seeds are averaged to the one that is shown.
        side: On which side of the boundary the true value lies if the claim holds: `below` or `above`.
        boundary: On the scale that is shown.
        unit: Of what is shown.
        cells: The cells that the values are made from.
        reads: Which part of their records.
        over_sizes: Whether it is a comparison over the sizes, which is stated without size 1 too.
        equal_compute: The two methods whose total compute is said to be equal.
        bounds: Of each seed's value, where only bounds of it may be known.
        in_hours: Whether device-hours are compared.
    """

    key: str
    says: str
    measure: str
    values: Callable[[Grid], list[float]]
    scale: Callable[[float], float]
    side: str
    boundary: float
    unit: str
    cells: Callable[[Grid], list[Cell]]
    reads: str
    over_sizes: bool = True
    equal_compute: tuple[str, str] | None = None
    bounds: Callable[[Grid], list[Bounded]] | None = None
    in_hours: bool = False


def _quality(key: str, says: str, method: str, reference: str, *, measure: str, margin: float = 0.0, equal_compute: bool = False) -> Claim:
    """Returns a claim that a method's quality is better than a reference's, or at most a margin worse."""
    return Claim(
        key=key,
        says=says,
        measure=measure,
        values=lambda grid: grid.log_ratios(method, reference),
        scale=percent,
        side="below",
        boundary=margin,
        unit="%",
        cells=lambda grid: grid.compared(method, reference),
        reads="quality.values",
        equal_compute=(method, reference) if equal_compute else None,
    )


def _cost(key: str, says: str, currency: str, measure: str) -> Claim:
    def values(grid: Grid) -> list[float]:
        if currency == "device_hours":
            check_machine(cells(grid))
        return _log_costs(grid, INDEPENDENT, "ofa", currency)

    def cells(grid: Grid) -> list[Cell]:
        sizes = grid.sizes("ofa", INDEPENDENT)
        paid = [grid.paid(method, sizes) for method in ("ofa", INDEPENDENT)]
        return [cell for cells in paid for seed in sorted(paid[0].keys() & paid[1].keys()) for cell in cells[seed]]

    return Claim(
        key=key,
        says=says,
        measure=measure,
        values=values,
        scale=math.exp,
        side="above",
        boundary=COST_FACTOR,
        unit="x",
        cells=cells,
        reads=READS[currency],
        in_hours=currency == "device_hours",
    )


def _log_costs(grid: Grid, method: str, reference: str, currency: str) -> list[float]:
    """Returns, for each common seed, ln(cost of a method at the common sizes / that of the reference)."""
    sizes = grid.sizes(method, reference)
    ours, theirs = (grid.costs(name, sizes, currency) for name in (method, reference))
    return [math.log(ours[seed] / theirs[seed]) for seed in sorted(ours.keys() & theirs.keys()) if ours[seed] and theirs[seed]]


def compute_ratio(grid: Grid, claim: Claim) -> float | None:
    """Returns the recorded PFLOP of a claim's two sides, one over the other; None where it says nothing of them or they are unknown."""
    logs = _log_costs(grid, *claim.equal_compute, "train_pflop") if claim.equal_compute else []
    return math.exp(statistics.fmean(logs)) if logs else None


def _paid(grid: Grid, claim: Claim) -> list[Cell]:
    """Returns the cells whose compute is said to be equal."""
    sizes = grid.sizes(*claim.equal_compute) if claim.equal_compute else []
    return [cell for method in claim.equal_compute or () for cells in grid.paid(method, sizes).values() for cell in cells]


def compute_is_off(ratio: float) -> bool:
    """Says whether two sides' compute is too unequal to be called equal."""
    return 100 * abs(ratio - 1) > EQUAL_COMPUTE_PCT


def _balance(key: str, says: str, other: str, measure: str) -> Claim:
    def values(grid: Grid) -> list[float]:
        paper, without = grid.imbalances("ofa"), grid.imbalances(other)
        return [paper[seed] - without[seed] for seed in sorted(paper.keys() & without.keys())]

    def cells(grid: Grid) -> list[Cell]:
        seeds = grid.imbalances("ofa").keys() & grid.imbalances(other).keys()
        held = [(grid.compared(method, INDEPENDENT), grid.sizes(method, INDEPENDENT)) for method in ("ofa", other)]
        ends = {cell.name: cell for cells, sizes in held for cell in cells if cell.seed in seeds and cell.size in (sizes[0], sizes[-1])}
        return list(ends.values())

    return Claim(
        key=key,
        says=says,
        measure=measure,
        values=values,
        scale=lambda value: 100 * value,
        side="below",
        boundary=0.0,
        unit="log-%",
        cells=cells,
        reads="quality.values",
        over_sizes=False,
    )


def _sooner(key: str, says: str, method: str, reference: str, measure: str) -> Claim:
    """Returns a claim that a method takes fewer images to what a reference comes to in the end."""
    return _time(
        key, says, measure, lambda curves: curves.to_last_of(method, reference, "images"), lambda curves: curves.cells(method, reference)
    )


def _saved(key: str, says: str, currency: str, measure: str) -> Claim:
    """Returns a claim that one run takes less until all sizes are as good as independent runs than these take."""
    claim = _time(key, says, measure, lambda curves: curves.saved(currency), Curves.compared_with_independent)
    return replace(claim, side="above", in_hours=currency == "device_hours")


def _time(key: str, says: str, measure: str, found: Callable[[Curves], list[Bounded]], cells: Callable[[Curves], list[Cell]]) -> Claim:
    """Returns a claim that a ratio of what trainings took to a quality is below 1; bounds may be all that is known of it."""
    return Claim(
        key=key,
        says=says,
        measure=measure,
        values=lambda grid: [each.observed for each in found(curves_in(grid))],
        scale=math.exp,
        side="below",
        boundary=1.0,
        unit="x",
        cells=lambda grid: cells(curves_in(grid)),
        reads="curves.points",
        bounds=lambda grid: found(curves_in(grid)),
    )


CLAIMS = (
    _quality(
        "a1",
        "Restricting the candidates speeds up optimisation",
        "ofa",
        "ofa_open",
        measure="FID, chain against open set, equal images per run",
    ),
    _sooner(
        "a2",
        "It takes fewer images to the same quality",
        "ofa",
        "ofa_open",
        "Images to the open set's last FID, chain over open set",
    ),
    _quality(
        "a3",
        "Four times the budget does not make up for an open set",
        "ofa",
        "ofa_open_long",
        measure="FID, chain against open set of four times the steps",
    ),
    _quality(
        "a4",
        "Half of the steps suffice on the chain",
        "ofa_half",
        "ofa_open",
        measure="FID, chain of half the steps against open set",
    ),
    _quality(
        "b1",
        "Allocating channels by importance gives better subnets",
        "ofa",
        "ofa_uniform",
        measure="FID, gradual against uniform allocation",
    ),
    _quality(
        "b2",
        "Keeping the most important channels gives better subnets",
        "ofa",
        "ofa_random",
        measure="FID, ranked by importance against at random",
    ),
    _balance("c", "Reweighting balances the sizes", "ofa_m1", "Imbalance, m = 3 against m = 1"),
    _cost("d1", "One run costs far less than one for each size", "device_hours", "Device-hours, Diff-Pruning over OFA"),
    _cost("d2", "The same, counted as work", "train_pflop", "Training PFLOP, Diff-Pruning over OFA"),
    _quality(
        "d3",
        "Its quality is satisfactory",
        "ofa",
        INDEPENDENT,
        measure="FID, OFA against Diff-Pruning, equal images per run",
        margin=QUALITY_MARGIN_PCT,
    ),
    _quality(
        "d4",
        "It is the better way to spend the compute of all independent runs",
        "ofa_long",
        INDEPENDENT,
        measure="FID, long OFA against Diff-Pruning, equal total compute",
        equal_compute=True,
    ),
    _quality(
        "d5",
        "It is the better way to spend the compute of one joint run",
        "ofa",
        "diff_pruning_short",
        measure="FID, OFA against short Diff-Pruning, equal total compute",
        equal_compute=True,
    ),
    _saved(
        "d6",
        "It is as good as independent runs at every size sooner",
        "device_hours",
        "Device-hours until the last FID of Diff-Pruning at every size, sum of Diff-Pruning's runs over the longest OFA run",
    ),
    _saved(
        "d7",
        "The same, counted as work",
        "train_pflop",
        "Training PFLOP until the last FID of Diff-Pruning at every size, sum of Diff-Pruning's runs over the longest OFA run",
    ),
)


def claims_table(grid: Grid) -> pd.DataFrame:
    """Returns one row for each claim: what was measured, its interval, and the verdict; with size 1 and without.

    Raises:
        IncomparableError: A claim compares qualities on several scales, or device-hours of several machines.
    """
    pruned = grid.without_whole()
    return pd.DataFrame([_row(claim, grid, pruned) for claim in CLAIMS])


def _row(claim: Claim, grid: Grid, pruned: Grid) -> dict[str, Any]:
    compared = claim.cells(grid)
    without = claim.over_sizes and any(1.0 in (cell.size, *cell.points) for cell in compared)
    ratios = [compute_ratio(each, claim) for each in (grid, pruned)]
    busy = claim.in_hours and any(cell.busy for cell in compared)
    whole, rest = (
        _measured(claim, each, unfair=busy or (ratio is not None and compute_is_off(ratio)))
        for each, ratio in zip((grid, pruned if without else None), ratios, strict=True)
    )
    return {
        "key": claim.key,
        "claim": claim.says,
        "measure": claim.measure,
        **whole,
        "unit": claim.unit,
        "boundary": claim.boundary,
        "holds_if": claim.side,
        **{f"{name}_without_1": value for name, value in rest.items() if name != "n_seeds"},
        "scoring_counted": "yes" if any(cell.scoring_pflop is not None for cell in _paid(grid, claim)) else "",
        "pflop_ratio": ratios[0],
        "pflop_ratio_without_1": ratios[1] if without else None,
        "busy_machine": "yes" if busy else "",
    }


def _measured(claim: Claim, grid: Grid | None, *, unfair: bool) -> dict[str, Any]:
    """Returns the estimate of a claim, its interval and the verdict on it; blanks without a grid.

    What is unfair decides nothing: hours of a busy machine, since the load may have been another while one side ran than while the other
    did, and a comparison at equal compute whose sides spent unequal compute.
    """
    if grid is None:
        return {"estimate": None, "low": None, "high": None, "n_seeds": 0, "verdict": ""}
    values = claim.values(grid)
    found = interval_of(claim.bounds(grid)) if claim.bounds else interval(values)
    shown = found.map(claim.scale) if found else None
    return {
        "estimate": shown.mean if shown else claim.scale(values[0]) if values else None,
        "low": shown.low if shown else None,
        "high": shown.high if shown else None,
        "n_seeds": len(values),
        "verdict": NO_RECORDS if not values else UNDECIDED if unfair else verdict(shown, claim.boundary, claim.side),
    }
