"""Synthetic records of large grids: each is a committed record, moved to another size and seed, and passes every check."""

import copy
import json
import random
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from repro.config import load_config
from repro.experiment.cells import Cell, Experiment, plan_cells
from repro.experiment.record_checks import training_pflop
from repro.experiment.records import Record, record_bytes, record_path
from repro.files.places import Places
from repro.files.writing import sha256_of_json
from repro.grid import METHODS
from repro.runtime.clock import training_overhead
from repro.size_text import size_text

RESULTS = Path(__file__).parents[2] / "results"
# Methods whose steps do not follow from MACs: to know these a network is built, which takes seconds however few records there are.
GRIDS = {
    "digits": "floor,noise,base,ofa,ofa_open,ofa_uniform,ofa_random,ofa_m1,diff_pruning,random",
    "digits_curves": "floor,noise,base,ofa,ofa_open,ofa_half,diff_pruning,random",
}
NAME = "digits"  # what records are made after where nothing else is asked for
SMALLEST = 0.25
SPREAD = 0.03  # of a quality over seeds, relative
WIDER = 32  # times the widths of the committed networks, so that no two sizes round to the same


def sizes_of(count: int) -> tuple[float, ...]:
    """Returns evenly spaced sizes from 1 down to 0.25."""
    return tuple(round(1 - (1 - SMALLEST) * index / (count - 1), 6) for index in range(count))


def words_of(sizes: Sequence[float]) -> list[str]:
    """Returns the values for `--set` by which a configuration trains and reports some sizes."""
    return [f"sizes.{key}={json.dumps(list(sizes))}" for key in ("trained", "reported")]


def write_synthetic(results: Path, count: int, sizes: int, name: str = NAME) -> tuple[Path, int]:
    """Writes records, and strips of samples for the first seed, of a grid of whole seeds.

    Args:
        results: The folder of experiments.
        count: The records, at most; as many seeds as that allows, at least one.
        sizes: The number of sizes.
        name: The committed experiment that they are made after.

    Returns:
        The folder of the experiment, and the number of seeds.
    """
    folder = results / name
    (folder / "samples").mkdir(parents=True)
    config = load_config(name, words_of(sizes_of(sizes)))
    experiment = Experiment(
        config=config, source="--config synthetic", results=folder, runs=folder, methods=METHODS, places=Places(cache=folder)
    )
    of_a_seed = plan_cells(experiment, GRIDS[name].split(","), None, [0])
    seeds = max(1, count // len(of_a_seed))
    for cell in plan_cells(experiment, GRIDS[name].split(","), None, list(range(seeds))):
        template = _template(name, cell)
        record = _moved(template, experiment, cell)
        record_path(folder, cell.name).write_bytes(record_bytes(record))
        if record["samples"] and cell.seed == 0:
            shutil.copy(RESULTS / name / template["samples"]["file"], folder / record["samples"]["file"])
    return folder, seeds


@cache
def _templates(name: str) -> dict[str, list[Record]]:
    """Returns the committed records of the first seed, by method."""
    found: dict[str, list[Record]] = {}
    for path in sorted((RESULTS / name).glob("*-seed0.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["cell"]["method"], []).append(record)
    return found


def _template(name: str, cell: Cell) -> Record:
    """Returns the committed record of a method whose size is the nearest."""
    return min(_templates(name)[cell.method], key=lambda record: abs((record["cell"]["size"] or 1) - (cell.size or 1)))


def _moved(template: Record, experiment: Experiment, cell: Cell) -> Record:
    """Returns a record as a cell's own: named, sized, and with numbers that vary by its name."""
    record, stream, config = copy.deepcopy(template), random.Random(cell.name), experiment.config_of(cell)
    method = experiment.method_of(cell)
    needed = [needed.name for needed in experiment.needs(cell)]
    record |= {
        "schema_version": 2,
        "cell": {"name": cell.name, "method": cell.method, "size": cell.size, "seed": cell.seed},
        "delivered_by": [delivered.name for delivered in method.delivered_by(cell)],
        "starts_from": template["starts_from"] and f"base-1-seed{cell.seed}",
        "made": {"sha256": sha256_of_json(cell.name), "inputs": {name: sha256_of_json(name) for name in needed}},
    }
    record["provenance"] |= {"config": config.as_dict(), "config_sha256": config.sha256()}
    if record.get("base"):
        record["base"]["sha256"] = sha256_of_json(cell.seed)
    if record.get("samples"):
        record["samples"] |= {"file": f"samples/{cell.name}.png"}
    if cell.size is not None and record.get("size"):
        record["size"] |= _counts(experiment.config.name, cell.size, record["size"]["widths"])
    _vary_cost(record, stream)
    _vary_curves(record, cell, experiment.config.sizes.reported, stream)
    _vary_quality(record, stream)
    return record


def _counts(name: str, size: float, widths: dict[str, list[int]]) -> dict[str, Any]:
    """Returns the parameters, MACs and widths of a network of a size, the same whatever its method."""
    whole, pruned = _templates(name)["base"][0]["size"], _templates(name)["ofa"][0]["size"]
    internal = (whole["params"] - pruned["params"]) / (1 - pruned["realised"])
    removed = round(internal * (1 - size))
    macs = round(whole["macs"] * (0.15 + 0.85 * size))
    return {
        "params": whole["params"] - removed,
        "realised": 1 - removed / internal,
        "macs": macs,
        "macs_conv_linear": macs - whole["macs"] // 200,
        "macs_torch_pruning": macs + whole["macs"] // 100,
        "widths": {layer: [round(WIDER * width * size) for width in shape] for layer, shape in widths.items()},
    }


def _vary_cost(record: Record, stream: random.Random) -> None:
    """Scales what a cell took, and the work of its training to its MACs."""
    factor, cost, training = stream.uniform(0.9, 1.1), record["cost"], record.get("training")
    cost["phases_device_hours"] = {phase: hours * factor for phase, hours in cost["phases_device_hours"].items()}
    cost["device_hours"] = training_overhead(cost["phases_device_hours"])
    if cost.get("busy"):
        cost["busy"]["marked"] = False  # what is timed on a busy machine decides no claim
    work = training_pflop(record)
    more = work / training["train_pflop"] if training and work else 1.0
    if training:
        training["train_pflop"] *= more
        training |= (
            {"curve": [[step, loss * stream.uniform(0.98, 1.02)] for step, loss in curve]} if (curve := training.get("curve")) else {}
        )
    for point in (record.get("curves") or {}).get("points", ()):
        point |= {"device_hours": point["device_hours"] * factor, "train_pflop": point["train_pflop"] * more}
    for entry in record.get("latency") or ():
        entry |= {"ms": entry["ms"] * factor, "ms_quartiles": [factor * end for end in entry["ms_quartiles"]], "busy": False}


def _vary_curves(record: Record, cell: Cell, sizes: Sequence[float], stream: random.Random) -> None:
    """Has the points of a training judge its own size, or all sizes of a run that serves them."""
    for point in (record.get("curves") or {}).get("points", ()):
        judged = {float(size): found for size, found in point["sizes"].items()}
        point["sizes"] = {}
        for size in sizes if cell.size is None else (cell.size,):
            nearest = judged[min(judged, key=lambda other: abs(other - size))]
            point["sizes"][size_text(size)] = {key: value and value * stream.gauss(1, SPREAD) for key, value in nearest.items()}


def _vary_quality(record: Record, stream: random.Random) -> None:
    quality = record.get("quality")
    if quality:
        values = [value * stream.gauss(1, SPREAD) for value in quality["values"]]
        quality |= {"values": values, "mean": sum(values) / len(values)}
