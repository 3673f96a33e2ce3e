"""The latency of every network: one row per (method, size) and device, beside its quality."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from paper_figures.cells import Cell, Latency
from paper_figures.comparable import Conditions
from paper_figures.tables import Row, quality_of


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """A row of the table of latencies and the cells that it was made from."""

    row: Row
    cells: tuple[Cell, ...]


def latency_rows(cells: Sequence[Cell]) -> list[LatencyRow]:
    """Returns one row per (method, size), without ablations, in the order of the cells; devices, threads and precisions are never mixed."""
    groups: dict[tuple[str, float | None, str, tuple[Conditions | None, ...]], list[Cell]] = {}
    for cell in cells:
        if cell.done and cell.own:
            for device in sorted({latency.device for latency in cell.latencies}):
                groups.setdefault((cell.method, cell.size, device, cell.scales), []).append(cell)
    return [LatencyRow(row=_row(group, key[2]), cells=tuple(group)) for key, group in groups.items()]


def latency_table(rows: Sequence[LatencyRow]) -> pd.DataFrame:
    """Returns the rows as a frame; a column `latency_ms_B` for each batch size B, as `batches_of` lists them."""
    frame = pd.DataFrame([made.row for made in rows])
    texts = ("method", "device", "spread_over", "scale", "busy_machine")
    return frame.astype({column: float for column in frame.columns if column not in texts})


def batches_of(rows: Sequence[LatencyRow]) -> list[int]:
    """Returns the batch sizes that were timed, ascending."""
    return sorted({latency.batch for made in rows for cell in made.cells for latency in cell.latencies})


def _row(group: Sequence[Cell], device: str) -> Row:
    row: Row = {"method": group[0].method, "size": group[0].size, "device": device, "n_seeds": len({cell.seed for cell in group})}
    for batch in sorted({latency.batch for cell in group for latency in cell.latencies}):
        timed = [latency for cell in group for latency in cell.latencies if (latency.batch, latency.device) == (batch, device)]
        row |= _times(timed) if timed else {}
    row["busy_machine"] = "yes" if any(entry.busy for cell in group for entry in cell.latencies if entry.device == device) else ""
    no_error = {f"{group[0].metric}_std_error": None} if group[0].metric else {}
    return row | no_error | quality_of(group)


def _times(timed: Sequence[Latency]) -> Row:
    """Returns the mean over seeds of the medians, its standard error, and the mean quartiles where every seed has them."""
    column, times = f"latency_ms_{timed[0].batch}", [latency.ms for latency in timed]
    row: Row = {column: statistics.fmean(times)}
    row[f"{column}_error"] = statistics.stdev(times) / math.sqrt(len(times)) if len(times) > 1 else None
    quartiles = [latency.quartiles for latency in timed if latency.quartiles]
    if len(quartiles) == len(timed):
        row |= {f"{column}_q{2 * index + 1}": statistics.fmean(ends[index] for ends in quartiles) for index in (0, 1)}
    return row
