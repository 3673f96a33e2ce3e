"""What a person sees of a running experiment, and the sign of life that `status` and a resumed run read."""

import json
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from repro.harness import distributed
from repro.harness.clock import Clock
from repro.harness.storage import write_atomically

HEARTBEAT = "heartbeat.json"
HEARTBEAT_SEC = 1.0


class CellProgress:
    """A bar for one cell: its stage, step, loss and time left; and its heartbeat.

    Args:
        label: What stands before the bar.
        clock: The cell's clock, whose phases go into the heartbeat.
        folder: Where the heartbeat is written.
        identity: Names the run; the heartbeat of another one is not taken up.

    Attributes:
        last_seen: The phases, in seconds, at the last sign of an earlier life; empty when there was none.
        lives: How many processes have worked on the cell, this one included.
    """

    def __init__(self, label: str, clock: Clock, folder: Path, identity: str) -> None:
        self._label = label
        self._clock = clock
        self._folder = folder
        self._identity = identity
        earlier = read_heartbeat(folder)
        mine = earlier.get("identity") == identity
        self.last_seen: dict[str, float] = earlier["seconds"] if mine else {}
        self.lives: int = earlier["lives"] + 1 if mine else 1
        self._bar: Any = None
        self._stage = "preparing"
        self._beat = 0.0

    def stage(self, name: str) -> None:
        """Ends the bar and starts another for what comes now."""
        self.close()
        self._stage = name
        self._write(0, 0)

    def __call__(self, done: int, total: int, loss: float = math.nan) -> None:
        """Shows how far the stage is."""
        if self._bar is None:
            interactive = sys.stderr.isatty()
            self._bar = tqdm(
                total=total,
                initial=max(0, done - 1),
                desc=f"{self._label} {self._stage}",
                leave=False,
                disable=distributed.rank() != 0,
                mininterval=0.2 if interactive else 30,
                dynamic_ncols=interactive,
            )
        self._bar.update(done - self._bar.n)
        if not math.isnan(loss):
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        now = time.monotonic()
        if now - self._beat >= HEARTBEAT_SEC or done == total:
            self._beat = now
            self._write(done, total)

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, done: int, total: int) -> None:
        if distributed.rank() != 0:
            return
        beat = {"pid": os.getpid(), "host": socket.gethostname(), "stage": self._stage, "done": done, "total": total}
        beat |= {"identity": self._identity, "lives": self.lives, "seconds": self._clock.seconds()}
        write_atomically(self._folder / HEARTBEAT, json.dumps(beat).encode())


def read_heartbeat(folder: Path) -> dict[str, Any]:
    """Returns the last sign of life of a cell's run; empty when there was none."""
    try:
        beat: dict[str, Any] = json.loads((folder / HEARTBEAT).read_text())
        return beat
    except (OSError, ValueError):
        return {}


def is_alive(beat: dict[str, Any]) -> bool:
    """Says whether the process of a heartbeat still runs on this machine."""
    if not beat or beat["host"] != socket.gethostname():
        return False
    try:
        os.kill(beat["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True


def say(line: str, *, to_stderr: bool = False) -> None:
    """Prints a line above the bar, from the first rank."""
    if distributed.rank() == 0:
        tqdm.write(line, file=sys.stderr if to_stderr else sys.stdout)
        sys.stdout.flush()
