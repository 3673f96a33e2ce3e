"""Diffusion: the noise schedule, the training loss and the sampler (DDPM, Ho et al., 2020; DDIM, Song et al., 2021)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from repro.config import Diffusion, Evaluation
from repro.harness.arithmetic import autocast
from repro.harness.data import Images, to_pixels, to_unit_range
from repro.harness.randomness import derive_seed, generator

Predict = Callable[[Tensor, Tensor], Tensor]
MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """Images with noise added; every tensor starts with the batch's dimension B.

    Attributes:
        noisy: The diffused images, [B, C, H, W].
        noise: What was added, [B, C, H, W].
        timesteps: int64, [B].
        weights: The factors on the images' losses, [B]; None has 1 for all.
    """

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    weights: Tensor | None = None

    def _each(self, of: Callable[[Tensor], Tensor]) -> "NoisyBatch":
        weights = None if self.weights is None else of(self.weights)
        return NoisyBatch(noisy=of(self.noisy), noise=of(self.noise), timesteps=of(self.timesteps), weights=weights)

    def parts(self, count: int) -> list["NoisyBatch"]:
        """Deals the batch out in `count` equal parts, the first image to the first part, the second to the second, and so on.

        Ranks take their slices in the same way, and `shares` cuts a part into pieces: so what an image is used for does not depend on
        the number of ranks or parts. The batch must be divisible by `count`.
        """
        return [self._each(lambda tensor, part=part: tensor[part::count]) for part in range(count)]  # type: ignore[misc]

    def shares(self, count: int) -> list["NoisyBatch"]:
        """Shares the batch out in `count` equal parts; the batch must be divisible by it."""
        assert len(self.noise) % count == 0, f"{len(self.noise)} images cannot be shared by {count} subnets"
        return [self._each(lambda tensor, share=share: tensor.chunk(count)[share]) for share in range(count)]  # type: ignore[misc]


def noise_schedule(settings: Diffusion) -> DDPMScheduler:
    """Returns diffusers' training-time scheduler."""
    return DDPMScheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
    )


def sampling_scheduler(settings: Diffusion, *, clip_sample: bool) -> DDIMScheduler:
    """Returns diffusers' DDIM scheduler for the same noise schedule, as an extracted subnet carries it."""
    return DDIMScheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        clip_sample=clip_sample,
        set_alpha_to_one=True,
    )


def predictor(model: torch.nn.Module, *leading: object) -> Predict:
    """Returns a network as a function of (images, timesteps); `leading` arguments, such as a size, go before them."""

    def predict(images: Tensor, timesteps: Tensor) -> Tensor:
        output: Tensor = model(*leading, images, timesteps, return_dict=False)[0]
        return output

    return predict


def image_losses(predict: Predict, batch: NoisyBatch) -> Tensor:
    """Returns the noise-prediction error of each image, averaged over its pixels, shape [B] (DDPM, L_simple), with the batch's weights."""
    return _weighted((predict(batch.noisy, batch.timesteps) - batch.noise).square().flatten(1).mean(dim=1), batch)


def distillation_losses(predict: Predict, teacher: Predict, batch: NoisyBatch, share: float) -> Tensor:
    """Returns the error of each image, shape [B], with `share` of it against the teacher's prediction in place of the noise."""
    predicted = predict(batch.noisy, batch.timesteps)
    with torch.no_grad():
        asked = teacher(batch.noisy, batch.timesteps)
    errors = [(predicted - target).square().flatten(1).mean(dim=1) for target in (batch.noise, asked)]
    return _weighted((1 - share) * errors[0] + share * errors[1], batch)


def _weighted(losses: Tensor, batch: NoisyBatch) -> Tensor:
    return losses if batch.weights is None else losses * batch.weights


def min_snr_weights(schedule: DDPMScheduler, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Returns the factor on the noise-prediction error of every timestep, min(SNR, gamma) / SNR, shape [T] (Hang et al., 2023)."""
    alpha_bars: Tensor = schedule.alphas_cumprod
    ratio = alpha_bars / (1 - alpha_bars)
    return ratio.clamp(max=gamma) / ratio


class NoisyBatches:
    """The batches of a run: a shuffled pass over the images after another, noise and timestep drawn anew each time.

    What batch `step` holds depends on (seed, step) alone; a rank takes its slice of it.

    Args:
        images: The training set.
        schedule: The noise schedule.
        batch_size: Images of a batch over all ranks.
        seed: The run's seed.
        device: Where the batches are made; the whole set lives there.
        horizontal_flip: Whether every image is mirrored with probability 1/2.
        antithetic: Whether the second half of a batch has timesteps T - 1 - t of the first.
        weighting: Of the timesteps' losses: "uniform" or "min_snr".
        rank: This process.
        ranks: How many share a batch.
    """

    def __init__(
        self,
        images: Images,
        schedule: DDPMScheduler,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        horizontal_flip: bool = False,
        antithetic: bool = False,
        weighting: str = "uniform",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._pixels = images.pixels.to(device)
        self._schedule = schedule
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._flip = horizontal_flip
        self._antithetic = antithetic
        self._weights = min_snr_weights(schedule).to(device) if weighting == "min_snr" else None
        self._slice = slice(rank, None, ranks)
        self._epoch = (-1, torch.empty(0, dtype=torch.int64))

    def __call__(self, step: int) -> NoisyBatch:
        """Returns this rank's slice of the batch of a step."""
        stream = generator(self._device, "batch", self._seed, step)
        shape = (self._batch_size, *self._pixels.shape[1:])
        noise = torch.randn(shape, generator=stream, device=self._device)[self._slice]
        steps = self._schedule.config.num_train_timesteps
        timesteps = torch.randint(0, steps, shape[:1], generator=stream, device=self._device)
        if self._antithetic:
            half = timesteps[: (len(timesteps) + 1) // 2]
            timesteps = torch.cat([half, steps - 1 - half])[: len(timesteps)]
        timesteps = timesteps[self._slice]
        clean = to_unit_range(self._pixels[self._indices(step)[self._slice]])
        if self._flip:
            mirrored = torch.rand(shape[:1], generator=stream, device=self._device)[self._slice] < 0.5
            clean = torch.where(mirrored[:, None, None, None], clean.flip(-1), clean)
        weights = None if self._weights is None else self._weights[timesteps]
        return NoisyBatch(noisy=self._schedule.add_noise(clean, noise, timesteps), noise=noise, timesteps=timesteps, weights=weights)

    def _indices(self, step: int) -> Tensor:
        """Returns the images of a batch: the next `batch_size` positions of the endless sequence of shuffled passes."""
        taken, count = [], len(self._pixels)
        position, end = step * self._batch_size, (step + 1) * self._batch_size
        while position < end:
            epoch, offset = divmod(position, count)
            length = min(end - position, count - offset)
            taken.append(self._permutation(epoch)[offset : offset + length])
            position += length
        return torch.cat(taken)

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            stream = generator(self._device, "epoch", self._seed, epoch)
            self._epoch = (epoch, torch.randperm(len(self._pixels), generator=stream, device=self._device))
        return self._epoch[1]


def sampling_timesteps(train_timesteps: int, steps: int, spacing: str) -> list[int]:
    """Returns the timesteps that a sampler visits, ascending, none of them twice.

    `uniform` takes every (T // steps)-th from 0. `quadratic` takes (linspace(0, sqrt(0.8 T), steps))^2, rounded down: the spacing of
    the DDIM paper for CIFAR-10 (Song et al., 2021, appendix D.2), which diffusers' scheduler lacks. Where its first points fall on one
    timestep, as at 100 steps of 1,000, of which 96 are distinct, a step from it to itself would change nothing and is left out.
    """
    if spacing == "uniform":
        return [index * (train_timesteps // steps) for index in range(steps)]
    assert spacing == "quadratic", spacing
    roots = torch.linspace(0, (0.8 * train_timesteps) ** 0.5, steps, dtype=torch.float64).tolist()
    return sorted({int(root**2) for root in roots})


@torch.no_grad()
def ddim(predict: Predict, noise: Tensor, schedule: DDPMScheduler, timesteps: list[int], *, clip_sample: bool) -> Tensor:
    """Samples with DDIM at eta = 0 (Song et al., 2021, Eq. 12).

    Args:
        predict: The network.
        noise: Standard normal, [B, C, H, W].
        schedule: The noise schedule that the network was trained with.
        timesteps: What to visit, ascending.
        clip_sample: Whether the predicted clean image is clipped to [-1, 1] at every step.

    Returns:
        The images at time 0, [B, C, H, W].
    """
    alpha_bars = schedule.alphas_cumprod.tolist()
    images = noise
    for time, earlier in zip(reversed(timesteps), [*reversed(timesteps[:-1]), None], strict=True):
        alpha_bar, alpha_bar_earlier = alpha_bars[time], 1.0 if earlier is None else alpha_bars[earlier]
        epsilon = predict(images, torch.full((len(images),), time, device=images.device))
        clean = (images - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        if clip_sample:
            clean = clean.clamp(-1, 1)
        images = alpha_bar_earlier**0.5 * clean + (1 - alpha_bar_earlier) ** 0.5 * epsilon
    return images


def image_noise(indices: range, shape: tuple[int, int, int], seed: int, sampling_seed: int) -> Tensor:
    """Returns the starting noise of images, [len(indices), C, H, W].

    It depends on the two seeds and an image's index alone, never on the batch or the rank.
    """
    stream, noise = torch.Generator(), torch.empty(len(indices), *shape)
    for image, index in zip(noise, indices, strict=True):
        torch.randn(shape, generator=stream.manual_seed(derive_seed("sample", seed, sampling_seed, index)), out=image)
    return noise


def sample_pixels(predict: Predict, schedule: DDPMScheduler, noise: Tensor, settings: Evaluation) -> Tensor:
    """Samples images from noise as a configuration says.

    Returns:
        uint8, on the CPU, [B, C, H, W].
    """
    timesteps = sampling_timesteps(schedule.config.num_train_timesteps, settings.sampler_steps, settings.spacing)
    with autocast(settings.precision, noise.device):
        return to_pixels(ddim(predict, noise, schedule, timesteps, clip_sample=settings.clip_sample)).cpu()
