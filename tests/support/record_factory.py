"""Plausible records of a small experiment, for tests of whatever reads records."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repro.experiment.cells import Cell
from repro.experiment.records import write_record
from repro.grid import METHODS
from repro.size_text import size_text

SIZES = (1.0, 0.75, 0.5, 0.25)
DEVICE = "AMD EPYC (2 cores)"
PARAMS, INTERNAL_PARAMS, MACS = 701_345, 610_170, 9_876_544
JOINT_PHASES = {"prepare": 0.002, "importance": 0.001, "train": 0.04, "checkpoint": 0.003, "lost": 0.0, "evaluate": 0.5}
QUALITY = {
    "base": {1.0: 7.7},
    "ofa": {1.0: 11.4, 0.75: 9.0, 0.5: 10.9, 0.25: 19.0},
    "diff_pruning": {1.0: 8.1, 0.75: 9.3, 0.5: 10.6, 0.25: 21.4},
    "random": {1.0: 8.4, 0.75: 9.9, 0.5: 12.1, 0.25: 24.7},
    "untrained": {0.75: 66.0, 0.5: 349.0, 0.25: 1676.0},
    "untrained_random": {0.75: 66.5, 0.5: 404.0, 0.25: 1760.0},
}

# An experiment of the size of google/ddpm-cifar10-32, by the protocol of Diff-Pruning's published figures.
CIFAR10_PARAMS, CIFAR10_INTERNAL_PARAMS, CIFAR10_MACS = 35_746_307, 31_099_287, 6_221_594_624
CIFAR10_FID = {
    "base": {1.0: 4.23},
    "ofa": {1.0: 4.41, 0.75: 4.58, 0.5: 5.21, 0.25: 8.05},
    "diff_pruning": {0.75: 4.66, 0.5: 5.37, 0.25: 8.62},
    "random": {0.75: 4.81, 0.5: 5.74, 0.25: 9.33},
}

Record = dict[str, Any]


def cell_name(method: str, size: float | None, seed: int) -> str:
    """Returns a cell's name, without a size where it has none."""
    return f"{method}-seed{seed}" if size is None else f"{method}-{size_text(size)}-seed{seed}"


def make_record(method: str, size: float | None, seed: int = 0, **changes: Any) -> Record:
    """Returns one finished cell's record; `changes` replaces top-level keys."""
    trains = method in ("base", "ofa_joint", "diff_pruning", "magnitude", "random", "scratch")
    phases = {"prepare": 0.0005, "importance": 0.0, "train": 0.0, "checkpoint": 0.0, "lost": 0.0, "evaluate": 0.004}
    if trains:
        phases |= {"train": 0.01 + 0.01 * (size or 1.0), "checkpoint": 0.0005}
    if method == "ofa_joint":
        phases = dict(JOINT_PHASES)
    record: Record = {
        "schema_version": 2,
        "experiment": "digits",
        "trial": False,
        "cell": {"name": cell_name(method, size, seed), "method": method, "size": size, "seed": seed},
        "status": "done",
        "reason": None,
        "delivered_by": _delivered_by(method, size, seed),
        "starts_from": f"base-1-seed{seed}" if method not in ("base", "floor", "noise", "scratch") else None,
        "size": None if size is None else _size(size),
        "made": {"sha256": hash_of({"made": cell_name(method, size, seed)}), "inputs": {}},
        "cost": _cost(phases),
        "training": {"steps": 400, "images": 51200, "batch_size": 128, "train_pflop": _pflop(method, size)} if trains else None,
        "quality": None if method == "ofa_joint" else quality([_fid(method, size) + 0.3 * seed + step for step in (-0.1, 0.1)]),
        "latency": None,
        "samples": None,
        "provenance": {"git_commit": "0" * 40, "git_dirty": False, "config_sha256": "c", "lives": 1},
    }
    failed = {"made": None} if changes.get("status") == "failed" else {}
    return copy.deepcopy(record | failed | changes)


def _delivered_by(method: str, size: float | None, seed: int) -> list[str]:
    """Returns the joint run that a cell is taken out of; what scores the channels of a baseline is added by `with_scores`."""
    known = METHODS.get(method)
    delivered = known.delivered_by(Cell(method=method, size=size, seed=seed)) if known else ()
    return [cell.name for cell in delivered if cell.method.endswith("_joint")]


def quality(values: list[float], metric: str = "fid_classifier", n_samples: int = 1797) -> Record:
    """Returns the quality part of a record, one value per sampling seed."""
    return {
        "metric": metric,
        "tool": "torch-fidelity 0.4.0",
        "n_samples": n_samples,
        "mean": sum(values) / len(values),
        "values": values,
        "sampling_seeds": list(range(len(values))),
    }


def make_records(seeds: tuple[int, ...] = (0,), methods: tuple[str, ...] = tuple(QUALITY)) -> list[Record]:
    """Returns the records of a whole small experiment, floor and noise included."""
    records = []
    for seed in seeds:
        records += [make_record(method, size, seed) for method in methods for size in QUALITY[method]]
        records += [make_record("ofa_joint", None, seed)] if "ofa" in methods else []
    return [*records, make_record("floor", None), make_record("noise", None)]


def make_cifar10_record(method: str, size: float | None, seed: int = 0, *, weights: str = "ema", **changes: Any) -> Record:
    """Returns a finished cell's record of a CIFAR-10 experiment; `changes` replaces keys of its quality or of its sampler."""
    sampler = {"name": "ddim", "steps": 100, "spacing": "quadratic", "eta": 0.0, "clip_sample": False, "precision": "float32"}
    judged = quality([CIFAR10_FID.get(method, {}).get(size, 0.9)], metric="fid", n_samples=50_000)
    judged |= {"reference": {"name": "cifar10", "n": 50_000, "sha256": "c1" * 32}}
    judged |= {"sampler": None if method == "floor" else sampler | {key: changes.pop(key) for key in sampler if key in changes}}
    config = {"data": {"name": "cifar10"}, "network": {"sample_size": 32}}
    record = make_record(method, size, seed, experiment="cifar10", quality=judged | changes)
    record["provenance"] |= {"config": config, "config_sha256": hash_of(config)}
    record["base"] = {"source": "path", "weights": weights, "sha256": "b" * 64} if size else None
    if size:
        macs = round(CIFAR10_MACS * (0.177 + 0.823 * size))
        record["size"] |= _params(size, CIFAR10_PARAMS, CIFAR10_INTERNAL_PARAMS)
        record["size"] |= {"macs": macs, "macs_torch_pruning": round(macs * 6.064 / 6.222)}
    return record


def make_cifar10_records(**changes: Any) -> list[Record]:
    """Returns the records of a CIFAR-10 experiment, without those of the joint training."""
    cells = [(method, size) for method, fids in CIFAR10_FID.items() for size in fids]
    return [make_cifar10_record(method, size, **changes) for method, size in [*cells, ("floor", None)]]


def make_scores(records: list[Record], method: str, pflop: float = 0.0008, hours: float = 0.004) -> list[Record]:
    """Returns the records with those of one scoring pass a seed, which every pruned size of the method then lists."""
    scores = {}
    for record in records:
        if record["cell"]["method"] == method and record["cell"]["size"] != 1:
            seed = record["cell"]["seed"]
            record["delivered_by"] = [f"{method}_scores-seed{seed}"]
            record["training"]["scoring_pflop"] = 0.0
            cost = _cost({"prepare": 0.0, "importance": hours, "train": 0.0, "checkpoint": 0.0, "lost": 0.0, "evaluate": 0.0, "start": 0.3})
            training = {"images": 1024, "train_pflop": pflop, "scoring_pflop": pflop, "timesteps": 100}
            made = make_record(f"{method}_scores", None, seed, training=training, quality=None, cost=cost, variant=record.get("variant"))
            scores[seed] = made
    return [*records, *scores.values()]


def with_scores(records: list[Record]) -> list[Record]:
    """Returns the records as they lie on a disk: with the scoring passes of their methods, done for nothing where a test has none."""
    records = [dict(record) for record in records]
    for record in records:
        cell, known = record["cell"], METHODS.get(record["cell"]["method"])
        if known:
            delivered = known.delivered_by(Cell(method=cell["method"], size=cell["size"], seed=cell["seed"]))
            record["delivered_by"] = record["delivered_by"] or [needed.name for needed in delivered]
    listed = {name for record in records for name in record["delivered_by"]} - {record["cell"]["name"] for record in records}
    made = []
    for name in sorted(name for name in listed if "_scores-" in name):
        method, _, seed = name.rpartition("-seed")
        training = {"images": 1024, "train_pflop": 0.0, "scoring_pflop": 0.0, "timesteps": 100}
        machine = next(record["cost"] for record in records if name in record["delivered_by"])
        cost = machine | {"phases_device_hours": dict.fromkeys(JOINT_PHASES, 0.0), "device_hours": 0.0}
        made.append(make_record(method, None, int(seed), training=training, quality=None, cost=cost, variant=variant_of(method)))
    return [*records, *made]


def variant_of(method: str) -> Record | None:
    """Returns what the record of a known method says of the method that it varies."""
    known = METHODS[method].variant
    return None if known is None else {"of": known.of, "factor": known.factor, "label": known.label, "changes": {}}


def hash_of(config: Record) -> str:
    """Returns the hash of a configuration as a record holds it."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def rewrite(path: Path, *, config: Record | None = None, **changes: Any) -> Record:
    """Writes a record anew with other values, so that it is whole; `config` replaces sections of its configuration."""
    record = json.loads(path.read_text()) | changes
    if config:
        merged = record["provenance"]["config"] | config
        record["provenance"] |= {"config": merged, "config_sha256": hash_of(merged)}
    write_record(path.parent, record)
    return record


def busy(record: Record) -> Record:
    """Returns a record whose cell ran on a busy machine."""
    loaded = {"load_average": 5.2, "cores": 2, "cpu_share": 0.4, "marked": True}
    return record | {"cost": record["cost"] | {"busy": loaded}}


def write_records(folder: Path, records: list[Record], *, strips: bool = False) -> Path:
    """Writes records, and for each one a strip of 16 images of 8 x 8 if asked to, and returns the folder."""
    for number, record in enumerate(with_scores(records)):
        name, written = record["cell"]["name"], record
        if strips and not record["cell"]["method"].endswith(("_joint", "_scores")) and record["status"] == "done":
            pixels = np.random.default_rng(number).integers(0, 255, (8, 16 * 8), dtype=np.uint8)
            path = folder / "samples" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            written = record | {"samples": {"file": f"samples/{name}.png", "count": 16, "height": 8, "width": 8}}
        write_record(folder, written)
    return folder


def _params(size: float, whole: int, internal: int) -> Record:
    """Returns the parameters of a network a little larger than it is called, and the size that they amount to."""
    removed = round(internal * (1 - size - 0.0012 * (size < 1)))
    return {"realised": 1 - removed / internal, "params": whole - removed}


def _size(size: float) -> Record:
    macs = round(MACS * (0.2 + 0.8 * size))
    return {
        **_params(size, PARAMS, INTERNAL_PARAMS),
        "params_base": PARAMS,
        "macs": macs,
        "macs_conv_linear": macs - 65_536,
        "macs_torch_pruning": macs - 32_768,
        "widths": {},
    }


def _cost(phases: dict[str, float]) -> Record:
    overhead = sum(hours for phase, hours in phases.items() if phase not in ("evaluate", "start"))
    return {
        "phases_device_hours": phases,
        "device_hours": overhead,
        "gpu_hours": None,
        "device": "cpu",
        "device_name": DEVICE,
        "ranks": 1,
        "threads_per_rank": 2,
        "peak_memory_gib": 0.9,
    }


def _pflop(method: str, size: float | None) -> float:
    return 0.0034 if method == "ofa_joint" else 0.003 * (size or 1.0)


def _fid(method: str, size: float | None) -> float:
    if size is None:
        return {"floor": 6.7, "noise": 1007.0}.get(method, 0.0)
    return QUALITY.get(method, QUALITY["diff_pruning"]).get(size, 5.0 / size)
