"""Networks some of whose layers are narrower than their configuration's widths say, as diffusers' own classes cannot be.

It needs torch and diffusers alone, and imports nothing of this package: every network is saved with a copy of this file, from which
diffusers builds it where the package is not installed (`trust_remote_code=True`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

Widths = dict[str, list[int]]

MODULE = "repro.harness.denoiser"  # what saved folders call the module of these classes
LAYERS = (nn.Conv2d, nn.Linear, nn.GroupNorm)


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
        (Path(save_directory) / f"{MODULE}.py").write_bytes(Path(__file__).read_bytes())


class PrunedUNet2DModel(Narrowed, UNet2DModel):
    """A `UNet2DModel` some of whose layers are narrower than its configuration's widths say.

    Args:
        *args: What `UNet2DModel` takes.
        widths: For every layer that differs, the shape of its weight in channels: [out, in] of a convolution or linear layer, [channels]
            of a normalisation.
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
        _start_as_identity(self)

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


@torch.no_grad()
def _start_as_identity(transformer: Any) -> None:
    """Gives a transformer the initial weights of adaLN-Zero (Peebles and Xie, 2023, section 3.2), which diffusers leaves out.

    Linear layers are Xavier's; whatever scales a block's contribution, and the last layer, is zero.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(transformer.proj_out_1.weight)
    nn.init.zeros_(transformer.proj_out_2.weight)


def channel_widths(model: nn.Module) -> Widths:
    """Returns the widths of every convolution, linear and normalisation layer: [out, in] or [channels]."""
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
        if layers[name].bias is not None:
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
    labels = None if getattr(model, "class_embedding", None) is None else torch.zeros(2, dtype=torch.int64, device="meta")
    timesteps = torch.zeros(2, dtype=torch.int64, device="meta")
    try:
        found = torch.func.functional_call(model, tensors, (images, timesteps, labels, False))[0].shape[1]
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
        if isinstance(heads := getattr(module, "heads", None), int) and isinstance(query := getattr(module, "to_q", None), nn.Linear):
            _refresh_attention(module, query.out_features, heads)


def _refresh_attention(attention: Any, width: int, heads: int) -> None:
    attention.inner_dim = attention.inner_kv_dim = width
    if attention.scale_qk:
        attention.scale = (width // heads) ** -0.5
