"""Numerics of a process: precision, memory layout, deterministic kernels, compilation."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from repro.config import Compute
from repro.errors import ReproError
from repro.runtime.environment import set_for_cublas
from repro.runtime.gpu import is_gpu

# glibc's mallopt, <malloc.h>: the parameters, and the highest value that they take.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1

MOST_THREADS_PER_CORE = 16


def set_arithmetic(settings: Compute) -> None:
    """Sets threads and TF32 of the process as configured, and deterministic kernels.

    A resumed run must end in the same weights as an uninterrupted one, so cuDNN may not choose its kernels by timing them.

    Raises:
        ReproError: There are far more threads than cores.
    """
    check_threads(settings)
    set_for_cublas()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cudnn.benchmark = False
    _keep_freed_memory()
    if torch.cuda.is_available():
        # With `warn_only` attention's backward pass would keep a kernel that adds up in any order, and warn.
        torch.use_deterministic_algorithms(True)
        # A debugging aid that comes with it would fill every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def checked_kernels(error: Exception) -> Exception:
    """Returns an error, in this program's words where torch refused an operation for which the device has no deterministic kernel."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    if not isinstance(error, RuntimeError) or not found:
        return error
    return ReproError(
        f"{found[1]}: this device has no kernel for it that gives the same result twice, so that a run could not be repeated; take a "
        "network without it"
    )


def check_threads(settings: Compute) -> None:
    """Checks the number of threads: a few more than cores are slow, hundreds more never end a step.

    Raises:
        ReproError: There are far more threads than cores.
    """
    most = MOST_THREADS_PER_CORE * (os.cpu_count() or 1)
    if settings.threads > most:
        raise ReproError(f"compute.threads: {settings.threads} threads are too many for {os.cpu_count()} cores; take at most {most}")


def _keep_freed_memory() -> None:
    """Has glibc, where it is the C library, reuse freed memory.

    It would return the memory of large tensors to the system, which hands it out again page by page: a sixth of a CPU's sampling time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, MOST)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the autocast context of a precision; the weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def laid_out(module: nn.Module, settings: Compute, device: torch.device) -> nn.Module:
    """Moves a module to a device, in `channels_last` on a GPU where that is configured."""
    if settings.channels_last and is_gpu(device):
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module.to(device)


def restore_layout(module: nn.Module) -> nn.Module:
    """Returns a module to contiguous weights, which files hold."""
    return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


@contextmanager
def forward_in(module: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Runs a module's own forward pass under autocast until the block ends.

    DeepSpeed's engine, on a GPU, disables an outer autocast around the module that it calls.
    """
    before, forward = vars(module).get("forward"), module.forward

    def in_precision(*args: Any, **kwargs: Any) -> Any:
        with autocast(precision, device):
            return forward(*args, **kwargs)

    module.forward = in_precision
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def listed(module: nn.Module) -> Iterator[None]:
    """Caches the list of a module's parameters until the block ends: a step asks for it several times, each a walk of the whole tree."""
    parameters, walk = list(module.named_parameters()), module.named_parameters

    def named_parameters(
        _self: nn.Module, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        usual = not prefix and recurse and remove_duplicate
        return iter(parameters) if usual else walk(prefix, recurse, remove_duplicate)

    module.named_parameters = MethodType(named_parameters, module)  # type: ignore[method-assign]  # torch.compile wants a method
    try:
        yield
    finally:
        del module.named_parameters


@contextmanager
def compiled(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Compiles the forward passes of modules with `torch.compile`, each by itself, until the block ends.

    Only `forward` is compiled, not the hooks of the training engine around it.
    """
    # The subnets share their code but not their shapes: each needs its own entries in the cache of compiled code.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(modules))
    for module in modules:
        module.forward = torch.compile(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
