"""The contract of a sampler, and the denoiser D(x; sigma) that it is given; guidance."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from repro.config import Evaluation
from repro.data.space import PIXELS, Space
from repro.diffusion.formulation import Formulation, Predict
from repro.errors import ReproError, RunError
from repro.runtime.precision import autocast

Fresh = Callable[[int], Tensor]


def _none(_time: int) -> Tensor:
    raise AssertionError("a sampler asked for more noise, and is given none")


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """A network as a function of noisy images and their noise level sigma: D(x; sigma) (Karras et al., 2022).

    Attributes:
        predict: The network itself, conditioned and guided: (images, timesteps [B]) -> what its formulation asks it for.
        formulation: Which that is.
        fresh: More noise for the same images: the n-th time, from 1, -> standard normal, [B, C, H, W]. An image's own depends on the seeds
            and its index alone.
    """

    predict: Predict
    formulation: Formulation
    fresh: Fresh = _none

    def __call__(self, images: Tensor, sigma: float) -> Tensor:
        """Returns the clean images in x + sigma * noise, [B, C, H, W]."""
        return self.formulation.denoise(self.predict, images, sigma)


@runtime_checkable
class Sampler(Protocol):
    """How images are drawn from noise. One of one's own derives from this class, and an object of it is given to `repro.api.main`.

    Attributes:
        name: Its value of `evaluation.sampler`.
    """

    name: str

    @abstractmethod
    def nfe(self, settings: Evaluation, formulation: Formulation) -> int:
        """Returns how often the denoiser is evaluated for an image (NFE), by which the estimate counts the work."""

    @abstractmethod
    def sample(self, denoise: Denoise, noise: Tensor, settings: Evaluation) -> Tensor:
        """Draws images; gradients are off.

        Args:
            denoise: The network: (images x + sigma * noise [B, C, H, W], sigma) -> the clean images.
            noise: Standard normal, [B, C, H, W]. It and `denoise.fresh` alone may be random: an image must not depend on the batch or rank
                it is drawn in.
            settings: The section `evaluation` of the configuration.

        Returns:
            The images without noise, as the network's space has them, [B, C, H, W].
        """

    def check(self, settings: Evaluation, formulation: Formulation) -> None:
        """Makes sure, before a run, that it can sample from a formulation as configured; by default, without churn.

        Raises:
            ReproError: It cannot; names the key to change.
        """
        if settings.churn:
            raise ReproError(f"evaluation.churn: {self.name} adds no noise on its way; set 0, or evaluation.sampler = 'heun'")

    def about(self, settings: Evaluation, formulation: Formulation) -> dict[str, Any]:
        """Returns what a record says of it beside its name and NFE: all else that the samples depend on, as plain values."""
        return {"steps": settings.sampler_steps, "precision": settings.precision}


def about_sampler(sampler: Sampler, settings: Evaluation, formulation: Formulation) -> dict[str, Any]:
    """Returns what a record says of a sampler: its name, what it says itself, its NFE, and guidance where there is some."""
    guided = {"guidance": settings.guidance} if settings.guidance != 1 else {}
    return {"name": sampler.name} | sampler.about(settings, formulation) | {"nfe": evaluations(sampler, settings, formulation)} | guided


def evaluations(sampler: Sampler, settings: Evaluation, formulation: Formulation) -> int:
    """Returns how often the network is evaluated for an image: twice as often under guidance."""
    return sampler.nfe(settings, formulation) * (1 if settings.guidance == 1 else 2)


def conditioned(predict: Predict, condition: dict[str, Tensor], null: dict[str, Tensor], guidance: float) -> Predict:
    """Returns a network that is given its condition, with classifier-free guidance (Ho and Salimans, 2022): null + g (given - null).

    Args:
        predict: The network.
        condition: One row for each image of the batch.
        null: What stands for none, one row; unused where `guidance` is 1.
        guidance: The factor g; 1 asks once, for the condition alone.
    """
    if not condition:
        return predict

    def given(images: Tensor, timesteps: Tensor) -> Tensor:
        return predict(images, timesteps, **condition)

    def guided(images: Tensor, timesteps: Tensor) -> Tensor:
        left_out = {name: row.expand(len(images), *row.shape) for name, row in null.items()}
        without = predict(images, timesteps, **left_out)
        return without + guidance * (given(images, timesteps) - without)

    return given if guidance == 1 else guided


def sample_pixels(
    predict: Predict,
    formulation: Formulation,
    noise: Tensor,
    settings: Evaluation,
    sampler: Sampler,
    space: Space = PIXELS,
    fresh: Fresh = _none,
) -> Tensor:
    """Samples images from noise as a configuration says.

    Returns:
        uint8, on the CPU, [B, C, H, W].

    Raises:
        RunError: A value is NaN or infinite, which a pixel would hide.
    """
    with torch.no_grad(), autocast(settings.precision, noise.device):
        drawn = sampler.sample(Denoise(predict=predict, formulation=formulation, fresh=fresh), noise, settings)
        pixels, finite = space.decode(drawn), drawn.isfinite().all()
        copied = torch.cat([pixels.flatten(), finite.to(torch.uint8)[None]]).cpu()  # in one: a GPU is waited for once
    if not copied[-1]:
        raise RunError(
            f"evaluation.sampler: {sampler.name} drew images that are not finite; take another sampler or number of sampler_steps"
        )
    return copied[:-1].view(pixels.shape)
