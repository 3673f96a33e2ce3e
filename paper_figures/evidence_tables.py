"""The tables of the evidence: the verdict on each claim, and every ablation beside its default."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.cells import Cell, MissingRecordsError, second_opinions
from paper_figures.claims import NO_RECORDS, claims_table, compute_is_off
from paper_figures.comparable import Conditions, IncomparableError
from paper_figures.evidence import Grid, interval, percent
from paper_figures.latex import long_table
from paper_figures.markup import BUSY_NOTE, markdown, marked
from paper_figures.methods import REAL_OR_NOISE, look_of, sort_key
from paper_figures.tables import scale_note
from repro.experiment.records import Record
from repro.files.writing import write_atomically

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
WITHOUT_1 = "Without size 1: the same over the other sizes; size 1 is free to who prunes each size alone: it is the base"
HOW = "run `nox -s evidence`"
ON_THE_WAY = ("a2", "d6", "d7")
OF_BOUNDS = (
    f"{', '.join(ON_THE_WAY)}: a mean of bounds where a target was never reached, or by the first point; an interval from 0 or without an "
    "end has no bound there"
)


def ablations_table(grid: Grid) -> pd.DataFrame:
    """Returns one row for each variant, and for each method that one is held against; a column of quality for each size.

    Raises:
        IncomparableError: The qualities are on several scales.
    """
    grid.check_scale(*grid.variants(), *{cell.variant.of for cell in grid.variants().values() if cell.variant})
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
    compared = method != reference and reference in grid.of
    row |= _difference(grid if compared else None, method, reference, "")
    without = compared and 1.0 in grid.sizes(method, reference)
    row |= _difference(grid.without_whole() if without else None, method, reference, "_without_1")
    row |= {"largest_size_error": max(realised, key=abs) if realised else None}
    return row | _costs(grid, method, sizes) | {"n_seeds": len(seeds)}


def _difference(grid: Grid | None, method: str, reference: str, suffix: str) -> dict[str, float | None]:
    """Returns a method's difference from a reference over the sizes of a grid, with its interval; blanks without a grid."""
    against = interval(grid.log_ratios(method, reference)) if grid else None
    shown = against.map(percent) if against else None
    ends = (shown.mean, shown.low, shown.high) if shown else (None, None, None)
    return dict(zip((f"difference{suffix}_pct", f"low{suffix}_pct", f"high{suffix}_pct"), ends, strict=True))


def _costs(grid: Grid, method: str, sizes: Sequence[float]) -> dict[str, object]:
    """Returns what all the sizes of a method cost; no hours, but why there are none, where they are those of several machines."""
    pflop = grid.costs(method, sizes, "train_pflop")
    hours, note = {}, ""
    try:
        hours = grid.costs(method, sizes, "device_hours")
    except IncomparableError as error:
        note = str(error)
    busy = any(cell.busy for cells in grid.paid(method, sizes).values() for cell in cells)
    return {
        "device_hours": statistics.fmean(hours.values()) if hours else None,
        "busy_machine": "yes" if busy else "",
        "train_pflop": statistics.fmean(pflop.values()) if pflop else None,
        "note": note,
    }


def write_claims(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Writes `tables/claims.*` and `tables/ablations.*` and returns their paths.

    Raises:
        MissingRecordsError: There is no variant to compare with.
        ReproError: A record is malformed, or the folder cannot be written.
    """
    grid = Grid(records)
    if not grid.variants():
        raise MissingRecordsError(f"claims and ablations: left out, no records of any ablation; {HOW}")
    paths, experiment = [], str(records[0]["experiment"])
    claims, ablations = _judged_claims(grid), printable_ablations(grid)
    for name, table, (shown, notes), printed, title in (
        ("claims", claims_table(grid), claims, claims[0], f"Claims, on the experiment {experiment}"),
        ("ablations", ablations_table(grid), ablations, _narrower(ablations[0]), f"Ablations of the experiment {experiment}"),
    ):
        texts = {"csv": table.to_csv(index=False, lineterminator="\n"), "md": markdown(shown, notes, title, left=3)}
        texts["tex"] = long_table(printed, notes, title, name=name, experiment=experiment, left=3 if name == "claims" else 1)
        for suffix, text in texts.items():
            paths.append(folder / "tables" / f"{name}.{suffix}")
            write_atomically(paths[-1], text.encode())
    return paths


def _narrower(ablations: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of ablations with one column of names for three: a variant stands below the default that it varies."""
    of, factor, variant = (ablations[name] for name in ("Of", "Factor", "Variant"))
    names = of.where(variant == "default", factor + ": " + variant)
    return ablations.drop(columns=["Of", "Factor"]).assign(Variant=names)


def claims_text(records: Sequence[Record]) -> str:
    """Returns the table of claims for the terminal."""
    grid = Grid(records)
    shown, notes = _judged_claims(grid)
    return markdown(shown, notes, "Claims", left=3)


def _judged_claims(grid: Grid) -> tuple[pd.DataFrame, list[str]]:
    """Returns the formatted table of those claims that there are records for, and a footnote that names the others."""
    shown, notes = printable_claims(grid)
    missing = shown["Verdict"] == NO_RECORDS
    left_out = [f"No records that would decide {', '.join(shown.loc[missing, ''])}"] if missing.any() else []
    return shown[~missing], [*notes, *left_out]


def side_by_side_text(experiments: Sequence[Sequence[Record]]) -> str:
    """Returns the verdicts of several experiments on each claim, a column each: what carries over from one to the other.

    Where the samples were judged by a further metric, its verdicts have a column of their own.
    """
    titles: list[str] = []
    tables: list[pd.DataFrame] = []
    for records in experiments:
        grid = Grid(records)
        if grid.variants():
            name = str(records[0]["experiment"])
            judged = {name: grid} | {f"{name}, {metric}": Grid(again) for metric, again in second_opinions(records).items()}
            titles += judged
            tables += map(claims_table, judged.values())
    if len(tables) < 2:
        return ""
    recorded = pd.concat([table["verdict"] != NO_RECORDS for table in tables], axis=1).any(axis=1)
    tables = [table[recorded] for table in tables]
    shown = pd.DataFrame({"": tables[0]["key"], "Claim": tables[0]["claim"]})
    for title, table in zip(titles, tables, strict=True):
        shown[title] = [
            " ".join(filter(None, [_with_range(row.estimate, row.low, row.high, row.unit), verdict_text(row)]))
            for row in table.itertuples()
        ]
    notes = ["Each experiment on its own scale: a claim carries over where the verdicts agree, and not where its estimates do"]
    notes += _note_on_bounds(pd.concat(tables))
    return markdown(shown, notes, "Verdicts side by side", left=len(shown.columns))


def printable_claims(grid: Grid) -> tuple[pd.DataFrame, list[str]]:
    """Returns the formatted table of claims, and its footnotes."""
    table = claims_table(grid)
    shown = pd.DataFrame(
        {
            "": table["key"],
            "Claim": table["claim"],
            "Measured": [_measure(row).replace("FID", grid.metric or "FID") for row in table.itertuples()],
            "Estimate": marked([amount(row.estimate, row.unit) for row in table.itertuples()], table["busy_machine"] == "yes"),
            "95 % interval": [_range(row.low, row.high, row.unit) for row in table.itertuples()],
            "Without size 1": marked(
                [_with_range(row.estimate_without_1, row.low_without_1, row.high_without_1, row.unit) for row in table.itertuples()],
                table["busy_machine"] == "yes",
            ),
            "Holds if": [f"{row.holds_if} {row.boundary:g} {row.unit}".replace(" log-%", "") for row in table.itertuples()],
            "Seeds": table["n_seeds"].astype(str),
            "Verdict": [verdict_text(row) for row in table.itertuples()],
        }
    )
    return shown, [
        "Differences are paired over seeds; % is relative to what comes second, geometric mean over the reported sizes, negative is better",
        "Imbalance: 100 times the absolute value of ln r(smallest) - ln r(largest), r the quality over that of the size trained alone",
        WITHOUT_1,
        f"The rule was stated before the runs: results/README.md. {_bases(grid)}; 95 % intervals of Student's t, each on its own",
        *([BUSY_NOTE] if (table["busy_machine"] == "yes").any() else []),
        *_note_on_bounds(table),
        *_noise_notes(grid),
    ]


def _note_on_bounds(table: pd.DataFrame) -> list[str]:
    return [OF_BOUNDS] if (table["key"].isin(ON_THE_WAY) & (table["verdict"] != NO_RECORDS)).any() else []


def _measure(row: Any) -> str:
    """Returns what was measured and, where compute is said to be equal, how equal it was."""
    if pd.isna(row.pflop_ratio):
        return str(row.measure)
    without = "" if pd.isna(row.pflop_ratio_without_1) else f", {row.pflop_ratio_without_1:.2f} : 1 without size 1"
    counted = "as recorded" if row.scoring_counted else "as recorded, without scoring,"
    return f"{row.measure} (PFLOP {counted} {row.pflop_ratio:.2f} : 1{without})"


def verdict_text(row: Any) -> str:
    """Returns the verdict on a row of the table of claims, that without size 1 where it is another, and what it rests on badly."""
    parts = ["other work ran on the machine"] if row.busy_machine else []
    parts += [f"without size 1: {row.verdict_without_1}"] if row.verdict_without_1 not in ("", row.verdict) else []
    if not pd.isna(row.pflop_ratio) and compute_is_off(row.pflop_ratio):
        parts.append(f"compute is not equal: {100 * (row.pflop_ratio - 1):+.0f} %")
    return str(row.verdict) + (f" ({'; '.join(parts)})" if parts else "")


def _bases(grid: Grid) -> str:
    """Says how many bases the compared networks started from."""
    bases = {cell.starts_from for by_seed in grid.of.values() for by_size in by_seed.values() for cell in by_size.values()} - {""}
    return "One base" if len(bases) < 2 else f"{len(bases)} bases, one for each seed"


def _noise_notes(grid: Grid) -> list[str]:
    notes = []
    for method in REAL_OR_NOISE:
        scales: dict[Conditions | None, list[float]] = {}
        for cell in grid.cells:
            if cell.method == method and cell.metric == grid.metric and cell.values:
                scales.setdefault(cell.scale, []).append(statistics.fmean(cell.values))
        for scale, values in scales.items():
            other = scale_note(scale, grid.scale) if scale and grid.scale else ""
            notes.append(f"{look_of(method).label}: {grid.metric} {statistics.fmean(values):.2f}" + (f" ({other})" if other else ""))
    noise = grid.noise()
    if noise:
        notes.append(
            f"Noise of one value of {grid.metric} at n = {grid.n_samples:,}: {100 * noise[0]:.0f} % (standard deviation over sampling "
            f"seeds); of a cell over training seeds: {100 * noise[1]:.0f} %"
        )
    return notes


def printable_ablations(grid: Grid) -> tuple[pd.DataFrame, list[str]]:
    """Returns the formatted table of ablations, and its footnotes."""
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
    shown["Difference"] = [amount(value, "%") for value in table["difference_pct"]]
    shown["95 % interval"] = [_range(row.low_pct, row.high_pct, "%") for row in table.itertuples()]
    shown["Without size 1"] = [
        _with_range(row.difference_without_1_pct, row.low_without_1_pct, row.high_without_1_pct, "%") for row in table.itertuples()
    ]
    shown["Size error"] = ["" if pd.isna(value) else f"{value:+.3f}" for value in table["largest_size_error"]]
    hours = ["" if pd.isna(value) else f"{value:.4f}" for value in table["device_hours"]]
    shown["Device-hours"] = marked(hours, table["busy_machine"] == "yes")
    shown["PFLOP"] = ["" if pd.isna(value) else f"{value:.4f}" for value in table["train_pflop"]]
    shown["Seeds"] = table["n_seeds"].astype(str)
    return shown, [
        f"P: {grid.metric}, mean over seeds ± standard error. Difference: against the default row above, as in the table of claims",
        "Size error: a realised size less its P, the largest. Device-hours and PFLOP: for all sizes together, without evaluation",
        WITHOUT_1,
        *([BUSY_NOTE] if (table["busy_machine"] == "yes").any() else []),
        *[f"No device-hours: {note}" for note in dict.fromkeys(table["note"]) if note],
    ]


def amount(value: Any, unit: Any) -> str:
    """Returns an estimate in its unit; blank where there is none."""
    if value is None or pd.isna(value):
        return ""
    if math.isinf(value):
        return "unbounded"
    return {"x": f"{value:.2f} x", "%": f"{value:+.1f} %", "log-%": f"{value:+.1f}"}[str(unit)]


def _with_range(value: Any, low: Any, high: Any, unit: Any) -> str:
    """Returns an estimate and, where there is one, its interval in brackets."""
    interval_text = _range(low, high, unit)
    return amount(value, unit) + (f" ({interval_text})" if interval_text else "")


def _range(low: Any, high: Any, unit: Any) -> str:
    if low is None or pd.isna(low):
        return ""
    return f"{amount(low, unit)} .. {amount(high, unit)}"
