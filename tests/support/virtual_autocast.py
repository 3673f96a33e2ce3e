"""Autocast on the virtual device, by CUDA's lists: what runs in the lower precision, what in float32, the rest as it comes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

KEY = "AutocastPrivateUse1"
LOWER = ("conv1d", "conv2d", "linear", "matmul", "mm", "mv", "bmm", "addmm", "addbmm", "baddbmm")
FLOAT32 = (
    "group_norm",
    "layer_norm",
    "softmax.int",
    "log_softmax.int",
    "mse_loss",
    "l1_loss",
    "cumsum",
    "exp",
    "log",
    "rsqrt",
    "sum",
    "prod",
)
_LIBRARIES: list[torch.library.Library] = []  # a registration ends with its library


def register(name: str) -> None:
    """Registers the lists for a device.

    Args:
        name: Of the device.
    """
    rest, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, KEY)
    for operators, dtype in ((LOWER, lambda: torch.get_autocast_dtype(name)), (FLOAT32, lambda: torch.float32)):
        for operator in operators:
            ours.impl(operator, _cast(operator, dtype), KEY)
    _LIBRARIES.extend((rest, ours))


def _cast(operator: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    packet, _, overload = operator.partition(".")
    function = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))

    def run(*args: Any, **kwargs: Any) -> Any:
        wanted = dtype()

        def cast(value: Any) -> Any:
            return value.to(wanted) if isinstance(value, Tensor) and value.is_floating_point() else value

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return function(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run
