"""Fills in the record of a cell: its network, its cost and its provenance."""

from typing import Any

import torch

from repro.experiment.cells import Cell, Experiment, Method, base_cell
from repro.experiment.records import SCHEMA_VERSION, Record, write_record
from repro.models import cost
from repro.models.denoiser import as_pruned
from repro.runtime import busy, distributed, provenance
from repro.runtime.clock import Clock, device_hours, training_overhead
from repro.runtime.precision import autocast
from repro.runtime.progress import CellProgress


def blank_record(experiment: Experiment, method: Method, cell: Cell) -> Record:
    """Returns the record of a cell that has yet to be made; what is missing is None."""
    config = experiment.config
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": config.name,
        "trial": config.trial,
        "cell": {"name": cell.name, "method": cell.method, "size": cell.size, "seed": cell.seed},
        "variant": _variant(experiment, method),
        "delivered_by": [needed.name for needed in method.delivered_by(cell)],
        "base": None,
        "made": None,
        "starts_from": base_cell(config, cell.seed).name if method.needs(config, cell) else None,
        "size": None,
        "training": None,
        "quality": None,
        "latency": None,
        "samples": None,
        "provenance": {
            **provenance.software(),
            "config": config.as_dict(),
            "config_sha256": config.sha256(),
            "command": _command(experiment, cell),
            **({"formulation": experiment.formulation.about} if experiment.formulation.about else {}),
        },
    }


def _command(experiment: Experiment, cell: Cell) -> str:
    """Returns what repeats a cell, typed in the same folder: with the threads, where the configuration leaves them to the machine."""
    on_cpu = not (experiment.config.compute.threads or torch.cuda.is_available())
    threads = f"OMP_NUM_THREADS={torch.get_num_threads()} " if on_cpu else ""
    ranks = f" --ranks {distributed.ranks()}" if distributed.ranks() > 1 else ""
    return f"{threads}{experiment.program.typed} run {experiment.source} {' '.join(cell.words())}{ranks}"


def _variant(experiment: Experiment, method: Method) -> Record | None:
    """Returns what a variant changes, and of which method."""
    if not method.variant:
        return None
    changes = dict(method.variant.changes(experiment.written or experiment.config))
    return {"of": method.variant.of, "factor": method.variant.factor, "label": method.variant.label, "changes": changes}


def finish_record(experiment: Experiment, record: Record, clock: Clock, report: CellProgress, *, status: str, reason: str | None) -> None:
    """Adds the cost, of the slowest rank, and writes the record, from the first rank; where it failed, nobody waits for another."""
    done = status == "done"
    slowest = max(distributed.gather(clock.seconds()), key=lambda seconds: sum(seconds.values())) if done else clock.seconds()
    phases = device_hours(slowest, distributed.ranks())
    overhead = training_overhead(phases)
    on_gpu = torch.cuda.is_available()
    record |= {"status": status, "reason": reason}
    record["cost"] = {
        "phases_device_hours": phases,
        "device_hours": overhead,
        "gpu_hours": overhead if on_gpu else None,
        "device": "cuda" if on_gpu else "cpu",
        # Hours of different devices are never added up: a run that moved is no row of any one device.
        "device_name": ", then ".join(report.devices),
        "ranks": distributed.ranks(),
        "threads_per_rank": torch.get_num_threads(),
        "busy": _busy(clock, done=done),
        "peak_memory_gib": provenance.peak_memory_gib(),
        "kwh": report.kwh() if done else None,
    }
    record["provenance"] |= {"started_utc": report.started_utc, "ended_utc": provenance.now_utc(), "lives": report.lives}
    record["provenance"] |= {"changed": list(report.changed)} if report.changed else {}
    if distributed.rank() == 0:
        write_record(experiment.results, record)


def _busy(clock: Clock, *, done: bool) -> Record:
    """Returns what else the machine had to do in the phases that are charged: of the busiest rank, where all have come here."""
    tally, cores, threads = clock.busy.tally, busy.cores(), torch.get_num_threads()
    load, share = tally.load(), tally.cpu_share(threads)
    telling = not torch.cuda.is_available() and distributed.ranks() * threads == 1 and tally.seconds >= busy.LEAST_SHARE_SEC
    found = {"load_average": load, "cores": cores, "cpu_share": share}
    found["marked"] = busy.is_busy(load, share if telling else None, cores=cores)
    every = distributed.gather(found) if done else [found]
    return max(every, key=lambda one: (one["marked"], (one["load_average"] or 0.0) - one["cores"]))


def size_of_network(experiment: Experiment, model: Any) -> Record:
    """Returns what a network is: parameters, MACs by two counters, and the widths that differ from the base's."""
    macs = cost.count_macs(model, experiment.network_shape)
    return {
        "params": cost.count_params(model.parameters()),
        "macs": macs.total,
        "macs_conv_linear": macs.conv_linear,
        "macs_torch_pruning": cost.count_macs_torch_pruning(model, experiment.network_shape),
        "widths": as_pruned(model).config["widths"] or {},
    }


def latency_of_network(experiment: Experiment, model: Any) -> list[Record]:
    """Times one forward pass at the configured batch sizes, in the precision of sampling."""
    settings = experiment.config.evaluation
    about = {"device_name": provenance.device_name(), "threads": torch.get_num_threads(), "precision": settings.precision}
    with autocast(settings.precision, distributed.device()):
        timed = {batch: cost.measure_latency(model, experiment.network_shape, batch) for batch in settings.latency_batches}
    return [
        {"batch": batch, "ms": found.ms, "ms_quartiles": list(found.quartiles), "busy": found.busy} | about
        for batch, found in timed.items()
    ]
