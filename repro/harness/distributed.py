"""The ranks of a run: one process by default, more where torchrun, DeepSpeed's launcher or a scheduler started them."""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# DeepSpeed reads these when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("LOCAL_RANK", "0")

import deepspeed
import deepspeed.ops

__all__ = ["deepspeed", "device", "gather", "local_rank", "rank", "ranks", "start", "stop", "wait_for_all"]

TIMEOUT = timedelta(hours=2)  # the other ranks wait while the first one evaluates


def device() -> torch.device:
    """Returns this rank's device: its own GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """Returns this process's rank, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns this process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks() -> int:
    """Returns the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Joins the process group, once.

    A single process needs no port: it makes a group of its own in memory. On the CPU DeepSpeed would compile an operator for shared
    memory that training does not use and that needs a compiler; it is marked incompatible first.
    """
    if dist.is_initialized():
        return
    for name in list(logging.root.manager.loggerDict):
        if name.lower().startswith("deepspeed"):
            logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    store = dist.HashStore()  # type: ignore[attr-defined]
    alone: dict[str, Any] = {"store": store, "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, **(alone if ranks() == 1 else {}))
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def gather(value: Any) -> list[Any]:
    """Returns the value of every rank, on every rank."""
    if ranks() == 1:
        return [value]
    start()
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Returns once every rank has come here."""
    gather(None)


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
