"""The virtual device itself: what it refuses and what it counts, case by case."""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from support.tally import counts

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def cases(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Returns every case by name; each runs by itself."""
    on_device, on_cpu = torch.arange(16.0, device=device).view(4, 4), torch.ones(4, 4)
    images = torch.arange(64.0, device=device).view(1, 4, 4, 4)

    def differentiated(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        function(torch.ones(shape, device=device, requires_grad=True)).sum().backward()

    def under(mode: bool, warns: bool, work: Callable[[], Any]) -> Any:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        try:
            return work()
        finally:
            torch.use_deterministic_algorithms(False)

    def attention() -> None:
        differentiated(lambda x: functional.scaled_dot_product_attention(x, x, x), (1, 1, 16, 8))

    def loss_of_pixels() -> Tensor:
        return functional.cross_entropy(images, torch.zeros(1, 4, 4, dtype=torch.int64, device=device))

    def added() -> Tensor:
        return on_device.clone().index_add_(0, torch.zeros(4, dtype=torch.int64, device=device), on_device)

    def without_cublas() -> None:
        before = os.environ.pop(CUBLAS, None)
        try:
            under(True, False, lambda: on_device @ on_device)
        finally:
            if before is not None:
                os.environ[CUBLAS] = before

    def event() -> None:
        mark = torch.cuda.Event()
        mark.record()
        mark.synchronize()

    def moved_data() -> float:
        parameter = torch.nn.Parameter(on_device.clone())
        parameter.data = on_device + 1
        return (parameter - on_device).sum().item()

    def deep_copy() -> bool:
        parameter = torch.nn.Parameter(on_device.clone())
        twin = copy.deepcopy(parameter)
        with torch.no_grad():
            twin.add_(1)
        return isinstance(twin, torch.nn.Parameter) and not torch.equal(twin, parameter)

    return {
        "a sum with the CPU": lambda: on_device + on_cpu,
        "a sum with a number of the CPU": lambda: on_device + torch.tensor(1.0),
        "a layer whose weight was forgotten": lambda: functional.linear(on_device, on_cpu),
        "a layer whose input was forgotten": lambda: functional.linear(on_cpu, on_device),
        "a concatenation with the CPU": lambda: torch.cat([on_device, on_cpu]),
        "a number of the CPU changed in place": lambda: torch.tensor(1.0).add_(on_device.sum()),
        "index_select by the CPU": lambda: on_device.index_select(0, torch.tensor([1])),
        "an index of the CPU": lambda: on_device[torch.tensor([1])],
        "an index that is a list": lambda: on_device[[1, 2]],
        "an index of the device": lambda: on_device[torch.ones(1, dtype=torch.int64, device=device)],
        "a slice": lambda: on_device[1:, ::2],
        "the CPU indexed by the device": lambda: on_cpu[torch.ones(1, dtype=torch.int64, device=device)],
        "noise of a generator of the CPU": lambda: torch.randn(3, device=device, generator=torch.Generator()),
        "noise on the CPU of a generator of the device": lambda: torch.randn(3, generator=torch.Generator(device=device)),
        "noise of a generator of the device": lambda: torch.randn(3, device=device, generator=torch.Generator(device=device)),
        "item": lambda: on_device.sum().item(),
        "float": lambda: float(on_device.sum()),
        "a branch": lambda: 1 if on_device.sum() > 0 else 0,
        "tolist": on_device.tolist,
        "nonzero": on_device.nonzero,
        "a mask": lambda: on_device[on_device > 3],
        "a mask that is filled": lambda: on_device.masked_fill(on_device > 3, 0.0),
        "equal": lambda: torch.equal(on_device, on_device),
        "allclose": lambda: torch.allclose(on_device, on_device),
        "unique": on_device.unique,
        "numpy": on_device.numpy,
        "cpu": on_device.cpu,
        "to the device": lambda: on_cpu.to(device),
        "to the device, non_blocking": lambda: on_cpu.to(device, non_blocking=True),
        "to the device from pinned memory": lambda: on_cpu.pin_memory().to(device),
        "to the device from pinned memory, non_blocking": lambda: on_cpu.pin_memory().to(device, non_blocking=True),
        "copy_ to the device": lambda: torch.empty_like(on_device).copy_(on_cpu),
        "a tensor of a list": lambda: torch.tensor([1.0, 2.0], device=device),
        "a tensor that a kernel fills": lambda: torch.full((2,), 3.0, device=device),
        "a pinned tensor of the device": on_device.pin_memory,
        "synchronize": torch.cuda.synchronize,
        "an event": event,
        "index_add": lambda: under(False, False, added),
        "index_add, asked to be in order": lambda: under(True, False, added),
        "a loss of pixels, asked to be in order": lambda: under(True, False, loss_of_pixels),
        "a loss of pixels, warned of": lambda: under(True, True, loss_of_pixels),
        "attention backward": lambda: under(False, False, attention),
        "attention backward, warned of": lambda: under(True, True, attention),
        "attention backward, asked to be in order": lambda: under(True, False, attention),
        "a product without cuBLAS's workspace": without_cublas,
        "the bytes of an NHWC weight": lambda: images.to(memory_format=torch.channels_last).view(torch.uint8),
        "the bytes of an NCHW weight": lambda: images.view(torch.uint8),
        "data that is replaced": moved_data,
        "a parameter that is copied": deep_copy,
    }


def run(device: torch.device) -> dict[str, Any]:
    """Runs every case; returns what it raised, what it gave where that is plain, and what was counted."""
    found = {}
    for name, case in cases(device).items():
        error, value = None, None
        with counts.recording() as seen:
            try:
                value = case()
            except (RuntimeError, TypeError) as raised:
                error = f"{type(raised).__name__}: {raised}"
        plain = value if isinstance(value, bool | int | float) else None
        found[name] = {"error": error, "value": plain, "counts": {kind: count for kind, count in seen.totals().items() if count}}
    return found | {"values": _values(device), "place": _place(device)}


def _values(device: torch.device) -> dict[str, Any]:
    """Returns what random streams give, and the layout that `channels_last` gives."""

    def drawn(where: Any) -> list[float]:
        stream = torch.Generator(device=where).manual_seed(7)
        noise = torch.randn(5, device=where, generator=stream)
        return torch.cat(
            [noise, torch.rand(3, device=where, generator=stream), torch.randperm(9, device=where, generator=stream).float()]
        ).tolist()

    layer = torch.nn.Conv2d(2, 4, 3).to(device, memory_format=torch.channels_last)
    torch.manual_seed(5)
    dropped = functional.dropout(torch.ones(64, device=device), 0.5).tolist()
    torch.manual_seed(5)
    return {
        "noise": drawn(device),
        "noise_cpu": drawn("cpu"),
        "dropout_as_on_cpu": dropped == functional.dropout(torch.ones(64), 0.5).tolist(),
        "nhwc": [layer.weight.stride(), layer.weight.held.stride()],
        "device": str(layer.weight.device),
    }


def _place(device: torch.device) -> list[str]:
    """Returns the places that are named for a read inside a function of the project."""
    from repro.data.images import to_unit_range

    class Reads(torch.Tensor):
        """Reads itself where the project uses it."""

        def float(self) -> Tensor:
            torch.ones(1, device=device).item()
            return torch.ones(1)

    with counts.recording() as seen:
        to_unit_range(torch.ones(1).as_subclass(Reads))
    return list(seen.report()[""]["read"])
