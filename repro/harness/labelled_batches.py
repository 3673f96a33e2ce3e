"""The batches that a classifier is trained on: labelled images, mirrored and shifted."""

import torch
from torch import Tensor

from repro.config import Classifier as Settings
from repro.harness.data import to_unit_range
from repro.harness.randomness import generator


class LabelledBatches:
    """The batches of a classifier's training; what batch `step` holds depends on (seed, step) alone, and a rank takes its slice of it.

    Args:
        pixels: uint8, [N, C, H, W]; the whole set lives on the device.
        labels: int64, [N].
        settings: Batch size over all ranks, seed, and how images are mirrored and shifted.
        device: Where the batches are made.
        rank: This process.
        ranks: How many share a batch.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, settings: Settings, *, device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        self._pixels = pixels.to(device)
        self._labels = labels.to(device)
        self._settings = settings
        self._slice = slice(rank, None, ranks)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns this rank's slice of the batch of a step: images in [-1, 1], [B, C, H, W], and labels, [B]."""
        size, furthest = (self._settings.batch_size,), self._settings.crop_padding
        # Drawn on the CPU, so that every device trains on the same images.
        stream = generator(torch.device("cpu"), "classifier", self._settings.seed, step)
        chosen = torch.randint(len(self._pixels), size, generator=stream)
        mirrored = torch.rand(size, generator=stream) < (0.5 if self._settings.horizontal_flip else 0.0)
        down, right = torch.randint(-furthest, furthest + 1, (2, *size), generator=stream)
        chosen, mirrored, down, right = (drawn[self._slice].to(self._pixels.device) for drawn in (chosen, mirrored, down, right))
        return to_unit_range(moved(self._pixels, chosen, mirrored, down, right)), self._labels[chosen]


def moved(pixels: Tensor, chosen: Tensor, mirrored: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Returns chosen images of a set, mirrored, then shifted; what a shift uncovers is filled by reflection.

    Args:
        pixels: The set, [N, C, H, W].
        chosen: Indices, int64, [B].
        mirrored: Which of them are mirrored left to right, bool, [B].
        down: By how many pixels each is shifted down, int64, [B], less than H.
        right: By how many to the right, int64, [B], less than W.
    """
    _, channels, height, width = pixels.shape
    rows = _reflected(torch.arange(height, device=pixels.device) - down[:, None], height)
    columns = _reflected(torch.arange(width, device=pixels.device) - right[:, None], width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    planes = torch.arange(channels, device=pixels.device)
    return pixels[chosen[:, None, None, None], planes[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(positions: Tensor, length: int) -> Tensor:
    """Maps positions from -length + 1 to 2 * length - 2 to [0, length), by reflection at the first and the last."""
    return length - 1 - (length - 1 - positions.abs()).abs()
