"""What scripts and notebooks import: the parts of an experiment, and `main`, which gives methods of one's own the command line.

    sys.exit(main(trained_once("cubic", "OFA-Diffusion under a cubic law", law=Cubic()), default=["ofa", "cubic"]))

makes a script whose verbs, options, messages and exit codes are those of `python -m repro`.
"""

from collections.abc import Iterable, Sequence

from baselines.recipes import Criterion, Task
from repro import cli
from repro.config import Config, load_config
from repro.errors import ReproError
from repro.harness.cells import Cell, Experiment, Method, Product, Variant, base_cell, plan_cells
from repro.harness.experiment import load_model, run_cells, train_cell
from repro.methods import METHODS, needs_base, trained_alone, trained_once
from repro.ofa.accounting import size_of
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law
from repro.ofa.supernet import Supernet
from repro.planning import plan_of, score_base
from repro.program import this_script
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
    "needs_base",
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


def main(*own: Method | Iterable[Method], default: Sequence[str] = (), arguments: Sequence[str] | None = None) -> int:
    """Runs one command of the script that calls it, as `python -m repro` does, and returns its exit code.

    Args:
        own: Methods beside those of the package, one by one or as `trained_once` and `trained_alone` return them.
        default: The methods that are run where `--methods` names none; where this is empty, those of one's own.
        arguments: The words after the script's name; None takes those that it was started with.
    """
    methods = [method for part in own for method in ([part] if isinstance(part, Method) else part)]
    return cli.main(arguments, own=methods, default=default, program=this_script())
