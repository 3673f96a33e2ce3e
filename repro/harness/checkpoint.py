"""Checkpoints: all that a training run needs to go on, in one safetensors file that is written atomically.

The optimiser's state is stored whole, whatever the ZeRO stage partitioned, and nothing is ever pickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repro.errors import ReproError
from repro.harness.distributed import deepspeed
from repro.harness.storage import write_atomically

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a checkpoint says beside its tensors.

    Attributes:
        run: Identity of the run; a checkpoint of another run is refused.
        step: Steps done.
        seconds: The clock's phases.
        curve: [step, mean loss] pairs of the training curve so far.
        pending: The losses since its last point.
    """

    run: str
    step: int
    seconds: dict[str, float]
    curve: list[list[float]]
    pending: list[float]


def save_checkpoint(path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Writes a checkpoint atomically, over the one before.

    Raises:
        ReproError: The folder cannot be written, or the disk is full; the checkpoint before stays.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(flat, metadata={"progress": json.dumps(vars(progress))}))


def load_checkpoint(path: Path, run: str) -> tuple[dict[str, Tensor], Progress]:
    """Reads a checkpoint.

    Raises:
        ReproError: The file is damaged, or belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ReproError(f"{path}: not a readable checkpoint ({error}); delete it to start its cell from the beginning") from error
    if progress.run != run:
        raise ReproError(f"{path}: the checkpoint of another configuration; delete it, or restore the configuration that made it")
    return tensors, progress


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Returns Adam's moments, "<moment>/<parameter>" -> full tensor, whatever ZeRO partitioned; every rank must call it."""
    state: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        for moment in MOMENTS:
            if engine.zero_optimization():
                value = deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
            else:
                value = engine.optimizer.state[parameter][moment]
            state[f"{moment}/{name}"] = value
    return state


def restore_optimizer(engine: Any, tensors: dict[str, Tensor], step: int) -> None:
    """Gives a fresh engine the moments that `optimizer_state` returned after `step` steps."""
    if not engine.zero_optimization():
        for name, parameter in engine.module.named_parameters():
            moments = {moment: tensors[f"{moment}/{name}"].to(parameter.device).clone() for moment in MOMENTS}
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
            deepspeed.utils.safe_set_full_optimizer_state(parameter, tensors[f"{moment}/{name}"].to(parameter.device), moment)


def _step_count(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> Tensor:
    """Returns Adam's step count where Adam keeps it: beside the parameter when fused, else on the CPU."""
    return torch.tensor(float(step), device=parameter.device if optimizer.defaults.get("fused") else "cpu")
