"""Networks some of whose layers are narrower than their configuration's widths say; EDM's UNet and U-ViT, which diffusers lacks.

It needs torch and diffusers alone, and imports nothing of this package: every network is saved with a copy of this file, from which
diffusers builds it where the package is not installed (`trust_remote_code=True`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

Widths = dict[str, list[int]]

MODULE = "repro.harness.denoiser"  # what saved folders call the module of these classes
LAYERS = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Embedding)


def module_source() -> bytes:
    """Returns this file, which every saved network has beside it."""
    return Path(__file__).read_bytes()


def _takes_what(whole: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes the `__init__` of a narrowed network say, and store in its configuration, what that of the whole one takes, and `widths`."""

    def decorated(init: Callable[..., None]) -> Callable[..., None]:
        widths = inspect.Parameter("widths", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Widths | None)
        arguments = inspect.signature(whole.__init__).parameters.values()  # type: ignore[misc]
        init.__signature__ = inspect.Signature([*arguments, widths])  # type: ignore[attr-defined]
        wrapped: Callable[..., None] = register_to_config(init)
        return wrapped

    return decorated


class Narrowed(ModelMixin):
    """What both classes of networks have beside those of diffusers."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Loads a network as every class of diffusers does; what its files lack has the weights of a new network, never unset memory."""
        model, about = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if about["missing_keys"]:
            new = cls.from_config(model.config).state_dict()
            device = next((tensor.device for tensor in model.parameters() if not tensor.is_meta), torch.device("cpu"))
            missing = {name: new[name].to(device, model.dtype) for name in about["missing_keys"]}
            model.load_state_dict(missing, strict=False, assign=True)
        return (model, about) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves a network as every class of diffusers does, with the code that builds it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / f"{MODULE}.py").write_bytes(module_source())


class PrunedUNet2DModel(Narrowed, UNet2DModel):
    """A `UNet2DModel` some of whose layers are narrower than its configuration's widths say.

    Args:
        *args: What `UNet2DModel` takes.
        widths: For every layer that differs, the shape of its weight in channels: [out, in] of a convolution or linear layer, [channels]
            of a normalisation, [classes, channels] of an embedding.
        **kwargs: What `UNet2DModel` takes.

    Raises:
        ValueError: A width is wider than the whole network's, or does not fit those of other layers.
    """

    __module__ = MODULE

    @_takes_what(UNet2DModel)
    def __init__(self, *args: Any, widths: Widths | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _narrow(self, widths or {})


class PrunedDiT2DModel(Narrowed, DiTTransformer2DModel):
    """A `DiTTransformer2DModel` that has no classes, is called as a `UNet2DModel` is, and some of whose layers may be narrower.

    Args:
        *args: What `DiTTransformer2DModel` takes, with one class.
        widths: As of `PrunedUNet2DModel`.
        **kwargs: What `DiTTransformer2DModel` takes.

    Raises:
        ValueError: As of `PrunedUNet2DModel`.
    """

    __module__ = MODULE

    @_takes_what(DiTTransformer2DModel)
    def __init__(self, *args: Any, widths: Widths | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # diffusers does not save the positions, and a network that is made on the meta device could not compute them.
        self.pos_embed.register_buffer("pos_embed", self.pos_embed.pos_embed, persistent=True)
        _narrow(self, widths or {})
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Gives it the initial weights of adaLN-Zero (Peebles and Xie, 2023, section 3.2), which diffusers leaves out.

        Linear layers are Xavier's; whatever scales a block's contribution, and the last layer, is zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.transformer_blocks:
            nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(self.proj_out_1.weight)
        nn.init.zeros_(self.proj_out_2.weight)

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True) -> Any:
        """Predicts the noise.

        Args:
            sample: Images [B, C, H, W].
            timestep: One for all of them, or [B].
            class_labels: None, as of a `UNet2DModel` without classes.
            return_dict: Whether to return diffusers' output, whose `sample` is the noise [B, C, H, W], or a tuple with that alone.

        Raises:
            ValueError: Labels were given.
        """
        if class_labels is not None:
            raise ValueError("class_labels: the network has no classes; leave them out")
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        # What diffusers makes of a label that it drops, so that nothing changes where it drops one.
        unlabelled = torch.full((sample.shape[0],), self.config["num_embeds_ada_norm"], device=sample.device)
        return super().forward(sample, timesteps, unlabelled, return_dict=return_dict)


@cache
def narrowed(whole: Any) -> Any:
    """Returns the class of an architecture's networks that may be narrower, as `PrunedUNet2DModel` is of `UNet2DModel`.

    Args:
        whole: A `ModelMixin` of diffusers, whose `__init__` is registered to its configuration.
    """

    @_takes_what(whole)
    def init(self: Any, *args: Any, widths: Widths | None = None, **kwargs: Any) -> None:
        whole.__init__(self, *args, **kwargs)
        _narrow(self, widths or {})

    return type(f"Pruned{whole.__name__}", (Narrowed, whole), {"__init__": init, "__module__": MODULE, "whole": whole})


class SongUNet(ModelMixin, ConfigMixin):
    """The UNet of DDPM++ (Song et al., 2021) as EDM trains it (Karras et al., 2022), out of diffusers' units.

    It up- and downsamples inside of residual units, and every sum of a unit's input and output is divided by sqrt(2).

    Args:
        sample_size: Height and width of the images.
        in_channels: Channels of the images.
        model_channels: Channels that `channel_mult` multiplies.
        channel_mult: The width of each level, in `model_channels`.
        num_blocks: Residual units of a level; the decoder has one more.
        attn_resolutions: At which heights units attend: all of the encoder's, the decoder's last, and the middle at any.
        dropout: In the residual units.
        num_class_embeds: Classes; None for none.
        augment_dim: Entries of the label that says how an image was augmented; 0 for none.
        norm_num_groups: Groups of all normalisations; 0 takes one for 4 channels, at most 32.
    """

    # By those who prune the residual stream too; the embeddings are added to waves of fixed number.
    left_alone = ("conv_out", "class_embedding", "augment_embedding")

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        augment_dim: int = 0,
        norm_num_groups: int = 0,
    ) -> None:
        super().__init__()
        widths, sides = [model_channels * factor for factor in channel_mult], [sample_size >> level for level in range(len(channel_mult))]

        def unit(inside: int, outside: int, *, attends: bool = False, skips: bool = False, **resampling: bool) -> _SongUnit:
            return _SongUnit(inside, outside, 4 * model_channels, dropout, norm_num_groups, attends=attends, skips=skips, **resampling)

        self.conv_in = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.class_embedding = nn.Linear(num_class_embeds, model_channels) if num_class_embeds else None
        self.augment_embedding = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.time_embedding = TimestepEmbedding(model_channels, 4 * model_channels)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        width, skipped = model_channels, [model_channels]
        for level, (wide, side) in enumerate(zip(widths, sides, strict=True)):
            units = [unit(width, width, down=True)] if level else []
            units += [unit(width if not index else wide, wide, attends=side in attn_resolutions) for index in range(num_blocks)]
            skipped += ([width] if level else []) + [wide] * num_blocks
            self.down_blocks.append(nn.ModuleList(units))
            width = wide
        self.mid_block = nn.ModuleList([unit(width, width, attends=True), unit(width, width)])
        for level, (wide, side) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            units = [unit(width, width, up=True)] if level < len(widths) - 1 else []
            for index in range(num_blocks + 1):
                units.append(unit(width + skipped.pop(), wide, attends=index == num_blocks and side in attn_resolutions, skips=True))
                width = wide
            self.up_blocks.append(nn.ModuleList(units))
        self.conv_norm_out = nn.GroupNorm(norm_num_groups or min(32, width // 4), width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Gives it EDM's initial weights: Xavier's, near zero where a residual ends, and small queries, keys and values."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                small = 1e-5 if name.endswith(("conv2", "to_out.0", "conv_out")) else 1.0
                # EDM's three are one layer, of three times the outputs: its bound is smaller by sqrt(2).
                nn.init.xavier_uniform_(module.weight, gain=0.1**0.5 if name.endswith(("to_q", "to_k", "to_v")) else small)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        augment_labels: Tensor | None = None,
    ) -> Any:
        """Returns F(c_in x; c_noise), as diffusers' output or in a tuple, [B, C, H, W].

        Args:
            sample: Preconditioned images, [B, C, H, W].
            timestep: c_noise, one for all of them, or [B].
            class_labels: int64, [B].
            return_dict: Whether to return diffusers' output.
            augment_labels: How each image was augmented, [B, augment_dim]; none where none was.

        Raises:
            ValueError: Labels are missing, or were given to a network without classes.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError(f"class_labels: the network has {'no ' if class_labels is not None else ''}classes")
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        embedding = get_timestep_embedding(timesteps, self.config["model_channels"], downscale_freq_shift=1).to(sample.dtype)
        if self.class_embedding is not None and class_labels is not None:
            classes = self.config["num_class_embeds"]
            one_hot = nn.functional.one_hot(class_labels.long(), classes).to(sample.dtype)
            embedding = embedding + self.class_embedding(classes**0.5 * one_hot)
        if self.augment_embedding is not None:
            if augment_labels is None:  # so that its weights have a gradient, of zero, wherever the others have one
                augment_labels = embedding.new_zeros(embedding.shape[0], self.config["augment_dim"])
            embedding = embedding + self.augment_embedding(augment_labels)
        embedding = self.time_embedding(embedding)
        hidden = self.conv_in(sample)
        skipped = [hidden]
        for unit in (unit for units in self.down_blocks for unit in units.children()):
            hidden = unit(hidden, embedding)
            skipped.append(hidden)
        for unit in self.mid_block:
            hidden = unit(hidden, embedding)
        for unit in (unit for units in self.up_blocks for unit in units.children()):
            hidden = unit(torch.cat([hidden, skipped.pop()], dim=1) if unit.skips else hidden, embedding)
        output = self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))
        return UNet2DOutput(sample=output) if return_dict else (output,)


class _SongUnit(nn.Module):
    """A residual unit, with attention where it attends."""

    def __init__(
        self, inside: int, outside: int, embedding: int, dropout: float, groups: int, *, attends: bool, skips: bool, **resampling: bool
    ) -> None:
        super().__init__()
        self.skips = skips
        self.resnet = ResnetBlock2D(
            in_channels=inside,
            out_channels=outside,
            temb_channels=embedding,
            groups=groups or min(32, inside // 4),
            groups_out=groups or min(32, outside // 4),
            eps=1e-6,
            dropout=dropout,
            output_scale_factor=2**0.5,
            kernel="sde_vp",
            use_in_shortcut=inside != outside or bool(resampling),
            **resampling,
        )
        self.attention = None
        if attends:
            heads = {"heads": 1, "dim_head": outside, "norm_num_groups": groups or min(32, outside // 4)}
            self.attention = Attention(outside, **heads, eps=1e-6, bias=True, residual_connection=True, rescale_output_factor=2**0.5)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.resnet(hidden, embedding)
        if self.attention is not None:
            hidden = self.attention(hidden)
        return hidden


class UViT(ModelMixin, ConfigMixin):
    """U-ViT (Bao et al., 2023): a transformer on patches, the timestep a token, with long skips from its first blocks to its last.

    Args:
        sample_size: Height and width of the images.
        in_channels: Channels of the images.
        patch_size: Height and width of a patch, which is a token.
        width: Channels of a token.
        depth: Blocks, one in the middle and as many before it as after it.
        heads: Heads of each attention.
        num_class_embeds: Classes, whose token comes after the timestep's; None for none.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        patch_size: int = 4,
        width: int = 512,
        depth: int = 13,
        heads: int = 8,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.extras = 1 + bool(num_class_embeds)
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.class_embedding = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.positions = nn.Parameter(torch.zeros(1, self.extras + (sample_size // patch_size) ** 2, width))
        self.down_blocks = nn.ModuleList(_UViTBlock(width, heads) for _ in range(depth // 2))
        self.mid_block = _UViTBlock(width, heads)
        self.up_blocks = nn.ModuleList(_UViTBlock(width, heads, skips=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.to_patches = nn.Linear(width, in_channels * patch_size**2)
        self.conv_out = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.initialise()

    def initialise(self) -> None:
        """Gives positions and linear layers the initial weights of U-ViT's authors; the others have torch's."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names the parameters that do not decay."""
        return {"positions"}

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True) -> Any:
        """Predicts the noise, as diffusers' output or in a tuple, [B, C, H, W].

        Args:
            sample: Images, [B, C, H, W].
            timestep: One for all of them, or [B], from 0 to 999.
            class_labels: int64, [B].
            return_dict: Whether to return diffusers' output.

        Raises:
            ValueError: Labels are missing, or were given to a network without classes.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError(f"class_labels: the network has {'no ' if class_labels is not None else ''}classes")
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        waves = get_timestep_embedding(timesteps, self.norm.normalized_shape[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        tokens = [waves.to(sample.dtype)[:, None]]
        if self.class_embedding is not None:
            tokens.append(self.class_embedding(class_labels)[:, None])
        hidden = torch.cat([*tokens, self.patches(sample).flatten(2).transpose(1, 2)], dim=1) + self.positions
        skipped = []
        for block in self.down_blocks:
            hidden = block(hidden)
            skipped.append(hidden)
        hidden = self.mid_block(hidden)
        for block in self.up_blocks:
            hidden = block(hidden, skipped.pop())
        patch, side = self.config["patch_size"], self.config["sample_size"] // self.config["patch_size"]
        patches = self.to_patches(self.norm(hidden))[:, self.extras :].unflatten(1, (side, side)).unflatten(3, (patch, patch, -1))
        output = self.conv_out(patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))
        return UNet2DOutput(sample=output) if return_dict else (output,)


class _UViTBlock(nn.Module):
    """Attention and a feed-forward layer, each added to what came in; a block that skips begins with a blend of two streams."""

    def __init__(self, width: int, heads: int, *, skips: bool = False) -> None:
        super().__init__()
        self.blend = nn.Linear(2 * width, width) if skips else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, dim_head=width // heads)
        self.feed_forward = FeedForward(width, activation_fn="gelu")

    def forward(self, hidden: Tensor, *skipped: Tensor) -> Tensor:
        if self.blend is not None:
            hidden = self.blend(torch.cat([hidden, *skipped], dim=-1))
        hidden = hidden + self.attention(self.norm1(hidden))
        output: Tensor = hidden + self.feed_forward(self.norm2(hidden))
        return output


PrunedSongUNet, PrunedUViT = narrowed(SongUNet), narrowed(UViT)


def channel_widths(model: nn.Module) -> Widths:
    """Returns the widths of every convolution, linear and normalisation layer and embedding: [out, in] or [channels]."""
    return {name: list(module.weight.shape[:2]) for name, module in model.named_modules() if isinstance(module, LAYERS)}


def _narrow(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> None:
    """Reshapes layers of a new network to their widths, with new weights: those that a layer of this shape starts with.

    Raises:
        ValueError: A width is none, or does not fit.
    """
    whole, layers = channel_widths(model), dict[str, Any](model.named_modules())
    for name, width in widths.items():
        if name not in whole or not _narrows(width, whole[name]):
            raise ValueError(f"widths: {name} is {width!r:.80}, and the whole network's {whole.get(name, 'has no such layer')}")
    narrower = {name: tuple(widths[name]) for name in whole if list(widths.get(name, whole[name])) != whole[name]}  # in the network's order
    devices = {name: layers[name].weight.device for name in narrower}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in narrower.items():
        shapes[f"{name}.weight"] = (*width, *layers[name].weight.shape[len(width) :])
        if getattr(layers[name], "bias", None) is not None:
            shapes[f"{name}.bias"] = width[:1]
    reshape_modules(model, shapes)
    for name, device in devices.items():
        layers[name].to_empty(device=device, recurse=False)
        layers[name].reset_parameters()
    if narrower:
        try_out(model)


def _narrows(width: Any, whole: Sequence[int]) -> bool:
    """Says whether a layer's width is that of the whole network's layer or less."""
    if not isinstance(width, list | tuple) or len(width) != len(whole):
        return False
    return all(type(channels) is int and 1 <= channels <= most for channels, most in zip(width, whole, strict=True))


def conditions_of(network: Any, count: int, device: torch.device | str) -> dict[str, Tensor]:
    """Returns what a network is conditioned on, by the name of its argument, one row for each of `count` images.

    diffusers' class embedding takes labels. A network of one's own that takes something else has a method `conditions(count)`.
    """
    if callable(own := getattr(network, "conditions", None)):
        return {name: rows.to(device) for name, rows in own(count).items()}
    if getattr(network, "class_embedding", None) is not None:
        return {"class_labels": torch.zeros(count, dtype=torch.int64, device=device)}
    return {}


@torch.no_grad()
def try_out(model: Any) -> None:
    """Computes without numbers, which fails where the widths of one layer do not fit those of the next.

    Raises:
        ValueError: So it does.
    """
    reached = [""]  # the layers that were given something

    def note(name: str) -> Callable[..., None]:
        return lambda *_: reached.append(name)

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    tensors = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    side = model.config["sample_size"] or 2 ** len(model.config.get("block_out_channels", ()))
    height, width = (side, side) if isinstance(side, int) else side
    images = torch.empty(2, model.config["in_channels"], height, width, device="meta")
    given = conditions_of(model, 2, "meta") | {"return_dict": False}
    timesteps = torch.zeros(2, dtype=torch.int64, device="meta")
    try:
        found = torch.func.functional_call(model, tensors, (images, timesteps), given)[0].shape[1]
        asked = model.config.get("out_channels") or model.config["in_channels"]
        if found != asked:
            raise RuntimeError(f"it gives {found} channels, and out_channels is {asked}")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"widths: {reached[-1]}, {channel_widths(model).get(reached[-1])}, does not fit the others ({reason})") from error
    finally:
        for hook in hooks:
            hook.remove()


def reshape_modules(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Gives the parameters of a module tree new shapes, on the meta device, and its layers the widths to match.

    Args:
        model: Changed in place.
        shapes: Parameter name -> shape; a name that is missing keeps its shape.

    Returns:
        The model.
    """
    for name, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            shape = shapes.get(f"{name}.{leaf}" if name else leaf, tuple(parameter.shape))
            if shape != tuple(parameter.shape):
                setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta")))
        match module:
            case nn.Conv2d():
                module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
            case nn.Linear():
                module.out_features, module.in_features = module.weight.shape
            case nn.GroupNorm(affine=True):
                module.num_channels = module.weight.shape[0]
            case nn.Embedding():
                module.num_embeddings, module.embedding_dim = module.weight.shape
    refresh_widths(model)
    return model


def refresh_widths(model: nn.Module) -> None:
    """Brings what diffusers' modules remember of their widths up to date after these have changed.

    Up- and downsampling layers check their input against a width of their own. An attention's processors that do not leave the scale to
    torch's fused kernel, which takes 1 / sqrt(width of a head), read it from the module.
    """
    for module in model.modules():
        if hasattr(module, "channels") and isinstance(conv := getattr(module, "conv", None), nn.Conv2d):
            setattr(module, "channels", conv.in_channels)  # noqa: B010  (mypy takes a plain one for a submodule)
        if isinstance(module, ResnetBlock2D):
            _refresh_resampling(module)
        if isinstance(query := module._modules.get("to_q"), nn.Linear) and isinstance(heads := getattr(module, "heads", None), int):
            _refresh_attention(module, query.out_features, heads)


def _refresh_resampling(unit: Any) -> None:
    """Of a unit that resamples inside, before its first convolution."""
    for resampling in (unit.upsample, unit.downsample):
        if hasattr(resampling, "channels"):
            resampling.channels = unit.conv1.in_channels


def _refresh_attention(attention: Any, width: int, heads: int) -> None:
    attention.inner_dim = attention.inner_kv_dim = width
    if attention.scale_qk:
        attention.scale = (width // heads) ** -0.5
