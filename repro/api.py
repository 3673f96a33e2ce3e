"""What scripts and notebooks import: the parts of an experiment, and `main`, which gives methods of one's own the command line.

    sys.exit(main(trained_once("cubic", "OFA-Diffusion under a cubic law", law=Cubic())))

makes a script whose verbs, options, messages and exit codes are those of `python -m repro`; without a verb it runs its own methods.
"""

import os
import shlex
import sys
from collections.abc import Iterable

from baselines.recipes import Criterion, Task
from repro import cli
from repro.config import Config, load_config
from repro.errors import ReproError
from repro.harness.cells import Cell, Experiment, Method, Product, Variant, base_cell, plan_cells
from repro.harness.experiment import load_model, run_cells, train_cell
from repro.methods import METHODS, trained_alone, trained_once
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law
from repro.ofa.supernet import Supernet
from repro.planning import plan_of, score_base, size_of
from repro.single import train_alone

__all__ = [
    "METHODS",
    "Cell",
    "Config",
    "Criterion",
    "Experiment",
    "Law",
    "Method",
    "Product",
    "ReproError",
    "Supernet",
    "Task",
    "Variant",
    "base_cell",
    "load_config",
    "load_model",
    "main",
    "pipes_of",
    "plan_cells",
    "plan_of",
    "run_cells",
    "score_base",
    "size_of",
    "train_alone",
    "train_cell",
    "trained_alone",
    "trained_once",
]


def main(own: Iterable[Method], *, beside: Iterable[str] = (), arguments: list[str] | None = None) -> int:
    """Runs one command of the script that calls it, as `python -m repro` does, and returns its exit code.

    Args:
        own: Methods beside those of the package, as `trained_once` and `trained_alone` return them.
        beside: Methods of the package that are run with them where `--methods` names none, such as a control.
        arguments: The words after the script's name; None takes those that it was started with.
    """
    words = sys.argv[1:] if arguments is None else arguments
    methods = tuple(own)
    default = (*beside, *(method.name for method in methods if method.judged))
    script = cli.Script(methods=methods, default=default, typed=f"python {shlex.quote(os.path.relpath(sys.argv[0]))}")
    return cli.main(words if words and words[0] in cli.VERBS else ["run", *words], script)
