"""Errors of a command, each with its exit code."""

import errno
import os
import re
import signal

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again; a scheduler requeues it
MOST_LETTERS = 2000  # of a message: what a file holds may be quoted in it
# Control characters, line separators, bidirectional controls and lone surrogates.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str, most: int = MOST_LETTERS) -> str:
    """Returns a text on one line, its control characters escaped, its middle left out where it is too long."""
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    if text.isascii() and text.isprintable():
        return text
    return _OBEYED.sub(lambda found: " " if found[0] in "\t\n\r" else found[0].encode("unicode_escape").decode(), text)


class ReproError(Exception):
    """A user's mistake: one line that names the file, key or flag and the remedy (exit code 2)."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunError(ReproError):
    """A failure during the run, such as a NaN loss or a full disk; its cell is recorded as failed (exit code 1)."""

    exit_code = 1


class BusyError(ReproError):
    """Another process works on the same cell (exit code 75); nothing is recorded."""

    exit_code = INTERRUPTED


class LostRankError(ReproError):
    """Another rank of the run has gone (exit code 75); nothing is recorded, the same command goes on."""

    exit_code = INTERRUPTED


class InterruptionError(BaseException):
    """A signal asked the process to end; what a resumed run needs is on the disk.

    No `Exception`, like `KeyboardInterrupt`: no code that handles errors may take it for one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to go on")
        self.exit_code = 130 if number == signal.SIGINT else INTERRUPTED


def storage_error(path: object, error: Exception) -> ReproError:
    """Turns the operating system's refusal to write `path` into one line with the remedy; safetensors hides its number in the text."""
    hidden = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else 0
    reason = os.strerror(number) if number else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"{path}: no space left to write it ({reason}); free some space and run the same command again")
    return ReproError(f"{path}: cannot be written ({reason}); make the folder writable or name another one")
