"""The parameter size P: what a network's parameters amount to, between the fixed ones (P = 0) and all (P = 1); and the MACs of pipes.

Both counts are affine in the width of every pipe, since each layer holds at most one internal width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repro.models.cost import count_macs, count_params
from repro.models.example import conditions_of
from repro.ofa.pipes import Pipe, pipes_of


def internal_params(pipes: Sequence[Pipe]) -> int:
    """Returns how many of a base's parameters its pipes hold."""
    return sum(pipe.units * pipe.params_per_unit for pipe in pipes)


def realised_size(params: int, *, params_base: int, params_internal: int) -> float:
    """Returns the size P that parameters amount to: params(P) = params_base - (1 - P) * params_internal."""
    return 1 - (params_base - params) / params_internal


def params_of_size(size: float, *, params_base: int, params_internal: int) -> int:
    """Returns the parameters that a size P names: params(P) = params_base - (1 - P) * params_internal, the inverse of `realised_size`."""
    return round(params_base - (1 - size) * params_internal)


def params_at(base: nn.Module, size: float, resampling_units: str = "pruned") -> int:
    """Returns the parameter size that P names: params_fixed + P * params_internal, of the pipes that `pipes_of` lists."""
    internal = internal_params(pipes_of(base, resampling_units))
    return params_of_size(size, params_base=count_params(base.parameters()), params_internal=internal)


def size_of(base: nn.Module, model: nn.Module, resampling_units: str = "pruned") -> float:
    """Returns the size P that a network's parameters amount to, the inverse of `params_at`.

    Args:
        base: The network at P = 1; either may lie on the meta device.
        model: The pruned one, of the same architecture.
        resampling_units: "pruned", or "whole" where units that change the resolution have no pipe, see `pipes_of`.
    """
    params, params_base = count_params(model.parameters()), count_params(base.parameters())
    return realised_size(params, params_base=params_base, params_internal=internal_params(pipes_of(base, resampling_units)))


@dataclass(frozen=True, kw_only=True)
class BaseMacs:
    """MACs of one forward pass of a base on one image, with attention's matrix products.

    Attributes:
        whole: Of all layers.
        of_pipes: Pipe name -> those of them that are proportional to its width.
    """

    whole: int
    of_pipes: dict[str, float]

    def at(self, size: float) -> float:
        """Returns the MACs of a size where every pipe keeps the same fraction P of its width."""
        return self.whole - (1 - size) * sum(self.of_pipes.values())

    def keeping(self, fractions: Mapping[str, float]) -> float:
        """Returns the MACs of a subnet, from the fraction of its width that each pipe keeps."""
        return self.whole - sum(macs * (1 - fractions[name]) for name, macs in self.of_pipes.items())


def count_base_macs(base: nn.Module, pipes: tuple[Pipe, ...], image_shape: tuple[int, int, int]) -> BaseMacs:
    """Counts the MACs of a base and of its pipes.

    Args:
        base: A denoiser on the meta device.
        pipes: Its internal widths.
        image_shape: [C, H, W].
    """
    return BaseMacs(whole=count_macs(base, image_shape).total, of_pipes=pipe_macs(base, pipes, image_shape))


def pipe_macs(model: nn.Module, pipes: tuple[Pipe, ...], image_shape: tuple[int, int, int]) -> dict[str, float]:
    """Returns the MACs of the layers that each pipe enters, and of the attention between them: they are proportional to its width.

    Args:
        model: A denoiser on the meta device.
        pipes: Its internal widths.
        image_shape: [C, H, W].
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *image_shape, device="meta"), torch.zeros(1, device="meta"), **conditions_of(model, 1, "meta"))
    flops = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    macs = {}
    for pipe in pipes:
        layers = {parameter.rpartition(".")[0] for parameter, _ in pipe.slices}
        macs[pipe.name] = (flops[pipe.name] if pipe.kind == "attention" else sum(flops.get(layer, 0) for layer in layers)) / 2
    return macs
