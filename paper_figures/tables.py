"""The table of results: one row per (method, size), from the records of one experiment."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures.cells import Cell, MissingRecordsError, cells_of
from paper_figures.comparable import COUNTS, Conditions, against_most, most_common
from paper_figures.latex import long_table
from paper_figures.markup import markdown, printable
from paper_figures.methods import REAL_OR_NOISE, sort_key
from paper_figures.published_selection import NO_LITERATURE, Literature, Shown
from paper_figures.total_cost import ByName, TotalCost, deliverers, mean, total_cost
from repro.experiment.records import Record
from repro.files.writing import write_atomically

COUNT_COLUMNS = {"realised": "realised_size", "params": "params", "macs": "macs", "macs_torch_pruning": "macs_torch_pruning"}
WHOLE = ("params", "macs", "macs_torch_pruning", "n_values", "n_samples", "n_seeds")
TEXT = ("method", "device", "busy_machine", "spread_over", "scale", "note")

Row = dict[str, Any]
Key = tuple[str, float | None, str, str, tuple[Conditions | None, ...]]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """A row of the table of results, the cells that it was made from, and those and the ones that deliver them."""

    row: Row
    cells: tuple[Cell, ...]
    paid: tuple[Cell, ...]


def results_table(records: Iterable[Record]) -> pd.DataFrame:
    """Returns one row per (method, size), without ablations; a failed cell is a gap with a note.

    Machines and scales are never merged: what differs in either stands in a row of its own, with a note that says in what.

    Counts are raw integers. The quality columns carry the metric's own name, such as `fid_classifier` and `fid_classifier_std_error`.

    Raises:
        ReproError: A record is malformed.
    """
    cells = cells_of(records)
    done = [cell for cell in cells if cell.done]
    metrics = [*sorted({cell.metric for cell in done if cell.metric}), *sorted({other.metric for cell in done for other in cell.also})]
    return _framed([made.row for made in result_rows(cells)], list(dict.fromkeys(metrics)))


def result_rows(cells: Sequence[Cell]) -> list[ResultRow]:
    """Returns the rows of the table of results in its order, each with its cells."""
    by_name = ByName(cells)
    groups: dict[Key, list[Cell]] = {}
    failed: dict[tuple[str, float | None], list[Cell]] = {}
    for cell in cells:
        if cell.shared or not cell.own:
            continue
        if cell.done:
            groups.setdefault(_key(cell), []).append(cell)
        else:
            failed.setdefault((cell.method, cell.size), []).append(cell)
    usual = Usual.of([cell for group in groups.values() for cell in group])
    rows = [_made(group, failed.get(key[:2], []), by_name, usual) for key, group in groups.items()]
    held = {key[:2] for key in groups}
    rows += [ResultRow(row=_gap(group), cells=tuple(group), paid=()) for key, group in failed.items() if key not in held]
    rows.sort(key=_order)
    return rows


@dataclass(frozen=True, kw_only=True)
class Usual:
    """The scale and the machine of most networks of a table; rows of others say so."""

    scale: Conditions | None
    machine: Conditions | None

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Usual":
        """Returns those of the cells that have a size, or of all where none has."""
        networks = [cell for cell in cells if cell.size is not None] or cells
        timed = (cell.machine for cell in networks if cell.device_hours is not None)
        return cls(scale=most_common(cell.scale for cell in networks), machine=most_common(timed))

    def notes(self, cell: Cell) -> list[str]:
        """Says in what a cell's scale and machine are not the usual ones."""
        notes = [scale_note(cell.scale, self.scale)] if cell.scale and self.scale else []
        if self.machine and cell.device_hours is not None and cell.method not in REAL_OR_NOISE:
            other = against_most(cell.machine, self.machine)
            notes += [f"device-hours of another machine, not to be compared: {other}"] if other else []
        return [note for note in notes if note]


def scale_note(scale: Conditions, most: Conditions) -> str:
    """Says in what a scale is not that of most rows; empty where it is, or where the metric is another and so the column too."""
    names = scale.differing(most)
    if not names or "metric" in names:
        return ""
    if set(names) <= COUNTS:
        return f"n = {scale.get('samples')}, not {most.get('samples')}: a distance of fewer images reads higher"
    return f"quality on another scale, not to be compared: {against_most(scale, most)}"


def _key(cell: Cell) -> Key:
    """Returns the key that the cells of a row share; real images and noise cost nothing, so their device is none."""
    return cell.method, cell.size, "" if cell.method in REAL_OR_NOISE else cell.device, cell.trained_on, cell.scales


def _order(made: ResultRow) -> tuple[tuple[int, str, float], str, str, str]:
    row = made.row
    return sort_key(row["method"], row["size"]), row["device"], str(row.get("n_samples")), str(row.get("scale"))


def _made(group: Sequence[Cell], failed: Sequence[Cell], by_name: ByName, usual: Usual) -> ResultRow:
    row = _row(group, failed, by_name)
    row["note"] = "; ".join([*([row["note"]] if row["note"] else []), *usual.notes(group[0])])
    return ResultRow(row=row, cells=tuple(group), paid=(*group, *deliverers(group, by_name)[0]))


def with_published(table: pd.DataFrame, shown: Sequence[Shown]) -> pd.DataFrame:
    """Returns a table with published figures below ours and a column `published` that tells them apart; without any, the same table."""
    if not shown or table.empty:
        return table
    theirs = _framed([_published_row(item) for item in shown], metrics_of(table))
    both = pd.concat([table.assign(published=False), theirs.assign(published=True)], ignore_index=True)
    return both[["method", "published", *table.columns.drop("method")]]


def write_tables(folder: Path, records: Sequence[Record], literature: Literature = NO_LITERATURE) -> list[Path]:
    """Writes `tables/results.csv`, `.md` and `.tex` and returns their paths.

    Raises:
        MissingRecordsError: There is nothing to show.
        ReproError: A record is malformed, or the folder cannot be written.
    """
    table = with_published(results_table(records), literature.shown)
    if table.empty:
        raise MissingRecordsError("tables: left out, only trial records or none; run `python -m repro run`")
    shown, notes = printable(table)
    notes += literature.footnotes
    experiment = str(records[0]["experiment"])
    title = f"Results of the experiment {experiment}"
    texts = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "md": markdown(shown, notes, title),
        "tex": long_table(shown, notes, title, name="results", experiment=experiment),
    }
    paths = [folder / "tables" / f"results.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text.encode())
    return paths


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Returns the names of a table's quality columns."""
    return [column.removesuffix("_std_error") for column in table.columns if column.endswith("_std_error")]


def _row(group: Sequence[Cell], failed: Sequence[Cell], by_name: ByName) -> Row:
    first = group[0]
    row: Row = {"method": first.method, "size": first.size, "device": first.device, "n_seeds": len({cell.seed for cell in group})}
    notes = [f"seed {cell.seed} failed: {cell.failure}" for cell in failed]
    for count, column in COUNT_COLUMNS.items():
        value = mean(cell.counts.get(count) for cell in group)
        row[column] = round(value) if value is not None and column in WHOLE else value
    if len({cell.counts.get("params") for cell in group}) > 1:
        notes.append("sizes differ between seeds; their mean is shown")
    if first.method not in REAL_OR_NOISE:
        costs = [total_cost(cell, by_name) for cell in group]
        row |= _costs(costs)
        notes += sorted({part.note for part in costs if part.note})
        notes += [f"trained once, on {first.trained_on}: the cost of that training, outside the comparison"] if first.trained_on else []
    row |= quality_of(group)
    row["note"] = "; ".join(notes)
    return row


def _gap(failed: Sequence[Cell]) -> Row:
    """Returns the row of a (method, size) of which no seed ended well: blanks and the reasons."""
    note = "; ".join(f"seed {cell.seed} failed: {cell.failure}" for cell in failed)
    return {"method": failed[0].method, "size": failed[0].size, "device": failed[0].device, "note": note}


def _published_row(item: Shown) -> Row:
    """Returns the row of a published figure; its size P, costs and spread are not ours to state."""
    entry = item.entry
    return {
        "method": entry.title,
        "params": entry.params,
        "macs_torch_pruning": entry.macs_torch_pruning,
        entry.protocol.metric: entry.fid,
        "n_samples": entry.protocol.n_samples,
        "note": item.note,
    }


def _costs(costs: Sequence[TotalCost]) -> Row:
    return {
        "device_hours": mean(part.device_hours for part in costs),
        "busy_machine": "yes" if any(part.busy for part in costs) else "",
        "train_pflop": mean(part.train_pflop for part in costs),
    }


def quality_of(group: Sequence[Cell]) -> Row:
    """Returns the mean of the per-seed means and its standard error, over seeds or else over the sampling seeds of the only one."""
    per_seed = [cell.values for cell in group if cell.values]
    metric = group[0].metric
    if metric is None or not per_seed:
        return {}
    row: Row = {"n_values": sum(map(len, per_seed)), "n_samples": group[0].n_samples, "spread_over": "", "scale": str(group[0].scale)}
    further: dict[str, list[tuple[float, ...]]] = {}
    for cell in group:
        for other in cell.also:
            further.setdefault(other.metric, []).append(other.values)
    for name, values in ({metric: per_seed} | further).items():
        means = [statistics.fmean(each) for each in values]
        spread = means if len(means) > 1 else values[0]
        row[name] = statistics.fmean(means)
        if len(spread) > 1:
            row[f"{name}_std_error"] = statistics.stdev(spread) / math.sqrt(len(spread))
            row["spread_over"] = "seeds" if len(means) > 1 else "sampling seeds"
    return row


def _framed(rows: Sequence[Row], metrics: Sequence[str]) -> pd.DataFrame:
    """Builds a frame of fixed columns and nullable types: integers stay integers next to blanks."""
    quality = [column for metric in metrics for column in (metric, f"{metric}_std_error")]
    columns = ["method", "size", *COUNT_COLUMNS.values(), "device", "device_hours", "busy_machine", "train_pflop"]
    columns += [*quality, "spread_over", "n_values", "n_samples", "n_seeds", "scale", "note"]
    frame = pd.DataFrame({column: pd.Series([row.get(column) for row in rows], dtype=object) for column in columns})
    for column in columns:
        if column in TEXT:
            frame[column] = frame[column].fillna("").astype(str)
        else:
            frame[column] = frame[column].astype("Int64" if column in WHOLE else "float64")
    return frame
