"""Benchmarks of the machine: peak memory, utilisation, and the program's start-up time."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from repro.bench.loops import harness_loop
from repro.bench.setting import Setting
from repro.bench.timing import LEAST_ROUNDS, Row, Target, spread, timed
from repro.diffusion.formulation import image_losses, predictor
from repro.runtime.distributed import device
from repro.runtime.gpu import is_gpu
from repro.runtime.precision import autocast, laid_out

CHECKOUT = Path(__file__).parents[2]
GIB = 2**30
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}
MATRIX = {"cpu": 1024, "cuda": 8192}


def memory(setting: Setting) -> Iterator[Row]:
    """Yields what a training step holds at its peak, without optimiser and EMA: of the supernet's largest size beside the base alone."""
    supernet = setting.supernet()
    alone = _peak_bytes(setting, setting.base(), None)
    each = {size: _peak_bytes(setting, supernet, size) for size in supernet.sizes}
    largest = max(each, key=lambda size: each[size])
    yield spread(
        "peak memory of a supernet step / of a base step",
        [each[largest] / alone],
        target=Target(limit=1.10),
        parts={"gib": [each[largest] / GIB, alone / GIB]},
        note=f"largest at P = {largest:g}; weights, gradients and activations",
    )


def _peak_bytes(setting: Setting, module: nn.Module, size: float | None) -> int:
    """Returns the weights' bytes and the most that two steps hold besides."""
    module = laid_out(module, setting.config.compute, device()).train()
    leading = () if size is None else (size,)
    batch = setting.batches()(0)

    def step() -> None:
        with autocast(setting.config.compute.precision, device()):
            loss = image_losses(predictor(module, *leading), batch).mean()
        loss.backward()
        module.zero_grad()

    step()
    held = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    return held + (_peak_on_gpu(step) if is_gpu(device()) else _peak_on_cpu(step))


def _peak_on_gpu(step: Callable[[], None]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(step: Callable[[], None]) -> int:
    """Adds up what the allocator gives and takes, event by event: a process's resident memory also holds what was freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    result = profiled.profiler.kineto_results if profiled.profiler else None
    assert result is not None
    events = sorted((event for event in result.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_share(setting: Setting) -> Iterator[Row]:
    """Yields what matrix products and copies reach on this device, and which share of the former a training step of the base does."""
    on_gpu, compute = is_gpu(device()), setting.config.compute
    kind = torch.bfloat16 if compute.precision == "bfloat16" else torch.float32
    width, name = MATRIX[device().type], str(kind).removeprefix("torch.")
    left, right = (torch.randn(width, width, device=device(), dtype=kind) for _ in range(2))
    block = torch.zeros(COPY_BYTES[device().type] // 4, device=device())
    target = torch.empty_like(block)
    product, copy = timed(lambda: left @ right), timed(lambda: target.copy_(block))
    base = setting.base()
    flop, loop = 6 * setting.macs(base) * setting.training.batch_size, harness_loop(setting, base)
    product(), copy()
    peaks, copies, shares, reached = [], [], [], []
    for _ in range(setting.rounds):
        peaks.append(2 * width**3 / min(product() for _ in range(5)) / 1e12)
        copies.append(2 * block.nbytes / min(copy() for _ in range(5)) / 1e9)
        reached.append(flop / loop() / 1e12)
        shares.append(100 * reached[-1] / peaks[-1])
    yield spread(f"matrix product, {name}, {width} x {width}", peaks, unit="TFLOP/s")
    yield spread("copy in memory, read and written", copies, unit="GB/s")
    yield spread("training step of the base", reached, unit="TFLOP/s")
    share = Target(limit=35, at_most=False) if on_gpu and compute.precision == "bfloat16" else None
    yield spread("training step of the base / matrix product", shares, unit="%", target=share)


def start_up(setting: Setting) -> Iterator[Row]:
    """Yields the seconds of `--help`, and of all tables and figures from the committed records, each in a process of its own."""
    rounds = max(LEAST_ROUNDS, setting.rounds // 3)
    helped = [_seconds([sys.executable, "-m", "repro", "--help"]) for _ in range(rounds)]
    yield spread("python -m repro --help", helped, unit="s", target=Target(limit=0.5))
    records = sorted((CHECKOUT / "results" / "digits").glob("*.json"))
    if not records:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        folder.mkdir()
        for path in records:
            shutil.copy(path, folder)
        shutil.copytree(CHECKOUT / "results" / "digits" / "samples", folder / "samples")
        drawn = [_seconds([sys.executable, "-m", "paper_figures", "--results", str(folder)]) for _ in range(rounds)]
    yield spread(f"figures, {len(records)} records", drawn, unit="s", target=Target(limit=10))


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return time.perf_counter() - begun
