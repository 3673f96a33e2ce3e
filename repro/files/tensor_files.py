"""Reads tensors by name from files in which weights are published, without unpickling them.

Three kinds: safetensors; what `torch.save` wrote of a dictionary of tensors, read by torch's own restricted loader; and a pickle of EDM's
networks (NVlabs), which holds classes with their source, read by `inert_pickle`. No file takes more memory than a few times its size.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from repro.errors import one_line
from repro.files.inert_pickle import Made, Name, Persistent, read_pickle
from repro.files.reading import open_regular

# How a file of torch.save, a pickle of protocol 2 or later, and (after four bytes) safetensors begin.
ZIP, PICKLE, HEADER = b"PK\x03\x04", b"\x80", b"\0\0\0\0{"
OBJECT = "torch_utils.persistence._reconstruct_persistent_obj"  # a class with its source
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
STORAGE, MODULES = "torch.storage._load_from_bytes", "torch.nn.modules.container.ModuleDict"
DTYPES = {"torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16, "torch.DoubleStorage": torch.float64}
# Numbers of numpy among a network's settings; they are not looked at.
OF_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NAMES = (OBJECT, TENSOR, PARAMETER, STORAGE, MODULES, "collections.OrderedDict", "builtins.set", *DTYPES, *OF_NUMPY)
MOST_NUMBERS = 2**40  # of a tensor
# The first two of the five pickles that torch.save wrote before 1.6, and still writes of a storage.
STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """What a file holds.

    Attributes:
        tensors: By name; parameters and buffers alike. They may share memory, and are read before they are checked.
        about: Of a pickle: the class of the network, and the plain values that it holds. Empty of the other kinds.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def read_tensors(path: Path) -> TensorFile:
    """Reads a file of any of the three kinds, which it tells by the first bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none of them, or is damaged, or holds something else.
    """
    with open_regular(path) as file:
        begin = file.read(9)
        if begin[4:] == HEADER:
            return TensorFile(tensors=_safetensors(path), about={})
        if begin[:4] == ZIP:
            return TensorFile(tensors=_saved_by_torch(path), about={})
        if begin[:1] == PICKLE:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _pickled(mapped)
    raise ValueError("it is neither safetensors nor a file of torch.save nor a pickle")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"as safetensors, {error}") from error


def _saved_by_torch(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a dictionary that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds, for one reason: the file is not what it should be
        raise ValueError(f"torch.load(weights_only=True) refuses it ({one_line(str(error).strip(), 200)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise ValueError("it holds no dictionary of tensors alone; save the network's state_dict()")
    for name, tensor in content.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{one_line(name, 80)} is no plain tensor")
    return dict(content)


def _pickled(stream: BinaryIO | mmap.mmap) -> TensorFile:
    """Returns the tensors of the network `ema` in a pickle of EDM's, and the class and the plain values of that."""
    content = read_pickle(stream, NAMES)
    if content == STORAGE_MAGIC:
        raise ValueError("torch.save wrote it before 1.6; load and save it once more with a newer torch, weights_only=True")
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Made) or network.what != OBJECT:
        raise ValueError("it holds no 'ema', the network of a pickle of EDM's")
    plain = {key: value for key, value in _state(network).items() if isinstance(value, str | int | float | bool)}
    kind = network.arguments[0].get("class_name")
    if not isinstance(kind, str):
        raise ValueError("the network has no class_name")
    return TensorFile(tensors=dict(_tensors(network)), about=plain | {"class": kind})


def _tensors(network: Made) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a network, by their names in its `state_dict()`."""
    waiting, seen, storages = [("", network)], set[int](), dict[int, Tensor]()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            raise ValueError(f"{prefix[:-1]:.80} is a module that stands in two places")
        seen.add(id(module))
        state = _state(module)
        for kind in ("_parameters", "_buffers"):
            yield from ((f"{prefix}{name}", _tensor(value, storages)) for name, value in _items(state, kind) if value is not None)
        waiting += [(f"{prefix}{name}.", value) for name, value in _items(state, "_modules") if value is not None]


def _state(module: Any) -> dict[str, Any]:
    """Returns the attributes of a module."""
    state = None
    if isinstance(module, Made) and module.what == OBJECT and len(module.arguments) == 1 and isinstance(module.arguments[0], dict):
        state = module.arguments[0].get("state")
    elif isinstance(module, Made) and module.what == MODULES:
        state = module.state
    if not isinstance(state, dict):
        raise ValueError("it has something else where a module should be")
    return state


def _items(state: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    held = state.get(kind)
    if not isinstance(held, dict):
        raise ValueError(f"a module has no {kind}")
    return [(one_line(str(name), 80), value) for name, value in held.items()]


def _tensor(made: Any, storages: dict[int, Tensor]) -> Tensor:
    """Returns a tensor or parameter, a view of its storage, which is read once."""
    if isinstance(made, Made) and made.what == PARAMETER and made.arguments:
        made = made.arguments[0]
    if not isinstance(made, Made) or made.what != TENSOR or len(made.arguments) < 4:
        raise ValueError("it has something else where a tensor should be")
    storage, offset, shape, strides = made.arguments[:4]
    if id(storage) not in storages:
        storages[id(storage)] = _storage(storage)
    flat = storages[id(storage)]
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or not all(type(number) is int and 0 <= number < MOST_NUMBERS for number in numbers):
            raise ValueError("a tensor's shape is none")
    if len(shape) != len(strides) or math.prod(shape) > len(flat) or offset + _last(shape, strides) >= len(flat):
        raise ValueError(f"a tensor of shape {list(shape)!s:.80} is larger than what is stored of it")
    return flat.as_strided(shape, strides, offset)


def _last(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns how far the last number of a tensor lies from its first."""
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _storage(made: Any) -> Tensor:
    """Returns the numbers of a storage, in one dimension.

    It is what torch.save wrote before version 1.6: five pickles (a magic number, a version, the machine, what was saved, the keys of the
    storages), then of each storage how many numbers it has, and these.
    """
    if not isinstance(made, Made) or made.what != STORAGE or len(made.arguments) != 1 or not isinstance(made.arguments[0], bytes):
        raise ValueError("it has something else where a tensor's storage should be")
    stream = io.BytesIO(made.arguments[0])
    magic, version, machine, saved, keys = (read_pickle(stream, tuple(DTYPES)) for _ in range(5))
    if (magic, version) != (STORAGE_MAGIC, STORAGE_VERSION) or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("a tensor's storage is not what torch.save writes")
    reference = saved.reference if isinstance(saved, Persistent) else None
    match reference:
        case ("storage", Name(text), str(key), _, int(count), *_) if keys == [key] and 0 <= count < MOST_NUMBERS:
            dtype, rest = DTYPES[text], stream.read()
        case _:
            raise ValueError("a tensor's storage is not what torch.save writes")
    if rest[:8] != struct.pack("<q", count) or len(rest) != 8 + count * dtype.itemsize:
        raise ValueError("a tensor's storage is cut short")
    return torch.frombuffer(bytearray(rest), dtype=dtype, offset=8) if count else torch.empty(0, dtype=dtype)
