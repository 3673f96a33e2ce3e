"""The tables of results and of latencies, each number with its records."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paper_figures.cells import Cell, MissingRecordsError
from paper_figures.claims import READS
from paper_figures.latency import LatencyRow, batches_of, latency_rows, latency_table
from paper_figures.markup import BUSY_NOTE, marked, printable
from paper_figures.methods import look_of
from paper_figures.plots import ASK_FOR_RUN
from paper_figures.published_selection import Literature
from paper_figures.report.model import Column, Entry, Table, fixed, number, words
from paper_figures.tables import ResultRow, metrics_of, result_rows, results_table, with_published
from repro.experiment.records import Record

QUALITY = "mean over seeds of each record's mean over sampling seeds ± standard error, over seeds or, for a single one, over sampling seeds"
COST = "for each seed its record and those that deliver it, added; the mean over seeds"
# Title of a column, or how it begins -> column of the frame, where a record holds it, how a number is made from its records.
NUMBERS = {
    "Size": ("size", "cell.size", "the size P that was asked for"),
    "Realised": ("realised_size", "size.realised", "mean over seeds of the size that whole channels come to"),
    "Params (": ("params", "size.params", "mean over seeds"),
    "MACs (": ("macs", "size.macs", "mean over seeds"),
    "MACs, torch-pruning (": ("macs_torch_pruning", "size.macs_torch_pruning", "mean over seeds"),
    "Device-hours": ("device_hours", READS["device_hours"], COST),
    "Training PFLOP": ("train_pflop", READS["train_pflop"], COST),
    "Values": ("n_values", "quality.values", "number of values, one for each sampling seed of each record"),
    "Samples": ("n_samples", "quality.n_samples", "the same in every record"),
    "Seeds": ("n_seeds", "cell.seed", "number of seeds"),
}
PAID = ("device_hours", "train_pflop")


def results(records: Sequence[Record], cells: Sequence[Cell], literature: Literature) -> Table:
    """Returns the table of results, published rows below ours.

    Raises:
        MissingRecordsError: There is nothing to show.
    """
    frame = with_published(results_table(records), literature.shown)
    if frame.empty:
        raise MissingRecordsError(f"the table of results: left out, only trial records or none; {ASK_FOR_RUN}")
    shown, notes = printable(frame)
    made: list[ResultRow | None] = [*result_rows(cells), *[None] * len(literature.shown)]
    metrics = metrics_of(frame)
    # What a phone shows of a row: its method, its size, its quality.
    titles = sorted(shown.columns, key=lambda title: 0 if title in shown.columns[:2] else 1 if title in metrics else 2)
    sources = {title: _source(title, metrics) for title in titles}
    rows = []
    for index, row in enumerate(made):
        note = str(frame["note"].iloc[index]) if row is None else ""
        entries = [_entry(shown[title].iloc[index], frame, index, row, source, note) for title, source in sources.items()]
        rows.append(tuple(entries))
    return Table(
        key="results",
        title="Results: each method at each size",
        columns=tuple(Column(title=title, how=source[2] if source else "") for title, source in sources.items()),
        rows=tuple(rows),
        notes=(*notes, *literature.footnotes),
    )


def _source(title: str, metrics: Sequence[str]) -> tuple[str, str, str] | None:
    """Returns where the numbers of a column come from; None for a column of texts."""
    if title in metrics:
        return title, "quality.values", QUALITY
    return next((source for begins, source in NUMBERS.items() if title.startswith(begins)), None)


def _entry(text: str, frame: pd.DataFrame, index: int, row: ResultRow | None, source: tuple[str, str, str] | None, note: str) -> Entry:
    if source is None:
        return Entry(text=text)
    column, reads, _ = source
    if row is not None and column in PAID and row.cells[0].trained_on:
        reads = f"base.trained.{column}"
    value = frame[column].iloc[index]
    if row is None:
        return Entry(text=text, value=None if pd.isna(value) else float(value), source=note) if text else Entry(text="")
    return number(text, value, row.paid if column in PAID else row.cells, reads)


def latencies(cells: Sequence[Cell]) -> tuple[list[LatencyRow], Table]:
    """Returns the latencies as rows, for a figure, and as a table.

    Raises:
        MissingRecordsError: No record has a latency.
    """
    made = latency_rows(cells)
    if not made:
        raise MissingRecordsError(f"latency: left out, no record holds one; {ASK_FOR_RUN}")
    frame, batches = latency_table(made), batches_of(made)
    busy = frame["busy_machine"] == "yes"
    printed = {batch: marked(_with_errors(frame, f"latency_ms_{batch}"), busy) for batch in batches}
    spread = [batch for batch in batches if f"latency_ms_{batch}_q1" in frame]
    rows = []
    for index, row in enumerate(made):
        raw = frame.iloc[index]
        size = "" if pd.isna(raw["size"]) else f"{raw['size']:g}"
        times = [number(printed[b][index], raw[f"latency_ms_{b}"], row.cells, f"latency[batch={b}].ms") for b in batches]
        quarters = [_quartiles(raw, batch, row.cells) for batch in spread]
        per_sec = [number(*_per_second(raw[f"latency_ms_{b}"], b), row.cells, f"latency[batch={b}].ms") for b in batches[-1:]]
        entries = [number(size, raw["size"], row.cells, "cell.size"), *words([raw["device"]]), *times, *quarters, *per_sec]
        rows.append(
            (Entry(text=look_of(raw["method"]).label), *entries, number(f"{raw['n_seeds']:g}", raw["n_seeds"], row.cells, "cell.seed"))
        )
    columns = [Column(title="Method"), Column(title="Size", how=NUMBERS["Size"][2]), Column(title="Device")]
    columns += [Column(title=f"Batch {batch} (ms)", how="mean over seeds of the median ± standard error over seeds") for batch in batches]
    columns += [
        Column(title=f"Quartiles, batch {batch} (ms)", how="mean over seeds of the first and the third quartile") for batch in spread
    ]
    columns += [Column(title=f"Images/s at batch {batches[-1]}", how="batch size over the mean latency")]
    columns += [Column(title="Seeds", how=NUMBERS["Seeds"][2])]
    notes = (
        "Milliseconds of one forward pass of the denoiser: each record's median, their mean. Other devices, other rows",
        *_noise(frame, batches),
        *([BUSY_NOTE] if busy.any() else []),
    )
    return made, Table(key="latency", title="Latency of one forward pass", columns=tuple(columns), rows=tuple(rows), notes=notes)


def _quartiles(raw: "pd.Series[Any]", batch: int, cells: Sequence[Cell]) -> Entry:
    """Returns the span between which half of the timings lie; a blank where it was not recorded."""
    low, high = (raw[f"latency_ms_{batch}_q{quarter}"] for quarter in (1, 3))
    text = "" if pd.isna(low) else f"{low:.4g} .. {high:.4g}"
    return number(text, low, cells, f"latency[batch={batch}].ms_quartiles")


def _noise(frame: pd.DataFrame, batches: Sequence[int]) -> list[str]:
    """Says how far apart the times of one network lie: at size 1 nothing is pruned, whatever the method."""
    notes = []
    for device, whole in frame[frame["size"] == 1].groupby("device"):
        spans = [(batch, whole[f"latency_ms_{batch}"].dropna()) for batch in batches]
        ranges = [f"{times.min():.3g} to {times.max():.3g} ms at batch {batch}" for batch, times in spans if len(times) > 1]
        if ranges:
            notes.append(
                f"On {device}, size 1 is one network under each method, yet took {' and '.join(ranges)}: smaller differences are noise"
            )
    return notes


def _per_second(ms: float, batch: int) -> tuple[str, float | None]:
    rate = None if pd.isna(ms) else 1000 * batch / ms
    return ("" if rate is None else f"{rate:.0f}"), rate


def _with_errors(frame: pd.DataFrame, column: str) -> list[str]:
    means, errors = ([None if pd.isna(value) else float(value) for value in frame[name]] for name in (column, f"{column}_error"))
    texts = fixed(means, 4)
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [text if error is None else f"{text} ± {error:.{decimals}f}" for text, error in zip(texts, errors, strict=True)]
