"""Sizes of any network of diffusers: the answer of `python -m repro sizes --network`, counted without weights."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT
from torch import nn
from torch.utils._pytree import tree_leaves

from repro.config import SHIPPED, Allocation
from repro.config.sections import MOST_BLOCKS, MOST_CHANNELS
from repro.errors import ReproError
from repro.files.placeholders import refuse_placeholder
from repro.files.reading import read_json
from repro.models.cost import Macs, count_macs, count_params
from repro.models.denoiser import NETWORK, NETWORK_CONFIG, PrunedDiT2DModel, PrunedUNet2DModel
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import Pipe, pipes_of
from repro.ofa.supernet import Supernet
from repro.size_text import size_text
from repro.text_table import text_table

NETWORKS = SHIPPED / "networks"
CLASSES = {
    **{each.__name__: each for each in (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel)},
    **{each.__name__: each for each in (PrunedUNet2DModel, PrunedDiT2DModel)},
}
TITLES = ("P", "realised", "params", "MACs", "conv+linear")
REPORTED = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # the paper's
TEXT_TOKENS = 77  # of CLIP, which conditions Stable Diffusion
TIME_IDS = 6
# Settings that multiply modules: an untrusted file must not ask for more than any network has.
REPEATED = ("num_layers", "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
Size = tuple[int, int]


def describe_network(name: str, *, only: Sequence[float] | None, rule: str | None, as_json: bool, sample_size: Size | None = None) -> str:
    """Returns a table, or JSON, of the sizes of a network: P, realised size, parameters, MACs; its channels count as equally important.

    Args:
        name: A network that this program ships, or a JSON file or folder of diffusers.
        only: The sizes to show; None shows those that the paper reports.
        rule: The allocation rule; None takes `uniform`, which no importance would change.
        as_json: Whether to return JSON.
        sample_size: [H, W] of the images or latents that are counted on; None takes what the network is made for.

    Raises:
        ReproError: It is no such network, it says no size of its images and none is given, or a size lies outside (0, 1].
    """
    for size in only or []:
        if not 0 < size <= 1:
            raise ReproError(f"--sizes {size_text(size)}: a size must lie in (0, 1]")
    path = _config_path(name)
    model = _on_meta(path, sample_size)
    inputs = _size_of(model, path)
    _check_size(model, inputs, path)
    pipes, settings = pipes_of(model), Allocation(rule=rule or "uniform")
    sizes = tuple(sorted(only or REPORTED, reverse=True))
    equal = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    params_base = count_params(model.parameters())
    plan = make_plan(pipes, equal, sizes, params_base=params_base, rule=settings.rule, floor=settings.floor)
    supernet = Supernet(model, pipes, plan)
    rows = []
    for size in sizes:
        macs = _macs(supernet.extract(size), model, inputs, path)
        row = {"size": size, "realised": plan.realised(size), "params": plan.params[size], "macs": macs.total}
        rows.append(row | {"macs_conv_linear": macs.conv_linear})
    if as_json:
        return json.dumps({"network": name, "allocation": settings.rule, "pipes": _count(pipes), "sizes": rows}, indent=2)
    heading = _heading(name, pipes, plan.params_internal / params_base, settings.rule)
    return "\n".join([*heading, "", *text_table([TITLES, *map(_row, rows)], "rrrrr"), "", _note(model, inputs)])


def _config_path(name: str) -> Path:
    shipped = {path.stem: path for path in NETWORKS.glob("*.json")}
    given = shipped.get(name, Path(name))
    for path in (given, given / NETWORK_CONFIG, *(given / folder / NETWORK_CONFIG for folder in (NETWORK, "transformer"))):
        if path.is_file():
            return path
    raise ReproError(f"--network {name}: no such network; name {', '.join(sorted(shipped))}, or a folder or JSON file that diffusers saved")


def _on_meta(path: Path, size: Size | None) -> Any:
    """Builds the network that a file describes on the meta device; its class must be on the allow-list.

    Args:
        path: The `config.json`.
        size: [H, W] in place of the size that the file names.
    """
    refuse_placeholder(path)
    try:
        settings = read_json(path)
        network = _class(settings)
        if settings.get("widths"):
            raise ValueError("it is a pruned network; name the whole one that it was cut from")
        for key in REPEATED:
            if any(count > MOST_BLOCKS for count in tree_leaves(settings.get(key)) if isinstance(count, int)):
                raise ValueError(f"its {key} is {settings[key]!r:.80}, more than {MOST_BLOCKS}")
        if size is not None:
            settings["sample_size"] = size[0] if size[0] == size[1] else list(size)
        with torch.device("meta"):
            return network.from_config({key: value for key, value in settings.items() if key != "widths"})
    except Exception as error:  # diffusers raises errors of many kinds for one reason: the file describes no network of its
        raise ReproError(f"{path}: describes no network that is counted here ({_brief(error)}); name a config.json of diffusers") from error


def _class(settings: Any) -> Any:
    """Returns the class of a network by its present or former name, from the allow-list alone."""
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    # diffusers' own table: what was one class is one for each kind of normalisation today.
    name = _CLASS_REMAPPING_DICT.get(str(name), {}).get(str(settings.get("norm_type")), name) if name else name
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"its _class_name is {name!r:.80}, none of {', '.join(CLASSES)}")
    return CLASSES[name]


def _size_of(model: Any, path: Path) -> Size:
    """Returns [H, W] of the images or latents that a network is made for.

    Raises:
        ReproError: It leaves that open, or says something else.
    """
    sides = model.config["sample_size"]
    size = (sides, sides) if isinstance(sides, int) else tuple(sides) if isinstance(sides, list | tuple) else ()
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MOST_CHANNELS for side in size):
        raise ReproError(f"{path}: its sample_size is {sides!r:.80}; say for which images to count, such as --sample-size 64")
    return size[0], size[1]


def _check_size(model: Any, size: Size, path: Path) -> None:
    """Checks that a UNet's levels can halve a size, or that a transformer's patches fill it."""
    divisor = 2 ** (len(model.config["block_out_channels"]) - 1) if isinstance(model, UNet2DModel) else model.config.get("patch_size") or 1
    if any(side % divisor for side in size):
        near = " x ".join(str(max(divisor, side // divisor * divisor)) for side in size)
        raise ReproError(f"{path}: cannot denoise {size[0]} x {size[1]}: a multiple of {divisor} is needed, such as --sample-size {near}")


def _macs(subnet: nn.Module, model: Any, size: Size, path: Path) -> Macs:
    """Counts the MACs of one image, or of one latent with what it is conditioned on."""
    try:
        return count_macs(subnet, (model.config["in_channels"], *size), **_conditioning(model))
    except Exception as error:  # the dummy conditioning does not fit: one of another kind
        raise ReproError(
            f"{path}: cannot be counted ({_brief(error)}); only images, labels, text and SDXL's added conditions are"
        ) from error


def _conditioning(model: Any) -> dict[str, Any]:
    """Returns dummy conditioning of the right shapes, on the meta device: labels, text embeddings, added conditions."""
    config, made = model.config, dict[str, Any]()
    if isinstance(model, DiTTransformer2DModel) or _has_labels(config):
        made["class_labels"] = _labels(model)
    if isinstance(model, UNet2DConditionModel):
        text = config["encoder_hid_dim"] or config["cross_attention_dim"]
        text = text[0] if isinstance(text, list | tuple) else text
        made["encoder_hidden_states"] = torch.empty(1, TEXT_TOKENS, text, device="meta")
        if config["addition_embed_type"] == "text_time":  # SDXL: a summary of the text, and six numbers on the picture's size and crop
            summary = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
            shapes = {"text_embeds": (1, summary), "time_ids": (1, TIME_IDS)}
            made["added_cond_kwargs"] = {key: torch.empty(*shape, device="meta") for key, shape in shapes.items()}
        if config["time_cond_proj_dim"]:  # of a consistency model: its guidance
            made["timestep_cond"] = torch.empty(1, config["time_cond_proj_dim"], device="meta")
    return made


def _has_labels(config: Any) -> bool:
    return bool(config.get("class_embed_type") or config.get("num_class_embeds"))


def _labels(model: Any) -> torch.Tensor:
    """Returns dummy labels: class indices, or vectors where a network projects these."""
    width = {"identity": lambda: model.time_embedding.linear_2.out_features}
    width |= dict.fromkeys(("projection", "simple_projection"), lambda: model.config["projection_class_embeddings_input_dim"])
    kind = model.config.get("class_embed_type")
    return torch.empty(1, width[kind](), device="meta") if kind in width else torch.zeros(1, dtype=torch.int64, device="meta")


def _brief(error: Exception) -> str:
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.200}"


def _count(pipes: tuple[Pipe, ...]) -> dict[str, int]:
    return dict(Counter(pipe.kind for pipe in pipes))


def _heading(name: str, pipes: tuple[Pipe, ...], share: float, rule: str) -> list[str]:
    kinds = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in _count(pipes).items())
    return [
        f"{name}, allocation {rule}, by equal importances",
        f"{len(pipes)} pipes ({kinds}) hold {share:.1%} of the parameters",
    ]


def _row(row: dict[str, Any]) -> list[str]:
    return [f"{row['size']:.4g}", f"{row['realised']:.4f}", *(f"{row[key]:,}" for key in ("params", "macs", "macs_conv_linear"))]


def _note(model: Any, size: Size) -> str:
    beside = [f"{TEXT_TOKENS} text tokens"] if isinstance(model, UNet2DConditionModel) else []
    beside += ["a label"] if _has_labels(model.config) else []
    beside += ["SDXL's added conditions"] if model.config.get("addition_embed_type") else []
    shape = " x ".join(map(str, (model.config["in_channels"], *size)))
    return f"MACs: one forward pass on {' and '.join([f'one input of {shape}', *beside])}, with attention's matrix products, and without."
