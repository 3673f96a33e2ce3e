"""How the arithmetic is done: precision, memory layout, and what a GPU may trade for speed."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from repro.config import Compute
from repro.errors import ReproError
from repro.harness.environment import set_for_cublas

# glibc's mallopt, <malloc.h>: the parameters, and the highest value that they take.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1

MOST_THREADS_PER_CORE = 16


def set_arithmetic(settings: Compute) -> None:
    """Sets what holds for the whole process: threads and TF32 as configured, and kernels that give the same result twice.

    A killed run must end in the same weights as one that was not, so a GPU may not choose its kernels by timing them.

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
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A debugging aid that comes with it would write all memory twice.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_threads(settings: Compute) -> None:
    """Makes sure that this machine can run the threads of a process: some more than cores are slow, hundreds more never end a step.

    Raises:
        ReproError: It cannot.
    """
    most = MOST_THREADS_PER_CORE * (os.cpu_count() or 1)
    if settings.threads > most:
        raise ReproError(f"compute.threads: {settings.threads} threads are too many for {os.cpu_count()} cores; take at most {most}")


def _keep_freed_memory() -> None:
    """Has the C library keep what is freed for what is allocated next, where it is glibc.

    It would return the memory of large tensors to the system, which hands it out again page by page: a sixth of a CPU's sampling time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, MOST)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which a forward pass has a precision; the weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def laid_out(module: nn.Module, settings: Compute, device: torch.device) -> nn.Module:
    """Moves a module to a device in the memory layout that suits it: NHWC on a GPU, where that is configured."""
    if settings.channels_last and device.type == "cuda":
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module.to(device)


def restore_layout(module: nn.Module) -> nn.Module:
    """Brings a module's weights back into the layout that files want."""
    return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


@contextmanager
def forward_in(module: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Lets a module's own forward pass have a precision until the block ends.

    On a GPU DeepSpeed's engine turns off, around the module that it calls, an autocast that it was called in.
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
    """Keeps the list of a module's parameters until the block ends: every step asks for it several times, and each walks the whole tree."""
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
    """Lets modules compute through `torch.compile`, each with a program of its own, until the block ends.

    What is compiled is `forward` and not the hooks around it, which the training engine adds.
    """
    # The subnets share their code but not their shapes: each needs room for its programs.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(modules))
    for module in modules:
        module.forward = torch.compile(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
