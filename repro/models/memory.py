"""Micro-batch size, from the activations that autograd would save (counted on the meta device); halved where a GPU runs out of memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Config, Execution, Training
from repro.config.networks import network_shape
from repro.errors import ReproError
from repro.models import cost
from repro.models.denoiser import count_params, meta_base
from repro.models.example import conditions_of
from repro.runtime import distributed
from repro.runtime.gpu import is_gpu
from repro.runtime.progress import say

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
    device = distributed.device()
    if execution.memory_gib or not is_gpu(device):
        return execution.memory_gib
    return FREE_SHARE * free_bytes(device) / GIB


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a GPU, with what torch keeps there for later."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def accumulation(limit: float, *, batch_size: int, subnets: int, params: int, image_bytes: int) -> int:
    """Returns the micro-batches (accumulation steps) that every rank has to take its slice of a batch in, the same number on every rank.

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


def parts_of_batch(config: Config, settings: Training, subnets: int = 1) -> int:
    """Returns the micro-batches that every rank has to take its slice of a batch in; 1 where nothing limits its memory.

    Args:
        config: The configuration; nothing that is trained is larger than its base.
        settings: The budget.
        subnets: Among how many subnets a step shares its images.

    Raises:
        ReproError: Not even the smallest part fits.
    """
    limit = limit_gib(config.execution)
    if not limit:
        return 1
    base = meta_base(config.denoiser)
    return accumulation(
        limit,
        batch_size=settings.batch_size,
        subnets=subnets,
        params=count_params(base.parameters()),
        image_bytes=activation_bytes(base, network_shape(config.denoiser)),
    )


def fitting(most: int, limit: float, *, weights: int, image_bytes: int) -> int:
    """Returns how many images a pass without gradients takes at once: `most`, halved, rounding up, until they fit; at least 1.

    Halves alone are taken, since another number rounds otherwise: free memory that differs by little must not change the samples.

    Args:
        most: Images at once where memory is no matter.
        limit: What this rank may use, in GiB.
        weights: The bytes of the network.
        image_bytes: The most bytes of activations of an image that are alive at the same time.
    """
    while most > 1 and weights + MARGIN * image_bytes * most > limit * GIB:
        most = _half(most)
    return most


def sampling_batch(network: nn.Module, image_shape: tuple[int, int, int], most: int, execution: Execution) -> "InferenceBatch":
    """Returns the batch in which a denoiser draws images: `most` of them at once on a CPU, on a GPU as many of these as fit."""
    if is_gpu(distributed.device()):
        weights = cost.weight_bytes(network)
        image_bytes = cost.peak_bytes(network, image_shape) - weights
        most = fitting(most, limit_gib(execution), weights=weights, image_bytes=image_bytes)
    return InferenceBatch("sampling", most)


class InferenceBatch:
    """How many images a pass without gradients takes at once: fewer from when on a GPU has not held as many.

    A rank halves on its own: what it computes for an image does not depend on the others of the batch, and no other rank waits for it.

    Args:
        work: What is computed, for the line that a person reads.
        size: Images at once.
    """

    def __init__(self, work: str, size: int) -> None:
        self._work = work
        self.size = size

    def __call__(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Computes something of images, part by part, and returns it in their order; what was computed stays where a later part fails.

        Args:
            compute: Maps images, [B, ...], to as many results, [B, ...].
            images: [N, ...].

        Raises:
            ReproError: The GPU does not hold even one image.
        """
        results: list[Tensor] = []
        done = 0
        while done < len(images):
            part = images[done : done + self.size]
            result = _unless_out_of_memory(compute, part)
            if result is None:
                self._halve(len(part))
            else:
                results.append(result)
                done += len(part)
        return torch.cat(results)

    def _halve(self, failed: int) -> None:
        """Takes half of the images that did not fit, and says so."""
        if failed == 1:
            raise ReproError(
                f"{self._work}: this GPU's memory does not hold even one image at a time; end what else runs on the GPU, or take one with "
                "more memory, and run the command again"
            )
        self.size = _half(failed)
        say(f"{self._work}: {failed} images at once do not fit this GPU's memory; going on with {self.size}", to_stderr=True)
        if is_gpu(distributed.device()):
            torch.cuda.empty_cache()


def _half(count: int) -> int:
    return -(-count // 2)


def _unless_out_of_memory(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor | None:
    """Computes something of images; returns None where memory ran out, once the error, which holds on to what was allocated, is gone."""
    try:
        return compute(images)
    except RuntimeError as error:
        # cuBLAS and cuDNN, which allocate for themselves, have no type for it.
        if isinstance(error, torch.OutOfMemoryError) or "STATUS_ALLOC_FAILED" in str(error):
            return None
        raise


def _saved_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Returns the bytes of all storages that autograd saves in one forward pass."""
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.device("meta"), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        conditions = conditions_of(network, shape[0], "meta")
        output = network(torch.empty(shape), torch.zeros(shape[0], dtype=torch.int64), **conditions, return_dict=False)[0]
        output.square().mean()
    return sum(storage.nbytes() for storage in storages.values())
