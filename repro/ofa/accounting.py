"""The parameter size P: what a network's parameters amount to, between the fixed ones (P = 0) and all (P = 1)."""

from torch import nn

from repro.harness.cost import count_params
from repro.ofa.pipes import pipes_of


def internal_params(base: nn.Module) -> int:
    """Returns how many of a base's parameters its pipes hold."""
    return sum(pipe.units * pipe.params_per_unit for pipe in pipes_of(base))


def params_at(base: nn.Module, size: float) -> int:
    """Returns the parameter size that P names: params_fixed + P * params_internal."""
    return round(count_params(base.parameters()) - (1 - size) * internal_params(base))


def size_of(base: nn.Module, model: nn.Module) -> float:
    """Returns the size P that a network's parameters amount to, the inverse of `params_at`."""
    return 1 - (count_params(base.parameters()) - count_params(model.parameters())) / internal_params(base)
