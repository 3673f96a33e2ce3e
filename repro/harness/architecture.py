"""What diffusers' JSON files say of a network and a sampler; only what this program itself builds is taken from them.

The files may come from a stranger: whatever a file names is compared with what is built here, and never looked up, imported or allocated.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from repro.config import Diffusion, build
from repro.harness.reading import read_json
from repro.networks import Network, Transformer

SAMPLERS = {"DDIMScheduler": DDIMScheduler, "DDPMScheduler": DDPMScheduler}
# The settings of a sampler, beside its noise schedule, that are taken from a file; all others must be diffusers' defaults.
FREE: dict[str, tuple[Any, ...]] = {
    "clip_sample": (True, False),
    "set_alpha_to_one": (True, False),
    "steps_offset": (0, 1),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
# What diffusers' `EMAModel` writes among a network's settings: how the average was taken, which changes nothing in its use.
OF_AVERAGE = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")


def unet_arguments(settings: Network) -> dict[str, Any]:
    """Returns a configured architecture in the words of diffusers' `UNet2DModel`."""
    return {
        "sample_size": settings.sample_size,
        "in_channels": settings.channels,
        "out_channels": settings.channels,
        "block_out_channels": settings.block_out_channels,
        "down_block_types": settings.down_block_types,
        "up_block_types": settings.up_block_types,
        "layers_per_block": settings.layers_per_block,
        "norm_num_groups": settings.norm_num_groups,
        "norm_eps": settings.norm_eps,
        "attention_head_dim": settings.attention_head_dim or None,
        "flip_sin_to_cos": settings.flip_sin_to_cos,
        "freq_shift": settings.freq_shift,
        "downsample_padding": settings.downsample_padding,
    }


def transformer_arguments(settings: Transformer) -> dict[str, Any]:
    """Returns a configured architecture in the words of diffusers' `DiTTransformer2DModel`."""
    return {
        "sample_size": settings.sample_size,
        "in_channels": settings.channels,
        "out_channels": settings.channels,
        "patch_size": settings.patch_size,
        "num_layers": settings.num_layers,
        "num_attention_heads": settings.num_attention_heads,
        "attention_head_dim": settings.attention_head_dim,
        "num_embeds_ada_norm": 1,
    }


def read_settings(path: Path, *class_names: str) -> tuple[str, dict[str, Any]]:
    """Returns which of some classes a file describes, and what it says of it, without what it says of itself.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON, or says something of another class.
    """
    settings = read_json(path)
    name = settings.get("_class_name") if isinstance(settings, dict) else None
    if name not in class_names:
        raise ValueError(f"{path.name} describes no {' or '.join(class_names)}")
    return str(name), {key: value for key, value in settings.items() if not key.startswith("_")}


def network_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the UNet that a file describes; the widths among them are for the network to check.

    Raises:
        ReproError: A setting is of the wrong kind or out of range.
        ValueError: It is no network that this program builds.
        KeyError: It says too little.
    """
    given = _defaults(UNet2DModel) | settings
    heads = given["attention_head_dim"]
    network = _section(Network, given | {"attention_head_dim": 0 if heads is None else heads})
    return _agreed(given, UNet2DModel, unet_arguments(network) | {"dropout": network.dropout})


def dit_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the transformer that a file describes; likewise."""
    given = _defaults(DiTTransformer2DModel) | settings
    transformer = _section(Transformer, given)
    return _agreed(given, DiTTransformer2DModel, transformer_arguments(transformer) | {"dropout": transformer.dropout})


def _section(section: type, given: Mapping[str, Any]) -> Any:
    """Returns a section of a configuration with the values of diffusers' arguments."""
    return build(section, {name: _plain(given[name]) for name in _fields(section) - {"channels"}} | {"channels": given["in_channels"]})


def _agreed(given: dict[str, Any], whole: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments and the widths, once everything else that was given is what is built here."""
    widths = given.pop("widths", None)
    given = {key: value for key, value in given.items() if key not in OF_AVERAGE}
    _compare(given, _defaults(whole) | arguments)
    return arguments | {"widths": widths}


def _defaults(network: type) -> dict[str, Any]:
    """Returns what diffusers takes where nothing is said."""
    parameters = inspect.signature(network.__init__).parameters  # type: ignore[misc]
    return {name: value.default for name, value in parameters.items() if name != "self"}


def sampler(name: str, settings: dict[str, Any]) -> DDIMScheduler | DDPMScheduler:
    """Returns the sampler that a file describes.

    Args:
        name: Of its class, one of `SAMPLERS`.
        settings: What the file says of it.

    Raises:
        ReproError: A setting is of the wrong kind or out of range.
        ValueError: It is no sampler that this program builds.
        KeyError: It says too little.
    """
    schedule = build(Diffusion, {key: settings[key] for key in _fields(Diffusion)})
    free = {key: value for key, value in settings.items() if (type(value), value) in [(type(known), known) for known in FREE.get(key, ())]}
    scheduler = SAMPLERS[name](**dataclasses.asdict(schedule), **free)
    _compare(settings, scheduler.config)
    return scheduler


def _compare(given: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises a `ValueError` at the first setting that differs from what is built here."""
    for key, value in given.items():
        if key not in ours or _plain(value) != _plain(ours[key]):
            raise ValueError(f"its {key} is {value!r:.80}, which nothing here has")


def _fields(section: type) -> set[str]:
    return {item.name for item in dataclasses.fields(section)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
