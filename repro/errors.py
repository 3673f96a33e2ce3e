"""The two ways a command ends badly, each with its exit code."""

import errno


class ReproError(Exception):
    """A user's mistake: one line that names the file, key or flag and the remedy (exit code 2)."""

    exit_code = 2


class RunError(ReproError):
    """A failure during the run, such as a NaN loss or a full disk; its cell is recorded as failed (exit code 1)."""

    exit_code = 1


def storage_error(path: object, error: OSError) -> ReproError:
    """Turns the operating system's refusal to write `path` into one line with the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"{path}: no space left to write it ({error.strerror}); free some space and run the same command again")
    return ReproError(f"{path}: cannot be written ({error.strerror}); make the folder writable or name another one")
