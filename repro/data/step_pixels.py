"""Images of each training step: resident on the device where the set fits, else prefetched from the host."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from repro.models import memory
from repro.runtime.gpu import copied, is_gpu, pinned

# Of a GPU's free memory: half of what `memory.FREE_SHARE` leaves aside, so that an estimated batch still fits beside the images.
RESIDENT_SHARE = 0.05

Chosen = Callable[[int], Tensor]


def resident(pixels: Tensor, device: torch.device) -> bool:
    """Says whether a set of images is resident on a device: a small one on a GPU, any on the CPU."""
    return not is_gpu(device) or pixels.nbytes <= RESIDENT_SHARE * memory.free_bytes(device)


class StepPixels:
    """The images that each step takes of a set.

    Of a set on the host, which may be a map of a file, a thread prefetches the next step's images into pinned memory. The copy to the GPU
    is queued before the kernels that read it, on the same stream, and torch's caching allocator does not reuse pinned memory before the
    copies from it are done: so no synchronisation is needed.

    Args:
        pixels: The set, uint8, [N, C, H, W].
        device: Where the images are needed.

    Attributes:
        lie_on: The device of the set; indices are best made there.
    """

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        stays = resident(pixels, device)
        self._pixels = pixels.to(device) if stays else pixels
        self._device = device
        self._gatherer = None if stays else ThreadPoolExecutor(max_workers=1, thread_name_prefix="pixels")
        self._ahead: tuple[int, Future[Tensor]] | None = None
        self.lie_on = self._pixels.device

    def __call__(self, step: int, chosen: Chosen) -> Tensor:
        """Returns the images of a step on the device, uint8, [B, C, H, W], contiguous whatever the order of the set.

        Args:
            step: The step.
            chosen: Returns which images a step takes, int64, [B]; it is asked for this step and the next, and depends on the step alone.
        """
        if self._gatherer is None:
            indices = chosen(step)
            return self._pixels[indices if indices.device == self.lie_on else copied(indices, self.lie_on)].contiguous()
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._gather(self._gatherer, step, chosen)
        images = self._ahead[1].result().to(self._device, non_blocking=True)
        self._ahead = self._gather(self._gatherer, step + 1, chosen)
        return images

    def _gather(self, gatherer: ThreadPoolExecutor, step: int, chosen: Chosen) -> tuple[int, Future[Tensor]]:
        """Prefetches the images of a step; their indices are drawn here, since one thread alone uses the random streams."""
        indices = chosen(step).to(self.lie_on)
        return step, gatherer.submit(lambda: pinned(self._pixels[indices].contiguous()))
