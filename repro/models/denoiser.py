"""Denoisers: building the base, and saving and loading a network whose widths differ from layer to layer.

A pruned network's widths do not fit diffusers' own classes; `PrunedUNet2DModel` and `PrunedDiT2DModel` keep them in their configuration and
rebuild them.
A folder that `save_denoiser` wrote is a diffusers pipeline: `DiffusionPipeline.from_pretrained(folder)` samples from it once this module is
imported, and without this package by the code that lies in the folder. `load_denoiser` and `load_pipeline` take such a folder from anybody:
they read nothing but plain values and tensors, build nothing but what is built here, and run no code of the folder.
"""

import inspect
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ModelMixin,
    SchedulerMixin,
    UNet2DModel,
    pipelines,
)
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from torch import nn

from repro.config.networks import Architecture, Denoiser, Network, SongUNet, Transformer, UViT
from repro.errors import ReproError, storage_error
from repro.files.placeholders import refuse_placeholder
from repro.files.weights import WEIGHTS, load_weights, weight_files
from repro.models.architecture import (
    SAMPLERS,
    dit_arguments,
    given_arguments,
    network_arguments,
    own_arguments,
    read_settings,
    same_arguments,
    sampler,
    transformer_arguments,
    unet_arguments,
)
from repro.models.narrowed import (
    MODULE,
    PrunedDiT2DModel,
    PrunedSongUNet,
    PrunedUNet2DModel,
    PrunedUViT,
    Widths,
    channel_widths,
    narrowed,
    try_out,
)

__all__ = [
    "NETWORK",
    "NETWORK_CONFIG",
    "WEIGHTS",
    "ModelMixin",  # diffusers looks for it in the module that defines a network
    "PrunedDenoiser",
    "PrunedDiT2DModel",
    "PrunedSongUNet",
    "PrunedUNet2DModel",
    "PrunedUViT",
    "Widths",
    "as_pruned",
    "build_base",
    "channel_widths",
    "count_params",
    "load_denoiser",
    "load_pipeline",
    "save_denoiser",
    "set_dropout",
    "with_widths",
]

NETWORK, NETWORK_CONFIG = "unet", "config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"

# diffusers looks for a network's module among its own pipelines before it runs a folder's file of that name: where this package is
# imported, that file is not run, and `trust_remote_code` is not needed.
setattr(pipelines, MODULE, sys.modules[__name__])

PrunedDenoiser = PrunedUNet2DModel | PrunedDiT2DModel
NARROWED: dict[type, Any] = {UNet2DModel: PrunedUNet2DModel, DiTTransformer2DModel: PrunedDiT2DModel}
BUILDERS: dict[type, Callable[[Any], Any]] = {
    Network: lambda settings: UNet2DModel(**unet_arguments(settings)),
    Transformer: lambda settings: PrunedDiT2DModel(**transformer_arguments(settings)),
    SongUNet: lambda settings: PrunedSongUNet(**own_arguments(settings)),
    UViT: lambda settings: PrunedUViT(**own_arguments(settings)),
}
READERS: dict[str, tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "PrunedUNet2DModel": (PrunedUNet2DModel, network_arguments),
    "PrunedDiT2DModel": (PrunedDiT2DModel, dit_arguments),
    "PrunedSongUNet": (PrunedSongUNet, partial(given_arguments, SongUNet)),
    "PrunedUViT": (PrunedUViT, partial(given_arguments, UViT)),
}


def build_base(settings: Denoiser, *, seed: int) -> Any:
    """Builds the base, a `UNet2DModel`, or another class's that is whole, with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if type(settings) in BUILDERS:
            return BUILDERS[type(settings)](settings)
        assert isinstance(settings, Architecture), settings
        model = settings.build()
        whole: Any = type(model)
        own = narrowed(whole)(**_arguments(model, whole))
        own.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        return own


def meta_base(settings: Denoiser) -> Any:
    """Builds the base on the meta device: its layers and shapes, without storage."""
    with torch.device("meta"):
        return build_base(settings, seed=0)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets the dropout of every network that is trained: in the residual units of a UNet, in the feed-forward units of a transformer.

    Attention has none, as in DDPM (Ho et al., 2020), EDM (Karras et al., 2022) and Diff-Pruning's code.
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    spared = {id(layer) for attention in attentions for layer in attention.modules()}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if id(module) in spared else probability


def as_pruned(model: ModelMixin) -> PrunedDenoiser:
    """Returns the same network, sharing its weights, as the class that can be saved and loaded with its widths.

    Raises:
        ReproError: It is of a class that has no such counterpart.
    """
    whole = getattr(type(model), "whole", None) or next((known for known in NARROWED if isinstance(model, known)), None)
    if whole is None:
        known = " or ".join(each.__name__ for each in NARROWED)
        raise ReproError(f"{type(model).__name__}: cannot be saved with its widths; only a {known} can")
    of_widths, arguments = NARROWED[whole] if whole in NARROWED else narrowed(whole), _arguments(model, whole)
    with torch.device("meta"):
        reference = channel_widths(whole(**arguments))
        widths = {name: width for name, width in channel_widths(model).items() if width != reference[name]}
        pruned: PrunedDenoiser = of_widths(widths=widths, **arguments)
    pruned.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    pruned.train(model.training)
    return pruned


def _arguments(model: ModelMixin, whole: type) -> dict[str, Any]:
    """Returns what a network was made with, in the words of its whole class."""
    return {key: model.config[key] for key in inspect.signature(whole).parameters if key in model.config}


def with_widths(model: ModelMixin, widths: Widths) -> PrunedDenoiser:
    """Returns a network of the widths that a record holds, its weights those of the whole one, cut: for its cost, not for its images.

    Raises:
        ReproError: The widths are another network's.
    """
    whole = as_pruned(model)
    try:
        with torch.device("meta"):
            narrow: PrunedDenoiser = type(whole)(**{**whole.config, "widths": widths})
    except ValueError as error:
        raise ReproError(str(error)) from error
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    cut = {name: tensor[tuple(map(slice, shapes[name]))].clone() for name, tensor in whole.state_dict().items()}
    narrow.load_state_dict(cut, assign=True)
    return narrow


def save_denoiser(model: ModelMixin, scheduler: SchedulerMixin, folder: Path, *, files: Mapping[str, bytes] | None = None) -> None:
    """Saves a network and its scheduler: safetensors and JSON, nothing pickled; as a pipeline where diffusers has one.

    It is written under a temporary name and renamed, so that a reader never sees half of it.

    Args:
        model: The network.
        scheduler: Its sampler.
        folder: The folder to make, in place of one that is there.
        files: What else it holds, by name.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        pruned = as_pruned(model)
        if kind := _pipeline_of(pruned, scheduler):
            pipeline = kind(unet=pruned, scheduler=scheduler)
            pipeline.set_progress_bar_config(disable=True)
            pipeline.save_pretrained(temporary, safe_serialization=True)
        else:
            pruned.save_pretrained(temporary / NETWORK, safe_serialization=True)
            scheduler.save_pretrained(temporary / "scheduler")
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        for weights in temporary.rglob("*.safetensors"):  # safetensors lets nobody else read them
            weights.chmod((temporary / NETWORK / "config.json").stat().st_mode)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pipeline_of(model: ModelMixin, scheduler: SchedulerMixin) -> Any:
    """Returns the class of diffusers' pipeline that samples from a network with a scheduler; None where there is none.

    The pipeline of consistency models is the one that passes labels on, and that scales a network's input as its scheduler asks.
    """
    plain = {DDIMScheduler: DDIMPipeline, DDPMScheduler: DDPMPipeline}
    if type(scheduler) in plain and getattr(model, "class_embedding", None) is None:
        return plain[type(scheduler)]
    asked = "num_class_embeds" in model.config  # which it reads, and a DiT has not
    return ConsistencyModelPipeline if asked and type(scheduler) in SAMPLERS.values() else None


def load_denoiser(folder: Path | str, own: Denoiser | None = None) -> PrunedDenoiser:
    """Loads a network that `save_denoiser`, or `save_pretrained` of the network, wrote; the folder may come from a stranger.

    Args:
        folder: A pipeline's, or that of the network alone. Its weights are safetensors: one file, one variant, or all shards.
        own: The configured architecture, which is the only one that is taken where it is a script's own.

    Returns:
        The network, in float32 and evaluation mode.

    Raises:
        ReproError: The folder holds no such network, or a damaged one.
    """
    folder = Path(folder)
    place = folder if (folder / NETWORK_CONFIG).is_file() else folder / NETWORK
    refuse_placeholder(place / NETWORK_CONFIG, *sorted(place.glob("*.safetensors")))
    try:
        readers = READERS if own is None or type(own) in BUILDERS else _own_reader(own)
        name, settings = read_settings(place / NETWORK_CONFIG, *readers)
        of_widths, arguments_of = readers[name]
        with torch.device("meta"):
            model: PrunedDenoiser = of_widths(**arguments_of(settings))
            if not model.config["widths"]:  # otherwise it was tried when it was built
                try_out(model)
        load_weights(model, *weight_files(place))
        model.eval()
    except Exception as error:  # diffusers raises errors of many kinds for one reason: the folder is not what it should be
        remedy = "delete the folder and run its cell again, or fetch it again"
        raise _unreadable(folder, "network", error, remedy) from error
    return model


def _own_reader(settings: Denoiser) -> dict[str, Any]:
    """Returns the one class that a script's architecture is saved as, and what its arguments must be."""
    whole = meta_base(settings)
    return {type(whole).__name__: (type(whole), partial(same_arguments, _arguments(whole, whole.whole)))}


def load_pipeline(folder: Path | str) -> DiffusionPipeline:
    """Loads a network and its sampler that `save_denoiser` wrote; the folder may come from a stranger.

    Returns:
        A `DDIMPipeline` or a `DDPMPipeline`, by the folder's sampler; a `ConsistencyModelPipeline` under EDM and VP, and with classes.

    Raises:
        ReproError: The folder holds no such pipeline, or a damaged one.
    """
    model = load_denoiser(Path(folder))
    try:
        scheduler = sampler(*read_settings(Path(folder) / SCHEDULER_CONFIG, *SAMPLERS))
        if (kind := _pipeline_of(model, scheduler)) is None:
            raise ValueError(f"diffusers has no pipeline for a {type(model).__name__} with a {type(scheduler).__name__}")
    except (OSError, ValueError, KeyError, ReproError) as error:
        remedy = f"load the network alone, load_denoiser(Path({str(folder)!r})), and give it a scheduler of your own"
        raise _unreadable(Path(folder), "sampler", error, remedy) from error
    return kind(unet=model, scheduler=scheduler)


def count_params(parameters: Iterable[torch.Tensor]) -> int:
    """Returns the number of scalars."""
    return sum(parameter.numel() for parameter in parameters)


def _unreadable(folder: Path, what: str, error: Exception, remedy: str) -> ReproError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ReproError(f"{folder}: not a readable {what} ({reason}); {remedy}")
