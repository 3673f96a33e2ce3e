"""The variance-preserving SDE in continuous time (Song et al., 2021), as U-ViT is trained on it: the network predicts the noise."""

import math
from typing import Any

import torch
from diffusers import DPMSolverSinglestepScheduler
from torch import Tensor

from repro.config import Diffusion
from repro.diffusion.formulation import Formulation, NoisyBatch, Predict

BETA_MIN, BETA_MAX = 0.1, 20.0
EARLIEST = 1e-3  # the least time that samplers go back to
TIMESTEPS = 1000
LEAST_LAMBDA = -1e9  # clips nothing, as diffusers' -infinity does, which is no number in JSON


class VP(Formulation):
    """A noise level is a time t in (0, 1): x_t = sqrt(alpha) x + sqrt(1 - alpha) noise; the network is given 999 t.

    ln alpha(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2), beta from 0.1 to 20.

    Args:
        settings: The section `diffusion` of the configuration.
    """

    name = "vp"

    def __init__(self, settings: Diffusion) -> None:
        self.settings = settings

    def levels(self, count: int, stream: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """Draws times evenly; antithetic ones are 1 - t."""
        times = torch.rand(count, generator=stream, device=stream.device)
        return torch.cat([times[: (count + 1) // 2], 1 - times[: count // 2]]) if antithetic else times

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor, *, weighting: str = "uniform") -> NoisyBatch:
        """Adds the noise."""
        alpha = (-_decay(levels.view(-1, 1, 1, 1))).exp()
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        return NoisyBatch(noisy=noisy, target=noise, timesteps=self.timesteps(levels))

    def ladder(self, count: int) -> Tensor:
        """Returns evenly spaced times."""
        return (torch.arange(count) + 0.5) / count

    def timesteps(self, levels: Tensor) -> Tensor:
        """Returns 999 t."""
        return (TIMESTEPS - 1) * levels

    @property
    def sigmas(self) -> tuple[float, float]:
        """Those of the earliest time and of t = 1."""
        return math.sqrt(math.expm1(_decay(EARLIEST))), math.sqrt(math.expm1(_decay(1.0)))

    def grid(self, steps: int) -> list[float]:
        """Returns those of evenly spaced times, from t = 1."""
        times = [1 - (1 - EARLIEST) * step / steps for step in range(steps)]
        return [math.sqrt(math.expm1(_decay(time))) for time in times]

    def denoise(self, predict: Predict, images: Tensor, sigma: float) -> Tensor:
        """Asks for the noise at the time of sigma, sqrt((1 - alpha) / alpha), and takes it off."""
        slope, rise = BETA_MIN, BETA_MAX - BETA_MIN
        time = (math.sqrt(slope**2 + 2 * rise * math.log1p(sigma**2)) - slope) / rise
        level = torch.full((len(images),), time, dtype=torch.float32, device=images.device)
        noise = predict((images / (1 + sigma**2) ** 0.5).float(), self.timesteps(level))
        return images - sigma * noise

    def scheduler(self, *, clip_sample: bool) -> DPMSolverSinglestepScheduler:
        """Returns DPM-Solver of third order on the same schedule, cut into 1,000 timesteps."""
        settings = {"beta_start": BETA_MIN / TIMESTEPS, "beta_end": BETA_MAX / TIMESTEPS, "lambda_min_clipped": LEAST_LAMBDA}
        return DPMSolverSinglestepScheduler(num_train_timesteps=TIMESTEPS, beta_schedule="linear", solver_order=3, **settings)


def _decay(time: Any) -> Any:
    """Returns -ln alpha(t)."""
    return BETA_MIN * time + (BETA_MAX - BETA_MIN) / 2 * time**2
