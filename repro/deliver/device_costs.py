"""Counts, latency and memory of candidates; the latter two on this machine."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from repro.deliver.candidates import Candidate
from repro.experiment.cells import Experiment
from repro.experiment.records import Record
from repro.models.cost import Latency, count_macs, count_params, measure_latency, peak_bytes
from repro.models.denoiser import build_base, with_widths
from repro.ofa.supernet import Supernet
from repro.runtime.distributed import device
from repro.runtime.precision import autocast, laid_out, set_arithmetic
from repro.runtime.provenance import device_name

MB = 1e6
LATENCY_ROUNDS = 2  # apart in time, so that a short disturbance hits one of them


def networks_of(experiment: Experiment, records: Sequence[Record]) -> list[nn.Module]:
    """Returns untrained networks of the recorded widths."""
    return [with_widths(build_base(experiment.config.denoiser, seed=0), record["size"]["widths"]) for record in records]


def of_size(experiment: Experiment, size: float) -> Experiment:
    """Returns an experiment of one size, trained and reported."""
    sizes = replace(experiment.config.sizes, trained=(size,), reported=(size,))
    return replace(experiment, config=replace(experiment.config, sizes=sizes))


def candidate_of(experiment: Experiment, supernet: Supernet, size: float, budget: dict[str, float]) -> Candidate:
    """Returns a subnet of a supernet with what it costs, its quality not measured."""
    subnet = supernet.eval().extract(size)
    counts = {"params": float(count_params(subnet.parameters())), "macs": float(count_macs(subnet, experiment.network_shape).total)}
    (candidate,) = measured(experiment, [Candidate(size=size, costs=counts, quality=None)], [subnet], budget)
    return candidate


def measured(
    experiment: Experiment, found: Sequence[Candidate], networks: Sequence[nn.Module], budget: dict[str, float]
) -> list[Candidate]:
    """Adds to candidates what a budget asks for beside counts: the latency of one image here, and the memory of sampling one image.

    The memory is that of the weights and of the most activations that are alive at once in a forward pass, in float32; what a library
    keeps for itself is not in it. The latency is measured in rounds over all networks, which are pooled.

    Args:
        experiment: The configuration and its folders.
        found: The candidates.
        networks: Theirs, in the same order.
        budget: The limits.
    """
    set_arithmetic(experiment.config.compute)
    found = list(found)
    if "memory_mb" in budget:
        memory = [peak_bytes(network, experiment.network_shape) / MB for network in networks]
        found = [replace(one, costs=one.costs | {"memory_mb": each}) for one, each in zip(found, memory, strict=True)]
    if "latency_ms" not in budget:
        return found
    ready = [laid_out(network, experiment.config.compute, device()) for network in networks]
    for _ in range(LATENCY_ROUNDS):
        with autocast(experiment.config.evaluation.precision, device()):
            times = [measure_latency(network, experiment.network_shape, 1) for network in ready]
        found = [_with_latency(one, each) for one, each in zip(found, times, strict=True)]
    return found


def _with_latency(candidate: Candidate, latency: Latency) -> Candidate:
    """Adds a measurement of its latency to a candidate's earlier ones."""
    pooled = candidate.latency + latency if candidate.latency else latency
    return replace(candidate, latency=pooled, costs=candidate.costs | {"latency_ms": pooled.ms})


def timed_on() -> str:
    """Returns the device that a latency was measured on, with the CPU threads."""
    count = torch.get_num_threads()
    return f"{device_name()}, {count} thread{'s' if count > 1 else ''}"
