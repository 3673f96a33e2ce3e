"""The batches of a training run, and the noise that samples start from: functions of the seed, and of nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from repro.data.augmentation import NORMAL, UNIFORM, augmented
from repro.data.condition import UNCONDITIONAL, Condition
from repro.data.images import Images
from repro.data.space import PIXELS, Space
from repro.data.step_pixels import StepPixels
from repro.diffusion.formulation import Formulation, NoisyBatch
from repro.runtime.gpu import copied
from repro.runtime.seeds import derive_seed, generator


class NoisyBatches:
    """The batches of a run: a shuffled pass over the images after another, noise and noise level drawn anew each time.

    What batch `step` holds depends on (seed, step) alone; a rank takes its slice of it.

    Args:
        images: The training set.
        formulation: How they are noised.
        batch_size: Images of a batch over all ranks.
        seed: The run's seed.
        device: Where the batches are made; the set lives there too, where it fits.
        space: What the network sees of an image.
        condition: What else the network is given.
        condition_dropout: How often that is left out, for guidance.
        horizontal_flip: Whether every image is mirrored with probability 1/2.
        augment_probability: Of each of EDM's augmentations, whose labels the network is given; 0 has none.
        antithetic: Whether the second half of a batch has the mirrored noise levels of the first.
        weighting: Of the noise levels' losses: "uniform" or "min_snr".
        rank: This process.
        ranks: How many share a batch.
    """

    def __init__(
        self,
        images: Images,
        formulation: Formulation,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        space: Space = PIXELS,
        condition: Condition = UNCONDITIONAL,
        condition_dropout: float = 0.0,
        horizontal_flip: bool = False,
        augment_probability: float = 0.0,
        antithetic: bool = False,
        weighting: str = "uniform",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._pixels = StepPixels(images.pixels, device)
        self._rows = {name: rows.to(self._pixels.lie_on) for name, rows in condition.rows(images).items()}
        self._dropout, null = condition_dropout, condition.null(images) if condition_dropout else {}
        self._null = {name: row.to(device) for name, row in null.items()}
        self._count, self._shape = len(images), space.encode(images.pixels[:1]).shape[1:]
        self._formulation, self._space = formulation.to(device), space.to(device)
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._flip, self._augment_probability = horizontal_flip, augment_probability
        self._antithetic = antithetic
        self._weighting = weighting
        self._slice = slice(rank, None, ranks)
        self._epoch = (-1, torch.empty(0, dtype=torch.int64))

    def __call__(self, step: int) -> NoisyBatch:
        """Returns this rank's slice of the batch of a step."""
        stream = generator(self._device, "batch", self._seed, step)
        noise = torch.randn((self._batch_size, *self._shape), generator=stream, device=self._device)[self._slice]
        levels = self._formulation.levels(self._batch_size, stream, antithetic=self._antithetic)[self._slice]
        pixels = self._pixels(step, self._indices)
        if self._flip:
            pixels = torch.where(self._share(stream, 0.5)[:, None, None, None], pixels.flip(-1), pixels)
        clean, given = self._space.encode(pixels), {}
        if self._augment_probability:
            clean, given["augment_labels"] = self._augmented(clean, stream)
        batch = self._formulation.noised(clean, noise, levels, weighting=self._weighting)
        if self._rows:
            given |= self._conditions(step, stream)
        return replace(batch, condition=given) if given else batch

    def _augmented(self, clean: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns this rank's images, augmented, and their labels."""
        uniform = torch.rand((self._batch_size, UNIFORM), generator=stream, device=self._device)
        normal = torch.randn((self._batch_size, NORMAL), generator=stream, device=self._device)
        return augmented(clean, uniform[self._slice], normal[self._slice], self._augment_probability)

    def _share(self, stream: torch.Generator, probability: float) -> Tensor:
        """Draws which of this rank's images something happens to, bool, [B]."""
        return torch.rand((self._batch_size,), generator=stream, device=self._device)[self._slice] < probability

    def _conditions(self, step: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Returns what the network is given with this rank's images."""
        indices = self._indices(step)
        rows = {name: rows[indices] for name, rows in self._rows.items()}
        if self._pixels.lie_on != self._device:
            rows = {name: copied(chosen, self._device) for name, chosen in rows.items()}
        if not self._dropout:
            return rows
        left_out = self._share(stream, self._dropout)
        return {name: torch.where(left_out.view(-1, *[1] * (chosen.ndim - 1)), self._null[name], chosen) for name, chosen in rows.items()}

    def _indices(self, step: int) -> Tensor:
        """Returns this rank's images of a batch: the next `batch_size` positions of the endless sequence of shuffled passes are shared."""
        taken, count = [], self._count
        position, end = step * self._batch_size, (step + 1) * self._batch_size
        while position < end:
            epoch, offset = divmod(position, count)
            length = min(end - position, count - offset)
            taken.append(self._permutation(epoch)[offset : offset + length])
            position += length
        return torch.cat(taken)[self._slice]

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            stream = generator(self._device, "epoch", self._seed, epoch)
            self._epoch = (epoch, torch.randperm(self._count, generator=stream, device=self._device).to(self._pixels.lie_on))
        return self._epoch[1]


def image_noise(indices: Sequence[int], shape: tuple[int, int, int], seed: int, sampling_seed: int, time: int = 0) -> Tensor:
    """Returns the starting noise of images, or what is drawn for them at a later time, [len(indices), C, H, W].

    It depends on the two seeds, the time and an image's index alone, never on the batch or the rank.
    """
    later = [time] if time else []
    stream, noise = torch.Generator(), torch.empty(len(indices), *shape)
    for image, index in zip(noise, indices, strict=True):
        torch.randn(shape, generator=stream.manual_seed(derive_seed("sample", seed, sampling_seed, index, *later)), out=image)
    return noise
