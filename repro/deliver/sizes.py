"""Parameters, MACs and widths of every size: the answer of `python -m repro sizes`."""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from typing import Any

from baselines import criteria
from baselines.pruning import prune_to_params
from repro.config import changed
from repro.deliver.recorded_sizes import COUNTS, MACS_NOTE, PRUNED_COUNTS
from repro.errors import ReproError
from repro.experiment.artefacts import is_made
from repro.experiment.cells import Experiment, base_cell, with_size
from repro.experiment.run import load_model
from repro.files.shipped_files import PUBLISHED
from repro.methods.plan import check_sizes, plan_of, score_base
from repro.models.cost import count_macs, count_macs_torch_pruning, count_params
from repro.models.denoiser import build_base, channel_widths, meta_base
from repro.models.example import example_of
from repro.ofa.accounting import params_at
from repro.ofa.importance import Importance, equal_importance
from repro.ofa.pipes import Pipe, pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime.distributed import device
from repro.runtime.progress import say
from repro.size_text import size_text
from repro.text_table import text_table

FOOTNOTE = f"* evaluated and reported. {MACS_NOTE}."
TITLES = ("P ", "realised", *COUNTS.values(), "pipe widths, in the order of the network")
PRUNED = "Independent pruning to the same parameter size (the whole network, so that its MACs differ)"
NEAR = 0.05  # published networks of nearly the same parameters


def describe_sizes(experiment: Experiment, *, only: Sequence[float] | None, pruned: bool, as_json: bool) -> str:
    """Returns a table, or JSON, of the trained sizes: P, realised size, parameters, MACs, widths of the pipes.

    The allocation follows the trained base's importances where a base lies in the runs folder; before that, equal importances.

    Args:
        experiment: The configuration and its folders.
        only: The sizes to show; None shows every trained one.
        pruned: Whether to prune the base to each reported size too, and to show what that realises beside published networks.
        as_json: Whether to return JSON.

    Raises:
        ReproError: A size is not a trained one; the message says which are, and how this one becomes one, where the plan can reach it.
    """
    for asked in only or []:
        _check_trained(experiment, asked)
    config = experiment.config
    base = meta_base(config.denoiser)
    pipes = pipes_of(base, config.allocation.resampling_units)
    importance, source = importance_here(experiment, pipes)
    plan = plan_of(experiment, base, importance)
    supernet = Supernet(base, pipes, plan)
    rows: list[dict[str, Any]] = []
    for size in [size for size in supernet.sizes if only is None or size in only]:
        subnet = supernet.extract(size)
        macs = count_macs(subnet, experiment.network_shape)
        widths = channel_widths(subnet)
        rows.append(
            {
                "size": size,
                "realised": plan.realised(size),
                "params": count_params(subnet.parameters()),
                "macs": macs.total,
                "macs_conv_linear": macs.conv_linear,
                "reported": size in config.sizes.reported,
                "widths": {pipe.name: widths[pipe.producers[0]][0] for pipe in pipes},
            }
        )
    heading = f"{config.name}, allocation {config.allocation.rule}, by {source}"
    baselines = [_pruned_row(experiment, row["size"]) for row in rows if row["reported"] and row["size"] < 1] if pruned else []
    if as_json:
        content = {"config": config.name, "allocation": config.allocation.rule, "importance": source, "sizes": rows}
        return json.dumps(content | ({"baselines": baselines} if pruned else {}), indent=2)
    return "\n".join([heading, "", *text_table([TITLES, *map(_row, rows)], "rrrrrl"), "", FOOTNOTE, *_pruned_lines(baselines)])


def importance_here(experiment: Experiment, pipes: tuple[Pipe, ...]) -> tuple[Importance, str]:
    """Returns the importances of the base of seed 0 where that lies in the runs folder, else equal ones; and which these are, in words."""
    cell = base_cell(experiment.config, 0)
    if not is_made(experiment, cell):
        return equal_importance(pipes), "equal importances, since no base has been trained here"
    scored = score_base(experiment, load_model(experiment, cell).to(device()), 0)
    return {name: score.cpu() for name, score in scored.items()}, "the trained base's importances"


def _check_trained(experiment: Experiment, asked: float) -> None:
    trained = experiment.config.sizes.trained
    if not 0 < asked <= 1:
        raise ReproError(f"--sizes {size_text(asked)}: a size must lie in (0, 1]")
    if asked not in trained:
        check_sizes(dataclasses.replace(experiment, config=changed(experiment.config, {"sizes.trained": (*trained, asked)})))
        known = ", ".join(map(size_text, trained))
        raise ReproError(
            f"--sizes {size_text(asked)}: not a trained size ({known}); name one of these, or add it: "
            f"{with_size('sizes.trained', trained, asked)}"
        )


def _pruned_row(experiment: Experiment, size: float) -> dict[str, Any]:
    """Prunes a base to a size, as every baseline does; the criterion decides which channels go, not how many."""
    say(f"pruning to size {size_text(size)} ...", to_stderr=True)
    base = build_base(experiment.config.denoiser, seed=0).eval()
    example = example_of(base, experiment.network_shape, "cpu")
    target = params_at(base, size, experiment.config.allocation.resampling_units)
    model = prune_to_params(base, target, criteria.magnitude(), example)
    macs = count_macs(model, experiment.network_shape)
    params = count_params(model.parameters())
    return {
        "size": size,
        "target_params": target,
        "params": params,
        "macs": macs.total,
        "macs_conv_linear": macs.conv_linear,
        "macs_torch_pruning": count_macs_torch_pruning(model, experiment.network_shape),
        "published": _published_near(experiment.config.data.known_as, params),
    }


def _published_near(data: str, params: int) -> list[dict[str, Any]]:
    """Returns the published networks of a data set with about as many parameters, each once."""
    content = tomllib.loads(PUBLISHED.read_text())
    found = {
        (entry["params"], entry["macs"], entry["macs_counter"], content["sources"][entry["source"]]["cite"])
        for entry in content["entries"]
        if content["protocols"][entry["protocol"]]["data"] == data and "macs" in entry and abs(entry["params"] / params - 1) <= NEAR
    }
    return [dict(zip(("params", "macs", "macs_counter", "source"), network, strict=True)) for network in sorted(found)]


def _pruned_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    table = [["P", *PRUNED_COUNTS.values(), "published beside it"]]
    for row in rows:
        beside = "; ".join(
            f"{near['params'] / 1e6:g} M, {near['macs'] / 1e9:g} G by {near['macs_counter']} ({near['source']})"
            for near in row["published"]
        )
        table.append([size_text(row["size"]), *(f"{row[key]:,}" for key in PRUNED_COUNTS), beside])
    return ["", PRUNED, "", *text_table(table, "rrrrrl")]


def _row(row: dict[str, Any]) -> list[str]:
    size = f"{size_text(row['size'])}{'*' if row['reported'] else ' '}"
    return [size, f"{row['realised']:.4f}", *(f"{row[key]:,}" for key in COUNTS), " ".join(map(str, row["widths"].values()))]
