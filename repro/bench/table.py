"""The table: Markdown for people, CSV with the raw numbers, both with the device and the versions."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from repro.bench.timing import Row
from repro.files.writing import write_atomically
from repro.runtime.provenance import device_name, now_utc, software

IN_TURN = 'Timed in turn within one process: the median over the rounds, and its quartiles. "this / that" is a ratio of times.'
IN_CPU_SECONDS = "Seconds of the processor, not of the clock; of a command, its start included. Records are synthetic."
HEADINGS = ("what", "median", "quartiles", "target", "met", "of what", "note")


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as a table whose columns are aligned in plain text too."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write(rows: Sequence[Row], folder: Path, name: str, config: str, how: str = IN_TURN) -> list[Path]:
    """Writes the table as Markdown and CSV and returns their paths.

    Args:
        rows: The measurements.
        folder: Where they go.
        name: Of the files: the device's.
        config: What was timed.
        how: Sentences about how.

    Raises:
        ReproError: The folder cannot be written.
    """
    about = software()
    packages = ", ".join(f"{package} {number}" for package, number in about["packages"].items())
    threads = torch.get_num_threads()
    head = (
        f"# {device_name()}\n\nConfiguration {config}, {threads} thread{'s' * (threads > 1)}, {now_utc()}, commit {about['git_commit']}"
        f"{' with changes' if about['git_dirty'] else ''}; {packages}.\n\n"
        f"{how}\n\n"
    )
    texts = {f"{name}.md": head + as_markdown(rows) + "\n" + _layers(rows), f"{name}.csv": _csv(rows)}
    for file, text in texts.items():
        write_atomically(folder / file, text.encode())
    return [folder / file for file in texts]


def _cells(row: Row) -> tuple[str, ...]:
    unit = f" {row.unit}" if row.unit else ""
    met = "" if row.target is None else "yes" if row.target.met(row.value) else "NO"
    target = f"{row.target}{unit}" if row.target else ""
    return row.what, f"{row.value:.4g}{unit}", f"{row.low:.4g} to {row.high:.4g}", target, met, _pairs(row), row.note


def _pairs(row: Row) -> str:
    """Returns the medians whose ratio a row is."""
    found = []
    for name, values in (row.parts or {}).items():
        if isinstance(values, list):
            unit = name.rpartition("_")[2]
            found.append(" / ".join(f"{value:.3g}" for value in values) + f" {unit}")
    return ", ".join(found)


def _layers(rows: Sequence[Row]) -> str:
    """Returns a table of where a step's time goes, for the rows that say so."""
    found = [(f"{row.what} ({row.note})", layers) for row in rows if isinstance(layers := (row.parts or {}).get("by_layer_ms"), dict)]
    if not found:
        return ""
    lines = ["", "Where a step's time goes: milliseconds at P = 1 and at the smaller size, by kind of layer, forwards and backwards.", ""]
    lines += ["| step | kind | P = 1 | smaller | ratio |", "|---|---|---|---|---|"]
    for what, layers in found:
        for kind, (large, small) in layers.items():
            lines.append(f"| {what} | {kind} | {large:.2f} | {small:.2f} | {small / large if large else 0:.2f} |")
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    table = pd.DataFrame(
        {
            "what": row.what,
            "median": row.value,
            "lower_quartile": row.low,
            "upper_quartile": row.high,
            "rounds": row.rounds,
            "unit": row.unit or "ratio",
            "target": str(row.target or ""),
            "met": None if row.target is None else row.target.met(row.value),
            "parts": json.dumps(row.parts or {}),
            "note": row.note,
        }
        for row in rows
    )
    return str(table.to_csv(index=False))
