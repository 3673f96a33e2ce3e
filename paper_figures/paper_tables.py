"""The tables of a paper, each a float: main results, overhead, claims and ablations."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.captions import in_prose
from paper_figures.cells import BUSY, Cell, MissingRecordsError, cells_of
from paper_figures.claims import NO_RECORDS, claims_table, compute_is_off
from paper_figures.evidence import CONFIDENCE, Grid, interval
from paper_figures.evidence_tables import HOW, ablations_table, amount
from paper_figures.latex import Cells, float_table, latex_number, latex_text, panel
from paper_figures.methods import REAL_OR_NOISE, look_of
from paper_figures.overhead import Comparison, Versus, comparisons, why_not
from paper_figures.overhead_terms import overhead_terms
from paper_figures.tables import ResultRow, result_rows
from repro.experiment.records import Record
from repro.files.writing import write_atomically

MOST_SIZES = 7  # more columns do not fit a page
BUSY_NOTE = f"{BUSY} Other work ran on the machine at the time: device-hours read high"
MARKS = {
    r"\dagger": (BUSY, "Other work ran on the machine: nothing is decided"),
    "*": ("*", "What should be equal compute is not: nothing is decided"),
    "1": ("1", "Another verdict without size 1, at which nothing is pruned"),
}
INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"

Rows = Mapping[float | None, ResultRow]  # of a method, by size


def write_paper_table(folder: Path, records: Sequence[Record], make: Callable[[Sequence[Record]], str]) -> list[Path]:
    """Writes one table under the name of the function that makes it, such as `tables/table_main.tex`, and returns its path.

    Raises:
        MissingRecordsError: The records do not allow it.
        ReproError: A record is malformed, or what cannot be compared would be; or the folder cannot be written.
    """
    path = folder / "tables" / f"{make.__name__}.tex"
    write_atomically(path, make(records).encode())
    return [path]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The networks of the main table, by method and size: those on the scale and the machine of most, at the sizes that most have."""

    of: Mapping[str, Rows]
    sizes: Sequence[float]
    metric: str
    scale: str
    device: str
    whole: bool  # whether no row is left out

    @classmethod
    def of_rows(cls, rows: Iterable[ResultRow]) -> "Judged":
        """Returns the networks among the rows of the table of results.

        Raises:
            MissingRecordsError: None was judged.
        """
        judged = [made for made in rows if made.row["size"] is not None and made.row.get("scale")]  # a failed one has none
        if not judged:
            raise MissingRecordsError("table_main: left out, no evaluated network; run `python -m repro run`")
        (scale, device), _ = Counter((made.row["scale"], made.row["device"]) for made in judged).most_common(1)[0]
        usual = [made for made in judged if (made.row["scale"], made.row["device"]) == (scale, device)]
        sizes = _sizes(usual)
        kept = [made for made in usual if made.row["size"] in sizes]
        of: dict[str, dict[float | None, ResultRow]] = {}
        for made in kept:
            of.setdefault(made.row["method"], {})[made.row["size"]] = made
        metric = kept[0].cells[0].metric or ""
        return cls(of=of, sizes=sizes, metric=metric, scale=scale, device=device, whole=len(kept) == len(judged))

    @property
    def rows(self) -> list[ResultRow]:
        """All of its rows."""
        return [made for of in self.of.values() for made in of.values()]

    @property
    def rivals(self) -> dict[str, Rows]:
        """The methods that compete: neither the base nor a control."""
        return {method: of for method, of in self.of.items() if method != "base" and not look_of(method).light}


def table_main(records: Sequence[Record]) -> str:
    """Returns the main table: methods in rows, sizes in columns, parts for quality, MACs, parameters and device-hours.

    Bold is what cannot be told from the best: the interval of the paired difference holds zero. Base and controls do not compete.

    Raises:
        MissingRecordsError: No network was judged.
    """
    rows = result_rows(cells_of(records))
    judged = Judged.of_rows(rows)
    controls = [made for made in rows if made.row["method"] in REAL_OR_NOISE and judged.metric in made.row]
    scale, unit = (1e9, "G") if any((made.row["macs"] or 0) >= 1e9 for made in judged.rows) else (1e6, "M")
    parts: dict[str, Sequence[Cells]] = {
        latex_text(f"{in_prose(judged.metric, judged.scale)}, lower is better"): _qualities(judged, controls),
        f"MACs ({unit})": _counts(judged, "macs", scale),
        "Parameters (M)": _counts(judged, "params", 1e6),
        "Device-hours of the training": [[_label(method), *_hours(of, judged.sizes)] for method, of in judged.rivals.items()],
    }
    return float_table(
        "table_main",
        str(records[0]["experiment"]),
        rf">{{\raggedright\arraybackslash}}X*{{{len(judged.sizes)}}}{{r}}",
        [["", *[rf"$P = {size:g}$" for size in judged.sizes]], *_in_parts(parts, len(judged.sizes) + 1)],
        f"Quality and cost of each size P on {records[0]['experiment']}",
        [
            f"Mean over seeds, in small one standard error; {judged.rows[0].row['n_samples']:,} samples. Bold: the best of a column, and "
            f"every method of which the {INTERVAL} of the difference from it, paired over seeds, holds zero; a best of one seed is not "
            "bold. Base, untrained networks, floor and noise do not compete",
            f"MACs: one forward pass on one image. Device-hours: without evaluation, on {judged.device}",
            *([BUSY_NOTE] if any(cell.busy for made in judged.rows for cell in made.paid) else []),
            *([] if judged.whole else ["Rows of other scales, machines or sizes: in the long table"]),
        ],
        wide=len(judged.sizes) > 4,
    )


def _in_parts(parts: Mapping[str, Sequence[Cells]], n_columns: int) -> list[Cells | str]:
    """Returns the lines of a table in parts, each below its title, with rules between them."""
    lines: list[Cells | str] = []
    for title, rows in parts.items():
        lines += [*([r"\midrule"] if lines else []), panel(title, n_columns), *rows]
    return lines


def _label(method: str) -> str:
    return latex_text(look_of(method).label)


def _qualities(judged: Judged, controls: Iterable[ResultRow]) -> list[Cells]:
    """Returns the qualities of every method at each size, then those of real images and noise."""
    bold = {size: _best({method: of[size] for method, of in judged.rivals.items() if size in of}) for size in judged.sizes}

    def quality(method: str, size: float) -> str:
        made = judged.of[method].get(size)
        return _with_error(made.row, judged.metric, bold=method in bold[size]) if made else ""

    networks = [[_label(method), *(quality(method, size) for size in judged.sizes)] for method in judged.of]
    return [*networks, *(_control(made, judged.metric, len(judged.sizes)) for made in controls)]


def _counts(judged: Judged, column: str, scale: float) -> list[Cells]:
    """Returns the MACs or the parameters of every rival at each size; blank where there is none."""

    def count(of: Rows, size: float) -> str:
        number = of[size].row[column] if size in of else None
        return "" if number is None else _three_digits(number / scale)

    return [[_label(method), *(count(of, size) for size in judged.sizes)] for method, of in judged.rivals.items()]


def _sizes(rows: Iterable[ResultRow]) -> list[float]:
    """Returns the sizes that most methods have, the largest first."""
    counted = Counter(made.row["size"] for made in rows)
    most = sorted(counted, key=lambda size: (-counted[size], -size))[:MOST_SIZES]
    return sorted(most, reverse=True)


def _best(rows: Mapping[str, ResultRow]) -> set[str]:
    """Returns the method of the lowest quality and those that cannot be told from it; none where there is nothing to tell."""
    scores = {method: {cell.seed: math.log(statistics.fmean(cell.values)) for cell in made.cells} for method, made in rows.items()}
    if len(rows) < 2:
        return set()
    best = min(scores, key=lambda method: rows[method].row[rows[method].cells[0].metric or ""])
    if len(scores[best]) < 2:
        return set()

    def told_apart(method: str) -> bool:
        found = interval([scores[method][seed] - scores[best][seed] for seed in sorted(scores[method].keys() & scores[best].keys())])
        return found is not None and found.low > 0

    return {method for method in rows if not told_apart(method)}


def _with_error(row: Mapping[str, Any], metric: str, *, bold: bool = False) -> str:
    """Returns a quality to three digits or more, its standard error in small."""
    value, error = row[metric], row.get(f"{metric}_std_error")
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:.{decimals}f}"
    spread = "" if error is None or pd.isna(error) else rf"\,{{\tiny$\pm$\,{error:.{decimals}f}}}"
    return (rf"\textbf{{{text}}}" if bold else text) + spread


def _control(made: ResultRow, metric: str, n_sizes: int) -> Cells:
    """Returns the row of real images or of noise, which have no size."""
    n = f" ({made.row['n_samples']:,} images)" if made.row["method"] == "floor" else ""
    return [_label(made.row["method"]), rf"\multicolumn{{{n_sizes}}}{{r}}{{{_with_error(made.row, metric)}{n}}}"]


def _hours(rows: Rows, sizes: Sequence[float]) -> Cells:
    """Returns the device-hours of each size of a method, or those of all where one training serves them."""
    cells = {cell.name: cell for made in rows.values() for cell in made.paid}
    if not any(cell.shared and cell.trains for cell in cells.values()):
        return [_amount_of(rows[size].row) if size in rows else "" for size in sizes]
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells.values():
        by_seed.setdefault(cell.seed, []).append(cell)
    known = all(made.row.get("device_hours") is not None for made in rows.values())
    total = statistics.fmean(sum(cell.device_hours or 0.0 for cell in paid) for paid in by_seed.values()) if known else None
    text = _amount_of({"device_hours": total, "busy_machine": "yes" if any(cell.busy for cell in cells.values()) else ""})
    return [rf"\multicolumn{{{len(sizes)}}}{{r}}{{{text + ', one training for all' if text else ''}}}"]


def _amount_of(row: Mapping[str, Any]) -> str:
    hours = row.get("device_hours")
    return "" if hours is None or pd.isna(hours) else _three_digits(hours) + (r"$^\dagger$" if row["busy_machine"] else "")


def _three_digits(value: float) -> str:
    """Returns a positive number to three digits, or all of those before its point."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def table_overhead(records: Sequence[Record]) -> str:
    """Returns the table of what all sizes cost together: one joint training against one training for each size.

    Raises:
        MissingRecordsError: OFA and the baselines cannot be compared.
    """
    terms, notes = overhead_terms(records)
    pairs = comparisons(terms)
    if not pairs:
        raise MissingRecordsError(why_not(terms, notes).replace("overhead:", "table_overhead:"))
    several = len({pair.device for pair in pairs}) > 1
    parts = {
        title: [_overhead_row(pair, versus, several=several) for pair in pairs if (versus := _versus(pair, currency, whole=whole))]
        for title, currency, whole in (
            ("Device-hours", "device_hours", True),
            ("Device-hours, without size 1", "device_hours", False),
            ("Training PFLOP", "train_pflop", True),
            ("Training PFLOP, without size 1", "train_pflop", False),
        )
    }
    heads = ["", "Sizes", "Alone", "OFA", "Alone / OFA", "From"]
    devices = " and ".join(sorted({pair.device for pair in pairs}))
    busy = any((versus := pair.versus("device_hours")) and versus.busy for pair in pairs)
    return float_table(
        "table_overhead",
        str(records[0]["experiment"]),
        r">{\raggedright\arraybackslash}Xrrrrr",
        [heads, *_in_parts({title: rows for title, rows in parts.items() if rows}, len(heads))],
        f"Training overhead of all sizes together on {records[0]['experiment']}",
        [
            "Alone: one training for each size, and what these share; OFA: one joint training and the extraction of the same sizes. From: "
            "the least number of sizes at which training each alone, at its mean cost, costs more than OFA",
            f"Means over seeds, without evaluation and without the base; device-hours on {devices}",
            *([BUSY_NOTE] if busy else []),
        ],
    )


def _versus(pair: Comparison, currency: str, *, whole: bool) -> Versus | None:
    """Returns a comparison with size 1, or without it where there is one and others are left."""
    if not whole and (1.0 not in pair.sizes or len(pair.sizes) < 2):
        return None
    return pair.versus(currency, with_base_size=whole)


def _overhead_row(pair: Comparison, versus: Versus, *, several: bool) -> Cells:
    mark = r"$^\dagger$" if versus.busy else ""
    name = look_of(pair.method).label + (f", {pair.device}" if several else "")
    amounts = (_three_digits(versus.independent) + mark, _three_digits(versus.ofa) + mark, rf"{versus.ratio:.2f}\,$\times${mark}")
    return [latex_text(name), str(versus.n_sizes), *amounts, str(versus.break_even)]


def table_claims(records: Sequence[Record]) -> str:
    """Returns the table of the claims that there are records for, each with its interval and its verdict.

    Raises:
        MissingRecordsError: There is no variant to compare with.
        IncomparableError: A claim compares qualities on several scales, or device-hours of several machines.
    """
    grid = _evidence(records, "table_claims")
    table = claims_table(grid)
    table = table[table["verdict"] != NO_RECORDS]
    lines: list[Cells | str] = [["", "Claim", "Estimate", INTERVAL.replace("%", r"\,\%"), "Verdict"]]
    lines += [
        [
            str(row.key),
            latex_text(str(row.claim)),
            latex_number(amount(row.estimate, row.unit)),
            _interval(row.low, row.high, row.unit),
            _verdict(row),
        ]
        for row in table.itertuples()
    ]
    seeds = sorted(set(table["n_seeds"]))
    return float_table(
        "table_claims",
        str(records[0]["experiment"]),
        r"l>{\raggedright\arraybackslash}Xrrl",
        lines,
        f"The paper's claims, tested on {records[0]['experiment']}",
        [
            f"Paired over {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds; intervals of Student's t, each on its own. "
            f"Per cent: difference in {in_prose(grid.metric, grid.scale)}, geometric mean over sizes, negative is better"
            + ("; c: 100 times a difference of logarithms" if "c" in set(table["key"]) else ""),
            *(f"{sign} {said}" for mark, (sign, said) in MARKS.items() if any(mark in _marks(row) for row in table.itertuples())),
        ],
        wide=True,
    )


def _verdict(row: Any) -> str:
    """Returns the verdict on a claim, with marks for what the long table says in words."""
    marks = ",".join(_marks(row))
    return str(row.verdict) + (f"$^{{{marks}}}$" if marks else "")


def _marks(row: Any) -> list[str]:
    holds = (
        bool(row.busy_machine),
        not pd.isna(row.pflop_ratio) and compute_is_off(row.pflop_ratio),
        row.verdict_without_1 not in ("", row.verdict),
    )
    return [mark for mark, held in zip(MARKS, holds, strict=True) if held]


def table_ablation(records: Sequence[Record]) -> str:
    """Returns the table of the ablations: each variant's difference from what it varies.

    Raises:
        MissingRecordsError: There is no variant to compare with.
        IncomparableError: The qualities are on several scales.
    """
    grid = _evidence(records, "table_ablation")
    table = ablations_table(grid)
    parts = {
        f"against {_label(str(reference))}": [
            [latex_text(_variant(row)), _difference(row), _interval(row.low_pct, row.high_pct, "%"), str(row.n_seeds)]
            for row in part.itertuples()
        ]
        for reference, part in table[table["factor"] != ""].groupby("of", sort=False)
    }
    heads = ["Variant", r"\%", INTERVAL.replace("%", r"\,\%"), "Seeds"]
    return float_table(
        "table_ablation",
        str(records[0]["experiment"]),
        r">{\raggedright\arraybackslash}Xrrr",
        [heads, *_in_parts(parts, len(heads))],
        f"Ablations on {records[0]['experiment']}",
        [
            f"Difference in {in_prose(grid.metric, grid.scale)} from what a variant varies, in per cent: geometric mean over sizes, paired "
            f"over seeds, negative is better, with its {INTERVAL} (Student's t). Bold: the interval leaves out zero",
        ],
    )


def _evidence(records: Sequence[Record], name: str) -> Grid:
    grid = Grid(records)
    if not grid.variants():
        raise MissingRecordsError(f"{name}: left out, no records of any ablation; {HOW}")
    return grid


def _variant(row: Any) -> str:
    return str(row.variant) if row.factor == "method" else f"{row.factor}: {row.variant}"


def _difference(row: Any) -> str:
    """Returns a difference, bold where its interval leaves out zero."""
    if pd.isna(row.difference_pct):
        return ""
    clear = not row.low_pct <= 0 <= row.high_pct
    return rf"$\mathbf{{{row.difference_pct:+.1f}}}$" if clear else f"${row.difference_pct:+.1f}$"


def _interval(low: Any, high: Any, unit: Any) -> str:
    """Returns an interval in brackets, its unit left to the estimate; blank where there is none."""
    if low is None or high is None or pd.isna(low):
        return ""
    ends = (amount(end, unit).removesuffix(f" {unit}") for end in (low, high))
    return f"[{', '.join(map(latex_number, ends))}]"
