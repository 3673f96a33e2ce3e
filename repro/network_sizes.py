"""What each size of somebody's network would be: the answer of `python -m repro sizes --network`, computed without weights."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from repro.config import SHIPPED, Allocation
from repro.errors import ReproError
from repro.harness.cost import Macs, count_macs, count_params
from repro.harness.denoiser import NETWORK, NETWORK_CONFIG
from repro.harness.reading import read_json
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import Pipe, pipes_of
from repro.ofa.supernet import Supernet
from repro.size_text import size_text

NETWORKS = SHIPPED / "networks"
CLASSES = {network.__name__: network for network in (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel)}
REPORTED = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # the paper's
TEXT_TOKENS = 77  # of CLIP, which conditions Stable Diffusion


def describe_network(name: str, *, only: Sequence[float] | None, rule: str | None, as_json: bool) -> str:
    """Returns a table, or JSON, of the sizes of a network: P, realised size, parameters, MACs; its channels count as equally important.

    Args:
        name: A network that this program ships, or a JSON file or folder of diffusers.
        only: The sizes to show; None shows those that the paper reports.
        rule: The allocation rule; None takes `uniform`, which no importance would change.
        as_json: Whether to return JSON.

    Raises:
        ReproError: It is no such network, or a size lies outside (0, 1].
    """
    for size in only or []:
        if not 0 < size <= 1:
            raise ReproError(f"--sizes {size_text(size)}: a size must lie in (0, 1]")
    model = _on_meta(_config_path(name))
    pipes, settings = pipes_of(model), Allocation(rule=rule or "uniform")
    sizes = tuple(sorted(only or REPORTED, reverse=True))
    equal = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    params_base = count_params(model.parameters())
    plan = make_plan(pipes, equal, sizes, params_base=params_base, rule=settings.rule, floor=settings.floor)
    supernet = Supernet(model, pipes, plan)
    rows = []
    for size in sizes:
        macs = _macs(supernet.extract(size), model)
        row = {"size": size, "realised": plan.realised(size), "params": plan.params[size], "macs": macs.total}
        rows.append(row | {"macs_conv_linear": macs.conv_linear})
    if as_json:
        return json.dumps({"network": name, "allocation": settings.rule, "pipes": _count(pipes), "sizes": rows}, indent=2)
    heading = _heading(name, pipes, plan.params_internal / params_base, settings.rule)
    return "\n".join([*heading, *map(_row, rows), "", _note(model)])


def _config_path(name: str) -> Path:
    shipped = {path.stem: path for path in NETWORKS.glob("*.json")}
    given = shipped.get(name, Path(name))
    for path in (given, given / NETWORK_CONFIG, given / NETWORK / NETWORK_CONFIG):
        if path.is_file():
            return path
    raise ReproError(f"--network {name}: no such network; name {', '.join(sorted(shipped))}, or a folder or JSON file that diffusers saved")


def _on_meta(path: Path) -> Any:
    """Builds the network that a file describes, of a class that is known here, without storage."""
    try:
        settings = read_json(path)
        if not isinstance(settings, dict) or settings.get("_class_name") not in CLASSES:
            raise ValueError(f"its _class_name is none of {', '.join(CLASSES)}")
        with torch.device("meta"):
            return CLASSES[settings["_class_name"]].from_config({key: value for key, value in settings.items() if key != "widths"})
    except Exception as error:  # diffusers raises errors of many kinds for one reason: the file describes no network of its
        raise ReproError(f"{path}: describes no network ({str(error).splitlines()[0]:.200}); name a config.json of diffusers") from error


def _macs(subnet: nn.Module, model: Any) -> Macs:
    """Counts the MACs of one image, or of one latent with its text."""
    shape = (model.config["in_channels"], model.config["sample_size"], model.config["sample_size"])
    return count_macs(subnet, shape, **_conditioning(model))


def _conditioning(model: Any) -> dict[str, torch.Tensor]:
    """Returns what a network takes beside an image and a timestep, on the meta device."""
    if isinstance(model, UNet2DConditionModel):
        return {"encoder_hidden_states": torch.empty(1, TEXT_TOKENS, model.config["cross_attention_dim"], device="meta")}
    if isinstance(model, DiTTransformer2DModel):
        return {"class_labels": torch.zeros(1, dtype=torch.int64, device="meta")}
    return {}


def _count(pipes: tuple[Pipe, ...]) -> dict[str, int]:
    return dict(Counter(pipe.kind for pipe in pipes))


def _heading(name: str, pipes: tuple[Pipe, ...], share: float, rule: str) -> list[str]:
    kinds = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in _count(pipes).items())
    return [
        f"{name}, allocation {rule}, by equal importances",
        f"{len(pipes)} pipes ({kinds}) hold {share:.1%} of the parameters",
        "",
        f"{'P':>7} {'realised':>9} {'params':>14} {'MACs':>18} {'conv+linear':>18}",
    ]


def _row(row: dict[str, Any]) -> str:
    return f"{row['size']:>7.4g} {row['realised']:>9.4f} {row['params']:>14,} {row['macs']:>18,} {row['macs_conv_linear']:>18,}"


def _note(model: Any) -> str:
    side, text = model.config["sample_size"], f" and {TEXT_TOKENS} text tokens" if isinstance(model, UNet2DConditionModel) else ""
    size = f"{model.config['in_channels']} x {side} x {side}"
    return f"MACs: one forward pass on one input of {size}{text}, with attention's matrix products, and without."
