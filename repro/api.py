"""What scripts and notebooks import: the parts of an experiment, and `main`, which gives those of one's own the command line.

    sys.exit(main(trained_once("cubic", "OFA-Diffusion under a cubic law", law=Cubic()), default=["ofa", "cubic"]))

makes a script whose verbs, options, messages and exit codes are those of `python -m repro`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from baselines.recipes import Criterion, Task
from repro import cli
from repro.config import Config, load_config
from repro.config.networks import Architecture
from repro.data.condition import Condition
from repro.data.images import Images
from repro.data.space import PIXELS, Space
from repro.diffusion.formulation import Formulation, NoisyBatch, Predict
from repro.diffusion.sampler import Denoise, Sampler
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, Method, Product, Variant, base_cell, plan_cells
from repro.experiment.parts import Parts, parts_of
from repro.experiment.run import load_model, run_cells, train_cell
from repro.experiment.stage import Costs, Stage, training_stage, training_work
from repro.grid import METHODS, needs_base, trained_alone, trained_once
from repro.methods.plan import plan_of, score_base
from repro.methods.train_alone import train_alone
from repro.methods.work import formula4_work
from repro.metrics.fid import FeatureLayer, frechet_distance
from repro.metrics.metric import Context, Layer, Metric, Report
from repro.ofa.accounting import size_of
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law
from repro.ofa.supernet import Supernet
from repro.program import this_script

if TYPE_CHECKING:
    from repro.experiment.parts import Part

__all__ = [
    "METHODS",
    "PIXELS",
    "Architecture",
    "Cell",
    "Condition",
    "Config",
    "Context",
    "Costs",
    "Criterion",
    "Denoise",
    "Experiment",
    "FeatureLayer",
    "Formulation",
    "Images",
    "Law",
    "Layer",
    "Method",
    "Metric",
    "NoisyBatch",
    "Parts",
    "Predict",
    "Product",
    "Report",
    "ReproError",
    "Sampler",
    "Space",
    "Stage",
    "Supernet",
    "Task",
    "Variant",
    "base_cell",
    "formula4_work",
    "frechet_distance",
    "load_config",
    "load_model",
    "main",
    "needs_base",
    "parts_of",
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
    "training_stage",
    "training_work",
]


def main(*own: "Method | Iterable[Method] | Part", default: Sequence[str] = (), arguments: Sequence[str] | None = None) -> int:
    """Runs one command of the script that calls it, as `python -m repro` does, and returns its exit code.

    Args:
        own: Methods beside those of the package, one by one or as `trained_once` and `trained_alone` return them; metrics, samplers,
            formulations, spaces and conditions, which the configuration's keys then take by their names; and classes of architectures.
        default: The methods that are run where `--methods` names none; where this is empty, those of one's own.
        arguments: The words after the script's name; None takes those that it was started with.
    """
    classes = [part for part in own if isinstance(part, type)]
    flat = [each for part in own if not isinstance(part, type) for each in (part if isinstance(part, Iterable) else [part])]
    methods = [part for part in flat if isinstance(part, Method)]
    parts = [*classes, *(part for part in flat if not isinstance(part, Method))]
    return cli.main(arguments, own=methods, parts=parts, default=default, program=this_script())
