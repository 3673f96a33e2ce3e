"""Safetensors files that hold a checksum of all that they say: checkpoints, features, samples, a classifier that was trained here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repro.errors import ReproError
from repro.harness.reading import open_regular
from repro.harness.storage import write_atomically

CHECKSUM = "sha256"


class DamagedError(ReproError):
    """A file that is not what was written."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Writes tensors and what is said of them atomically, with a checksum of both.

    Args:
        path: The file.
        tensors: Name -> tensor, on any device.
        said: Name -> text.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**said, CHECKSUM: _digest(flat, said)}
    write_atomically(path, lambda draft: safetensors.torch.save_file(flat, draft, metadata=metadata))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file and what is said of them, as they were written.

    Raises:
        DamagedError: The file is missing, unreadable, or not what was written.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"{path}: not readable ({error})") from error
    if said.pop(CHECKSUM, None) != _digest(tensors, said):
        raise DamagedError(f"{path}: damaged, its checksum is not that of its content")
    return tensors, said


def read_said(path: Path) -> dict[str, str]:
    """Returns what is said of the tensors of a file, unchecked, without reading them; empty where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return {}


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what is said, and of names, kinds, shapes and bytes of tensors."""
    digest = hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
