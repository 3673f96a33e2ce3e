"""Reads untrusted files: regular ones, of bounded size, whose content is plain values.

Nothing here executes what it reads, blocks on a pipe, or passes control characters on to a terminal.
"""

import errno
import json
import math
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from repro.errors import one_line

MOST_BYTES = 2**24  # of a text file; records and configurations have some 10 kB
MOST_INTEGER = 2**63


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading bytes; devices are refused, and pipes, which may block for ever.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "No regular file", str(path))
    return path.open("rb")


def read_text(path: Path) -> str:
    """Returns the content of a text file in UTF-8.

    Raises:
        OSError: It cannot be read, is no regular file, or is too large.
        ValueError: It is no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"More than {MOST_BYTES >> 20} MiB", str(path))
    return content.decode()


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, its numbers finite and its strings free of control characters.

    Raises:
        OSError: It cannot be read, is no regular file, or is too large.
        ValueError: It is no such JSON.
    """
    try:
        return plain(json.loads(read_text(path), object_pairs_hook=_without_repetition))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Raises:
        OSError: It cannot be read, is no regular file, or is too large.
        ValueError: It is no TOML.
    """
    return parse_toml(read_text(path))


def parse_toml(text: str) -> dict[str, Any]:
    """Returns the content of a TOML text.

    Raises:
        ValueError: It is no TOML.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object and refuses a duplicate key, of which parsers take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key '{next(name for name in names if names.count(name) > 1)}'")
    return found


def plain(value: Any) -> Any:
    """Checks the numbers of a JSON value and returns it with every string on one line.

    Raises:
        ValueError: A number is not finite, or an integer has more than 64 bits.
    """
    if isinstance(value, float):  # the most frequent kind first: a record has hundreds
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number in JSON")
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, int) and not -MOST_INTEGER < value < MOST_INTEGER:
        raise ValueError("an integer has more than 64 bits")
    return value


def _text(text: str) -> str:
    # No text of a file is longer than the file, so that nothing is left out; the usual text is handed back at once.
    return text if text.isascii() and text.isprintable() else one_line(text, most=MOST_BYTES)
