"""Locks between processes: one makes a file that all need, and one works on a cell.

They are those of `flock`, which the system releases when a process ends, however it ends: no lock is ever stale.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from repro.errors import BusyError, ReproError, storage_error

TRIES, PAUSE_SEC = 5, 0.05  # `holder` takes the lock for microseconds


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process at a time into a block that makes a file; who waited must look whether the file is there by now.

    A lock, not a barrier between ranks: runs that know nothing of each other may share a cache, and a rank that fails leaves nobody
    waiting.

    Args:
        path: The file that the block makes; its folder is made when it is missing.

    Raises:
        ReproError: The folder cannot be written, or its file system has no locks.
    """
    with _opened(path.with_name(f".{path.name}.lock"), path) as file:
        _lock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Keeps a lock while the block runs.

    Args:
        path: The file of the lock, which says who holds it; its folder is made when it is missing.
        what: Names what is locked, for the error.

    Raises:
        BusyError: Another process holds it; says which.
        ReproError: The folder cannot be written, or its file system has no locks.
    """
    with _opened(path, path.parent) as file:
        for attempt in range(TRIES):
            try:
                _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == TRIES - 1:
                    raise BusyError(f"{what}: {_described(_read(path))} is working on it; wait for it, or end it and run again") from error
                time.sleep(PAUSE_SEC)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)}))
        file.flush()
        yield


def holder(path: Path) -> dict[str, Any] | None:
    """Returns who holds a lock: pid, host and command; None where nobody does."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    except OSError:
        return None
    return None


def _opened(path: Path, wanted: Path) -> IO[str]:
    """Opens the file of a lock; where that cannot be written, the error names what was wanted."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise storage_error(wanted, error) from error


def _lock(file: IO[str], kind: int) -> None:
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ReproError(
            f"{file.name}: its file system cannot lock it ({error.strerror}); mount it with flock, or name a folder on another one"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        found = {}
    return {"pid": "?", "host": "?", "command": "?"} | found


def _described(found: dict[str, Any]) -> str:
    return f"process {found['pid']} on {found['host']} ({found['command']})"
