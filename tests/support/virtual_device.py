"""A device of our own, `vgpu`: its tensors hold CPU data, refuse what CUDA would refuse, and count what makes the host wait.

Every operation on them is the CPU's own, and its random numbers are the CPU's, so values equal those of a run on the CPU; but for NHWC, for
which the CPU has other kernels, and for autocast, which has other lists on a GPU. Memory is not limited.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from support import device_rules, virtual_autocast
from support.device_rules import NAME
from support.tally import counts


class VirtualTensor(Tensor):
    """A tensor of the device; `held` is its data, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "VirtualTensor":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"VirtualTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(operator, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "VirtualTensor":
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the moment")
        copy = VirtualTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copy._is_param = True  # the copy of a parameter has no gradient
        elif self.grad is not None:
            copy.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = copy
        return copy

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, VirtualTensor):
            raise RuntimeError("incompatible tensor type: data of the CPU for a tensor of the device")
        Tensor.data.__set__(self, other)
        self.held = other.held.detach()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_indices(index), value)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def storage(self) -> Any:
        return self.held.storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        counts.add("read", "tolist")
        return self.held.tolist()

    def numpy(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def pin_memory(self, *_args: Any) -> Tensor:
        raise RuntimeError("cannot pin a tensor of the device: only dense CPU tensors can be pinned")

    def is_pinned(self, *_args: Any) -> bool:
        return False


class Generator(torch._C.Generator):
    """A CPU generator that knows for which device it was asked."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        made._device = torch.device(device)
        if is_ours(device):
            device_rules.GENERATORS.add(made._cdata)
            weakref.finalize(made, device_rules.GENERATORS.discard, made._cdata)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        """Takes what `__new__` took."""

    @property
    def device(self) -> torch.device:
        return self._device


_KERNELS: list[torch.library.Library] = []  # a registration ends with its library


class Module(backend_registration._DummyBackendModule):
    """`torch.vgpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def set_device(self, _device: Any) -> None:
        """Has one device only."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: None


class Mode(TorchDispatchMode):
    """Sees what makes tensors, and what the CPU does, beside what the tensors themselves see."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(operator, args, kwargs or {})


def register() -> torch.device:
    """Registers the device with torch, once in a process; returns it."""
    global DEVICE  # noqa: PLW0603  (torch.device knows no `vgpu` before)
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    DEVICE = torch.device(NAME, 0)
    virtual_autocast.register(NAME)
    kernels = torch.library.Library("aten", "IMPL")
    for name in ("silu_backward", "mish_backward"):  # one kernel on a CPU and a GPU; of a device that has none torch takes them apart
        kernels.impl(name, lambda *_args: NotImplemented, "PrivateUse1")
    _KERNELS.append(kernels)
    return DEVICE


def is_ours(device: Any) -> bool:
    """Says whether a device is the virtual one."""
    return device is not None and torch.device(device).type == NAME


def _indices(index: Any) -> Any:
    """Returns an index whose lists are tensors, which torch would make on the device: a copy each."""
    if isinstance(index, list):
        counts.add("h2d", "index by a list")
        return VirtualTensor(torch.tensor(index))
    return tuple(_indices(part) for part in index) if isinstance(index, tuple) else index


def _held(value: Any) -> Any:
    if isinstance(value, VirtualTensor):
        return value.held
    if isinstance(value, list | tuple):
        return type(value)([_held(part) for part in value])
    return value


def _sort(values: Any, ours: list[VirtualTensor], others: list[Tensor]) -> None:
    """Sorts the tensors among an operator's arguments by their device."""
    for value in values:
        if isinstance(value, VirtualTensor):
            ours.append(value)
        elif isinstance(value, Tensor):
            others.append(value)
        elif isinstance(value, list | tuple):
            _sort(value, ours, others)


def dispatch(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operator on the CPU's data, once it is seen to be one that CUDA would run."""
    ours: list[VirtualTensor] = []
    others: list[Tensor] = []
    _sort(args, ours, others)
    if kwargs:
        _sort(kwargs.values(), ours, others)
    device = kwargs.get("device")
    to_ours = is_ours(device)
    on_device = to_ours or bool(ours and device is None)
    if generator := kwargs.get("generator"):
        device_rules.check_generator(generator, on_device)
    if not (ours or to_ours):
        if kwargs.get("pin_memory"):
            return device_rules.pinned(operator(*args, **kwargs | {"pin_memory": False}))
        return operator(*args, **kwargs)
    if operator.namespace != "c10d":
        device_rules.apply(operator, args, kwargs, others=others if ours else [], on_device=on_device)
    name = device_rules.name_of(operator)
    kwargs = {key: _held(value) for key, value in kwargs.items()}
    if to_ours:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    held = _held(args)
    if name == "native_group_norm_backward":
        held = tuple(_as_on_the_cpu(value) for value in held)
    output = operator(*held, **kwargs)
    if not on_device:
        return output
    if name == "clone" and _is_channels_last(held[0]) and kwargs.get("memory_format") is torch.contiguous_format:
        output.was_channels_last = True
    known = {id(tensor.held): tensor for tensor in ours}
    if isinstance(output, Tensor):
        return _wrapped(output, known)
    return tree_map(lambda value: _wrapped(value, known), output)


def _is_channels_last(held: Tensor) -> bool:
    return held.dim() == 4 and not held.is_contiguous() and held.is_contiguous(memory_format=torch.channels_last)


def _as_on_the_cpu(value: Any) -> Any:
    """Puts back into NHWC what torch makes contiguous before a GPU's normalisation goes backwards, and before a CPU's does not."""
    return value.contiguous(memory_format=torch.channels_last) if getattr(value, "was_channels_last", False) else value


def _wrapped(value: Any, known: dict[int, VirtualTensor]) -> Any:
    """Returns a result as a tensor of the device; what was changed in place is the same tensor as before."""
    if not isinstance(value, Tensor) or isinstance(value, VirtualTensor) or value.device.type == "meta":
        return value
    before = known.get(id(value))
    if before is None:
        return VirtualTensor(value)
    if before.shape != value.shape or before.stride() != value.stride():
        Tensor.data.__set__(before, VirtualTensor(value))
    return before
