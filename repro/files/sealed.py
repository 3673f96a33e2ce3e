"""Safetensors files with a checksum of tensors and metadata: checkpoints, features, samples, trained classifiers."""

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
from repro.files.reading import open_regular
from repro.files.writing import write_atomically

# safetensors writes the keys of its metadata in no fixed order: with one key alone, equal content is equal bytes.
ABOUT, CHECKSUM = "about", "sha256"


class DamagedError(ReproError):
    """A file whose content is not what was written."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Writes tensors and metadata atomically, with a checksum of both.

    Args:
        path: The file.
        tensors: Name -> tensor, on any device.
        said: The metadata: plain values, as JSON has them.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.dumps({**said, CHECKSUM: _digest(flat, said)}, sort_keys=True)
    write_atomically(path, lambda draft: safetensors.torch.save_file(flat, draft, metadata={ABOUT: about}))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the metadata of a file, once their checksum is right.

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
    """Returns the metadata of a file, unchecked and without reading its tensors; empty where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads(file.metadata()[ABOUT])
            return said
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def _digest(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the metadata, and of the tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
