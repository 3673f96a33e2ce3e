"""Weights under the names that EDM's code (NVlabs) gives them, for `[song_unet]` (its SongUNet) and `[network]` (its DhariwalUNet, ADM).

Only the names and the layout are theirs: `enc` and `dec` hold units by resolution, a unit's attention has one layer for queries, keys and
values, whose rows are interleaved (row 3 c + t is channel c of t, for every head), and resampling layers keep their filter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repro.config.networks import Denoiser, Network, SongUNet
from repro.errors import ReproError
from repro.files.weights import FLOATS, compare, finite

PREFIX = "model."  # the network's, in what preconditions it
BEGINNING = f"{PREFIX}enc."
FILTER = ".resample_filter"
RESIDUAL = {"norm0": "norm1", "conv0": "conv1", "affine": "time_emb_proj", "norm1": "norm2", "conv1": "conv2", "skip": "conv_shortcut"}
ATTENTION = {"norm2": "group_norm", "proj": "to_out.0"}
EMBEDDING = {"map_layer0": "time_embedding.linear_1", "map_layer1": "time_embedding.linear_2", "map_label": "class_embedding"}
# What shapes do not show of DhariwalUNet, in the words of [network].
OF_ADM: dict[str, Any] = {
    **{"resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": True, "freq_shift": 0, "attention_head_dim": 64},
    **{"mid_block_scale_factor": 1.0, "center_input_sample": False, "class_embed_type": "none", "act_fn": "silu"},
}
CHANNELS_OF_A_GROUP, MOST_GROUPS = 4, 32
Names = Iterator[tuple[str, str]]  # theirs, ours, of layers or of units


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """One of their tensors: its shape, and ours that are made of it."""

    shape: tuple[int, ...]
    ours: tuple[str, ...]
    transposed: bool = False

    def parts(self, tensor: Tensor, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns our tensors."""
        parts = tensor.unflatten(0, (-1, len(self.ours))).unbind(1) if len(self.ours) > 1 else [tensor.T if self.transposed else tensor]
        return {name: part.reshape(expected[name].shape) for name, part in zip(self.ours, parts, strict=True)}


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Says whether tensors have the names of EDM's code."""
    return any(name.startswith(BEGINNING) for name in tensors)


def renamed(settings: Denoiser, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a configured network.

    Args:
        settings: Its section.
        model: The network, made on the meta device.
        tensors: By the names of EDM's code.

    Raises:
        ReproError: The section says what that code never does.
        ValueError: A tensor is missing, additional, of another shape, or not finite; the message has its name.
    """
    _check(settings, model)
    expected = model.state_dict()
    theirs = dict(_tensors(settings, expected))
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(FILTER)}
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    compare(shapes, {name: (tensor.dtype, tensor.shape) for name, tensor in given.items()}, FLOATS)
    for name in sorted(tensors.keys() - given.keys()):
        if tensors[name].shape != (1, 1, 2, 2) or tensors[name].dtype not in FLOATS or not (tensors[name] == 0.25).all():
            raise ValueError(f"{name:.200} is no average of 2 x 2 pixels, the network's")
    weights: dict[str, Tensor] = {}
    for name, tensor in given.items():
        weights |= theirs[name].parts(finite(name, tensor), expected)
    return weights


def _check(settings: Denoiser, model: nn.Module) -> None:
    """Refuses what EDM's code has otherwise and no shape shows."""
    if isinstance(settings, Network):
        for key, value in OF_ADM.items():
            if getattr(settings, key) != value:
                raise ReproError(f"network.{key}: is {getattr(settings, key)!r}, and a network of EDM's code has {value!r}; change it")
    elif not isinstance(settings, SongUNet):
        raise ReproError("base.file: has the weights of EDM's code, which are those of a [song_unet] or a [network]; name another file")
    epsilon = 1e-5 if isinstance(settings, Network) else 1e-6
    for name, norm in model.named_modules():
        if isinstance(norm, nn.GroupNorm):
            groups = min(MOST_GROUPS, norm.num_channels // CHANNELS_OF_A_GROUP)
            if (norm.num_groups, norm.eps) != (groups, epsilon):
                raise ReproError(
                    f"norm_num_groups, norm_eps: {name} has {norm.num_groups} groups and {norm.eps:g}, and in EDM's code {groups} (one for "
                    f"{CHANNELS_OF_A_GROUP} channels, at most {MOST_GROUPS}) and {epsilon:g}; change them"
                )


def _tensors(settings: Denoiser, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, _Tensor]]:
    """Yields their tensors by name."""
    assert isinstance(settings, SongUNet | Network)
    for theirs, ours in _layers(settings):
        for leaf in ("weight", "bias"):
            layers = [f"{ours}.to_{part}" for part in "qkv"] if theirs.endswith(".qkv") else [ours]
            names = tuple(f"{layer}.{leaf}" for layer in layers)
            if names[0] not in expected:
                continue
            rows, *columns = expected[names[0]].shape
            of_embedding = theirs == "map_label" and isinstance(settings, Network)  # a linear layer of theirs, an embedding of ours
            kernel = (1, 1) if columns and theirs.endswith((".qkv", ".proj")) else ()  # a convolution of theirs, a linear layer of ours
            shape = (*columns, rows) if of_embedding else (len(names) * rows, *columns, *kernel)
            yield f"{PREFIX}{theirs}.{leaf}", _Tensor(shape=shape, ours=names, transposed=of_embedding)


def _layers(settings: SongUNet | Network) -> Names:
    """Yields their layers and ours; some are not there in every network."""
    side = f"{settings.sample_size}x{settings.sample_size}"
    yield from EMBEDDING.items()
    yield f"enc.{side}_conv", "conv_in"
    if isinstance(settings, SongUNet):
        yield "map_augment", "augment_embedding"
        yield from ((f"dec.{side}_aux_norm", "conv_norm_out"), (f"dec.{side}_aux_conv", "conv_out"))
        units = [(theirs, f"{ours}.resnet", f"{ours}.attention") for theirs, ours in _song_units(settings)]
    else:
        yield from (("out_norm", "conv_norm_out"), ("out_conv", "conv_out"))
        units = [(theirs, ours, ours.replace("resnets", "attentions")) for theirs, ours in _adm_units(settings)]
    for theirs, resnet, attention in units:
        yield from ((f"{theirs}.{part}", f"{resnet}.{ours}") for part, ours in RESIDUAL.items())
        if attention != resnet:
            yield from ((f"{theirs}.{part}", f"{attention}.{ours}") for part, ours in ATTENTION.items())
            yield f"{theirs}.qkv", attention


def _song_units(settings: SongUNet) -> Names:
    last = len(settings.channel_mult) - 1
    for level in range(last + 1):
        side, blocks = _side(settings, level), [f"block{index}" for index in range(settings.num_blocks + 1)]
        down, up = ["down"] if level else [], ["up"] if level < last else []
        yield from ((f"enc.{side}_{name}", f"down_blocks.{level}.{index}") for index, name in enumerate([*down, *blocks[:-1]]))
        yield from ((f"dec.{side}_{name}", f"up_blocks.{last - level}.{index}") for index, name in enumerate([*up, *blocks]))
    yield from ((f"dec.{_side(settings, last)}_in{index}", f"mid_block.{index}") for index in range(2))


def _adm_units(settings: Network) -> Names:
    last = len(settings.block_out_channels) - 1
    for level in range(last + 1):
        side, place = _side(settings, level), last - level
        for index in range(settings.layers_per_block + 1):
            if index < settings.layers_per_block:
                yield f"enc.{side}_block{index}", f"down_blocks.{level}.resnets.{index}"
            yield f"dec.{side}_block{index}", f"up_blocks.{place}.resnets.{index}"
        if level:
            yield f"enc.{side}_down", f"down_blocks.{level - 1}.downsamplers.0"
        if level < last:
            yield f"dec.{side}_up", f"up_blocks.{place - 1}.upsamplers.0"
    yield from ((f"dec.{_side(settings, last)}_in{index}", f"mid_block.resnets.{index}") for index in range(2))


def _side(settings: SongUNet | Network, level: int) -> str:
    side = settings.sample_size >> level
    return f"{side}x{side}"
