"""Checkpoints: the state that a training resumes from, in one safetensors file, written atomically, with its checksum.

The optimiser's state is stored whole, whatever the ZeRO stage partitioned, so a run may go on with another number of ranks. Nothing is
ever pickled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.errors import ReproError
from repro.files.sealed import DamagedError, read_said, read_sealed, write_sealed
from repro.files.writing import remove_leftovers
from repro.runtime.distributed import engine_library
from repro.runtime.progress import say

MOMENTS = ("exp_avg", "exp_avg_sq")
STEM = "step-"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a checkpoint says beside its tensors.

    Attributes:
        run: Identity of the run; a checkpoint of another run is refused.
        inputs: What the run began from, as in its manifest; a checkpoint that began from something else is refused.
        step: Steps done.
        device_seconds: The clock's phases.
        curve: [step, mean loss] pairs of the training curve so far.
        pending: The losses since its last point.
        environment: What had made it so far, by `provenance.environment`.
    """

    run: str
    inputs: dict[str, str]
    step: int
    device_seconds: dict[str, float]
    curve: list[list[float]]
    pending: list[float]
    environment: dict[str, Any]


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], progress: Progress, *, kept: int) -> None:
    """Writes the checkpoint of a step atomically, with a checksum of all that it says, and removes all but the newest.

    Args:
        folder: The run's folder of checkpoints.
        tensors: Name -> tensor.
        progress: All else.
        kept: How many checkpoints stay, this one included.

    Raises:
        ReproError: The folder cannot be written, or the disk is full; the checkpoints before stay.
    """
    write_sealed(_path(folder, progress.step), tensors, {"progress": vars(progress)})
    for step in saved_steps(folder)[kept:]:
        _path(folder, step).unlink(missing_ok=True)


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps whose checkpoints lie in a folder, the newest first."""
    return sorted((int(path.stem.removeprefix(STEM)) for path in folder.glob(f"{STEM}*.safetensors")), reverse=True)


def newest_environment(folder: Path) -> dict[str, Any]:
    """Returns what had made the newest checkpoint in a folder; empty where there is none that is readable."""
    for step in saved_steps(folder):
        try:
            environment: dict[str, Any] = read_said(_path(folder, step))["progress"]["environment"]
            return environment
        except (KeyError, TypeError, ValueError):
            continue  # `load_newest` will remove it
    return {}


def load_newest(folder: Path, run: str, inputs: dict[str, str]) -> tuple[dict[str, Tensor], Progress] | None:
    """Reads the newest checkpoint that is whole; None where there is none. Damaged ones are removed, and that is said.

    Raises:
        ReproError: The newest belongs to another run, or began from something else.
    """
    remove_leftovers(folder)
    for step in saved_steps(folder):
        try:
            return load_checkpoint(folder, step, run, inputs)
        except DamagedError as error:
            say(f"{error}; it is removed, and the run goes on from the one before it, or from the beginning", to_stderr=True)
            _path(folder, step).unlink(missing_ok=True)
    return None


def load_checkpoint(folder: Path, step: int, run: str, inputs: dict[str, str]) -> tuple[dict[str, Tensor], Progress]:
    """Reads a checkpoint.

    Raises:
        DamagedError: The file is no checkpoint, or not what was written.
        ReproError: It belongs to another run, or began from something else.
    """
    path = _path(folder, step)
    tensors, said = read_sealed(path)
    try:
        progress = Progress(**said["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: no checkpoint of this version ({error})") from error
    if progress.run != run:
        raise ReproError(f"{path}: the checkpoint of another configuration; delete it, or restore the configuration that made it")
    for name in sorted(progress.inputs.keys() | inputs.keys()):
        if progress.inputs.get(name) != inputs.get(name):
            raise ReproError(
                f"{path}: the run began from other {name} than lies there now; restore what it began from, or delete {path.parent} and "
                "run the command again, which begins anew"
            )
    return tensors, progress


def _path(folder: Path, step: int) -> Path:
    return folder / f"{STEM}{step:09d}.safetensors"


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Returns Adam's moments, "<moment>/<parameter>" -> full tensor, whatever ZeRO partitioned; every rank must call it."""
    state: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        for moment in MOMENTS:
            if engine.zero_optimization():
                value = engine_library().utils.safe_get_full_optimizer_state(parameter, moment)
            else:
                value = engine.optimizer.state[parameter][moment]
            state[f"{moment}/{name}"] = value
    return state


def restore_optimizer(engine: Any, tensors: dict[str, Tensor], step: int) -> None:
    """Gives a fresh engine the moments that `optimizer_state` returned after `step` steps."""
    if not engine.zero_optimization():
        for name, parameter in engine.module.named_parameters():
            moments = {moment: beside(parameter, tensors[f"{moment}/{name}"]) for moment in MOMENTS}
            engine.optimizer.state[parameter] = {"step": _step_count(engine.optimizer, parameter, step), **moments}
        return
    zero = engine.optimizer
    for flat in zero.single_partition_of_fp32_groups:
        zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        zero.optimizer.state[flat] = {"step": _step_count(zero.optimizer, flat, step), **zeros}
    # Links each parameter to its slice of the flat states that were made above; ZeRO does it at the first step otherwise.
    zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        for moment in MOMENTS:
            engine_library().utils.safe_set_full_optimizer_state(parameter, tensors[f"{moment}/{name}"].to(parameter.device), moment)


def beside(parameter: Tensor, value: Tensor) -> Tensor:
    """Returns a copy of a value on a parameter's device and in its memory layout, without which no fused kernel takes both."""
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _step_count(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> Tensor:
    """Returns Adam's step count where Adam keeps it: beside the parameter when fused, else on the CPU."""
    return torch.tensor(float(step), device=parameter.device if optimizer.defaults.get("fused") else "cpu")
