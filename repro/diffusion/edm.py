"""EDM (Karras et al., 2022): continuous noise levels, a preconditioned network, log-normal training noise."""

import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from repro.config import Diffusion
from repro.diffusion.formulation import Formulation, NoisyBatch, Predict

SIGMA_DATA = 0.5
P_MEAN, P_STD = -1.2, 1.2
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


class EDM(Formulation):
    """A noise level is sigma in x + sigma * noise, float32; the network sees c_in x and ln(sigma) / 4.

    The loss is lambda(sigma) |D - x|^2 with D = c_skip x + c_out F (table 1, "Ours"). Since lambda c_out^2 = 1, that is |F - target|^2 with
    target = (clean - c_skip x) / c_out = (sigma / sigma_data * clean - sigma_data * noise) / sqrt(sigma^2 + sigma_data^2).

    Args:
        settings: The section `diffusion` of the configuration.
    """

    name = "edm"
    sigmas = (SIGMA_MIN, SIGMA_MAX)

    def __init__(self, settings: Diffusion) -> None:
        self.settings = settings

    def levels(self, count: int, stream: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """Draws ln sigma ~ N(P_mean, P_std^2); antithetic ones are mirrored at the mean."""
        normal = torch.randn(count, generator=stream, device=stream.device)
        if antithetic:
            normal = torch.cat([normal[: (count + 1) // 2], -normal[: count // 2]])
        levels: Tensor = (P_MEAN + P_STD * normal).exp()
        return levels

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor, *, weighting: str = "uniform") -> NoisyBatch:
        """Adds the noise and preconditions."""
        sigma = levels.view(-1, 1, 1, 1)
        scale = (sigma.square() + SIGMA_DATA**2).sqrt()
        target = (sigma / SIGMA_DATA * clean - SIGMA_DATA * noise) / scale
        return NoisyBatch(noisy=(clean + sigma * noise) / scale, target=target, timesteps=self.timesteps(levels))

    def ladder(self, count: int) -> Tensor:
        """Returns the middles of as many quantiles of the training's distribution."""
        share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        levels: Tensor = (P_MEAN + P_STD * torch.special.ndtri(share)).exp().float()
        return levels

    def timesteps(self, levels: Tensor) -> Tensor:
        """Returns c_noise = ln(sigma) / 4."""
        timesteps: Tensor = levels.log() / 4
        return timesteps

    def denoise(self, predict: Predict, images: Tensor, sigma: float) -> Tensor:
        """Returns c_skip x + c_out F(c_in x; c_noise); F in float32, the rest in the images' kind."""
        variance = float(sigma**2 + SIGMA_DATA**2)
        level = torch.full((len(images),), sigma, dtype=torch.float32, device=images.device)
        output = predict((images / variance**0.5).float(), self.timesteps(level)).to(images.dtype)
        denoised: Tensor = SIGMA_DATA**2 / variance * images + sigma * SIGMA_DATA / variance**0.5 * output
        return denoised

    def scheduler(self, *, clip_sample: bool) -> EDMDPMSolverMultistepScheduler:
        """Returns DPM-Solver++ on EDM's noise levels, which is preconditioned alike."""
        return EDMDPMSolverMultistepScheduler(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA)
