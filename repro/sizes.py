"""What each size realises: the answer of `python -m repro sizes`."""

import json
from typing import Any

import torch

from repro.harness.cells import Experiment, base_cell
from repro.harness.cost import count_macs, count_params
from repro.harness.denoiser import build_base, channel_widths
from repro.harness.distributed import device
from repro.harness.experiment import is_made, load_model
from repro.methods import equal_importance, plan_of, score_base
from repro.ofa.pipes import unet2d_pipes
from repro.ofa.supernet import Supernet

FOOTNOTE = "* evaluated and reported. MACs: one forward pass on one image, with attention's matrix products, and without."


def describe_sizes(experiment: Experiment, *, as_json: bool) -> str:
    """Returns a table, or JSON, of every trained size: P, realised size, parameters, MACs, widths of its pipes.

    The allocation follows the trained base's importances where a base lies in the runs folder; before that, equal importances.
    """
    config = experiment.config
    cell = base_cell(config)
    if is_made(experiment, cell):
        scored = load_model(experiment, cell).to(device())
        importance, source = score_base(experiment, scored, 0), "the trained base's importances"
    else:
        importance, source = {}, "equal importances, since no base has been trained here"
    with torch.device("meta"):
        base = build_base(config.network, seed=0)
    pipes = unet2d_pipes(base)
    plan = plan_of(experiment, base, {name: score.cpu() for name, score in importance.items()} or equal_importance(base))
    supernet = Supernet(base, pipes, plan)
    rows: list[dict[str, Any]] = []
    for size in supernet.sizes:
        subnet = supernet.extract(size)
        macs = count_macs(subnet, experiment.image_shape)
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
    if as_json:
        return json.dumps({"config": config.name, "allocation": config.allocation.rule, "importance": source, "sizes": rows}, indent=2)
    columns = _line("P", "realised", "params", "MACs", "conv+linear", "pipe widths, in the order of the network")
    return "\n".join([heading, "", columns, *map(_row, rows), "", FOOTNOTE])


def _row(row: dict[str, Any]) -> str:
    widths = " ".join(str(width) for width in row["widths"].values())
    size = f"{row['size']:g}{'*' if row['reported'] else ' '}"
    return _line(size, f"{row['realised']:.4f}", f"{row['params']:,}", f"{row['macs']:,}", f"{row['macs_conv_linear']:,}", widths)


def _line(size: str, realised: str, params: str, macs: str, conv_linear: str, widths: str) -> str:
    return f"{size:>7} {realised:>9} {params:>12} {macs:>15} {conv_linear:>15}  {widths}"
