"""DDIM (Song et al., 2021), at eta = 0."""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from repro.config import Evaluation
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import Formulation, Predict
from repro.diffusion.sampler import Denoise, Sampler
from repro.errors import ReproError


class DDIM(Sampler):
    """One evaluation at each timestep that it visits."""

    name = "ddim"

    def nfe(self, settings: Evaluation, formulation: Formulation) -> int:
        """Returns the number of distinct timesteps."""
        return len(_timesteps(settings, _ddpm(formulation)))

    def sample(self, denoise: Denoise, noise: Tensor, settings: Evaluation) -> Tensor:
        """Draws images by `ddim`."""
        formulation = _ddpm(denoise.formulation)
        timesteps = _timesteps(settings, formulation)
        return ddim(denoise.predict, noise, formulation.schedule, timesteps, clip_sample=settings.clip_sample)

    def check(self, settings: Evaluation, formulation: Formulation) -> None:
        """Takes discrete timesteps alone."""
        super().check(settings, formulation)
        _ddpm(formulation)

    def about(self, settings: Evaluation, formulation: Formulation) -> dict[str, Any]:
        """Returns the settings that DDIM reads."""
        return {
            "steps": settings.sampler_steps,
            "nfe": self.nfe(settings, formulation),
            "spacing": settings.spacing,
            "eta": 0.0,
            "clip_sample": settings.clip_sample,
            "precision": settings.precision,
        }


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


def _timesteps(settings: Evaluation, formulation: DDPM) -> list[int]:
    return sampling_timesteps(formulation.settings.num_train_timesteps, settings.sampler_steps, settings.spacing)


def _ddpm(formulation: Formulation) -> DDPM:
    """Returns a formulation as the one whose timesteps DDIM visits.

    Raises:
        ReproError: It is another one.
    """
    if not isinstance(formulation, DDPM):
        raise ReproError(f"evaluation.sampler: ddim visits DDPM's timesteps, and {formulation.name} has none; name another sampler")
    return formulation
