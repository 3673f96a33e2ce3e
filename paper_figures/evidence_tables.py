"""The tables of the evidence: the verdict on each claim, and every ablation beside its default."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.cells import Cell, MissingRecordsError, sort_key
from paper_figures.claims import claims_table
from paper_figures.evidence import Grid, interval, percent
from paper_figures.look import look_of
from paper_figures.markup import latex, markdown
from repro.harness.records import Record
from repro.harness.storage import write_atomically

FACTORS = (
    "method",
    "candidate set",
    "allocation",
    "ranking",
    "GroupNorm",
    "sampling law",
    "budget",
    "fine-tune",
    "distillation",
    "threshold",
)
HOW = "run `nox -s evidence`"


def ablations_table(grid: Grid) -> pd.DataFrame:
    """Returns one row for each variant, and for each method that one is held against; a column of quality for each size."""
    variants = dict(sorted(grid.variants().items(), key=lambda item: (_factor_order(item[1]), item[0])))
    references = sorted({cell.variant.of for cell in variants.values() if cell.variant}, key=lambda method: sort_key(method, None))
    rows = []
    for reference in references:
        if reference in grid.of:
            rows.append(_row(grid, reference, reference, "", "default"))
        for method, cell in variants.items():
            if cell.variant and cell.variant.of == reference:
                rows.append(_row(grid, method, reference, cell.variant.factor, cell.variant.label))
    return pd.DataFrame(rows)


def _factor_order(cell: Cell) -> tuple[int, str]:
    """Orders variants by factor: known ones first, others after them by name."""
    factor = cell.variant.factor if cell.variant else ""
    return FACTORS.index(factor) if factor in FACTORS else len(FACTORS), factor


def _row(grid: Grid, method: str, reference: str, factor: str, label: str) -> dict[str, object]:
    sizes = sorted({size for by_size in grid.of[method].values() for size in by_size}, reverse=True)
    seeds = grid.seeds(method)
    against = interval(grid.log_ratios(method, reference)) if method != reference and reference in grid.of else None
    shown = against.map(percent) if against else None
    hours, pflop = (grid.costs(method, sizes, currency) for currency in ("device_hours", "train_pflop"))
    realised = [
        cell.counts["realised"] - size
        for by_size in grid.of[method].values()
        for size, cell in by_size.items()
        if "realised" in cell.counts
    ]
    row: dict[str, object] = {"of": reference, "factor": factor, "variant": label, "method": method}
    for size in sizes:
        values = [grid.score(method, seed, size) for seed in seeds if size in grid.of[method][seed]]
        row[f"{grid.metric} {size:g}"] = statistics.fmean(values)
        row[f"{grid.metric} {size:g} std_error"] = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    row |= {
        "difference_pct": shown.mean if shown else None,
        "low_pct": shown.low if shown else None,
        "high_pct": shown.high if shown else None,
    }
    row |= {"largest_size_error": max(realised, key=abs) if realised else None}
    row |= {
        "device_hours": statistics.fmean(hours.values()) if hours else None,
        "train_pflop": statistics.fmean(pflop.values()) if pflop else None,
    }
    return row | {"n_seeds": len(seeds)}


def write_claims(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Writes `tables/claims.*` and `tables/ablations.*` and returns their paths.

    Raises:
        MissingRecordsError: There is no variant to compare with.
        ReproError: A record is malformed, or the folder cannot be written.
    """
    grid = Grid(records)
    if not grid.variants():
        raise MissingRecordsError(f"claims and ablations: left out, no records of any ablation; {HOW}")
    paths = []
    for name, table, shown, notes, title in (
        ("claims", claims_table(grid), *printable_claims(grid), f"Claims, on the experiment {records[0]['experiment']}"),
        ("ablations", ablations_table(grid), *printable_ablations(grid), f"Ablations of the experiment {records[0]['experiment']}"),
    ):
        texts = {"csv": table.to_csv(index=False, lineterminator="\n"), "md": markdown(shown, notes, title, left=3)}
        texts["tex"] = latex(shown, notes, title, label=f"tab:{name}")
        for suffix, text in texts.items():
            paths.append(folder / "tables" / f"{name}.{suffix}")
            write_atomically(paths[-1], text.encode())
    return paths


def claims_text(records: Sequence[Record]) -> str:
    """Returns the table of claims for the terminal."""
    grid = Grid(records)
    shown, notes = printable_claims(grid)
    return markdown(shown, notes, "Claims", left=3)


def printable_claims(grid: Grid) -> tuple[pd.DataFrame, list[str]]:
    """Returns the table of claims as people read it, and its footnotes."""
    table = claims_table(grid)
    shown = pd.DataFrame(
        {
            "": table["key"],
            "Claim": table["claim"],
            "Measured": table["measure"].str.replace("FID", grid.metric or "FID"),
            "Estimate": [_amount(row.estimate, row.unit) for row in table.itertuples()],
            "95 % interval": [_range(row.low, row.high, row.unit) for row in table.itertuples()],
            "Holds if": [f"{row.holds_if} {row.boundary:g} {row.unit}".replace(" log-%", "") for row in table.itertuples()],
            "Seeds": table["n_seeds"].astype(str),
            "Verdict": table["verdict"],
        }
    )
    return shown, [
        "Differences are paired over seeds; % is relative to what comes second, geometric mean over the reported sizes, negative is better",
        "Imbalance: 100 times the absolute value of ln r(smallest) - ln r(largest), r the quality over that of the size trained alone",
        "The rule was stated before the runs: results/README.md. One base; 95 % intervals of Student's t, each on its own",
        *_noise_notes(grid),
    ]


def _noise_notes(grid: Grid) -> list[str]:
    notes = []
    for method in ("floor", "noise"):
        values = [cell.values[0] for cell in grid.cells if cell.method == method and cell.metric == grid.metric and cell.values]
        if values:
            notes.append(f"{look_of(method).label}: {grid.metric} {statistics.fmean(values):.2f}")
    noise = grid.noise()
    if noise:
        notes.append(
            f"Noise of one value of {grid.metric} at n = {grid.n_samples:,}: {100 * noise[0]:.0f} % (standard deviation over sampling "
            f"seeds); of a cell over training seeds: {100 * noise[1]:.0f} %"
        )
    return notes


def printable_ablations(grid: Grid) -> tuple[pd.DataFrame, list[str]]:
    """Returns the table of ablations as people read it, and its footnotes."""
    table = ablations_table(grid)
    metrics = [column for column in table.columns if column.startswith(f"{grid.metric} ") and not column.endswith("std_error")]
    metrics.sort(key=lambda column: -float(column.rpartition(" ")[2]))
    shown = pd.DataFrame({"Of": [look_of(name).label for name in table["of"]], "Factor": table["factor"], "Variant": table["variant"]})
    for column in metrics:
        errors = table[f"{column} std_error"]
        shown[f"P = {column.rpartition(' ')[2]}"] = [
            "" if pd.isna(value) else f"{value:.2f}" if pd.isna(error) else f"{value:.2f} ± {error:.2f}"
            for value, error in zip(table[column], errors, strict=True)
        ]
    shown["Difference"] = [_amount(value, "%") for value in table["difference_pct"]]
    shown["95 % interval"] = [_range(row.low_pct, row.high_pct, "%") for row in table.itertuples()]
    shown["Size error"] = ["" if pd.isna(value) else f"{value:+.3f}" for value in table["largest_size_error"]]
    shown["Device-hours"] = ["" if pd.isna(value) else f"{value:.4f}" for value in table["device_hours"]]
    shown["PFLOP"] = ["" if pd.isna(value) else f"{value:.4f}" for value in table["train_pflop"]]
    shown["Seeds"] = table["n_seeds"].astype(str)
    return shown, [
        f"P: {grid.metric}, mean over seeds ± standard error. Difference: against the default row above, as in the table of claims",
        "Size error: a realised size less its P, the largest. Device-hours and PFLOP: for all sizes together, without evaluation",
    ]


def _amount(value: Any, unit: Any) -> str:
    if value is None or pd.isna(value):
        return ""
    return {"x": f"{value:.2f} x", "%": f"{value:+.1f} %", "log-%": f"{value:+.1f}"}[str(unit)]


def _range(low: Any, high: Any, unit: Any) -> str:
    return "" if low is None or pd.isna(low) else f"{_amount(low, unit)} .. {_amount(high, unit)}"
