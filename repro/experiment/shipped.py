"""Bases and classifiers that ship with the package, so that every machine starts from the same bytes."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from repro.config import Config
from repro.errors import ReproError
from repro.experiment.cells import Product
from repro.files.shipped_files import PREFIX, shipped_file
from repro.files.weights import load_weights
from repro.files.writing import sha256_of_file, write_atomically
from repro.models.denoiser import meta_base


def shipped_base(config: Config, seed: int) -> Product:
    """Returns the base that came for a seed, with what a record says of its training.

    Raises:
        ReproError: None came for this seed, or it is damaged or another network's.
    """
    path = _base_file(config, seed)
    trained_in = about(path).get("formulation", "ddpm")  # the first ones did not say
    if trained_in != config.diffusion.formulation:
        raise ReproError(
            f"base.sha256[{seed}]: {path.name} was trained in {trained_in}; set diffusion.formulation to that, or name another"
        )
    model: nn.Module = meta_base(config.denoiser)
    try:
        load_weights(model, path)
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not the weights of [network] ({error}); set base.source = 'train'") from error
    return Product(model=model.eval(), training=about(path)["training"], realised=1.0)


def shipped_base_cost(config: Config, seed: int) -> dict[str, Any]:
    """Returns what the training of a shipped base once cost, and where: device-hours, device, PFLOP, commit."""
    cost: dict[str, Any] = about(_base_file(config, seed))["trained"]
    return cost


def about(path: Path) -> dict[str, Any]:
    """Returns what a shipped file says of itself.

    Raises:
        ReproError: It says nothing that can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = json.loads(file.metadata()["about"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ReproError(f"{path}: not readable ({error}); install the package anew") from error
    return content


def ship(folder: Path, name: str, model: nn.Module, about: dict[str, Any]) -> tuple[Path, str]:
    """Writes a network as a file to be shipped, and returns it with its SHA-256."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    return _named_by_content(folder, name, safetensors.torch.save(tensors, metadata={"about": json.dumps(about, sort_keys=True)}))


def ship_file(folder: Path, name: str, path: Path) -> tuple[Path, str]:
    """Copies a safetensors file as one to be shipped, and returns the copy with its SHA-256."""
    return _named_by_content(folder, name, path.read_bytes())


def _named_by_content(folder: Path, name: str, content: bytes) -> tuple[Path, str]:
    draft = folder / f".{name}.tmp"
    write_atomically(draft, content)
    sha256 = sha256_of_file(draft)
    path = folder / f"{name}-{sha256[:PREFIX]}.safetensors"
    draft.rename(path)
    return path, sha256


def _base_file(config: Config, seed: int) -> Path:
    hashes = config.base.sha256
    if not 0 <= seed < len(hashes):
        raise ReproError(
            f"--seeds {seed}: no base came for it, only for seeds 0 to {len(hashes) - 1}; "
            "take one of these, or train a base for every seed: --set base.source=train"
        )
    return shipped_file(hashes[seed], f"base.sha256[{seed}]")
