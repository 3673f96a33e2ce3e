"""The batches that a classifier is trained on: labelled images, mirrored and shifted."""

from functools import lru_cache, partial

import torch
from torch import Tensor

from repro.config import Classifier as Settings
from repro.data.images import to_unit_range
from repro.data.step_pixels import StepPixels
from repro.runtime.gpu import copied
from repro.runtime.seeds import generator


class LabelledBatches:
    """The batches of a classifier's training; what batch `step` holds depends on (seed, step) alone, and a rank takes its slice of it.

    Args:
        pixels: uint8, [N, C, H, W]; they live on the device where they fit.
        labels: int64, [N].
        settings: Batch size over all ranks, seed, and how images are mirrored and shifted.
        device: Where the batches are made.
        rank: This process.
        ranks: How many share a batch.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, settings: Settings, *, device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        self._pixels = StepPixels(pixels, device)
        self._labels = labels.to(device)
        self._device = device
        # Of a step and of the next, whose images are asked for apart; it holds no reference to the set, which goes with its batches.
        self._drawn = lru_cache(maxsize=2)(partial(_draw, settings, len(labels), slice(rank, None, ranks)))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns this rank's slice of the batch of a step: images in [-1, 1], [B, C, H, W], and labels, [B]."""
        chosen, mirrored, down, right = copied(self._drawn(step), self._device)
        return to_unit_range(moved(self._pixels(step, self._chosen), mirrored > 0, down, right)), self._labels[chosen]

    def _chosen(self, step: int) -> Tensor:
        return self._drawn(step)[0]


def _draw(settings: Settings, count: int, own: slice, step: int) -> Tensor:
    """Draws a rank's images of a step, and how each is moved: mirrored, down, right; on the CPU, so that all devices train alike.

    Args:
        settings: The section of the configuration.
        count: Images of the set.
        own: The rank's slice of a batch.
        step: The step.

    Returns:
        int64, [4, B].
    """
    size, furthest = (settings.batch_size,), settings.crop_padding
    stream = generator(torch.device("cpu"), "classifier", settings.seed, step)
    chosen = torch.randint(count, size, generator=stream)
    mirrored = torch.rand(size, generator=stream) < (0.5 if settings.horizontal_flip else 0.0)
    down, right = torch.randint(-furthest, furthest + 1, (2, *size), generator=stream)
    return torch.stack([chosen, mirrored.long(), down, right])[:, own]


def moved(pixels: Tensor, mirrored: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Returns images mirrored, then shifted; what a shift uncovers is filled by reflection.

    Args:
        pixels: [B, C, H, W].
        mirrored: Which of them are mirrored left to right, bool, [B].
        down: By how many pixels each is shifted down, int64, [B], less than H.
        right: By how many to the right, int64, [B], less than W.
    """
    count, channels, height, width = pixels.shape
    rows = _reflected(torch.arange(height, device=pixels.device) - down[:, None], height)
    columns = _reflected(torch.arange(width, device=pixels.device) - right[:, None], width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    images, planes = (torch.arange(length, device=pixels.device) for length in (count, channels))
    return pixels[images[:, None, None, None], planes[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(positions: Tensor, length: int) -> Tensor:
    """Maps positions from -length + 1 to 2 * length - 2 to [0, length), by reflection at the first and the last."""
    return length - 1 - (length - 1 - positions.abs()).abs()
