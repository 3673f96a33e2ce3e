"""The architectures that a base may have, as sections of a configuration: `network`, a UNet, or `transformer`, a DiT."""

from dataclasses import dataclass

from repro.sections import MOST_BLOCKS, MOST_CHANNELS, MOST_LEVELS, check, one_of, within

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")


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
        attending = sorted({widths[-1], *(width for block, width in blocks if block.startswith("Attn"))})  # the middle always attends
        divides = not self.attention_head_dim or all(width % self.attention_head_dim == 0 for width in attending)
        check(
            "attention_head_dim",
            divides,
            f"must divide the widths in block_out_channels that have attention, {attending}; 0 makes one head",
        )
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


Denoiser = Network | Transformer


def image_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """Returns the shape of the images that a network denoises, [C, H, W]."""
    return (denoiser.channels, denoiser.sample_size, denoiser.sample_size)
