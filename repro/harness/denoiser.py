"""Denoisers: building the base, and saving and loading a network whose widths differ from layer to layer.

A pruned network's widths do not fit `UNet2DModel.from_pretrained`; `PrunedUNet2DModel` keeps them in its configuration and rebuilds them.
A folder that `save_denoiser` wrote is a diffusers pipeline: `DDIMPipeline.from_pretrained(folder)` samples from it. `load_denoiser` and
`load_pipeline` take such a folder from anybody: they read nothing but plain values and tensors, and build nothing but what is built here.
"""

import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from safetensors import SafetensorError
from torch import nn

from repro.config import Network
from repro.errors import ReproError, storage_error
from repro.harness.architecture import network_arguments, read_settings, sampler, unet_arguments
from repro.harness.weights import load_weights
from repro.ofa.supernet import reshape_modules

# diffusers looks for ModelMixin in the module that defines a network.
__all__ = ["ModelMixin", "PrunedUNet2DModel"]

Widths = dict[str, list[int]]

NETWORK, NETWORK_CONFIG, WEIGHTS = "unet", "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


class PrunedUNet2DModel(UNet2DModel):
    """A `UNet2DModel` some of whose layers are narrower than its configuration's widths say.

    Args:
        widths: For every layer that differs, the shape of its weight in channels: [out, in] of a convolution or linear layer, [channels]
            of a normalisation.
        **kwargs: What `UNet2DModel` takes (diffusers wants this name).
    """

    @register_to_config
    def __init__(self, widths: Widths | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if widths:
            _apply_widths(self, widths)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Tells diffusers which configuration keys belong to this class: its own and those of the plain network."""
        own = set(inspect.signature(input_class).parameters) | {"self"}
        return own | set(inspect.signature(UNet2DModel).parameters) if issubclass(input_class, PrunedUNet2DModel) else own


def build_base(settings: Network, *, seed: int, dropout: float = 0.0) -> UNet2DModel:
    """Builds the base with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**unet_arguments(settings), dropout=dropout)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets the probability of every dropout layer."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def channel_widths(model: nn.Module) -> Widths:
    """Returns the widths of every convolution, linear and normalisation layer: [out, in] or [channels]."""
    layers = (nn.Conv2d, nn.Linear, nn.GroupNorm)
    return {name: list(module.weight.shape[:2]) for name, module in model.named_modules() if isinstance(module, layers)}


def as_pruned_unet(model: UNet2DModel) -> PrunedUNet2DModel:
    """Returns the same network, sharing its weights, as the class that can be saved and loaded with its widths."""
    unet = {key: model.config[key] for key in inspect.signature(UNet2DModel.__init__).parameters if key in model.config}
    with torch.device("meta"):
        reference = channel_widths(UNet2DModel(**unet))
        widths = {name: width for name, width in channel_widths(model).items() if width != reference[name]}
        pruned: PrunedUNet2DModel = PrunedUNet2DModel(widths=widths, **unet)
    pruned.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    pruned.train(model.training)
    return pruned


def save_denoiser(model: UNet2DModel, scheduler: DDIMScheduler, folder: Path, *, card: str = "") -> None:
    """Saves a network and its scheduler as a diffusers pipeline: safetensors and JSON, nothing pickled.

    It is written under a temporary name and renamed, so that a reader never sees half of it.

    Args:
        model: The network.
        scheduler: Its sampler.
        folder: The folder to make, in place of one that is there.
        card: The text of its README.md; none is written where it is empty.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    pipeline = DDIMPipeline(unet=as_pruned_unet(model), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        if card:
            (temporary / "README.md").write_text(card)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_denoiser(folder: Path) -> PrunedUNet2DModel:
    """Loads a network that `save_denoiser` wrote; the folder may come from a stranger.

    Raises:
        ReproError: The folder holds no such network, or a damaged one.
    """
    try:
        arguments = network_arguments(read_settings(folder / NETWORK / NETWORK_CONFIG, "PrunedUNet2DModel"))
        with torch.device("meta"):
            model: PrunedUNet2DModel = PrunedUNet2DModel(**arguments)
            _try_out(model)
        load_weights(model, folder / NETWORK / WEIGHTS)
        model.eval()
    except Exception as error:  # diffusers raises errors of many kinds for one reason: the folder is not what it should be
        raise _unreadable(folder, "network", error) from error
    return model


def load_pipeline(folder: Path | str) -> DDIMPipeline:
    """Loads a network and its sampler that `save_denoiser` wrote; the folder may come from a stranger.

    Raises:
        ReproError: The folder holds no such pipeline, or a damaged one.
    """
    model = load_denoiser(Path(folder))
    try:
        scheduler = sampler(read_settings(Path(folder) / SCHEDULER_CONFIG, "DDIMScheduler"))
    except (OSError, ValueError, KeyError, ReproError) as error:
        raise _unreadable(Path(folder), "sampler", error) from error
    return DDIMPipeline(unet=model, scheduler=scheduler)


def count_params(parameters: Iterable[torch.Tensor]) -> int:
    """Returns the number of scalars."""
    return sum(parameter.numel() for parameter in parameters)


@torch.no_grad()
def _try_out(model: UNet2DModel) -> None:
    """Computes without numbers, which fails where the widths of one layer do not fit those of the next."""
    size = model.config["sample_size"]
    model(torch.empty(1, model.config["in_channels"], size, size), torch.zeros(1))


def _narrows(width: Any, whole: list[int]) -> bool:
    """Says whether a layer's width is that of the whole network's layer or less."""
    if not isinstance(width, list | tuple) or len(width) != len(whole):
        return False
    return all(type(channels) is int and 1 <= channels <= most for channels, most in zip(width, whole, strict=True))


def _unreadable(folder: Path, what: str, error: Exception) -> ReproError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ReproError(f"{folder}: not a readable {what} ({reason}); delete the folder and run its cell again, or fetch it again")


def _apply_widths(model: UNet2DModel, widths: Widths) -> None:
    """Reshapes layers to the widths and gives the reshaped parameters storage, uninitialised, where the model has it."""
    device, whole = next(model.parameters()).device, channel_widths(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in widths.items():
        if name not in whole or not _narrows(width, whole[name]):
            raise ReproError(f"widths: {name} is {width!r:.80}, and the whole network's {whole.get(name, 'has no such layer')}")
        weight = model.get_submodule(name).weight
        shapes[f"{name}.weight"] = (*width, *weight.shape[len(width) :])
        if getattr(model.get_submodule(name), "bias", None) is not None:
            shapes[f"{name}.bias"] = (width[0],)
    reshape_modules(model, shapes)
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device != device:
                setattr(module, leaf, nn.Parameter(torch.empty_like(parameter, device=device)))
