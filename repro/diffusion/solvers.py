"""diffusers' fast solvers, DPM-Solver++ (Lu et al., 2022) and UniPC (Zhao et al., 2023), as samplers of any formulation.

Each is given the denoiser's answer at the formulation's own noise levels. UniPC copies some of these to the device at every step,
DPM-Solver++ none.
"""

import warnings
from itertools import pairwise
from typing import Any

from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler
from torch import Tensor

from repro.config import Evaluation
from repro.diffusion.formulation import Formulation
from repro.diffusion.sampler import Denoise, Sampler


class Solver(Sampler):
    """A scheduler of diffusers, with one evaluation a step.

    It is told the clean image in place of the noise, and that alpha = 1 / (1 + sigma^2) at the noise levels of `Formulation.grid`.

    Args:
        name: Its value of `evaluation.sampler`.
        kind: The class of the scheduler.
        order: Of the solver.
    """

    def __init__(self, name: str, kind: Any, order: int) -> None:
        self.name, self._kind, self._order = name, kind, order

    def nfe(self, settings: Evaluation, formulation: Formulation) -> int:
        """Returns the number of steps."""
        return settings.sampler_steps

    def sample(self, denoise: Denoise, noise: Tensor, settings: Evaluation) -> Tensor:
        """Draws images; `clip_sample` clips the denoiser's answers."""
        scheduler = self.scheduler(denoise.formulation.grid(settings.sampler_steps))
        sigmas = scheduler.sigmas.tolist()  # as the scheduler rounded them
        images: Tensor = noise * (sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5)
        for sigma, time in zip(sigmas[:-1], scheduler.timesteps, strict=True):
            clean = denoise(images * (1 + sigma**2) ** 0.5, sigma)
            images = scheduler.step(clean.clamp(-1, 1) if settings.clip_sample else clean, time, images).prev_sample
        return images

    def scheduler(self, sigmas: list[float]) -> Any:
        """Returns the scheduler whose steps begin at some noise levels, descending, and end without noise."""
        levels = [sigmas[-1] / 2, *reversed(sigmas)]  # the first of a schedule is no step's beginning
        kept = [1.0, *(1 / (1 + sigma**2) for sigma in levels)]
        betas = [1 - after / before for before, after in pairwise(kept)]
        form = {"prediction_type": "sample", "solver_order": self._order, "final_sigmas_type": "zero", "lower_order_final": True}
        scheduler = self._kind(num_train_timesteps=len(levels), trained_betas=betas, **form)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # diffusers hands a tensor to numpy's array
            scheduler.set_timesteps(len(sigmas))
        return scheduler

    def about(self, settings: Evaluation, formulation: Formulation) -> dict[str, Any]:
        """Returns the settings that it reads."""
        own = {"solver": self._kind.__name__, "order": self._order, "clip_sample": settings.clip_sample}
        return super().about(settings, formulation) | own


SOLVERS = (
    Solver("dpmsolver", DPMSolverSinglestepScheduler, 3),
    Solver("dpmsolver++", DPMSolverMultistepScheduler, 2),
    Solver("unipc", UniPCMultistepScheduler, 2),
)
