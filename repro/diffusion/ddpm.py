"""DDPM (Ho et al., 2020): discrete timesteps, and a network that predicts the noise."""

import copy

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from repro.config import Diffusion, Training
from repro.diffusion.formulation import Formulation, NoisyBatch, Predict
from repro.runtime.gpu import copied

MIN_SNR_GAMMA = 5.0


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
    scheduler: DDIMScheduler = DDIMScheduler.from_config(noise_schedule(settings).config, clip_sample=clip_sample, set_alpha_to_one=True)
    return scheduler


def min_snr_weights(schedule: DDPMScheduler, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Returns the factor on the noise-prediction error of every timestep, min(SNR, gamma) / SNR, shape [T] (Hang et al., 2023)."""
    alpha_bars: Tensor = schedule.alphas_cumprod
    ratio = alpha_bars / (1 - alpha_bars)
    return ratio.clamp(max=gamma) / ratio


class DDPM(Formulation):
    """A noise level is a timestep t, int64; the target is the noise in sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise.

    Args:
        settings: The section `diffusion` of the configuration.

    Attributes:
        settings: The same.
        schedule: diffusers' scheduler, which adds the noise.
    """

    name = "ddpm"

    def __init__(self, settings: Diffusion) -> None:
        self.settings = settings
        self.schedule = noise_schedule(settings)
        self._min_snr = min_snr_weights(self.schedule)
        # sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), of images that are divided by sqrt(alpha_bar_t).
        alpha_bars = self.schedule.alphas_cumprod.double()
        self._log_sigmas = ((1 - alpha_bars) / alpha_bars).log() / 2

    def levels(self, count: int, stream: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """Draws timesteps; antithetic ones are T - 1 - t of the first half (as in DDIM's code)."""
        steps = self.settings.num_train_timesteps
        timesteps = torch.randint(0, steps, (count,), generator=stream, device=stream.device)
        if not antithetic:
            return timesteps
        half = timesteps[: (count + 1) // 2]
        return torch.cat([half, steps - 1 - half])[:count]

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor, *, weighting: str = "uniform") -> NoisyBatch:
        """Adds the noise; `min_snr` weights are those of `min_snr_weights`."""
        if weighting == "min_snr" and self._min_snr.device != levels.device:
            self._min_snr = copied(self._min_snr, levels.device)  # once; a sampler needs none
        weights = self._min_snr[levels] if weighting == "min_snr" else None
        return NoisyBatch(noisy=self.schedule.add_noise(clean, noise, levels), target=noise, timesteps=levels, weights=weights)

    def ladder(self, count: int) -> Tensor:
        """Returns the timesteps 0 to T - 1."""
        return torch.arange(count)

    def timesteps(self, levels: Tensor) -> Tensor:
        """Returns them as they are."""
        return levels

    @property
    def sigmas(self) -> tuple[float, float]:
        """Those of the first and the last timestep."""
        least, greatest = self._log_sigmas[[0, -1]].exp().tolist()
        return least, greatest

    def grid(self, steps: int) -> list[float]:
        """Returns those of evenly spaced timesteps, from the last, as diffusers' samplers space them."""
        last = len(self._log_sigmas) - 1
        every = steps > last  # of them all; otherwise two would round to one
        times = [last - step if every else round(last * (steps - step) / steps) for step in range(steps)]
        sigmas: list[float] = self._log_sigmas[times].exp().tolist()
        return sigmas

    def denoise(self, predict: Predict, images: Tensor, sigma: float) -> Tensor:
        """Asks for the noise at the timestep of sigma, between two timesteps interpolated in ln sigma, and takes it off."""
        timestep = torch.full((len(images),), self._timestep(sigma), dtype=torch.float32, device=images.device)
        noise = predict((images / (1 + sigma**2) ** 0.5).float(), timestep)
        return images - sigma * noise

    def _timestep(self, sigma: float) -> float:
        log_sigma = torch.tensor(sigma, dtype=torch.float64).log().clamp(self._log_sigmas[0], self._log_sigmas[-1])
        after = int(torch.searchsorted(self._log_sigmas, log_sigma).clamp(1, len(self._log_sigmas) - 1))
        low, high = self._log_sigmas[after - 1], self._log_sigmas[after]
        return after - 1 + float((log_sigma - low) / (high - low))

    def scheduler(self, *, clip_sample: bool) -> DDIMScheduler:
        """Returns DDIM on the same noise schedule."""
        return sampling_scheduler(self.settings, clip_sample=clip_sample)

    def check(self, settings: Training) -> None:
        """Takes every setting."""

    def to(self, device: torch.device) -> "DDPM":
        """Copies what adds the noise, which moves itself to the device; a sampler reads the schedule on the CPU."""
        other = copy.copy(self)
        other.schedule = copy.deepcopy(self.schedule)
        return other
