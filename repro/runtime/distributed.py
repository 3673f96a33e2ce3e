"""The ranks of a run: one process by default, more where `--ranks`, torchrun, DeepSpeed's launcher or a scheduler started them."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from repro.errors import ReproError
from repro.files.locks import one_at_a_time
from repro.runtime import gpu, rank_watch
from repro.runtime.environment import set_for_deepspeed

__all__ = [
    "device",
    "engine_library",
    "gather",
    "gather_tensors",
    "highest",
    "is_loss_of_a_rank",
    "leave",
    "local_rank",
    "once",
    "rank",
    "ranks",
    "start",
    "stop",
    "wait_for_all",
]

TIMEOUT = timedelta(hours=1)  # the other ranks wait while the first one computes a distance; `rank_watch` finds a lost rank sooner
_GET_ADDRESS = 0x8915  # SIOCGIFADDR, Linux
_control: list[Any] = []  # a gloo group for collectives on the CPU, so that they synchronise no GPU


def device() -> torch.device:
    """Returns this rank's device: its own GPU where there is one, else the CPU.

    Raises:
        ReproError: The ranks of this machine outnumber the GPUs that each of them sees.
    """
    return torch.device(gpu.GPU, gpu.index_of(local_rank())) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """Returns this process's rank, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns this process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks() -> int:
    """Returns the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def engine_library() -> Any:
    """Returns DeepSpeed, which is imported by a run alone: its import takes seconds and needs environment variables."""
    set_for_deepspeed(on_cpu=not torch.cuda.is_available())
    import deepspeed
    import deepspeed.ops

    return deepspeed


def start(rank_timeout_sec: float | None = None) -> None:
    """Joins the process group, once.

    A single process needs no port: it makes a group of its own in memory. On the CPU DeepSpeed would compile an operator for shared
    memory that training does not use and that needs a compiler; it is marked incompatible first.

    Args:
        rank_timeout_sec: How long another rank may give no sign of life before this process names it and ends; None waits for ever.

    Raises:
        ReproError: The ranks cannot meet, outnumber the GPUs, would share one, or only some of them have one.
    """
    if dist.is_initialized():
        return
    deepspeed = engine_library()
    for name in list(logging.root.manager.loggerDict):
        if name.lower().startswith("deepspeed"):
            logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = gpu.is_gpu(device())
    if on_gpu:
        torch.cuda.set_device(device())
        os.environ["LOCAL_RANK"] = str(device().index)  # by which DeepSpeed takes the GPU, also where each rank sees one alone
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if ranks() == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
    else:
        _choose_interface()
        store = _meet()
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, store=store, rank=rank(), world_size=ranks())
    if ranks() > 1:
        _control[:] = [dist.new_group(backend="gloo", timeout=TIMEOUT)]
        if rank_timeout_sec is not None:
            rank_watch.begin(store, rank(), ranks(), rank_timeout_sec)
        _check_gpus()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _meet() -> Any:
    """Returns the store of the rendezvous at MASTER_ADDR:MASTER_PORT."""
    try:
        return next(iter(rendezvous("env://", timeout=TIMEOUT)))[0]
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ReproError(
            f"MASTER_ADDR, MASTER_PORT: the ranks cannot meet at {place} ({str(error).splitlines()[0]}); name another port, or an address "
            "of the first rank's machine that the others reach"
        ) from error


def _check_gpus() -> None:
    """Makes sure that every rank has a GPU of its own, or none has one: NCCL would fail in words of its own, or wait for ever."""
    index = device().index
    places = gather([socket.gethostname(), "" if index is None else gpu.identity(index)])
    without = [(place[0], number) for number, place in enumerate(places) if not place[1]]
    if 0 < len(without) < len(places):
        host, number = without[0]
        raise ReproError(f"rank {number} sees no GPU on {host}, and others do; leave that machine out, or mend its driver (`nvidia-smi`)")
    first: dict[tuple[str, str], int] = {}
    for number, (host, own) in enumerate(places):
        other = first.setdefault((host, own), number)
        if own and other != number:
            raise ReproError(
                f"ranks {other} and {number} would compute on the same GPU of {host}, {own}; start fewer ranks there, or show each task a "
                "GPU of its own"
            )


def _choose_interface() -> None:
    """Has gloo use the network interface that leads to the first rank.

    By itself it takes the address that the machine's own name resolves to, which many systems set to a loopback address.
    """
    address = os.environ.get("MASTER_ADDR", "")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                asked = fcntl.ioctl(probe, _GET_ADDRESS, name.encode().ljust(256, b"\0"))
                if socket.inet_ntoa(asked[20:24]) == own:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                    return
    except OSError:
        return  # gloo then takes its default


def gather(value: Any) -> list[Any]:
    """All-gathers a value as JSON, since nothing is ever unpickled."""
    if ranks() == 1:
        return [value]
    letters = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(part.tolist())) for part in gather_tensors(letters)]


def gather_tensors(value: Tensor) -> list[Tensor]:
    """All-gathers a tensor to the CPU; the ranks' tensors may differ in their first dimension alone."""
    if ranks() == 1:
        return [value.cpu()]
    start()
    group = _control[0]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks())]
    dist.all_gather(lengths, torch.tensor([len(value)]), group=group)
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, *value.shape[1:], dtype=value.dtype)
    padded[: len(value)] = value.cpu()
    parts = [torch.empty_like(padded) for _ in range(ranks())]
    dist.all_gather(parts, padded, group=group)
    return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def highest(*values: float) -> tuple[float, ...]:
    """All-reduces values to their maximum over the ranks, on the CPU: no GPU is synchronised."""
    if ranks() == 1:
        return values
    start()
    agreed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=_control[0])
    return tuple(agreed.tolist())


def once(path: Path) -> Iterator[None]:
    """Yields where a file has yet to be made by all ranks together, and lets no other run make it at the same time.

    Args:
        path: The file; whether it is there is the first rank's word.
    """
    if gather(path.exists())[0]:
        return
    with one_at_a_time(path) if rank() == 0 else nullcontext():
        if not gather(path.exists())[0]:
            yield
            wait_for_all()


def wait_for_all() -> None:
    """Waits for all ranks: a barrier on the CPU."""
    highest(0.0)


def is_loss_of_a_rank(error: Exception) -> bool:
    """Says whether an error means that another rank has gone, by the messages of gloo and NCCL."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out waiting")
    others = ("nccl built in", "invalid usage", "ncclinvalid", "duplicate gpu")  # a wrong setup, which would fail again
    said = str(error).lower()
    found = any(word in said for word in words) and not any(word in said for word in others)
    return ranks() > 1 and isinstance(error, RuntimeError) and found


def stop() -> None:
    """Signs off, so that no rank waits for this one, and leaves the process group."""
    rank_watch.end()
    if dist.is_initialized():
        dist.destroy_process_group()
    _control.clear()


def leave(reason: str) -> None:
    """Ends the threads of the process group, of a run that has failed, too: one that meets the interpreter's end may abort the process.

    NCCL's are left: to end them it would wait for the ranks that have not failed. A single process goes on to use its group, which
    DeepSpeed keeps.

    Args:
        reason: What the other ranks are told, so that none waits for this one; empty where they find out by themselves.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    rank_watch.end(reason)
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()
    elif _control:
        dist.destroy_process_group(_control[0])
    _control.clear()
