"""Cost of a network: parameters, MACs and latency."""

import copy
import statistics
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from repro.models.denoiser import count_params
from repro.models.example import conditions_of, example_of
from repro.runtime import busy
from repro.runtime.gpu import settled_time

LATENCY_SEC = 1.0
WARM_UP_PASSES, FEWEST_PASSES, MOST_PASSES = 3, 5, 100
ATTENTION_OPERATORS = ("bmm", "baddbmm", "scaled_dot_product")


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one forward pass on one image.

    Attributes:
        total: With attention's matrix products.
        conv_linear: Convolutions and linear layers alone.
    """

    total: int
    conv_linear: int


def count_macs(model: nn.Module, image_shape: tuple[int, int, int], **conditioning: torch.Tensor) -> Macs:
    """Counts MACs on the meta device, where attention is counted whatever kernel the device would use.

    Args:
        model: A denoiser of any widths; copied, never run.
        image_shape: [C, H, W].
        **conditioning: What it takes beside an image and a timestep, for one image, on the meta device, where `conditions_of` does not
            know.
    """
    on_meta = _on_meta(model)
    conditioning = conditioning or conditions_of(model, 1, "meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(1, *image_shape), torch.zeros(1), **conditioning)
    flops = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for operator, count in flops.items() if any(name in operator for name in ATTENTION_OPERATORS))
    total = sum(flops.values())
    return Macs(total=total // 2, conv_linear=(total - attention) // 2)


def count_macs_torch_pruning(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Counts MACs as torch-pruning does, to compare with tables that were made with it."""
    device = next(model.parameters()).device
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        macs, _ = torch_pruning.utils.count_ops_and_params(copy.deepcopy(model), example_of(model, image_shape, device))
    return int(macs)


class _Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that come into being and are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return output

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def peak_bytes(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the bytes of the weights and of the most activations that are alive at once in a forward pass on one image, in float32.

    It is counted on the meta device: what a kernel or a library needs for itself while it runs is not in it.
    """
    on_meta = _on_meta(model)
    with torch.device("meta"):
        images, timesteps = torch.empty(1, *image_shape), torch.zeros(1)
        conditions = conditions_of(model, 1, "meta")
        with _Alive() as alive:
            on_meta(images, timesteps, **conditions)
    return int(weight_bytes(model) + images.numel() * images.element_size() + alive.most)


def _on_meta(model: nn.Module) -> nn.Module:
    """Copies a network without its storage."""
    memo: dict[int, torch.Tensor] = {id(tensor): nn.Parameter(tensor.detach().to("meta")) for tensor in model.parameters()}
    memo |= {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    return copy.deepcopy(model, memo)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one forward pass on a batch takes.

    Attributes:
        times: Of every pass that was timed, in milliseconds.
        busy: Whether other processes took part of the machine meanwhile.
    """

    times: tuple[float, ...]
    busy: bool

    @property
    def ms(self) -> float:
        """The median, in milliseconds."""
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in milliseconds."""
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive") if len(self.times) > 1 else self.times * 3
        return first, third

    def __add__(self, other: "Latency") -> "Latency":
        """Pools two measurements; where one lies wholly below a limit and one as long wholly above it, so do the quartiles of both."""
        return Latency(times=self.times + other.times, busy=self.busy or other.busy)


@torch.no_grad()
def measure_latency(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int, seconds: float = LATENCY_SEC) -> Latency:
    """Times one forward pass again and again, after some that are not counted.

    Args:
        model: A denoiser, on the device where it is timed; it is put into evaluation mode.
        image_shape: [C, H, W].
        batch_size: Images of the batch.
        seconds: After how long it ends, once there are `FEWEST_PASSES`; a fifth of it warms up.
    """
    device = next(model.parameters()).device
    inputs = torch.zeros(batch_size, *image_shape, device=device), torch.zeros(batch_size, device=device)
    forward = partial(model, **conditions_of(model, batch_size, device))
    model.eval()
    _passes(forward, inputs, seconds / 5, fewest=1, most=WARM_UP_PASSES)
    wall, cpu = time.perf_counter(), time.process_time()
    times = _passes(forward, inputs, seconds, fewest=FEWEST_PASSES, most=MOST_PASSES)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return Latency(times=tuple(times), busy=busy.is_busy(busy.load_average(), share if alone else None, cores=busy.cores()))


def _passes(forward: Callable[..., Any], inputs: tuple[torch.Tensor, ...], seconds: float, *, fewest: int, most: int) -> list[float]:
    """Returns the milliseconds of forward passes, of which there are as many as fit into some seconds."""
    times: list[float] = []
    begun = settled_time(inputs[0].device)
    while len(times) < fewest or (len(times) < most and time.perf_counter() - begun < seconds):
        start = settled_time(inputs[0].device)
        forward(*inputs)
        times.append(1000 * (settled_time(inputs[0].device) - start))
    return times


__all__ = [
    "Latency",
    "Macs",
    "count_macs",
    "count_macs_torch_pruning",
    "count_params",
    "measure_latency",
    "peak_bytes",
    "weight_bytes",
]
