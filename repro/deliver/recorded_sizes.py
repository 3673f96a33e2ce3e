"""Sizes of the recorded networks: the answer of `python -m repro sizes --recorded`, from records alone, without torch."""

import json
from collections.abc import Sequence
from typing import Any

from repro.errors import ReproError
from repro.experiment.cells import Experiment
from repro.grid import known_records
from repro.size_text import size_text
from repro.text_table import text_table

COUNTS = {"params": "params", "macs": "MACs", "macs_conv_linear": "conv+linear"}
PRUNED_COUNTS = COUNTS | {"macs_torch_pruning": "torch-pruning"}
MACS_NOTE = "MACs: one forward pass on one image, with attention's matrix products, and without"
FOOTNOTE = f"{MACS_NOTE}; and by torch-pruning's counter. Seeds of equal counts and widths share a row; ablations are left out."


def describe_recorded(experiment: Experiment, *, only: Sequence[float] | None, as_json: bool) -> str:
    """Returns a table, or JSON, of the recorded networks: method, P, realised size, parameters, MACs by three counters, seeds.

    Args:
        experiment: The configuration and its folders.
        only: The sizes P to show; None shows every recorded one.
        as_json: Whether to return JSON, which has the width of every layer that a network narrows, too.

    Raises:
        ReproError: A record is corrupt, or no network of such a size has been recorded.
    """
    seeds: dict[str, list[int]] = {}
    for record in known_records(experiment.results):
        cell, about = record["cell"], record.get("size")
        if about and cell["size"] is not None and not record.get("variant") and (only is None or cell["size"] in only):
            key = json.dumps({"method": cell["method"], "size": cell["size"]} | about)
            seeds.setdefault(key, []).append(cell["seed"])
    if not seeds:
        sizes = f" of size {', '.join(map(size_text, only))}" if only else ""
        raise ReproError(
            f"{experiment.results}: no network{sizes} has been recorded; make some with `{experiment.program.typed} run "
            f"{experiment.source}`, or name another folder with --results"
        )
    order = list(experiment.methods)
    rows = [json.loads(key) | {"seeds": sorted(found)} for key, found in seeds.items()]
    rows.sort(key=lambda row: (order.index(row["method"]) if row["method"] in order else len(order), -row["size"], row["seeds"]))
    if as_json:
        return json.dumps({"config": experiment.config.name, "recorded": rows}, indent=2)
    table = text_table([("method", "P", "realised", *PRUNED_COUNTS.values(), "seeds"), *map(_row, rows)], "lrrrrrrl")
    return "\n".join([f"{experiment.config.name}, as recorded in {experiment.results}", "", *table, "", FOOTNOTE])


def _row(row: dict[str, Any]) -> list[str]:
    counts = ["" if row.get(key) is None else f"{row[key]:,.0f}" for key in PRUNED_COUNTS]
    realised = "" if row.get("realised") is None else f"{row['realised']:.4f}"
    return [row["method"], size_text(row["size"]), realised, *counts, ", ".join(map(str, row["seeds"]))]
