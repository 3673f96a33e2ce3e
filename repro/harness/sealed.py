"""Safetensors files that hold a checksum of all that they say: checkpoints, features, samples, a classifier that was trained here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repro.errors import ReproError
from repro.harness.reading import open_regular
from repro.harness.storage import write_atomically

# safetensors writes the keys of its metadata in no fixed order: with one key alone, equal content is equal bytes.
ABOUT, CHECKSUM = "about", "sha256"


class DamagedError(ReproError):
    """A file that is not what was written."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Writes tensors and what is said of them atomically, with a checksum of both.

    Args:
        path: The file.
        tensors: Name -> tensor, on any device.
        said: Plain values, as JSON has them.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.dumps({**said, CHECKSUM: _digest(flat, said)}, sort_keys=True)
    write_atomically(path, lambda draft: safetensors.torch.save_file(flat, draft, metadata={ABOUT: about}))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of a file and what is said of them, as they were written.

    Raises:
        DamagedError: The file is missing, unreadable, or not what was written.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads(file.metadata()[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        checksum = said.pop(CHECKSUM)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: not readable ({error})") from error
    if checksum != _digest(tensors, said):
        raise DamagedError(f"{path}: damaged, its checksum is not that of its content")
    return tensors, said


def read_said(path: Path) -> dict[str, Any]:
    """Returns what is said of the tensors of a file, unchecked, without reading them; empty where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads(file.metadata()[ABOUT])
            return said
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what is said, and of names, kinds, shapes and bytes of tensors."""
    digest = hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
