"""Records: one JSON file per cell, the only thing that tables and figures read.

This module imports neither torch nor the trainer, so that reading records takes milliseconds.
"""

import json
import re
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.harness.reading import read_json
from repro.harness.storage import write_atomically

SCHEMA_VERSION = 1
REQUIRED_KEYS = ("schema_version", "experiment", "cell", "status", "provenance")
STATUSES = ("done", "failed")
MOST_LETTERS = 500  # of a text that is shown; a reason may be longer
NAME = re.compile(r"[A-Za-z0-9_-]+")  # of what becomes part of a path
CELL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# What is read anywhere, and of which kind: a part with keys of its own, a list of one kind, or for a text what it must look like. What has
# a question mark may be missing or None.
KINDS: dict[str, Any] = {
    "experiment": NAME,
    "cell": {"name": CELL_NAME, "method": NAME, "size?": float, "seed": int},
    "trial?": bool,
    "variant?": {"of": NAME, "factor": str, "label": str},
    "delivered_by?": [CELL_NAME],
    "size?": {"realised?": float, "params?": int, "macs?": int, "macs_torch_pruning?": float},
    "training?": {"images?": int, "train_pflop?": float, "scoring_pflop?": float},
    "quality?": {
        "metric": NAME,
        "mean": float,
        "values": [float],
        "n_samples": int,
        "tool?": str,
        "sampler?": {"name?": str, "steps?": int, "nfe?": int, "spacing?": str, "eta?": float, "clip_sample?": bool},
        "reference?": {"name?": str, "n?": int},
    },
    "samples?": {"file": str, "count": int, "height": int, "width": int},
    "latency?": [{"batch": int, "ms": float, "device_name": str, "ms_quartiles?": [float], "busy?": bool}],
    "cost?": {"device_name": str, "ranks": int, "device_hours?": float, "phases_device_hours?": dict, "busy?": {"marked": bool}},
    "base?": {"weights?": str, "trained?": {"device_hours": float, "device_name": str, "train_pflop": float}},
    "provenance": {"config_sha256?": str, "config?": dict},
}

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
        ReproError: The file is no JSON, lacks a key, holds something of another kind, or is of another schema version or another cell.
    """
    remedy = "delete it and run the cell again, or restore it from version control"
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
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
    problem = _problem(record, KINDS)
    if problem:
        raise ReproError(f"{path}: the record {problem}; {remedy}")
    if record["cell"]["name"] != path.stem:
        raise ReproError(f"{path}: the record of another cell, '{record['cell']['name']}'; give the file its name, or delete it")
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


def _problem(value: Any, kind: Any, key: str = "") -> str:
    """Says what a part of a record lacks, or what of it is not of the kind that it has to be; empty where nothing is."""
    if isinstance(kind, dict) and isinstance(value, dict):
        for name, inner in kind.items():
            plain = name.removesuffix("?")
            path = f"{key}.{plain}" if key else plain
            if value.get(plain) is None and name != plain:
                continue
            problem = _problem(value[plain], inner, path) if plain in value else f"lacks the key '{path}'"
            if problem:
                return problem
        return ""
    if isinstance(kind, list) and isinstance(value, list):
        return next((problem for item in value if (problem := _problem(item, kind[0], key))), "")
    return "" if _is(value, kind) else f"is malformed ('{key}' is {value!r:.80})"


def _is(value: Any, kind: Any) -> bool:
    """Says whether a value is of a kind; a truth value is no number, and a whole number is a float too."""
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and len(value) <= MOST_LETTERS and kind.fullmatch(value) is not None
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind and (kind is not str or len(value) <= MOST_LETTERS)
