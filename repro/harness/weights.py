"""Weights out of a safetensors file that a stranger may have written.

The file's header is held against the network before anything is allocated, so a file can take no more memory than it is long.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from repro.harness.reading import open_regular

DTYPES = ("F16", "BF16", "F32", "F64")
# What diffusers called an attention's layers at first; google/ddpm-cifar10-32 is such a file.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_weights(model: nn.Module, path: Path) -> None:
    """Gives a network, which needs no storage of its own, the weights of a file.

    Args:
        model: The network, made on the meta device.
        path: A safetensors file that holds its weights and nothing else.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or holds something else.
    """
    open_regular(path).close()
    expected = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            stored = {_present_name(name): name for name in file.keys()}  # noqa: SIM118  (no mapping)
            _compare(expected, {name: file.get_slice(old) for name, old in stored.items()})
            weights = {name: _finite(name, file.get_tensor(old)).to(expected[name].dtype, copy=True) for name, old in stored.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    model.load_state_dict(weights, assign=True)


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, object]) -> None:
    """Raises a `ValueError` unless a file's header lists the weights of a network, in their shapes."""
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'no part of the network'}")
    for name, piece in found.items():
        shape, dtype = list(piece.get_shape()), piece.get_dtype()  # type: ignore[attr-defined]
        if shape != list(expected[name].shape) or dtype not in DTYPES:
            raise ValueError(f"{name} is {dtype} {shape}, the network's {list(expected[name].shape)}")


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is not finite")
    return tensor


def _present_name(name: str) -> str:
    """Returns what diffusers calls a parameter today."""
    layer, _, leaf = name.rpartition(".")
    parent, _, last = layer.rpartition(".")
    return f"{parent}.{OLD_NAMES[last]}.{leaf}" if last in OLD_NAMES else name
