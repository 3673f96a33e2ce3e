"""Example inputs of a network, to count and trace it: nothing here needs data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.models.narrowed import conditions_of

__all__ = ["conditions_of", "example_of"]


def example_of(network: nn.Module, shape: Sequence[int], device: torch.device | str) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Returns the arguments of a forward pass on one image, as torch-pruning takes them: by position as far as all networks agree.

    Args:
        network: A denoiser.
        shape: [C, H, W] of an image as it takes it.
        device: Where it lies.
    """
    conditions = conditions_of(network, 1, device)
    inputs = {"sample": torch.zeros(1, *shape, device=device), "timestep": torch.zeros(1, device=device)} | conditions
    return inputs if conditions.keys() - {"class_labels"} else tuple(inputs.values())
