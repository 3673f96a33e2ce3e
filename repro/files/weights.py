"""Loads weights from untrusted safetensors files.

Their headers are checked against the network before anything is allocated, so that a file takes no more memory than its own size.
"""

import errno
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from repro.files.reading import open_regular, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = ("F16", "BF16", "F32", "F64")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Names of attention layers in early versions of diffusers; google/ddpm-cifar10-32 has them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold a network's weights, as diffusers names them.

    `diffusion_pytorch_model.safetensors`; or all shards that its `.index.json` lists; or, where neither is there, the only variant, such as
    `diffusion_pytorch_model.fp16.safetensors`, whole or in shards. No file is opened but an index.

    Args:
        folder: The folder of the network, where its `config.json` lies.

    Raises:
        OSError: There are none, or an index cannot be read.
        ValueError: There are several variants, or an index is damaged or names anything but safetensors files beside it.
    """
    stem = WEIGHTS.removesuffix(".safetensors")
    found = [folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"]
    variants = [path for path in folder.glob(f"{stem}.*.safetensors") if "-of-" not in path.name]
    variants += folder.glob(f"{WEIGHTS}.index.*.json")
    if len(variants) == 1:
        found += variants
    path = next((path for path in found if path.exists()), None)
    if path is None and variants:
        raise ValueError(f"several variants: {', '.join(sorted(variant.name for variant in variants))}; leave one of them in {folder}")
    if path is None:
        pickled = "; weights are read as safetensors only" if any(folder.glob(f"{stem}*.bin")) else ""
        raise FileNotFoundError(errno.ENOENT, f"No such file or directory{pickled}", str(folder / WEIGHTS))
    return [path] if path.suffix == ".safetensors" else _shards(path)


def _shards(index: Path) -> list[Path]:
    """Returns the files that an index lists."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index.name} lists no shards")
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index.name} names {name!r:.80}, which is no safetensors file beside it")
    return [index.parent / name for name in sorted(set(listed.values()))]


def load_weights(model: nn.Module, *paths: Path) -> None:
    """Loads the weights of a network, which needs no storage of its own, from a file or from all of its shards.

    Args:
        model: The network, made on the meta device; its parameters' types are those that the weights are converted to.
        paths: Safetensors files that hold its weights and nothing else, such as `weight_files` returns.

    Raises:
        OSError: A file cannot be read.
        ValueError: One is damaged, or they hold something else.
    """
    for path in paths:
        open_regular(path).close()
    expected, stored = model.state_dict(), dict[str, tuple[Any, str]]()
    try:
        with ExitStack() as opened:
            for path in paths:
                file = opened.enter_context(safe_open(path, framework="pt"))
                for old in file.keys():  # noqa: SIM118  (no mapping)
                    if (name := _present_name(old)) in stored:
                        raise ValueError(f"{name} is there twice, the second time in {path.name}")
                    stored[name] = (file, old)
            slices = {name: file.get_slice(old) for name, (file, old) in stored.items()}
            headers = {name: (piece.get_dtype(), piece.get_shape()) for name, piece in slices.items()}
            compare({name: tensor.shape for name, tensor in expected.items()}, headers, DTYPES)
            weights = {name: finite(name, file.get_tensor(old)).to(expected[name].dtype, copy=True) for name, (file, old) in stored.items()}
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
    model.load_state_dict(weights, assign=True)


def compare(expected: Mapping[str, Sequence[int]], found: Mapping[str, tuple[Any, Sequence[int]]], dtypes: Collection[Any]) -> None:
    """Raises a `ValueError` unless what was found are the weights of a network, in their shapes.

    Args:
        expected: Name -> shape.
        found: Name -> kind of number and shape.
        dtypes: The kinds that are taken.
    """
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{name:.200} is {'missing' if name in expected else 'no part of the network'}")
    for name, (dtype, shape) in found.items():
        if list(shape) != list(expected[name]) or dtype not in dtypes:
            raise ValueError(f"{name} is {dtype} {list(shape)}, the network's {list(expected[name])}")


def place_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a network, which needs no storage of its own, weights that were read already.

    Args:
        model: As of `load_weights`.
        tensors: By the names of the network, or those of early versions of diffusers.

    Raises:
        ValueError: They are not the network's.
    """
    expected, found = model.state_dict(), {_present_name(old): tensor for old, tensor in tensors.items()}
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    compare(shapes, {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()}, FLOATS)
    weights = {
        name: finite(name, tensor).to(expected[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in found.items()
    }
    model.load_state_dict(weights, assign=True)


def finite(name: str, tensor: Tensor) -> Tensor:
    """Returns a tensor whose numbers are finite.

    Raises:
        ValueError: One is not.
    """
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is not finite")
    return tensor


def _present_name(name: str) -> str:
    """Returns the current name of a parameter in diffusers."""
    layer, _, leaf = name.rpartition(".")
    parent, _, last = layer.rpartition(".")
    return f"{parent}.{OLD_NAMES[last]}.{leaf}" if last in OLD_NAMES else name
