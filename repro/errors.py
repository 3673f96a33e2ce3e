"""The two ways a command ends badly, each with its exit code."""

import errno
import os
import re


class ReproError(Exception):
    """A user's mistake: one line that names the file, key or flag and the remedy (exit code 2)."""

    exit_code = 2


class RunError(ReproError):
    """A failure during the run, such as a NaN loss or a full disk; its cell is recorded as failed (exit code 1)."""

    exit_code = 1


def storage_error(path: object, error: Exception) -> ReproError:
    """Turns the operating system's refusal to write `path` into one line with the remedy; safetensors hides its number in the text."""
    hidden = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else 0
    reason = os.strerror(number) if number else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"{path}: no space left to write it ({reason}); free some space and run the same command again")
    return ReproError(f"{path}: cannot be written ({reason}); make the folder writable or name another one")
