"""A command typed in this process: it says and does what one in a process of its own does, and imports nothing anew."""

import contextlib
import io
import signal
from pathlib import Path
from subprocess import CompletedProcess


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
