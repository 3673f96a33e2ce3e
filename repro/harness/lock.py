"""Work that the processes of a machine share: the first does it, the others wait and find it done."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repro.errors import storage_error


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process at a time into a block that makes a file; who waited must look whether the file is there by now.

    A lock, not a barrier between ranks: runs that know nothing of each other may share a cache, and a rank that fails leaves nobody
    waiting. The system lifts the lock when a process ends, however it ends.

    Args:
        path: The file that the block makes; its folder is made when it is missing.

    Raises:
        ReproError: The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
