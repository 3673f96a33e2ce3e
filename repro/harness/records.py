"""Records: one JSON file per cell, the only thing that tables and figures read.

This module imports neither torch nor the trainer, so that reading records takes milliseconds.
"""

import json
from pathlib import Path

from repro.errors import ReproError
from repro.harness.reading import plain, read_json
from repro.harness.record_checks import CHECKSUM, Record, checksum, contradiction
from repro.harness.record_schema import MOST_LETTERS, malformation
from repro.harness.storage import write_atomically

__all__ = ["MOST_LETTERS", "REMEDY", "SCHEMA_VERSION", "Record", "read_record", "read_records", "record_path", "write_record"]

SCHEMA_VERSION = 2  # 1 had no checksum
REQUIRED_KEYS = ("schema_version", "experiment", "cell", "status", "provenance")
STATUSES = ("done", "failed")
REMEDY = "delete it and run the cell again, or restore it from version control"


def record_path(folder: Path, cell_name: str) -> Path:
    """Returns where the record of a cell lies, `<folder>/<method>-<size>-seed<k>.json`."""
    return folder / f"{cell_name}.json"


def write_record(folder: Path, record: Record) -> Path:
    """Writes a record atomically, with a checksum.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    path = record_path(folder, record["cell"]["name"])
    said: Record = plain(json.loads(json.dumps(record, allow_nan=False)))
    if said["schema_version"] > 1:
        said[CHECKSUM] = checksum(said)
    write_atomically(path, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())
    return path


def read_record(path: Path) -> Record:
    """Reads and checks one record.

    Raises:
        ReproError: The file is no JSON, lacks a key, holds something of another kind or out of bounds, contradicts itself, was changed
            since it was written, or is of another schema version or another cell.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not a readable record ({error}); {REMEDY}") from error
    if not isinstance(record, dict):
        raise ReproError(f"{path}: not a record (no JSON object); {REMEDY}")
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ReproError(f"{path}: the record lacks the key '{missing[0]}'; {REMEDY}")
    if record["schema_version"] not in range(1, SCHEMA_VERSION + 1):
        raise ReproError(f"{path}: record of schema version {record['schema_version']}, this program reads {SCHEMA_VERSION}; {REMEDY}")
    if record["status"] not in STATUSES:
        raise ReproError(f"{path}: unknown status '{record['status']}'; {REMEDY}")
    if problem := malformation(record):
        raise ReproError(f"{path}: the record is malformed ({problem}); {REMEDY}")
    if record["cell"]["name"] != path.stem:
        raise ReproError(f"{path}: the record of another cell, '{record['cell']['name']}'; give the file its name, or delete it")
    if problem := contradiction(record):
        raise ReproError(f"{path}: the record {problem}; {REMEDY}")
    checked: Record = record
    return checked


def read_records(folder: Path) -> list[Record]:
    """Reads every record of an experiment's folder, in the order of the file names.

    Raises:
        ReproError: The folder does not exist, or one of its records is corrupt.
    """
    if not folder.is_dir():
        raise ReproError(f"{folder}: no such folder of records; run the experiment first or name another folder")
    return [read_record(path) for path in sorted(folder.glob("*.json"))]
