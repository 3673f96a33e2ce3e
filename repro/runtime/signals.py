"""Signals that ask a run to end: SIGTERM of a scheduler, SIGINT of a person.

Training ends after a step, with a checkpoint of all ranks. Elsewhere the run stops at once; finished work is already saved.
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
    """Handles SIGTERM and SIGINT; where a launcher started this process, the launcher's death counts as SIGTERM."""
    _State.asked = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)
    parent = os.environ.pop(PARENT, "")  # what this process starts has another one
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
        if os.getppid() != int(parent):  # it died before that
            raise InterruptionError(signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[None]:
    """Defers a first signal while the block runs, which polls for it with `asked`; a second one ends the block at once."""
    check()
    _State.deferred = True
    try:
        yield
    finally:
        _State.deferred = False


def asked() -> int:
    """Returns the signal that asked to end, 0 for none."""
    return _State.asked


def check() -> None:
    """Ends the run where a signal asked for it: one that was deferred until now, or whose error a library kept to itself.

    Raises:
        InterruptionError: A signal asked to end.
    """
    if _State.asked and not _State.deferred:
        raise InterruptionError(_State.asked)


def _handle(number: int, _frame: FrameType | None) -> None:
    first, _State.asked = not _State.asked, number
    if not (_State.deferred and first):
        raise InterruptionError(number)
