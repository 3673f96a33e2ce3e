"""A command typed in this process: it says and does what one in a process of its own does, and imports nothing anew."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parents[2]


def typed(command, *words, cwd=None):
    """Runs `command`, the main function of a program, with these words, and returns how it ended and what it printed.

    Args:
        command: Such as `repro.cli.main`; what it raises, a process would end with a traceback for.
        words: Texts, paths and numbers.
        cwd: The folder that it is typed in; None is the present one.
    """
    arguments, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}  # a run takes them over
    with contextlib.chdir(cwd or Path.cwd()), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command(arguments)
        except SystemExit as ended:  # the parser's
            code = ended.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def as_two_ranks(script, variables=({}, {})):
    """Runs a Python script as two ranks on the CPU; returns of each the ended process, and what it printed to stdout and stderr.

    Args:
        script: The text of the script.
        variables: Environment variables of each rank.
    """
    return as_ranks(script, 2, variables)


def as_ranks(script, count, variables=None):
    """Does as `as_two_ranks` does with as many ranks as are asked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    common |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    apart = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script],
            env=apart | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(variables or [{}] * count)
    ]
    try:
        return [(process, *process.communicate(timeout=240)) for process in processes]
    finally:
        for process in processes:
            process.kill()
