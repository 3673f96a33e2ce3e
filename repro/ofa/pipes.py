"""Pipes: the internal widths of an architecture, the only thing that the method prunes.

A pipe is the set of channels between a producer and a consumer layer inside one residual unit. The residual stream, skips, the first
and last layer, the time embedding and up- and downsampling stay whole (method, section "What is pruned").

A pipe's channels form `groups` runs of equal length: the normalisation groups of a ResNet unit, the heads of an attention. A pipe is
cut in units of one channel from every run, so every kept channel stays in the group it was trained in, and `num_groups` and the number
of heads never change. A narrower head scales its scores by its own width, 1/sqrt(kept width), as the standalone network does.
"""

from dataclasses import dataclass

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Pipe:
    """One internal width.

    Attributes:
        name: Qualified name of the residual unit that holds it.
        kind: "conv" ranks channels inside each normalisation group; "attention" ranks head offsets, shared by all heads.
        block: Name of the block of equal resolution that the unit belongs to.
        width: Number of channels in the base.
        groups: Number of runs; one unit is `groups` channels.
        producers: Layers whose output channels are the pipe's.
        consumers: Layers whose input channels are the pipe's.
        slices: (parameter name, dimension) of every tensor that the width enters, each once.
        params_per_channel: Parameters that one channel costs over all slices.
    """

    name: str
    kind: str
    block: str
    width: int
    groups: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    slices: tuple[tuple[str, int], ...]
    params_per_channel: int

    @property
    def units(self) -> int:
        """Number of units in the base."""
        return self.width // self.groups

    @property
    def params_per_unit(self) -> int:
        """Parameters that one unit costs."""
        return self.params_per_channel * self.groups


def unet2d_pipes(model: nn.Module) -> tuple[Pipe, ...]:
    """Lists the pipes of a diffusers `UNet2DModel`, in the order of its modules.

    Returns:
        One conv pipe for each `ResnetBlock2D` and one attention pipe for each `Attention`.
    """
    pipes = []
    for name, module in model.named_modules():
        if isinstance(module, ResnetBlock2D):
            pipes.append(_conv_pipe(model, name, module))
        elif isinstance(module, Attention):
            pipes.append(_attention_pipe(model, name, module))
    return tuple(pipes)


def _conv_pipe(model: nn.Module, name: str, unit: ResnetBlock2D) -> Pipe:
    """The channels from `conv1` through the time projection and `norm2` to `conv2`."""
    rows = [f"{name}.{layer}.{tensor}" for layer in ("conv1", "time_emb_proj", "norm2") for tensor in ("weight", "bias")]
    return _pipe(
        model,
        name=name,
        kind="conv",
        width=unit.conv1.out_channels,
        groups=unit.norm2.num_groups,
        producers=(f"{name}.conv1",),
        consumers=(f"{name}.conv2",),
        rows=rows,
    )


def _attention_pipe(model: nn.Module, name: str, unit: Attention) -> Pipe:
    """The channels from `to_q`, `to_k` and `to_v` to the output projection."""
    producers = tuple(f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v"))
    return _pipe(
        model,
        name=name,
        kind="attention",
        width=unit.to_q.out_features,
        groups=unit.heads,
        producers=producers,
        consumers=(f"{name}.to_out.0",),
        rows=[f"{producer}.{tensor}" for producer in producers for tensor in ("weight", "bias")],
    )


def _pipe(
    model: nn.Module,
    *,
    name: str,
    kind: str,
    width: int,
    groups: int,
    producers: tuple[str, ...],
    consumers: tuple[str, ...],
    rows: list[str],
) -> Pipe:
    """Finishes a pipe: keeps the tensors that exist and counts what a channel costs."""
    parameters = dict(model.named_parameters())
    slices = tuple((row, 0) for row in rows if row in parameters) + tuple((f"{consumer}.weight", 1) for consumer in consumers)
    return Pipe(
        name=name,
        kind=kind,
        block=".".join(name.split(".")[:2]) if name.startswith(("down_blocks", "up_blocks")) else name.split(".", maxsplit=1)[0],
        width=width,
        groups=groups,
        producers=producers,
        consumers=consumers,
        slices=slices,
        params_per_channel=sum(parameters[parameter].numel() // width for parameter, _ in slices),
    )
