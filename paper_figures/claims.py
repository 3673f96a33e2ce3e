"""The claims of the paper, each with the comparison that decides it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from paper_figures.cells import Cell
from paper_figures.evidence import INDEPENDENT, Grid, interval, percent, verdict

COST_FACTOR = 2.0  # "far less" is at most half
QUALITY_MARGIN_PCT = 10.0  # "satisfactory" is at most this much worse
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


def _quality(key: str, says: str, method: str, reference: str, *, measure: str, margin: float = 0.0) -> Claim:
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
    )


def _cost(key: str, says: str, currency: str, measure: str) -> Claim:
    def values(grid: Grid) -> list[float]:
        sizes = grid.sizes("ofa", INDEPENDENT)
        ofa, alone = (grid.costs(method, sizes, currency) for method in ("ofa", INDEPENDENT))
        return (
            [math.log(alone[seed] / ofa[seed]) for seed in sorted(ofa.keys() & alone.keys()) if ofa[seed] and alone[seed]] if sizes else []
        )

    def cells(grid: Grid) -> list[Cell]:
        sizes = grid.sizes("ofa", INDEPENDENT)
        paid = [grid.paid(method, sizes) for method in ("ofa", INDEPENDENT)]
        return [cell for cells in paid for seed in sorted(paid[0].keys() & paid[1].keys()) for cell in cells[seed]] if sizes else []

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
    )


def _balance(key: str, says: str, other: str, measure: str) -> Claim:
    def values(grid: Grid) -> list[float]:
        paper, without = grid.imbalances("ofa"), grid.imbalances(other)
        return [paper[seed] - without[seed] for seed in sorted(paper.keys() & without.keys())]

    def cells(grid: Grid) -> list[Cell]:
        seeds = grid.imbalances("ofa").keys() & grid.imbalances(other).keys()
        held = [(cell, grid.sizes(method, INDEPENDENT)) for method in ("ofa", other) for cell in grid.compared(method, INDEPENDENT)]
        ends = {cell.name: cell for cell, sizes in held if cell.seed in seeds and cell.size in (sizes[0], sizes[-1])}
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
    )


CLAIMS = (
    _quality(
        "a", "Restricting the candidates speeds up optimisation", "ofa", "ofa_open", measure="FID, chain against open set, equal images"
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
        measure="FID, OFA against Diff-Pruning, equal images per size",
        margin=QUALITY_MARGIN_PCT,
    ),
    _quality(
        "d4",
        "It is the better way to spend the compute of all independent runs",
        "ofa_long",
        INDEPENDENT,
        measure="FID, long OFA against Diff-Pruning, equal total compute",
    ),
    _quality(
        "d5",
        "It is the better way to spend the compute of one joint run",
        "ofa",
        "diff_pruning_short",
        measure="FID, OFA against short Diff-Pruning, equal total compute",
    ),
)


def claims_table(grid: Grid) -> pd.DataFrame:
    """Returns one row for each claim: what was measured, its interval, and the verdict."""
    rows = []
    for claim in CLAIMS:
        values = claim.values(grid)
        found = interval(values)
        shown = found.map(claim.scale) if found else None
        rows.append(
            {
                "key": claim.key,
                "claim": claim.says,
                "measure": claim.measure,
                "estimate": shown.mean if shown else claim.scale(values[0]) if values else None,
                "low": shown.low if shown else None,
                "high": shown.high if shown else None,
                "unit": claim.unit,
                "boundary": claim.boundary,
                "holds_if": claim.side,
                "n_seeds": len(values),
                "verdict": verdict(shown, claim.boundary, claim.side) if values else "no records",
            }
        )
    return pd.DataFrame(rows)
