"""Benchmarks of training: overhead of the supernet, of the harness and of the usual loop, and the speed of smaller sizes."""

import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from repro.bench.layers import shares_by_layer
from repro.bench.loops import bare_loop, diffusers_loop, harness_loop
from repro.bench.setting import Setting
from repro.bench.timing import LEAST_ROUNDS, Row, Target, in_turn, ratio
from repro.config import load_config
from repro.runtime.distributed import device
from repro.runtime.gpu import is_gpu

STEP = "step_ms"
ASKED_MACS = 0.4  # a network whose smallest size has fewer of the base's should take half its time; others are shown
CPU_BATCH, CPU_STEPS = 8, 2  # a step of the CIFAR-10 network takes seconds on a CPU


def sharing(setting: Setting) -> Iterator[Row]:
    """Yields a step of every size inside the supernet beside one of the extracted network, both through the harness's loop."""
    supernet = setting.supernet()
    for size in supernet.sizes:
        alone = supernet.extract(size)
        pair = in_turn(harness_loop(setting, supernet, size), harness_loop(setting, alone), setting.rounds)
        yield ratio(f"supernet step / standalone step, P = {size:g}", *pair, target=Target(limit=1.05), unit_ms=STEP)


def harness(setting: Setting) -> Iterator[Row]:
    """Yields the harness's loop beside a bare one."""
    pair = in_turn(harness_loop(setting, setting.base()), bare_loop(setting, setting.base()), setting.rounds)
    yield ratio("harness loop / bare torch loop", *pair, target=Target(limit=1.03), unit_ms=STEP)


def usual(setting: Setting) -> Iterator[Row]:
    """Yields a loop as diffusers' examples are built beside the harness's."""
    pair = in_turn(diffusers_loop(setting, setting.base()), harness_loop(setting, setting.base()), setting.rounds)
    target = Target(limit=4.0 if is_gpu(device()) else 1.5, at_most=False)
    yield ratio("diffusers-style loop / harness loop", *pair, target=target, unit_ms=STEP)


def smaller(setting: Setting) -> Iterator[Row]:
    """Yields a step of every smaller size beside one of full size: whether fewer MACs are less time, and where not."""
    supernet = setting.supernet()
    whole = supernet.extract(1.0)
    for size in supernet.sizes[1:]:
        macs = setting.macs(supernet.extract(size)) / setting.macs(whole)
        pair = in_turn(harness_loop(setting, supernet, size), harness_loop(setting, supernet, 1.0), setting.rounds)
        row = ratio(
            f"step at P = {size:g} / step at P = 1",
            *pair,
            target=Target(limit=0.5) if macs < ASKED_MACS else None,
            note=f"MACs {macs:.2f}; {setting.config.data.name} network, batch {setting.training.batch_size}",
            unit_ms=STEP,
        )
        (row.parts or {})["by_layer_ms"] = shares_by_layer(setting, whole, supernet.extract(size))
        yield row


def smaller_on_cpu(setting: Setting) -> Iterator[Row]:
    """Yields the same of the paper's CIFAR-10 network on all cores of a CPU, at its smallest size; a GPU times it as the configuration."""
    if is_gpu(device()):
        return
    config = load_config("cifar10_short", ["sizes.trained=[1.0, 0.25]", "sizes.reported=[1.0, 0.25]", "compute.precision=float32"])
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield from smaller(
            replace(setting, config=config, rounds=max(LEAST_ROUNDS, setting.rounds // 3), steps=CPU_STEPS, batch_size=CPU_BATCH)
        )
    finally:
        torch.set_num_threads(threads)
