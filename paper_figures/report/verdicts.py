"""The verdicts, at a glance and as a table, and the table of ablations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from paper_figures.cells import Cell, MissingRecordsError
from paper_figures.claims import CLAIMS, READS, claims_table
from paper_figures.evidence import Grid
from paper_figures.evidence_tables import HOW, ablations_table, printable_ablations, printable_claims
from paper_figures.methods import look_of
from paper_figures.report.model import Column, Entry, Table, number

SIGNS = {"supported": "✓", "contradicted": "✗", "undecided": "?", "no records": "\N{EN DASH}"}
PAIRED = "difference of the logarithms at each seed, mean over sizes; the mean over seeds, in per cent, and Student's 95 % interval"
HOW_MADE = "each claim's measure, over seeds, as the footnotes say"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval on a scale from 0 to 100; `start` and `width` are those of the side on which the claim holds."""

    low: float
    high: float
    middle: float
    boundary: float
    start: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim at a glance; `bar` is None where there is no interval."""

    key: str
    says: str
    measure: str
    verdict: str
    more: str
    sign: str
    holds_if: str
    seeds: str
    estimate: Entry
    interval: Entry
    bar: Bar | None


def claims(grid: Grid) -> tuple[list[Verdict], Table]:
    """Returns the verdicts, and the table that they come from.

    Raises:
        MissingRecordsError: No claim has any record.
    """
    frame = claims_table(grid)
    if (frame["verdict"] == "no records").all():
        raise MissingRecordsError(f"the verdicts: left out, no two methods that a claim compares; {HOW}")
    shown, notes = printable_claims(grid)
    pruned = grid.without_whole()
    rows, verdicts = [], []
    for index, claim in enumerate(CLAIMS):
        raw, text, cells = frame.iloc[index], shown.iloc[index], claim.cells(grid)
        estimate = number(text["Estimate"], raw["estimate"], cells, claim.reads)
        interval = number(text["95 % interval"], raw["low"], cells, claim.reads)
        seeds = number(text["Seeds"], raw["n_seeds"], cells, "cell.seed") if raw["n_seeds"] else Entry(text="")
        without = number(text["Without size 1"], raw["estimate_without_1"], claim.cells(pruned), claim.reads)
        verdict = f"{SIGNS[raw['verdict']]} {text['Verdict']}"
        plain = [Entry(text=value) for value in (claim.key, claim.says, text["Measured"])]
        rows.append((*plain, estimate, interval, without, Entry(text=text["Holds if"]), seeds, Entry(text=verdict)))
        verdicts.append(
            Verdict(
                key=claim.key,
                says=claim.says,
                measure=text["Measured"],
                verdict=raw["verdict"],
                more=_more(without, raw["verdict_without_1"], text["Verdict"]),
                sign=SIGNS[raw["verdict"]],
                holds_if=text["Holds if"],
                seeds=text["Seeds"],
                estimate=estimate,
                interval=interval,
                bar=_bar(raw, frame[frame["unit"] == raw["unit"]]),
            )
        )
    titles = {
        title: HOW_MADE if title in ("Estimate", "95 % interval", "Without size 1") else "number of seeds" if title == "Seeds" else ""
        for title in shown
    }
    columns = tuple(Column(title=str(title) or "Key", how=how) for title, how in titles.items())
    return verdicts, Table(key="claims", title="Claims: what was measured", columns=columns, rows=tuple(rows), notes=tuple(notes))


def _more(without: Entry, verdict: str, whole: str) -> str:
    """Says what a claim comes to without size 1, and what else its verdict must say."""
    parts = [f"Without size 1: {without.text}, {verdict}"] if without.text else []
    unequal = whole.partition("compute is not equal")
    return ". ".join([*parts, *(["C" + unequal[1][1:] + unequal[2].rstrip(")")] if unequal[1] else [])])


def _bar(row: "pd.Series[Any]", same_unit: pd.DataFrame) -> Bar | None:
    """Places an interval on the scale that all claims of its unit share; ratios on a logarithmic one."""
    if pd.isna(row["low"]):
        return None
    scale = _log if row["unit"] == "x" else float
    places = [scale(value) for column in ("low", "high", "boundary") for value in same_unit[column].dropna()]
    ends = [place for place in places if math.isfinite(place)]
    least, span = min(ends), max(ends) - min(ends) or 1.0
    low, high, middle, boundary = (
        round(min(100.0, max(0.0, 6 + 88 * (scale(row[column]) - least) / span)), 2) for column in ("low", "high", "estimate", "boundary")
    )
    below = row["holds_if"] == "below"
    start, width = (0.0, boundary) if below else (boundary, round(100 - boundary, 2))
    return Bar(low=low, high=high, middle=middle, boundary=boundary, start=start, width=width)


def _log(value: float) -> float:
    """Returns the logarithm of a ratio; an interval may begin at 0."""
    return math.log(value) if value else -math.inf


def ablations(grid: Grid) -> Table:
    """Returns the table of ablations: every variant below its default.

    Raises:
        MissingRecordsError: There is no variant.
    """
    if not grid.variants():
        raise MissingRecordsError(f"ablations: left out, no records of any ablation; {HOW}")
    frame = ablations_table(grid)
    shown, notes = printable_ablations(grid)
    sizes = {title: float(title.removeprefix("P = ")) for title in shown.columns if title.startswith("P = ")}
    how = dict.fromkeys(sizes, "mean over seeds of each record's mean ± standard error over seeds")
    how |= dict.fromkeys(("Difference", "95 % interval", "Without size 1"), PAIRED)
    how |= {"Size error": "the largest realised size less its P, over sizes and seeds"}
    how |= dict.fromkeys(("Device-hours", "PFLOP"), "all sizes of a seed and what delivers them, added; the mean over seeds")
    how["Seeds"] = "number of seeds"
    columns = [Column(title="Variant"), Column(title="Against"), *(Column(title=title, how=text) for title, text in how.items())]
    rows = [_ablation(grid, frame.iloc[index], shown.iloc[index], sizes) for index in range(len(frame))]
    return Table(
        naming=1,
        key="ablations",
        title="Ablations: one factor changed, all else equal",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _ablation(grid: Grid, raw: "pd.Series[Any]", text: "pd.Series[str]", sizes: dict[str, float]) -> tuple[Entry, ...]:
    method, reference = str(raw["method"]), str(raw["of"])
    own = [cell for by_size in grid.of[method].values() for cell in by_size.values()]
    held = sorted({cell.size for cell in own if cell.size is not None})
    paid = [cell for cells in grid.paid(method, held).values() for cell in cells]
    both = grid.compared(method, reference) if method != reference and reference in grid.of else []
    label = look_of(reference).label
    name = (
        f"{label}, as it is"
        if method == reference
        else text["Variant"]
        if raw["factor"] == "method"
        else f"{raw['factor']}: {text['Variant']}"
    )
    entries = [Entry(text=name), Entry(text="" if method == reference else label)]
    for title, size in sizes.items():
        entries.append(number(text[title], raw[f"{grid.metric} {size:g}"], _of_size(own, size), "quality.values"))
    entries += [number(text["Difference"], raw["difference_pct"], both, "quality.values")]
    entries += [number(text["95 % interval"], raw["low_pct"], both, "quality.values")]
    pruned = grid.without_whole().compared(method, reference) if both else []
    entries += [number(text["Without size 1"], raw["difference_without_1_pct"], pruned, "quality.values")]
    entries += [number(text["Size error"], raw["largest_size_error"], own, "size.realised")]
    entries += [number(text["Device-hours"], raw["device_hours"], paid, READS["device_hours"])]
    entries += [number(text["PFLOP"], raw["train_pflop"], paid, READS["train_pflop"])]
    return (*entries, number(text["Seeds"], raw["n_seeds"], own, "cell.seed"))


def _of_size(cells: Sequence[Cell], size: float) -> list[Cell]:
    return [cell for cell in cells if cell.size == size]
