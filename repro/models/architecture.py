"""Reads diffusers' config.json against an allow-list: only networks and samplers that this package builds.

The files may come from a stranger: whatever a file names is compared with what is built here, and never looked up, imported or allocated.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    SchedulerMixin,
    UNet2DModel,
)

from repro.config import Diffusion, build
from repro.config.networks import Architecture, Network, Transformer
from repro.files.reading import read_json

# Those of DDPM, of EDM and of VP.
KINDS = (DDIMScheduler, DDPMScheduler, EDMDPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)
SAMPLERS: dict[str, Any] = {kind.__name__: kind for kind in KINDS}
SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
# The settings of a sampler, beside its noise schedule, that are taken from a file; all others must be diffusers' defaults.
FREE: dict[str, tuple[Any, ...]] = {
    "clip_sample": (True, False),
    "set_alpha_to_one": (True, False),
    "solver_order": (2, 3),
    "lambda_min_clipped": (-1e9,),  # nothing, as under VP
    "steps_offset": (0, 1),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
# What [network] says where an argument of diffusers is None; 0 where nothing stands here.
ABSENT = {"class_embed_type": "none", "mid_block_type": "none"}
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
        "num_class_embeds": settings.num_class_embeds or None,
        "resnet_time_scale_shift": settings.resnet_time_scale_shift,
        "downsample_type": settings.downsample_type,
        "upsample_type": settings.upsample_type,
        "attn_norm_num_groups": settings.attn_norm_num_groups or None,
        "class_embed_type": None if settings.class_embed_type == "none" else settings.class_embed_type,
        "mid_block_type": None if settings.mid_block_type == "none" else settings.mid_block_type,
        "mid_block_scale_factor": settings.mid_block_scale_factor,
        "add_attention": settings.add_attention,
        "act_fn": settings.act_fn,
        "time_embedding_dim": settings.time_embedding_dim or None,
        "center_input_sample": settings.center_input_sample,
    }


def unet_section(arguments: Mapping[str, Any]) -> Network:
    """Returns arguments of diffusers' `UNet2DModel` as the section `network`.

    Raises:
        ReproError: One that the section has a key for is of the wrong kind or out of range; the message begins with the key.
    """
    said = {key: ABSENT.get(key, 0) if value is None else value for key, value in arguments.items()}
    return cast(Network, _section(Network, said))


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


def own_arguments(settings: Architecture) -> dict[str, Any]:
    """Returns a configured architecture in the words of its network in `narrowed`, which are the keys of its section."""
    named = {key: getattr(settings, key) for key in sorted(_fields(type(settings)) - {"channels"})}
    return named | {"in_channels": settings.channels, "num_class_embeds": named["num_class_embeds"] or None}


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
    network = unet_section(given)
    return _agreed(given, UNet2DModel, unet_arguments(network) | {"dropout": network.dropout})


def dit_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the transformer that a file describes; likewise."""
    given = _defaults(DiTTransformer2DModel) | settings
    transformer = _section(Transformer, given)
    return _agreed(given, DiTTransformer2DModel, transformer_arguments(transformer) | {"dropout": transformer.dropout})


def given_arguments(section: type[Architecture], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a network of `narrowed` that a file describes; likewise."""
    widths = settings.pop("widths", None)
    arguments = own_arguments(_section(section, settings | {"num_class_embeds": settings["num_class_embeds"] or 0}))
    _compare(settings, arguments)
    return arguments | {"widths": widths}


def same_arguments(ours: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments and widths of a network of a script's architecture, once its file says what the configuration does.

    Raises:
        ValueError: It says something else.
    """
    widths = settings.pop("widths", None)
    _compare(settings, ours)
    return ours | {"widths": widths}


def _section(section: type, given: Mapping[str, Any]) -> Any:
    """Returns a section of a configuration with the values of diffusers' arguments."""
    return build(section, {name: _plain(given[name]) for name in _fields(section) - {"channels"}} | {"channels": given["in_channels"]})


def _agreed(given: dict[str, Any], whole: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments and the widths, once everything else that was given is what is built here."""
    widths = given.pop("widths", None)
    given = {key: value for key, value in given.items() if key not in OF_AVERAGE}
    _compare(given, _defaults(whole) | arguments)
    return arguments | {"widths": widths}


def _defaults(kind: type) -> dict[str, Any]:
    """Returns what a network or scheduler of diffusers takes where nothing is said."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: value.default for name, value in parameters.items() if name != "self"}


def sampler(name: str, settings: dict[str, Any]) -> SchedulerMixin:
    """Returns the sampler that a file describes.

    Args:
        name: Of its class, one of `SAMPLERS`.
        settings: What the file says of it.

    Raises:
        ReproError: A setting is of the wrong kind or out of range.
        ValueError: It is no sampler that this program builds.
        KeyError: It says too little.
    """
    taken = _defaults(SAMPLERS[name])
    free = {key: value for key, value in settings.items() if (type(value), value) in [(type(known), known) for known in FREE.get(key, ())]}
    if "beta_schedule" in taken:  # EDM's noise levels are none of a discrete schedule
        schedule = build(Diffusion, {key: settings[key] for key in SCHEDULE})
        free |= {key: getattr(schedule, key) for key in SCHEDULE}
    scheduler: SchedulerMixin = SAMPLERS[name](**{key: value for key, value in free.items() if key in taken})
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
