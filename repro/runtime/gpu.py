"""The GPU of a rank: its type, synchronisation, and asynchronous copies from pinned memory."""

import time

import torch
from torch import Tensor

GPU = "cuda"  # torch's type of the devices that are GPUs


def is_gpu(device: torch.device) -> bool:
    """Says whether a device is a GPU."""
    return device.type == GPU


def synchronize(device: torch.device) -> None:
    """Waits until the kernels that were queued on a device have run."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def settled_time(device: torch.device) -> float:
    """Returns `time.perf_counter()` after a synchronisation of the device."""
    synchronize(device)
    return time.perf_counter()


def pinned(values: Tensor) -> Tensor:
    """Returns a CPU tensor in pinned memory, where there is a GPU."""
    return values.pin_memory() if torch.cuda.is_available() else values


def copied(values: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to a device, asynchronously where that is a GPU."""
    return pinned(values).to(device, non_blocking=True)
