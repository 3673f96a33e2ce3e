"""Turns mistakes, failures and interruptions of a command into one line and an exit code, never a traceback."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable

from repro.errors import INTERRUPTED, InterruptionError, LostRankError, ReproError

NOTIFY_SEC = 60


def ended(command: Callable[[], int], *, unread: int = 0) -> int:
    """Runs a command and returns its exit code.

    Args:
        command: What is run.
        unread: The exit code where nobody reads on: 0 for a command that only shows something, another for one that is cut short by it.
    """
    reason = "an unforeseen error"
    try:
        try:
            code, reason = _told(command)
        finally:
            _leave_group(reason)
            sys.stdout.flush()  # now: at exit nobody could catch what it raises
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing more may be written to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return unread


def notify(command: str, code: int) -> None:
    """Runs a shell command that tells of the end of a run, from its first rank; a failure of it is said, and changes nothing.

    Args:
        command: Finds OFA_STATUS (done, failed, refused or interrupted), OFA_EXIT_CODE, and the run's own command as OFA_COMMAND.
        code: The run's exit code.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    status = {0: "done", 1: "failed", 2: "refused"}.get(code, "interrupted")
    told = {"OFA_STATUS": status, "OFA_EXIT_CODE": str(code), "OFA_COMMAND": shlex.join(sys.argv)}
    try:
        done = subprocess.run(["/bin/sh", "-c", command], env=os.environ | told, check=False, timeout=NOTIFY_SEC)
        problem = f"ended with code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        print(f"--notify: the command {problem}; the run itself: {status}", file=sys.stderr)


def _told(command: Callable[[], int]) -> tuple[int, str]:
    """Returns the exit code, and for the other ranks why the command ended; empty where it is done, or ended because of them."""
    try:
        return command(), ""
    except InterruptionError as error:
        print(error, file=sys.stderr)
        return error.exit_code, _cause(error)
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code, "" if isinstance(error, LostRankError) else _cause(error)
    except RuntimeError as error:
        if "torch" not in sys.modules or not _lost_rank(error):
            raise
        print(f"error: another rank has gone ({str(error).splitlines()[0]}); run the same command again to go on", file=sys.stderr)
        return INTERRUPTED, ""
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130, "interrupted"


def _cause(error: InterruptionError | ReproError) -> str:
    return str(error).partition(";")[0]  # a remedy follows


def _leave_group(reason: str) -> None:
    if "repro.runtime.distributed" in sys.modules:
        sys.modules["repro.runtime.distributed"].leave(reason)


def _lost_rank(error: RuntimeError) -> bool:
    from repro.runtime.distributed import is_loss_of_a_rank

    return is_loss_of_a_rank(error)
