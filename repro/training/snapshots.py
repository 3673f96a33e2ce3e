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
        write_sealed(_path(folder, step), tensors, _identity(step, run, inputs) | {"about": about})


def is_kept(folder: Path, step: int, run: str, inputs: dict[str, str]) -> bool:
    """Says whether a run has left the snapshot of a step already; what lies there and is none is told to the user."""
    found, problem = _read(folder, step, run, inputs)
    if problem:
        say(f"{problem}; it is of no use", to_stderr=True)
    return found is not None


def read(folder: Path, step: int, run: str, inputs: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of a snapshot, none once it has been judged, and what is known of this point.

    Raises:
        ReproError: It is not there, damaged, or of another run.
    """
    found, problem = _read(folder, step, run, inputs)
    if found is None:
        problem = problem or f"{_path(folder, step)}: there is no snapshot"
        raise ReproError(f"{problem}; delete the folder {folder} and run the command again")
    return found


def close(folder: Path, step: int, run: str, inputs: dict[str, str], about: dict[str, Any]) -> None:
    """Puts what was found of a point in place of its weights, atomically."""
    write_sealed(_path(folder, step), {}, _identity(step, run, inputs) | {"about": about})


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


def _read(folder: Path, step: int, run: str, inputs: dict[str, str]) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str]:
    """Returns a snapshot, None where there is none, and what is wrong with what lies there in its place."""
    path = _path(folder, step)
    if not path.exists():
        return None, ""
    try:
        tensors, said = read_sealed(path)
        about: dict[str, Any] = said.pop("about")
        if said == _identity(step, run, inputs):
            return (tensors, about), ""
        return None, f"{path}: the snapshot of another run or step"
    except (DamagedError, KeyError) as error:
        return None, str(error)


def _identity(step: int, run: str, inputs: dict[str, str]) -> dict[str, Any]:
    return {"step": step, "run": run, "inputs": inputs}


def _path(folder: Path, step: int) -> Path:
    return folder / SNAPSHOTS / f"step-{step:09d}.safetensors"
