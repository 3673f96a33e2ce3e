"""Consistency of records: whatever one key, or one record, implies of another is recomputed, and a contradiction is refused."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec

from repro.files.writing import sha256_of_json
from repro.models.flop import train_pflop
from repro.runtime.clock import training_overhead
from repro.size_text import cell_name, size_text

Record = dict[str, Any]
CLOSE = 1e-9  # relative; the record holds what was computed, to the last digit but for the order of a sum
SIZE_TOLERANCE = 0.05  # between the size P that a network is called and the one that its parameters amount to
CHECKSUM = "sha256"


def meets_size(realised: float, size: float, rule: str | None) -> bool:
    """Says whether a network may be called by a size; Formula 5 taken literally misses the sizes that it is asked for, by design."""
    return rule == "formula5" or abs(realised - size) <= SIZE_TOLERANCE


def checksum(record: Record) -> str:
    """Returns the SHA-256 of all that a record says beside it."""
    return sha256_of_json({key: value for key, value in record.items() if key != CHECKSUM})


def training_pflop(record: Record) -> float | None:
    """Returns the PFLOP of training a network of a record's MACs on its images, and of scoring; None where it trained nothing alone."""
    training, macs = record.get("training") or {}, (record.get("size") or {}).get("macs")
    if not macs or training.get("train_pflop") is None or (training.get("settings") or {}).get("distillation") != 0:
        return None
    return float(train_pflop(macs, training["images"]) + (training.get("scoring_pflop") or 0))


def contradiction(record: Record) -> str:
    """Says what a record of the right kinds says that cannot be so; empty where there is nothing."""
    return next((said for check in CHECKS for said in check(record)), "")


def disagreement(records: Sequence[Record]) -> tuple[str, str] | None:
    """Returns the name of a record of an experiment that others contradict, and what it says that cannot be so; None where all agree."""
    done = [record for record in records if record["status"] == "done"]
    return next((found for check in CHECKS_BETWEEN for found in check(done)), None)


def _bases(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """At a seed all networks descend from one base."""
    first: dict[int, Record] = {}
    for record in sorted(records, key=lambda one: one["cell"]["method"] != "base"):
        base = (record.get("base") or {}).get("sha256")
        if base is None:
            continue
        other = first.setdefault(record["cell"]["seed"], record)
        if other["base"]["sha256"] != base:
            theirs = f"{other['cell']['name']}.json from {other['base']['sha256'][:16]}..."
            yield record["cell"]["name"], f"descends from the base {base[:16]}..., and {theirs}"


def _configurations(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """The cells of a method ran under one configuration, whatever their size and seed."""
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record["cell"]["method"], record)
        if other["provenance"].get("config_sha256") != record["provenance"].get("config_sha256"):
            yield record["cell"]["name"], f"was made under another configuration than {other['cell']['name']}.json"


def _inputs(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What a cell was made from is what lies there as made."""
    made = {record["cell"]["name"]: record["made"]["sha256"] for record in records if record.get("made")}
    for record in records:
        for name, sha256 in (record.get("made") or {}).get("inputs", {}).items():
            if made.get(name, sha256) != sha256:
                yield record["cell"]["name"], f"was made from the {name} of {sha256[:16]}..., and {name}.json is of {made[name][:16]}..."


def _counts(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Networks of the same widths have the same counts, and a size P is proportional to the parameters that are left."""
    same: dict[str, Record] = {}
    whole: tuple[str, int] | None = None
    internal: tuple[str, float] | None = None
    for record in sorted(records, key=lambda one: -((one.get("size") or {}).get("realised") or 0)):
        name, size = record["cell"]["name"], record.get("size") or {}
        if size.get("params") is None or size.get("realised") is None:
            continue
        if size.get("widths"):
            other = same.setdefault(json.dumps(size["widths"], sort_keys=True), record)
            for key in ("params", "macs", "macs_torch_pruning"):
                if size.get(key) != other["size"].get(key):
                    yield name, f"has {size.get(key)} {key}, and {other['cell']['name']}.json of the same widths {other['size'].get(key)}"
        if size["realised"] == 1:
            whole = whole or (name, size["params"])
            if whole[1] != size["params"]:
                yield name, f"has {size['params']} params at size 1, and {whole[0]}.json has {whole[1]}"
        elif whole:
            params = (whole[1] - size["params"]) / (1 - size["realised"])
            internal = internal or (name, params)
            if not math.isclose(params, internal[1], rel_tol=1e-6):
                yield name, f"amounts to P = {size['realised']:g} at {size['params']} params, which does not fit {internal[0]}.json"


CHECKS_BETWEEN: tuple[Callable[[Sequence[Record]], Iterator[tuple[str, str]]], ...] = (_bases, _configurations, _inputs, _counts)


def _checksum(record: Record) -> Iterator[str]:
    if record["schema_version"] > 1 and CHECKSUM not in record:
        yield f"lacks the key '{CHECKSUM}'"
    if CHECKSUM in record and record[CHECKSUM] != checksum(record):
        yield "was changed since it was written: its sha256 is not that of its content"


def _cell(record: Record) -> Iterator[str]:
    cell = record["cell"]
    expected = cell_name(cell["method"], cell.get("size"), cell["seed"])
    if cell["name"] != expected:
        yield f"is called {cell['name']}, and method, size and seed make {expected}"
    realised = (record.get("size") or {}).get("realised")
    rule = ((record["provenance"].get("config") or {}).get("allocation") or {}).get("rule")
    if realised is not None and cell.get("size") is not None and not meets_size(realised, cell["size"], rule):
        yield f"is of size {cell['size']:g}, and its network amounts to {realised:g}"
    samples = record.get("samples")
    if samples and samples["file"] != f"samples/{cell['name']}.png":
        yield f"names the samples {samples['file']}, and they lie in samples/{cell['name']}.png"


def _status(record: Record) -> Iterator[str]:
    start, base = record.get("starts_from"), record.get("base")
    if record["status"] == "done" and base and bool(start) == (record["cell"]["method"] == "base"):
        yield f"descends from a base, and starts from {start or 'nothing'}"
    if record["status"] == "failed" and not record.get("reason"):
        yield "has failed without a reason"
    if record["status"] == "done" and record.get("reason"):
        yield "is done, and has a reason for its failure"
    if record["schema_version"] > 1 and (record["status"] == "done") != bool(record.get("made")):
        yield f"is {record['status']} and says {'nothing' if record['status'] == 'done' else 'something'} of what was 'made'"


def _quality(record: Record) -> Iterator[str]:
    quality = record.get("quality") or {}
    also = [(f"quality.also ({other['metric']})", other) for other in quality.get("also") or ()]
    for key, part in (("quality", quality), ("quality.kid", quality.get("kid") or {}), *also):
        if part and not math.isclose(part["mean"], statistics.fmean(part["values"]), rel_tol=CLOSE):
            yield f"has a {key}.mean of {part['mean']:g}, and its values have {statistics.fmean(part['values']):g}"
    seeds, drawn = quality.get("sampling_seeds"), (record["provenance"].get("config") or {}).get("evaluation") or {}
    if quality.get("sampler"):
        for key, asked in (("n_samples", drawn.get("samples")), ("sampling_seeds", drawn.get("sampling_seeds"))):
            if asked is not None and quality.get(key) != asked:
                yield f"has the {key} {quality.get(key)}, and its configuration asks for {asked}"
    for key, part in (("quality", quality), *also):
        if seeds is not None and len(seeds) != len(part["values"]):
            yield f"has {len(part['values'])} values of {key} for {len(seeds)} sampling seeds"


def _cost(record: Record) -> Iterator[str]:
    cost = record.get("cost") or {}
    hours, phases = cost.get("device_hours"), cost.get("phases_device_hours")
    if hours is not None and phases is not None and not math.isclose(hours, training_overhead(phases), rel_tol=CLOSE, abs_tol=1e-15):
        yield f"has {hours:g} device-hours, and its phases have {training_overhead(phases):g}"
    if cost.get("device") and cost.get("gpu_hours") != (hours if cost["device"] == "cuda" else None):
        yield f"has {cost.get('gpu_hours')} GPU-hours on the device {cost['device']}"
    for entry in record.get("latency") or []:
        first, third = entry.get("ms_quartiles") or (entry["ms"], entry["ms"])
        if not first <= entry["ms"] <= third:
            yield "has a latency that does not lie between its quartiles"


def _training(record: Record) -> Iterator[str]:
    training = record.get("training") or {}
    if all(training.get(key) is not None for key in ("steps", "batch_size", "images")):
        steps, batch, images = training["steps"], training["batch_size"], training["images"]
        if steps * batch != images:
            yield f"has {images} images of training, and {steps} steps of {batch}"
    if (training.get("scoring_pflop") or 0) > (training.get("train_pflop") or 0) * (1 + CLOSE):
        yield "has more PFLOP of scoring than of training and scoring together"


def _curves(record: Record) -> Iterator[str]:
    curves, training, cost = record.get("curves") or {}, record.get("training") or {}, record.get("cost") or {}
    points = curves.get("points") or []
    for key in ("step", "images", "train_pflop", *([] if curves.get("cooldown") else ["device_hours"])):  # of branches hours are their own
        values = [point[key] for point in points]
        if any(later <= before for before, later in pairwise(values)):
            yield f"has points whose {key} do not rise"
    if points and not curves.get("cooldown"):
        for key, whole in (
            ("step", training.get("steps")),
            ("images", training.get("images")),
            ("train_pflop", training.get("train_pflop")),
        ):
            if whole is not None and not math.isclose(points[-1][key], whole, rel_tol=CLOSE):
                yield f"has a last point of {points[-1][key]:g} {key}, and its training has {whole:g}"
        if (cost.get("device_hours") or math.inf) < points[-1]["device_hours"] * (1 - CLOSE):
            yield f"has a last point of {points[-1]['device_hours']:g} device-hours, and {cost['device_hours']:g} in all"
    size = record["cell"].get("size")
    for point in points:
        if point["sizes"].keys() != points[0]["sizes"].keys() or (size is not None and {*point["sizes"]} != {size_text(size)}):
            yield f"has the sizes {', '.join(point['sizes'])} at step {point['step']}, and is of {size_text(size) if size else 'others'}"


def _provenance(record: Record) -> Iterator[str]:
    provenance = record["provenance"]
    config = provenance.get("config")
    if config is not None:
        found = _sha256_of(msgspec.json.encode(config))
        if provenance.get("config_sha256") != found:
            yield f"has a configuration of hash {found[:16]}, and says {provenance.get('config_sha256')!s:.16}"
        for key, ours in (("name", record["experiment"]), ("trial", bool(record.get("trial")))):
            if key in config and config[key] != ours:
                yield f"says {key} {ours}, and its configuration {config[key]}"
        evaluation, quality = config.get("evaluation") or {}, record.get("quality")
        if quality and evaluation.get("metric", quality["metric"]) != quality["metric"]:
            yield f"has the metric {quality['metric']}, and its configuration {evaluation['metric']}"
        also = [other["metric"] for other in (quality or {}).get("also") or ()]
        if quality and also != evaluation.get("also", []):
            yield f"has the further metrics {also}, and its configuration {evaluation.get('also', [])}"
    started, ended = provenance.get("started_utc"), provenance.get("ended_utc")
    if started and ended and ended < started:
        yield f"ended at {ended}, before it started at {started}"


@lru_cache
def _sha256_of(config: bytes) -> str:
    """Returns the hash of a configuration's JSON: the records of an experiment share a few, and each is hashed once."""
    return sha256_of_json(json.loads(config))


CHECKS: tuple[Callable[[Record], Iterator[str]], ...] = (_checksum, _cell, _status, _quality, _cost, _training, _curves, _provenance)
