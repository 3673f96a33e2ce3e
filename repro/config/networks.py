"""The architecture of the base, as a section: `network` (UNet), `transformer` (DiT), `song_unet` (EDM's), `uvit`, or a script's own."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from repro.config.sections import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, added, check, not_negative, one_of, within

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
MIDDLES = ("UNetMidBlock2D", "none")
CLASS_EMBEDDINGS = ("none", "timestep")  # "none": num_class_embeds alone decides
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")  # diffusers'


@dataclass(frozen=True, kw_only=True)
class Network:
    """A UNet, in the words of diffusers' `UNet2DModel`."""

    sample_size: int
    channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attention_head_dim: int = 0  # 0: one head as wide as the layer
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    downsample_padding: int = 1
    dropout: float = 0.0
    num_class_embeds: int = added(0)  # 0: no classes
    resnet_time_scale_shift: str = added("default")
    downsample_type: str = added("conv")
    upsample_type: str = added("conv")
    attn_norm_num_groups: int = added(0)  # 0: norm_num_groups in the levels, 1 in the middle, as in diffusers
    class_embed_type: str = added("none")  # "timestep" embeds a label as the timestep is
    mid_block_type: str = added("UNetMidBlock2D")  # or "none"
    mid_block_scale_factor: float = added(1.0)
    add_attention: bool = added(True)  # in the middle
    act_fn: str = added("silu")
    time_embedding_dim: int = added(0)  # 0: four times the first width
    center_input_sample: bool = added(False)

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        check("block_out_channels", 1 <= levels <= MOST_LEVELS, f"needs 1 to {MOST_LEVELS} widths")
        for key, most in (("sample_size", MOST_CHANNELS), ("channels", MOST_CHANNELS), ("layers_per_block", MOST_BLOCKS)):
            within(key, getattr(self, key), most)
        for width in self.block_out_channels:
            within("block_out_channels", width, MOST_CHANNELS)
        check("attention_head_dim", 0 <= self.attention_head_dim <= MOST_CHANNELS, f"must lie in [0, {MOST_CHANNELS}]; 0 makes one head")
        check("down_block_types", len(self.down_block_types) == levels, f"needs one entry for each of the {levels} widths")
        check("up_block_types", len(self.up_block_types) == levels, f"needs one entry for each of the {levels} widths")
        not_negative("num_class_embeds", self.num_class_embeds, MOST_CHANNELS, "0 has no classes")
        one_of("resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift"))
        for key in ("downsample_type", "upsample_type"):
            one_of(key, getattr(self, key), ("conv", "resnet"))
        not_negative("attn_norm_num_groups", self.attn_norm_num_groups, MOST_CHANNELS, "0 takes diffusers' default")
        one_of("class_embed_type", self.class_embed_type, CLASS_EMBEDDINGS)
        one_of("mid_block_type", self.mid_block_type, MIDDLES)
        one_of("act_fn", self.act_fn, ACTIVATIONS)
        check("mid_block_scale_factor", 0 < self.mid_block_scale_factor < math.inf, "must be positive and finite")
        not_negative("time_embedding_dim", self.time_embedding_dim, MOST_CHANNELS, "0 takes four times the first width")
        check("downsample_padding", self.downsample_padding in (0, 1), "must be 0 or 1")
        check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")
        for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for block in getattr(self, key):
                one_of(key, block, known)
        fits = self.norm_num_groups >= 1 and all(width % self.norm_num_groups == 0 for width in self.block_out_channels)
        check("norm_num_groups", fits, f"must divide every width in block_out_channels, {self.block_out_channels}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuses values that are right one by one and that no `UNet2DModel` can compute with together."""
        widths, smallest = self.block_out_channels, 2 ** (len(self.block_out_channels) - 1)
        halved = f"must be a multiple of {smallest}, for {len(widths)} levels (block_out_channels) halve it {len(widths) - 1} times"
        check("sample_size", self.sample_size % smallest == 0, halved)
        # Frequencies are spread over half the first width, less the shift.
        shifts = f"must be 0 or 1, and less than half of the first width in block_out_channels, {widths[0]}"
        check("freq_shift", self.freq_shift in (0, 1) and self.freq_shift < widths[0] // 2, shifts)
        blocks = zip((*self.down_block_types, *self.up_block_types), (*widths, *reversed(widths)), strict=True)
        middle = {widths[-1]} if self.add_attention and self.mid_block_type != "none" else set()
        attending = sorted(middle | {width for block, width in blocks if block.startswith("Attn")})
        divides = not self.attention_head_dim or all(width % self.attention_head_dim == 0 for width in attending)
        check(
            "attention_head_dim",
            divides,
            f"must divide the widths in block_out_channels that have attention, {attending}; 0 makes one head",
        )
        groups = self.attn_norm_num_groups
        check("attn_norm_num_groups", not groups or widths[-1] % groups == 0, f"must divide the last of block_out_channels, {widths[-1]}")
        labelled = self.class_embed_type == "none" or self.num_class_embeds > 0
        check("num_class_embeds", labelled, f"how many labels there are; class_embed_type = '{self.class_embed_type}' needs it")
        values = (self.sample_size // smallest) ** 2 * min(widths) // self.norm_num_groups
        check("norm_num_groups", values > 1, "leaves a group a single value, which it normalises to 0; take fewer groups")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A transformer on patches of the image, in the words of diffusers' `DiTTransformer2DModel`; it has no classes."""

    sample_size: int
    channels: int
    patch_size: int
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        limits = {"sample_size": MOST_CHANNELS, "channels": MOST_CHANNELS, "patch_size": MOST_CHANNELS, "num_layers": MOST_BLOCKS}
        for key, most in (limits | {"num_attention_heads": MOST_CHANNELS, "attention_head_dim": MOST_CHANNELS}).items():
            within(key, getattr(self, key), most)
        check("patch_size", self.sample_size % self.patch_size == 0, f"must divide sample_size, {self.sample_size}")
        width = self.num_attention_heads * self.attention_head_dim
        check("attention_head_dim", width <= MOST_CHANNELS, f"times num_attention_heads must be at most {MOST_CHANNELS:,}, not {width:,}")
        check("attention_head_dim", width % 4 == 0, "times num_attention_heads must be a multiple of 4: sines and cosines of two axes")
        check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of a script: a section of the configuration, each of whose keys is a field, that builds its network.

    One derives from this class, as a frozen dataclass, and the class is given to `repro.api.main`. The network is a `ModelMixin` of
    diffusers whose arguments hold `sample_size` and `in_channels`; it is called as a `UNet2DModel` is. Units that `pipes_of` does not know
    are named by a method `pipes()` of the network; what else it takes than images, by a method `conditions(count)`.

    Attributes:
        section: The name of the section.
        sample_size: Height and width of what the network sees.
        channels: Its channels.
    """

    section: ClassVar[str]
    sample_size: int
    channels: int

    def build(self) -> Any:
        """Returns the network with random weights, drawn from torch's own generator."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SongUNet(Architecture):
    """The UNet of DDPM++, as EDM trains it; the keys are the arguments of `repro.models.narrowed.SongUNet`."""

    section: ClassVar[str] = "song_unet"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.0
    num_class_embeds: int = 0  # 0: no classes
    augment_dim: int = 0
    norm_num_groups: int = 0  # 0: one for 4 channels, at most 32

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        check("channel_mult", 1 <= levels <= MOST_LEVELS, f"needs 1 to {MOST_LEVELS} factors")
        limits = {"sample_size": MOST_CHANNELS, "channels": MOST_CHANNELS, "model_channels": MOST_CHANNELS, "num_blocks": MOST_BLOCKS}
        for key, most in limits.items():
            within(key, getattr(self, key), most)
        for key in ("num_class_embeds", "augment_dim", "norm_num_groups"):
            not_negative(key, getattr(self, key), MOST_CHANNELS)
        for factor in self.channel_mult:
            within("channel_mult", factor * self.model_channels, MOST_CHANNELS)
        halved = f"must be a multiple of {2 ** (levels - 1)}, for {levels} levels (channel_mult) halve it {levels - 1} times"
        check("sample_size", self.sample_size % 2 ** (levels - 1) == 0, halved)
        check("model_channels", self.model_channels % 4 == 0 and self.model_channels > 4, "must be a multiple of 4, and more than 4")
        groups = self.norm_num_groups
        check("norm_num_groups", not groups or self.model_channels % groups == 0, f"must divide model_channels, {self.model_channels}")
        check("dropout", 0 <= self.dropout < 1, "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class UViT(Architecture):
    """U-ViT; the keys are the arguments of `repro.models.narrowed.UViT`."""

    section: ClassVar[str] = "uvit"
    patch_size: int = 4
    width: int = 512
    depth: int = 13
    heads: int = 8
    num_class_embeds: int = 0  # 0: no classes

    def __post_init__(self) -> None:
        limits = {"sample_size": MOST_CHANNELS, "channels": MOST_CHANNELS, "patch_size": MOST_CHANNELS, "width": MOST_CHANNELS}
        for key, most in (limits | {"depth": MOST_BLOCKS, "heads": MOST_CHANNELS}).items():
            within(key, getattr(self, key), most)
        not_negative("num_class_embeds", self.num_class_embeds, MOST_CHANNELS)
        check("patch_size", self.sample_size % self.patch_size == 0, f"must divide sample_size, {self.sample_size}")
        check("heads", self.width % (2 * self.heads) == 0, f"must divide half of the width, {self.width}")
        check("depth", self.depth % 2 == 1, "must be odd: one block in the middle, and as many before it as after it")


# The package's sections of a base's architecture beside `network` and `transformer`; a script may bring others.
ARCHITECTURES: dict[str, type[Architecture]] = {kind.section: kind for kind in (SongUNet, UViT)}
Denoiser = Network | Transformer | Architecture


def network_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """Returns the shape of what a network denoises, [C, H, W]: of images, or of what the configured space has in their place."""
    return (denoiser.channels, denoiser.sample_size, denoiser.sample_size)
