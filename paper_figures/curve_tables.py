"""The table of time to quality, and its lines for the terminal."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.cells import MissingRecordsError
from paper_figures.comparable import IncomparableError
from paper_figures.curves import HOW, Bounded, Curve, Curves, common_range, curves_in, curves_of, interval_of, mean_log, mean_of, ratio
from paper_figures.evidence import Grid, Interval, interval, percent
from paper_figures.latex import long_table
from paper_figures.markup import BUSY_NOTE, markdown, marked
from paper_figures.methods import INDEPENDENT, look_of
from repro.experiment.records import Record
from repro.files.writing import write_atomically

MARKS = {"exact": "", "at least": "> ", "at most": "< ", "unknown": "~ "}
CURRENCIES = {"images": "Images", "device_hours": "Device-hours", "train_pflop": "PFLOP"}


def time_to_quality(grid: Grid, target: float | None = None) -> pd.DataFrame:
    """Returns one row for each size and method: what its training took to a target, and the mean of ln(quality) on the way.

    Where the target is Diff-Pruning's own last value, each seed has its own. Costs are geometric means over the seeds; a run that never
    reached the target counts with all that it took, and its cost is one that the true one exceeds (`at least`); one that was there at its
    first point with what that one took (`at most`). The interval of a ratio is open on the side where bounds are all that is known. No
    device-hours, and why, where a method ran on another machine than Diff-Pruning.

    Args:
        grid: The judged cells.
        target: The quality that is asked for; None takes Diff-Pruning's own last value.

    Raises:
        MissingRecordsError: No training was judged on its way, or none of Diff-Pruning.
        IncomparableError: Curves are of several scales, or of several bases at a seed.
    """
    curves = curves_of(grid)
    common = {method: set(curves.sizes(method, INDEPENDENT)) for method in curves.of} if INDEPENDENT in curves.of else {}
    sizes = sorted(set[float]().union(*common.values()))
    if not sizes:
        raise MissingRecordsError(f"time to quality: left out, no curves of {look_of(INDEPENDENT).label} to hold the others against; {HOW}")
    notes = {method: _note(curves, method) for method in curves.of}
    rows = [_row(curves, size, method, target, notes[method]) for size in sizes for method in curves.of if size in common[method]]
    return pd.DataFrame(rows)


def _note(curves: Curves, method: str) -> str:
    """Says why a method's device-hours are not shown; refuses curves that cannot be compared at all."""
    curves.check(method, INDEPENDENT)
    try:
        curves.check(method, INDEPENDENT, currency="device_hours")
    except IncomparableError as error:
        return str(error)
    return ""


def _row(curves: Curves, size: float, method: str, target: float | None, note: str) -> dict[str, Any]:
    ours, theirs = zip(*curves.pairs(method, INDEPENDENT, size), strict=True)
    targets = [target if target is not None else other.last for other in theirs]
    row: dict[str, Any] = {"size": size, "method": method, "target": _geometric(targets)}
    images = [curve.taken(to, "images") for curve, to in zip(ours, targets, strict=True)]
    row["reached"], row["n_seeds"] = sum(taken.high < math.inf for taken in images), len(ours)
    row["bound"] = bound_of(images)
    for currency in CURRENCIES:
        if note and currency == "device_hours":
            row[currency] = None
            continue
        taken, others = ([curve.taken(to, currency) for curve, to in zip(side, targets, strict=True)] for side in (ours, theirs))
        row[currency] = _geometric([each.observed for each in taken])
        if method != INDEPENDENT:
            found = interval_of([ratio(*pair) for pair in zip(taken, others, strict=True)])
            row |= _ends(f"{currency}_ratio", found.map(_exp) if found else None)
    first, last = common_range([*ours, *theirs])
    if first < last:
        means, references = ([_area(curve, first, last) for curve in side] for side in (ours, theirs))
        row |= {"area_from_images": first, "area_to_images": last, "mean_quality": math.exp(statistics.fmean(means))}
        if method != INDEPENDENT:
            differences = [own - other for own, other in zip(means, references, strict=True)]
            between = interval(differences)
            row |= _ends("area_difference_pct", between.map(percent) if between else None)
    row["busy_machine"] = "yes" if any(cell.busy for curve in [*ours, *theirs] for cell in curve.paid) else ""
    return row | {"note": note}


def _area(curve: Curve, first: float, last: float) -> float:
    return mean_log([point.images for point in curve.points], curve.values, first, last)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def bound_of(taken: Sequence[Bounded]) -> str:
    """Says what a mean of costs is: `exact`, `at least`, `at most`, or `unknown` where some are a bound below and some above."""
    above, below = any(each.high == math.inf for each in taken), any(not each.exact and each.high < math.inf for each in taken)
    return "unknown" if above and below else "at least" if above else "at most" if below else "exact"


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)


def _ends(name: str, found: Interval | None) -> dict[str, float | None]:
    ends = (found.mean, found.low, found.high) if found else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def printable_time_to_quality(grid: Grid, table: pd.DataFrame, target: float | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Returns the formatted table of time to quality, and its footnotes."""
    curves = curves_in(grid)
    shown = pd.DataFrame({"Method": [look_of(name).label for name in table["method"]], "Size": [f"{size:g}" for size in table["size"]]})
    shown["Target"] = [f"{value:.2f}" for value in table["target"]]
    shown["Reached"] = [f"{row.reached} of {row.n_seeds}" for row in table.itertuples()]
    for currency, title in CURRENCIES.items():
        texts = [_amount(getattr(row, currency), currency, MARKS[str(row.bound)]) for row in table.itertuples()]
        shown[title] = marked(texts, table["busy_machine"] == "yes") if currency == "device_hours" else texts
    shown["Images, over the reference's"] = [_ratio(row) for row in table.itertuples()]
    if "mean_quality" in table:
        shown[f"Mean {curves.metric} on the way"] = ["" if pd.isna(value) else f"{value:.2f}" for value in table["mean_quality"]]
        shown["Against the reference"] = [_difference(row) for row in table.itertuples()]
    reference = look_of(INDEPENDENT).label
    to = f"{target:g}, as asked for" if target is not None else f"what {reference}, the reference, came to in the end, at each seed its own"
    samples = next((cell.points_scale.get("samples") for cell in grid.cells if cell.points_scale), "")
    return shown, [
        f"Target: {to}; {curves.metric} of {samples} samples. What a training had taken when a size first was as good, interpolated in "
        "ln(quality) over ln(cost); geometric means over seeds",
        "> : not reached at some seeds, which count with all that they took; < : reached by the first point at some; ~ : both. Ratios are "
        "paired over seeds, with 95 % intervals, open where such bounds are all that is known",
        "What a joint run took is what all its sizes took. A size trained alone holds an even share of the one pass that scores channels",
        "Mean on the way: the area under ln(quality) over ln(images), over its width, between the images that both methods have points for",
        *([BUSY_NOTE] if (table["busy_machine"] == "yes").any() else []),
        *[f"No device-hours: {note}" for note in dict.fromkeys(table["note"]) if note],
        *curves.notes,
    ]


def _amount(value: float, currency: str, mark: str) -> str:
    return "" if pd.isna(value) else f"{mark}{value:,.0f}" if currency == "images" else f"{mark}{value:.3g}"


def _ratio(row: Any) -> str:
    if pd.isna(getattr(row, "images_ratio", None)):
        return ""
    ends = ["0" if row.images_ratio_low == 0 else f"{row.images_ratio_low:.2f}"]
    ends += ["unbounded" if row.images_ratio_high == math.inf else f"{row.images_ratio_high:.2f}"]
    return f"{row.images_ratio:.2f} x ({' .. '.join(ends)})"


def _difference(row: Any) -> str:
    if pd.isna(getattr(row, "area_difference_pct", None)):
        return ""
    return f"{row.area_difference_pct:+.1f} % ({row.area_difference_pct_low:+.1f} .. {row.area_difference_pct_high:+.1f})"


def write_time_to_quality(folder: Path, records: Sequence[Record], target: float | None = None) -> list[Path]:
    """Writes `tables/time_to_quality.*` and returns their paths.

    Raises:
        MissingRecordsError: No training was judged on its way.
        ReproError: A record is malformed, or the folder cannot be written.
    """
    grid = Grid(records)
    table = time_to_quality(grid, target)
    shown, notes = printable_time_to_quality(grid, table, target)
    experiment = str(records[0]["experiment"])
    title = f"Time to quality, on the experiment {experiment}"
    texts = {"csv": table.to_csv(index=False, lineterminator="\n"), "md": markdown(shown, notes, title, left=1)}
    texts["tex"] = long_table(shown, notes, title, name="time_to_quality", experiment=experiment)
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / "tables" / f"time_to_quality.{suffix}")
        write_atomically(paths[-1], text.encode())
    return paths


def until_all_text(grid: Grid, target: float | None = None) -> str:
    """Returns what OFA and the independent runs took until every size was as good as a target; empty without curves of both."""
    curves, lines = curves_in(grid), []
    joint = curves.longest
    if joint is None:
        return ""
    ours, theirs = look_of(joint).label, look_of(INDEPENDENT).label
    for currency, unit in (("device_hours", "device-hours"), ("train_pflop", "PFLOP")):
        try:
            found = curves.until_all(currency, target)
        except IncomparableError as error:
            lines.append(f"  {unit}: {error}")
            continue
        once, each = ([pair[index] for pair in found] for index in (0, 1))
        busy = " (busy machine)" if currency == "device_hours" and any(cell.busy for cell in curves.compared_with_independent()) else ""
        ratios = [ratio(*pair) for pair in zip(each, once, strict=True)]
        over = interval_of(ratios)
        words = [f"{unit}{busy}: {ours} {_mean(once)}, {theirs} {_mean(each)}, ratio {_said(mean_of(ratios), _exp)}"]
        lines.append("  " + ", ".join(words + ([_interval(over)] if over else [])))
    to = f"{curves.metric} {target:g}" if target is not None else f"{theirs}'s last {curves.metric}"
    sizes, seeds = curves.sizes(joint, INDEPENDENT), curves.seeds(joint, INDEPENDENT)
    over_seeds = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    return "\n".join(
        [
            f"To reach {to} at every size ({', '.join(f'{size:g}' for size in sizes)}), mean over {over_seeds}:",
            *lines,
            "  (a joint run counts until its last size is there, independent runs each until its own, and their sum; > and < are bounds)",
            "",
        ]
    )


def _mean(values: Sequence[Bounded]) -> str:
    return _said(mean_of(values), float)


def _said(value: Bounded, scale: Callable[[float], float]) -> str:
    """Returns a number, or the bounds of it that are known."""
    if value.exact:
        return f"{scale(value.observed):.4g}"
    above, below = value.high < math.inf, value.low > -math.inf and scale(value.low) > 0
    if above and below:
        return f"{scale(value.low):.4g} to {scale(value.high):.4g}"
    return f"< {scale(value.high):.4g}" if above else f"> {scale(value.low):.4g}" if below else "unknown"


def _interval(found: Interval) -> str:
    high = "unbounded" if found.high == math.inf else f"{_exp(found.high):.2f}"
    return f"95 % interval {_exp(found.low):.2f} .. {high}"
