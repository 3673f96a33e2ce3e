"""What a stranger might send, and what has to come of it."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from repro.errors import ReproError, one_line

CLEAR_SCREEN = "\x1b[2J"  # an order to a terminal


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def refused(load, *arguments) -> str:
    """Returns the one line with which something is refused."""
    with pytest.raises(ReproError) as caught:
        load(*arguments)
    line = str(caught.value)
    assert line == one_line(line) and len(line) < 3000
    return line


def bomb(path: Path, width: int, height: int) -> None:
    """Writes a small PNG whose header says that it is huge."""
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
