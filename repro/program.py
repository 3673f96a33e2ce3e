"""The program that a user types before a verb: `python -m repro`, or a script that has the same command line."""

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Program:
    """How the program is started: by ranks, parallel cells, jobs, and in the remedies of messages.

    Attributes:
        words: What follows the interpreter, wherever the command is started from.
        typed: What a user types, in the folder that this process was started in.
    """

    words: tuple[str, ...]
    typed: str

    def for_launcher(self) -> list[str]:
        """Returns the words that make DeepSpeed's launcher start it."""
        return ["--module", *self.words[1:]] if self.words[0] == "-m" else list(self.words)


MODULE = Program(words=("-m", "repro"), typed="python -m repro")
SCRIPT = Program(words=MODULE.words, typed="ofa-diffusion")


def this_script() -> Program:
    """Returns the script, or the module of one's own, that Python was started with."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return Program(words=("-m", name), typed=f"python -m {name}")
    return Program(words=(os.path.abspath(sys.argv[0]),), typed=f"python {os.path.relpath(sys.argv[0])}")
