"""The key `hours`: training steps that fit a time budget on this device, set once and kept beside the records.

Reading them is light; setting them measures the throughput.
"""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from repro.config import Config
from repro.config.sections import BUDGETS, MOST_STEPS
from repro.errors import ReproError
from repro.experiment.cells import Experiment, plan_cells
from repro.files.reading import read_toml
from repro.files.writing import write_atomically
from repro.grid import METHODS
from repro.methods.names import COMPARED
from repro.runtime.heartbeat import duration

if TYPE_CHECKING:
    from repro.budget.estimate import Estimate

FILE = "budget.toml"
LEAST_SHARE = 0.1  # of the hours, for training
STEP = 100


def with_budget(experiment: Experiment) -> Experiment:
    """Returns the experiment with the training steps that were set for it; as it is written where none have been.

    Raises:
        ReproError: The file is damaged, or was made for another configuration.
    """
    if not experiment.config.hours or is_unset(experiment):
        return experiment
    path = experiment.results / FILE
    try:
        values = read_toml(path)
        steps = {section: _positive(values["steps"][section]) for section in BUDGETS}
        made_for = values["config_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproError(f"{path}: not a readable budget ({error}); delete it and run the command again") from error
    if made_for != experiment.config.sha256():
        raise ReproError(f"{path}: made for another configuration; delete it, or keep it and name another --results folder")
    return dataclasses.replace(experiment, config=_with_steps(experiment.config, steps))


def is_unset(experiment: Experiment) -> bool:
    """Says whether an experiment has `hours` and its training steps are not set yet."""
    return experiment.config.hours > 0 and not (experiment.results / FILE).exists()


def set_budget(experiment: Experiment, *, keep: bool) -> Experiment:
    """Measures this machine and scales the training steps, all by one factor, so that the experiment takes its `hours` from begin to end.

    The work is that of the compared methods with the first seed, and of methods of one's own. Sampling and features cannot shrink, so
    training gets what they leave. Nothing happens where `hours` is 0 or the steps have been set.

    Args:
        experiment: The configuration as it is written, or as `with_budget` returned it.
        keep: Whether the steps are written beside the records, for every later command.

    Raises:
        ReproError: Too little of the hours is left for training, or a batch does not suit this machine.
    """
    if not is_unset(experiment):
        return experiment
    from repro.budget.estimate import Estimate
    from repro.budget.throughput import measure
    from repro.budget.work import stages
    from repro.runtime import distributed
    from repro.runtime.progress import say

    config, path = experiment.config, experiment.results / FILE
    own = [name for name in experiment.methods if name not in METHODS]
    cells = plan_cells(experiment, [*COMPARED, *own], None, [0])
    found = Estimate(config=config, stages=stages(experiment, cells, afresh=True), throughput=measure(experiment))
    training = sum(found.wall_hours(stage) for stage in found.stages if stage.budget)
    rest = found.total_wall_hours() - training
    if config.hours - rest < LEAST_SHARE * config.hours:
        say(found.text())
        advice = "" if found.throughput.on_gpu else "; it has no GPU: run this on one that has, or set hours=0 and small steps for a trial"
        raise ReproError(
            f"hours = {config.hours:g}: all but the training alone takes {duration(rest)} on this machine; lower evaluation.samples "
            f"or raise hours{advice}"
        )
    factor = (config.hours - rest) / training
    steps = {section: max(STEP, STEP * math.floor(getattr(config, section).steps * factor / STEP)) for section in BUDGETS}
    if keep:
        if distributed.rank() == 0:
            write_atomically(path, _text(config, found, factor, steps).encode())
        distributed.wait_for_all()
    counts = ", ".join(f"{section}.steps = {count:,}" for section, count in steps.items())
    say(f"budget for {config.hours:g} h on {found.throughput.device}: {counts}" + (f" ({path})" if keep else ""))
    return dataclasses.replace(experiment, config=_with_steps(config, steps))


def _with_steps(config: Config, steps: dict[str, int]) -> Config:
    changed: dict[str, Any] = {section: dataclasses.replace(getattr(config, section), steps=count) for section, count in steps.items()}
    return dataclasses.replace(config, **changed)


def _positive(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_STEPS:
        raise ValueError(f"{value!r:.80} is no number of steps")
    return value


def _text(config: Config, found: "Estimate", factor: float, steps: dict[str, int]) -> str:
    """Returns the file: TOML, its strings in JSON notation, which is valid TOML."""
    from repro.runtime.provenance import now_utc

    measured = found.throughput
    lines = [
        "# The training steps that make this experiment take its `hours` on the device at hand, from a measured throughput.",
        "# Every command reads them here; delete the file, the records and the runs to have them set anew.",
        f"hours = {config.hours}",
        f"config_sha256 = {json.dumps(config.sha256())} # of the configuration as it is written",
        f"factor = {factor:.6g} # on the steps that are written there",
        f"measured_utc = {json.dumps(now_utc())}",
        f"device = {json.dumps(measured.device, ensure_ascii=False)}",
        f"ranks = {measured.ranks}",
        f"training_img_per_sec = {measured.training_img_per_sec:.6g} # of each rank, at the largest size",
        f"sampling_img_per_sec = {measured.sampling_img_per_sec:.6g} # likewise, with {config.evaluation.sampler_steps} steps",
        "",
        "[steps]",
        *(f"{section} = {count}" for section, count in steps.items()),
    ]
    return "\n".join(lines) + "\n"
