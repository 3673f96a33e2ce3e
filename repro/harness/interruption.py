"""Signals that ask a run to end: SIGTERM of a scheduler that wants the machine back, SIGINT of a person.

Training ends at a step, with a checkpoint that all ranks wrote together; everywhere else the next thing to do is left undone at once,
since what is done is on the disk by then.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from repro.errors import InterruptionError

PARENT = "OFA_DIFFUSION_LAUNCHER"  # the process that started this one and ends with it
_SET_PARENT_DEATH_SIGNAL = 1  # prctl, Linux


class _State:
    """What has been asked for so far."""

    deferred = False
    asked = 0


def listen() -> None:
    """Takes over SIGTERM and SIGINT; where a launcher started this process, its death counts as SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)
    parent = os.environ.pop(PARENT, "")  # what this process starts has another one
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
        if os.getppid() != int(parent):  # it died before that
            raise InterruptionError(signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[None]:
    """Only notes a first signal while the block runs, which asks for it with `asked`; a second one ends it at once."""
    check()
    _State.deferred = True
    try:
        yield
    finally:
        _State.deferred = False


def asked() -> int:
    """Returns the signal that was noted, 0 for none."""
    return _State.asked


def check() -> None:
    """Ends the run where a signal was noted that nobody has followed: what had to be finished is finished.

    Raises:
        InterruptionError: So it was.
    """
    if _State.asked and not _State.deferred:
        number, _State.asked = _State.asked, 0
        raise InterruptionError(number)


def _handle(number: int, _frame: FrameType | None) -> None:
    if _State.deferred and not _State.asked:
        _State.asked = number
        return
    raise InterruptionError(number)
