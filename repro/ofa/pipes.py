"""Pipes: the internal widths of an architecture, the only thing that the method prunes.

A pipe is the set of channels between a producer and a consumer layer inside one residual unit. The residual stream, skips, the first
and last layer, the time embedding and up- and downsampling stay whole.

A pipe's channels form `groups` runs of equal length: the normalisation groups of a ResNet unit, the heads of an attention; those of a
feed-forward unit are one run. A pipe is cut in units of one channel from every run, so every kept channel stays in the group it was trained
in, and `num_groups` and the number of heads never change. A narrower head scales its scores by its own width, 1/sqrt(kept width), as the
standalone network does.

Three kinds of units hold the pipes of the paper's three families: UNets of ResNet units and attention (`UNet2DModel`), those that also have
cross-attention and GEGLU feed-forward (`UNet2DConditionModel`), and transformers (`DiTTransformer2DModel`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from repro.errors import ReproError


@dataclass(frozen=True, kw_only=True)
class Pipe:
    """One internal width.

    Attributes:
        name: Qualified name of the residual unit that holds it.
        kind: "conv" ranks channels inside each normalisation group; "attention" ranks head offsets, shared by all heads; "feed_forward"
            ranks all channels together.
        block: Name of the block of equal resolution that the unit belongs to.
        width: Number of channels in the base.
        groups: Number of runs; one unit is `groups` channels.
        producers: Layers whose output channels are the pipe's.
        consumers: Layers whose input channels are the pipe's.
        slices: (parameter name, dimension) of every tensor that the width enters, each once. A dimension may hold the width several
            times, one run of channels after another, as the two halves of a GEGLU do.
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


def pipes_of(model: nn.Module, resampling_units: str = "pruned") -> tuple[Pipe, ...]:
    """Lists the pipes of a diffusers network, in the order of its modules.

    Args:
        model: The network.
        resampling_units: `whole` leaves out the residual units that halve or double the resolution, as the paper's authors did.

    Returns:
        One pipe for each unit of a known kind: `ResnetBlock2D`, `Attention` (self or cross), `FeedForward`; or what a network of a script
        says itself, by a method `pipes()`.

    Raises:
        ReproError: The network has no such unit, or one of a make that cannot be narrowed.
    """
    if callable(own := getattr(model, "pipes", None)):
        return tuple(own())
    pipes = []
    for name, module in model.named_modules():
        for kind, adapter in ADAPTERS.items():
            if isinstance(module, kind) and not (resampling_units == "whole" and _resamples(module)):
                pipes.append(adapter(model, name, module))
    if not pipes:
        raise ReproError(f"{type(model).__name__}: has no ResnetBlock2D, Attention or FeedForward unit; write an adapter (docs/extend.md)")
    return tuple(pipes)


def _resamples(module: nn.Module) -> bool:
    return isinstance(module, ResnetBlock2D) and (module.upsample is not None or module.downsample is not None)


def make_pipe(
    model: nn.Module,
    *,
    name: str,
    kind: str,
    width: int,
    groups: int = 1,
    producers: tuple[str, ...],
    consumers: tuple[str, ...],
    others: tuple[str, ...] = (),
) -> Pipe:
    """Describes one internal width: what an adapter of an architecture returns for each of its units.

    Args:
        model: The network.
        name: Qualified name of the unit.
        kind: "conv", "attention" or "feed_forward", see `Pipe`.
        width: Number of channels.
        groups: Number of runs that a unit takes a channel from.
        producers: Qualified names of the layers whose output channels are the pipe's; these score them.
        consumers: Those whose input channels are the pipe's; likewise.
        others: Those between that hold a value for each channel, such as a normalisation.
    """
    parameters = dict(model.named_parameters())
    rows = [f"{layer}.{tensor}" for layer in (*producers, *others) for tensor in ("weight", "bias")]
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


def _conv_pipe(model: nn.Module, name: str, unit: ResnetBlock2D) -> Pipe:
    """The channels from `conv1` through the time projection and `norm2` to `conv2`."""
    return make_pipe(
        model,
        name=name,
        kind="conv",
        width=unit.conv1.out_channels,
        groups=unit.norm2.num_groups,
        producers=(f"{name}.conv1",),
        others=(f"{name}.time_emb_proj", f"{name}.norm2"),
        consumers=(f"{name}.conv2",),
    )


def _attention_pipe(model: nn.Module, name: str, unit: Attention) -> Pipe:
    """The channels from `to_q`, `to_k` and `to_v` to the output projection; cross-attention's keys and values come from the text."""
    if unit.norm_q is not None or unit.norm_k is not None or unit.add_k_proj is not None or unit.inner_kv_dim != unit.inner_dim:
        raise ReproError(f"{name}: an attention with normalised queries, added projections or shared keys has no adapter; write one")
    return make_pipe(
        model,
        name=name,
        kind="attention",
        width=unit.to_q.out_features,
        groups=unit.heads,
        producers=tuple(f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v")),
        consumers=(f"{name}.to_out.0",),
    )


def _feed_forward_pipe(model: nn.Module, name: str, unit: FeedForward) -> Pipe:
    """The channels from the first linear layer, a GEGLU's two halves together, to the second."""
    return make_pipe(
        model,
        name=name,
        kind="feed_forward",
        width=unit.net[2].in_features,
        producers=(f"{name}.net.0.proj",),
        consumers=(f"{name}.net.2",),
    )


ADAPTERS: dict[type[nn.Module], Callable[[nn.Module, str, Any], Pipe]] = {
    ResnetBlock2D: _conv_pipe,
    Attention: _attention_pipe,
    FeedForward: _feed_forward_pipe,
}
