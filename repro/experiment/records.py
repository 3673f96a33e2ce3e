"""Records: one JSON file per cell, the only thing that tables and figures read.

This module imports neither torch nor the trainer, so that reading records takes milliseconds.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from repro.errors import ReproError
from repro.experiment.record_checks import CHECKSUM, Record, checksum, contradiction, disagreement
from repro.experiment.record_schema import MOST_LETTERS, malformation
from repro.files.reading import plain, read_json
from repro.files.writing import sha256_of_file, write_atomically

__all__ = ["MOST_LETTERS", "REMEDY", "SCHEMA_VERSION", "SUMS", "Record", "read_record", "read_records", "record_path", "write_record"]

SCHEMA_VERSION = 2  # 1 had no checksum
SUMS = "SHA256SUMS"  # beside records of version 1, as `sha256sum` writes and checks it
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
    write_atomically(path, record_bytes(record))
    return path


def record_bytes(record: Record) -> bytes:
    """Returns the content of a record's file, its checksum included."""
    said: Record = plain(json.loads(json.dumps(record, allow_nan=False)))
    said[CHECKSUM] = checksum(said)
    return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()


def read_record(path: Path) -> Record:
    """Reads and checks one record; one of version 1 is believed where `SHA256SUMS` beside it lists it.

    Raises:
        ReproError: The file is no JSON, lacks a key, holds something of another kind or out of bounds, contradicts itself, was changed
            since it was written, or is of another schema version or another cell.
    """
    return _read(path, _sums(path.parent))


def _read(path: Path, sums: Mapping[str, str]) -> Record:
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
    if path.name in sums and (found := sha256_of_file(path)) != sums[path.name]:
        raise ReproError(f"{path}: {path.parent / SUMS} lists {sums[path.name][:16]}... for it, and it is {found[:16]}...; {REMEDY}")
    if record["schema_version"] == 1 and path.name not in sums:
        raise ReproError(f"{path}: a record of version 1 has no checksum of its own, and {path.parent / SUMS} does not list it; {REMEDY}")
    if problem := contradiction(record):
        raise ReproError(f"{path}: the record {problem}; {REMEDY}")
    checked: Record = record
    return checked


def read_records(folder: Path) -> list[Record]:
    """Reads every record of an experiment's folder, in the order of the file names.

    Raises:
        ReproError: The folder does not exist, one of its records is corrupt or contradicts another, or one that is listed is missing.
    """
    if not folder.is_dir():
        raise ReproError(f"{folder}: no such folder of records; run the experiment first or name another folder")
    paths, sums = sorted(folder.glob("*.json")), _sums(folder)
    if missing := sorted(sums.keys() - {path.name for path in paths}):
        raise ReproError(f"{folder / missing[0]}: missing, and {folder / SUMS} lists it; restore it from version control")
    records = [_read(path, sums) for path in paths]
    if found := disagreement(records):
        name, problem = found
        raise ReproError(f"{record_path(folder, name)}: the record {problem}; {REMEDY}")
    return records


def _sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that a folder's `SHA256SUMS` lists, by its name; empty where there is none."""
    path = folder / SUMS
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not readable ({error}); restore it from version control") from error
    listed = [line.split(maxsplit=1) for line in lines]
    if not all(len(words) == 2 for words in listed):
        raise ReproError(f"{path}: a line of it is no SHA-256 with a file's name; restore it from version control")
    return {name: sha256 for sha256, name in listed}
