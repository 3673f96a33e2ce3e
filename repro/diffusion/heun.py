"""EDM's sampler (Karras et al., 2022, algorithm 1): Heun's method on the probability flow, for networks of any formulation."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from repro.config import Evaluation
from repro.diffusion.formulation import Formulation, sigma_grid
from repro.diffusion.sampler import Denoise, Sampler


class Heun(Sampler):
    """Two evaluations a step, and one at the last, which ends without noise: 18 steps are 35 evaluations."""

    name = "heun"

    def nfe(self, settings: Evaluation, formulation: Formulation) -> int:
        """Returns 2 N - 1."""
        return 2 * settings.sampler_steps - 1

    def sample(self, denoise: Denoise, noise: Tensor, settings: Evaluation) -> Tensor:
        """Draws images by `heun`, between the least and the greatest noise that the formulation knows."""
        sigmas = sigma_grid(settings.sampler_steps, *denoise.formulation.sigmas)
        return heun(denoise, noise, sigmas, churn=settings.churn, within=settings.churn_range, scale=settings.churn_noise)

    def check(self, settings: Evaluation, formulation: Formulation) -> None:
        """Takes churn."""

    def about(self, settings: Evaluation, formulation: Formulation) -> dict[str, Any]:
        """Returns the settings that it reads."""
        churn = {"churn": settings.churn, "churn_range": list(settings.churn_range), "churn_noise": settings.churn_noise}
        return super().about(settings, formulation) | (churn if settings.churn else {})


def heun(
    denoise: Denoise,
    noise: Tensor,
    sigmas: list[float],
    *,
    churn: float = 0.0,
    within: Sequence[float] = (0.0, math.inf),
    scale: float = 1.0,
) -> Tensor:
    """Follows the flow from the first noise level to the last, with Heun's correction wherever noise is left; the state is float64.

    Args:
        denoise: D(x; sigma).
        noise: Standard normal, [B, C, H, W].
        sigmas: Noise levels, descending; the last may be 0.
        churn: S_churn: how much fresh noise all steps together add before they take some away (algorithm 2).
        within: S_min and S_max, the noise levels at which that is done.
        scale: S_noise, the standard deviation of the fresh noise.

    Returns:
        The images at the last noise level, [B, C, H, W].
    """
    images = sigmas[0] * noise.double()
    for step, (sigma, later) in enumerate(pairwise(sigmas)):
        raised = sigma
        if churn and within[0] <= sigma <= within[1]:
            raised *= 1 + min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
            images = images + math.sqrt(raised**2 - sigma**2) * scale * denoise.fresh(step + 1).double()
        slope = (images - denoise(images, raised).double()) / raised
        following = images + (later - raised) * slope
        if later:
            corrected = (following - denoise(following, later).double()) / later
            following = images + (later - raised) * (slope + corrected) / 2
        images = following
    return images.to(torch.float32)
