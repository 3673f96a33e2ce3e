"""Denoisers: building the base, and saving and loading a network whose widths differ from layer to layer.

A pruned network's widths do not fit diffusers' own classes; `PrunedUNet2DModel` and `PrunedDiT2DModel` keep them in their configuration and
rebuild them.
A folder that `save_denoiser` wrote is a diffusers pipeline: `DDIMPipeline.from_pretrained(folder)` samples from it. `load_denoiser` and
`load_pipeline` take such a folder from anybody: they read nothing but plain values and tensors, and build nothing but what is built here.
"""

import inspect
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from torch import Tensor, nn

from repro.errors import ReproError, storage_error
from repro.harness.architecture import dit_arguments, network_arguments, read_settings, sampler, transformer_arguments, unet_arguments
from repro.harness.weights import load_weights
from repro.networks import Denoiser, Network
from repro.ofa.supernet import reshape_modules

# diffusers looks for ModelMixin in the module that defines a network.
__all__ = ["ModelMixin", "PrunedDiT2DModel", "PrunedUNet2DModel"]

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
        return _init_keys(input_class, PrunedUNet2DModel, UNet2DModel)


class PrunedDiT2DModel(DiTTransformer2DModel):
    """A `DiTTransformer2DModel` that has no classes, is called as a `UNet2DModel` is, and some of whose layers may be narrower.

    Args:
        widths: As of `PrunedUNet2DModel`.
        **kwargs: What `DiTTransformer2DModel` takes, with one class.
    """

    @register_to_config
    def __init__(self, widths: Widths | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # diffusers does not save the positions, and a network that is made on the meta device could not compute them.
        self.pos_embed.register_buffer("pos_embed", self.pos_embed.pos_embed, persistent=True)
        if widths:
            _apply_widths(self, widths)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Tells diffusers which configuration keys belong to this class."""
        return _init_keys(input_class, PrunedDiT2DModel, DiTTransformer2DModel)

    def forward(self, sample: Tensor, timestep: Tensor | int, return_dict: bool = True) -> Any:
        """Predicts the noise.

        Args:
            sample: Images [B, C, H, W].
            timestep: One for all of them, or [B].
            return_dict: Whether to return diffusers' output, whose `sample` is the noise [B, C, H, W], or a tuple with that alone.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        # What diffusers makes of a label that it drops, so that nothing changes where it drops one.
        unlabelled = torch.full((sample.shape[0],), self.config["num_embeds_ada_norm"], device=sample.device)
        return super().forward(sample, timesteps, unlabelled, return_dict=return_dict)


PrunedDenoiser = PrunedUNet2DModel | PrunedDiT2DModel
READERS = {"PrunedUNet2DModel": (PrunedUNet2DModel, network_arguments), "PrunedDiT2DModel": (PrunedDiT2DModel, dit_arguments)}


def build_base(settings: Denoiser, *, seed: int) -> Any:
    """Builds the base, a `UNet2DModel` or a `PrunedDiT2DModel` that is whole, with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(settings, Network):
            return UNet2DModel(**unet_arguments(settings))
        transformer = PrunedDiT2DModel(**transformer_arguments(settings))
        _start_as_identity(transformer)
        return transformer


@torch.no_grad()
def _start_as_identity(transformer: PrunedDiT2DModel) -> None:
    """Gives a transformer the initial weights of adaLN-Zero (Peebles and Xie, 2023, section 3.2), which diffusers leaves out.

    Linear layers are Xavier's; whatever scales a block's contribution, and the last layer, is zero.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(transformer.proj_out_1.weight)
    nn.init.zeros_(transformer.proj_out_2.weight)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets the dropout of every network that is trained: in the residual units of a UNet, in the feed-forward units of a transformer.

    Attention has none, as in DDPM (Ho et al., 2020), EDM (Karras et al., 2022) and Diff-Pruning's code.
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    spared = {id(layer) for attention in attentions for layer in attention.modules()}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if id(module) in spared else probability


def channel_widths(model: nn.Module) -> Widths:
    """Returns the widths of every convolution, linear and normalisation layer: [out, in] or [channels]."""
    layers = (nn.Conv2d, nn.Linear, nn.GroupNorm)
    return {name: list(module.weight.shape[:2]) for name, module in model.named_modules() if isinstance(module, layers)}


def as_pruned(model: ModelMixin) -> PrunedDenoiser:
    """Returns the same network, sharing its weights, as the class that can be saved and loaded with its widths."""
    unet = isinstance(model, UNet2DModel)
    whole, narrowed = (UNet2DModel, PrunedUNet2DModel) if unet else (DiTTransformer2DModel, PrunedDiT2DModel)
    arguments = {key: model.config[key] for key in inspect.signature(whole.__init__).parameters if key in model.config}
    with torch.device("meta"):
        reference = channel_widths(whole(**arguments))
        widths = {name: width for name, width in channel_widths(model).items() if width != reference[name]}
        pruned: PrunedDenoiser = narrowed(widths=widths, **arguments)
    pruned.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    pruned.train(model.training)
    return pruned


def with_widths(model: ModelMixin, widths: Widths) -> PrunedDenoiser:
    """Returns a network of the widths that a record holds, its weights those of the whole one, cut: for its cost, not for its images.

    Raises:
        ReproError: The widths are another network's.
    """
    whole = as_pruned(model)
    with torch.device("meta"):
        narrow: PrunedDenoiser = type(whole)(**{**whole.config, "widths": widths})
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    cut = {name: tensor[tuple(map(slice, shapes[name]))].clone() for name, tensor in whole.state_dict().items()}
    narrow.load_state_dict(cut, assign=True)
    return narrow


def save_denoiser(model: ModelMixin, scheduler: DDIMScheduler, folder: Path, *, files: Mapping[str, bytes] | None = None) -> None:
    """Saves a network and its scheduler as a diffusers pipeline: safetensors and JSON, nothing pickled.

    It is written under a temporary name and renamed, so that a reader never sees half of it.

    Args:
        model: The network.
        scheduler: Its sampler.
        folder: The folder to make, in place of one that is there.
        files: What else it holds, by name.

    Raises:
        ReproError: The folder cannot be written, or the disk is full.
    """
    pipeline = DDIMPipeline(unet=as_pruned(model), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_denoiser(folder: Path) -> PrunedDenoiser:
    """Loads a network that `save_denoiser` wrote; the folder may come from a stranger.

    Raises:
        ReproError: The folder holds no such network, or a damaged one.
    """
    try:
        name, settings = read_settings(folder / NETWORK / NETWORK_CONFIG, *READERS)
        narrowed, arguments_of = READERS[name]
        with torch.device("meta"):
            model: PrunedDenoiser = narrowed(**arguments_of(settings))
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
        _, settings = read_settings(Path(folder) / SCHEDULER_CONFIG, "DDIMScheduler")
        scheduler = sampler(settings)
    except (OSError, ValueError, KeyError, ReproError) as error:
        raise _unreadable(Path(folder), "sampler", error) from error
    return DDIMPipeline(unet=model, scheduler=scheduler)


def count_params(parameters: Iterable[torch.Tensor]) -> int:
    """Returns the number of scalars."""
    return sum(parameter.numel() for parameter in parameters)


@torch.no_grad()
def _try_out(model: PrunedDenoiser) -> None:
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


def _init_keys(asked: type, narrowed: type, whole: type) -> set[str]:
    """Returns the names of the arguments of a class, with those of the whole network where it is the narrowed one."""
    own = set(inspect.signature(asked).parameters) | {"self"}
    return own | set(inspect.signature(whole).parameters) if issubclass(asked, narrowed) else own


def _apply_widths(model: ModelMixin, widths: Widths) -> None:
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
