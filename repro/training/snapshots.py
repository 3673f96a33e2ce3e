"""Snapshots: the average of a run's weights at some steps, beside its checkpoints; once judged, what was found takes their place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import ReproError
from repro.files.sealed import DamagedError, read_sealed, write_sealed
from repro.files.writing import remove_leftovers
from repro.runtime.progress import say

SNAPSHOTS = "snapshots"


def keep(folder: Path, step: int, run: str, inputs: dict[str, str], tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes the snapshot of a step atomically, unless the run has left it there already, in an earlier life.

    Args:
        folder: The run's folder.
        step: Steps done.
        run: Identity of the run.
        inputs: What the run began from.
        tensors: Name -> average of the parameter.
        about: What is known of this point.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    remove_leftovers(folder / SNAPSHOTS)
    if not is_kept(folder, step, run, inputs):
        write_sealed(_path(folder, step), tensors, {"run": run, "inputs": inputs, "about": about})


def is_kept(folder: Path, step: int, run: str, inputs: dict[str, str]) -> bool:
    """Says whether a run has left the snapshot of a step already."""
    return _read(folder, step, run, inputs) is not None


def read(folder: Path, step: int, run: str, inputs: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of a snapshot, none once it has been judged, and what is known of this point.

    Raises:
        ReproError: It is not there, damaged, or of another run.
    """
    found = _read(folder, step, run, inputs)
    if found is None:
        raise ReproError(f"{_path(folder, step)}: no snapshot of this run; delete the folder {folder} and run the command again")
    return found


def close(folder: Path, step: int, run: str, inputs: dict[str, str], about: dict[str, Any]) -> None:
    """Puts what was found of a point in place of its weights, atomically."""
    write_sealed(_path(folder, step), {}, {"run": run, "inputs": inputs, "about": about})


@torch.no_grad()
def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a module the weights of a snapshot.

    Raises:
        ReproError: They are another network's.
    """
    parameters = dict(module.named_parameters())
    if {name: tensor.shape for name, tensor in parameters.items()} != {name: tensor.shape for name, tensor in weights.items()}:
        raise ReproError("a snapshot has other parameters than its cell's network; delete the cell's folder and run the command again")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _read(folder: Path, step: int, run: str, inputs: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns a snapshot; None where there is none, or a damaged one or one of another run, which is said."""
    path = _path(folder, step)
    if not path.exists():
        return None
    try:
        tensors, said = read_sealed(path)
        if (said["run"], said["inputs"]) == (run, inputs):
            about: dict[str, Any] = said["about"]
            return tensors, about
        reason = f"{path}: the snapshot of another run"
    except (DamagedError, KeyError) as error:
        reason = str(error)
    say(f"{reason}; it is of no use", to_stderr=True)
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / SNAPSHOTS / f"step-{step:09d}.safetensors"
