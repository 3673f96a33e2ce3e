"""How much of a batch a rank may take at once: counted from what the backward pass has to keep, without running anything."""

from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Execution
from repro.errors import ReproError
from repro.harness import distributed

GIB = 2**30
# Weights, gradients, Adam's two moments, EMA, and a subnet's slices of weights and gradients.
TENSORS_PER_PARAMETER = 7
MARGIN = 1.25  # for what a layer needs while it runs, and for the allocator
FREE_SHARE = 0.9  # of a GPU's free memory


def activation_bytes(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the bytes that the backward pass keeps of each image, in float32: what two images keep beyond what one does.

    Args:
        network: A denoiser; it is run on the `meta` device, in training mode.
        image_shape: [C, H, W].
    """
    one, two = (_saved_bytes(network, (count, *image_shape)) for count in (1, 2))
    return two - one


def limit_gib(execution: Execution) -> float:
    """Returns what this rank may use: the configured limit, or most of its GPU's free memory; 0, no limit, on a CPU."""
    if execution.memory_gib or not torch.cuda.is_available():
        return execution.memory_gib
    torch.cuda.empty_cache()
    return FREE_SHARE * torch.cuda.mem_get_info()[0] / GIB


def accumulation(limit: float, *, batch_size: int, subnets: int, params: int, image_bytes: int) -> int:
    """Returns in how many parts every rank has to take its slice of a batch, the same number on every rank.

    Args:
        limit: What this rank may use, in GiB.
        batch_size: Images of a step over all ranks.
        subnets: Among how many subnets a step shares its images; a part needs as many of each.
        params: Of the largest network that is trained.
        image_bytes: What the backward pass keeps of an image.

    Raises:
        ReproError: Not even the smallest part fits.
    """
    share = batch_size // distributed.ranks()
    room = (limit * GIB - 4 * TENSORS_PER_PARAMETER * params) / (MARGIN * image_bytes)
    room = -distributed.highest(-room)[0]  # the tightest rank decides
    for parts in range(1, share // subnets + 1):
        if share % (parts * subnets) == 0 and share // parts <= room:
            return parts
    needed = (4 * TENSORS_PER_PARAMETER * params + MARGIN * image_bytes * subnets) / GIB
    raise ReproError(
        f"execution.memory_gib: a rank may use {limit:.3g} GiB, and training needs {needed:.3g} GiB even with as few images at a time as "
        "can be; allow more, or free the GPU"
    )


def _saved_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Returns the bytes of all storages that autograd saves in one forward pass."""
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.device("meta"), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(torch.empty(shape), torch.zeros(shape[0], dtype=torch.int64), return_dict=False)[0]
        output.square().mean()
    return sum(storage.nbytes() for storage in storages.values())
