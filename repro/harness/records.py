"""Records: one JSON file per cell, the only thing that tables and figures read.

This module imports neither torch nor the trainer, so that reading records takes milliseconds.
"""

import json
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.harness.storage import write_atomically

SCHEMA_VERSION = 1
REQUIRED_KEYS = ("schema_version", "experiment", "cell", "status", "provenance")
STATUSES = ("done", "failed")

Record = dict[str, Any]


def record_path(folder: Path, cell_name: str) -> Path:
    """Returns where the record of a cell lies, `<folder>/<method>-<size>-seed<k>.json`."""
    return folder / f"{cell_name}.json"


def write_record(folder: Path, record: Record) -> Path:
    """Writes a record atomically.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    path = record_path(folder, record["cell"]["name"])
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
    return path


def read_record(path: Path) -> Record:
    """Reads and checks one record.

    Raises:
        ReproError: The file is no JSON, lacks a key, or is of another schema version.
    """
    remedy = "delete it and run the cell again, or restore it from version control"
    try:
        record = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReproError(f"{path}: not a readable record ({error}); {remedy}") from error
    if not isinstance(record, dict):
        raise ReproError(f"{path}: not a record (no JSON object); {remedy}")
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ReproError(f"{path}: the record lacks the key '{missing[0]}'; {remedy}")
    if record["schema_version"] != SCHEMA_VERSION:
        raise ReproError(f"{path}: record of schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}; {remedy}")
    if record["status"] not in STATUSES:
        raise ReproError(f"{path}: unknown status '{record['status']}'; {remedy}")
    return record


def read_records(folder: Path) -> list[Record]:
    """Reads every record of an experiment's folder, in the order of the file names.

    Raises:
        ReproError: The folder does not exist, or one of its records is corrupt.
    """
    if not folder.is_dir():
        raise ReproError(f"{folder}: no such folder of records; run the experiment first or name another folder")
    return [read_record(path) for path in sorted(folder.glob("*.json"))]
