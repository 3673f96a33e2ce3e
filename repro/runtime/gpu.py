"""GPUs: those that this process sees and which of them is a rank's, synchronisation, and asynchronous copies from pinned memory.

`CUDA_VISIBLE_DEVICES` chooses and orders them: by index, by UUID (`GPU-...`), or as slices of a partitioned GPU (`MIG-...`), of which CUDA
shows a process the first alone. A scheduler that gives each task a GPU of its own shows it to that task as the only one.
"""

import os
import time

import torch
from torch import Tensor

from repro.errors import ReproError

GPU = "cuda"  # torch's type of the devices that are GPUs
VARIABLE = "CUDA_VISIBLE_DEVICES"
SLICE = "MIG-"


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


def count() -> int:
    """Returns how many GPUs this process sees; 0 where it computes on the CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def names() -> tuple[str, ...]:
    """Returns for each GPU what `CUDA_VISIBLE_DEVICES` must be for a process that is to see it alone; of MIG slices, all that are named."""
    named, seen = _named(), count()
    if seen and named and named[0].startswith(SLICE):
        return named
    return (named or tuple(map(str, range(seen))))[:seen]


def index_of(local_rank: int) -> int:
    """Returns the index of a rank's GPU: its local rank, or 0 where it sees no other.

    Raises:
        ReproError: The ranks of this machine outnumber the GPUs that each of them sees.
    """
    seen = count()
    if local_rank < seen:
        return local_rank
    if seen == 1:  # its own, unless all ranks see the same; that is found out as soon as they have met
        return 0
    raise ReproError(
        f"LOCAL_RANK={local_rank}: there is no GPU for this rank, it sees {seen}; start at most {seen} ranks on a machine, or show each "
        "task a GPU of its own"
    )


def mig_slice(index: int) -> str | None:
    """Returns the name of the MIG slice that a device is; None where it is a whole GPU."""
    named = _named()
    return named[index] if index < len(named) and named[index].startswith(SLICE) else None


def identity(index: int) -> str:
    """Returns what no other device has: the UUID of a GPU, or the name of a MIG slice, since torch may give the UUID of its GPU."""
    return mig_slice(index) or f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _named() -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))))
