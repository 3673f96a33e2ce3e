"""The contract of a formulation: how images are noised, what a network is asked for, and how a sampler reads its answer.

Whatever a formulation preconditions, it does so in the batch: a network maps `noisy` and `timesteps` to `target`, and its loss is the
weighted squared error. Of EDM that is exactly the published loss, since its weighting cancels the scale of its output (Karras et al., 2022,
table 1). So the training loop, importance, distillation and the baselines know no formulation.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from repro.config import Training
from repro.errors import ReproError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

RHO = 7.0  # of EDM's grid of noise levels
Predict = Callable[..., Tensor]  # (images [B, C, H, W], timesteps [B], **condition) -> what the network answers, [B, C, H, W]


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """Examples of a training step; every tensor starts with the batch's dimension B.

    Attributes:
        noisy: The noised images as the network takes them, [B, C, H, W].
        target: What it is asked for, [B, C, H, W].
        timesteps: The noise levels as it takes them, [B].
        weights: The factors on the images' losses, [B]; None has 1 for all.
        condition: What else it takes, by the name of its argument.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    weights: Tensor | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)

    def _each(self, of: Callable[[Tensor], Tensor]) -> "NoisyBatch":
        return NoisyBatch(
            noisy=of(self.noisy),
            target=of(self.target),
            timesteps=of(self.timesteps),
            weights=None if self.weights is None else of(self.weights),
            condition={name: of(rows) for name, rows in self.condition.items()},
        )

    def parts(self, count: int) -> list["NoisyBatch"]:
        """Deals the batch out in `count` equal parts, the first image to the first part, the second to the second, and so on.

        Ranks take their slices in the same way, and `shares` cuts a part into pieces: so what an image is used for does not depend on
        the number of ranks or parts. The batch must be divisible by `count`.
        """
        return [self._each(lambda tensor, part=part: tensor[part::count]) for part in range(count)]  # type: ignore[misc]

    def shares(self, count: int) -> list["NoisyBatch"]:
        """Shares the batch out in `count` equal parts; the batch must be divisible by it."""
        assert len(self.target) % count == 0, f"{len(self.target)} images cannot be shared by {count} subnets"
        return [self._each(lambda tensor, share=share: tensor.chunk(count)[share]) for share in range(count)]  # type: ignore[misc]


@runtime_checkable
class Formulation(Protocol):
    """How diffusion is formulated. One of one's own derives from this class, and an object of it is given to `repro.api.main`.

    Attributes:
        name: Its value of `diffusion.formulation`.
    """

    name: str

    @abstractmethod
    def levels(self, count: int, stream: torch.Generator, *, antithetic: bool = False) -> Tensor:
        """Draws the noise levels of a batch, [count], on the stream's device.

        Args:
            count: Images of the batch over all ranks.
            stream: The one source of randomness.
            antithetic: Whether the second half has the mirrored levels of the first.
        """

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor, *, weighting: str = "uniform") -> NoisyBatch:
        """Returns examples at some noise levels; nothing here may wait for a GPU.

        Args:
            clean: Images as the network's space has them, [B, C, H, W].
            noise: Standard normal, [B, C, H, W].
            levels: Of each image, [B].
            weighting: `loss_weighting` of the training.
        """

    @abstractmethod
    def ladder(self, count: int) -> Tensor:
        """Returns noise levels from the least to the greatest that stand for the training's distribution, [count].

        Diff-Pruning takes its gradients at each; `count` is `diffusion.num_train_timesteps`.
        """

    @abstractmethod
    def timesteps(self, levels: Tensor) -> Tensor:
        """Returns noise levels as the network takes them, [B]."""

    @property
    @abstractmethod
    def sigmas(self) -> tuple[float, float]:
        """The least and the greatest noise level sigma that the network knows, for images x + sigma * noise."""

    def grid(self, steps: int) -> list[float]:
        """Returns the noise levels that N steps of diffusers' samplers begin at, descending; by default, EDM's."""
        return sigma_grid(steps, *self.sigmas)[:-1]

    @abstractmethod
    def denoise(self, predict: Predict, images: Tensor, sigma: float) -> Tensor:
        """Returns the denoised images D(x; sigma) (Karras et al., 2022, Eq. 3), [B, C, H, W].

        Args:
            predict: The network.
            images: Clean images + sigma * noise, [B, C, H, W].
            sigma: Their noise level.
        """

    @abstractmethod
    def scheduler(self, *, clip_sample: bool) -> "SchedulerMixin":
        """Returns diffusers' scheduler that an exported folder carries."""

    def check(self, settings: Training) -> None:
        """Makes sure, before a run, that a training's settings have a meaning here.

        Raises:
            ReproError: One has none; by default `min_snr`, which weights DDPM's noise prediction.
        """
        if settings.loss_weighting != "uniform":
            raise ReproError(f"loss_weighting: {settings.loss_weighting} has no meaning under the formulation {self.name}; use uniform")

    def to(self, device: torch.device) -> Self:
        """Returns the formulation with its tables on a device."""
        return self

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of it beside its name: all that the configuration does not hold, as plain values."""
        return {}


def sigma_grid(steps: int, least: float, greatest: float) -> list[float]:
    """Returns the noise levels that N steps begin at, descending, and 0 (Karras et al., 2022, Eq. 5, rho = 7).

    Args:
        steps: N.
        least: sigma_min.
        greatest: sigma_max.
    """
    ramp = [step / max(steps - 1, 1) for step in range(steps)]
    ends = greatest ** (1 / RHO), least ** (1 / RHO)
    return [*((ends[0] + part * (ends[1] - ends[0])) ** RHO for part in ramp), 0.0]


def predictor(model: torch.nn.Module, *leading: object) -> Predict:
    """Returns a network as a function of (images, timesteps, **condition); `leading` arguments, such as a size, go before them."""

    def predict(images: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
        output: Tensor = model(*leading, images, timesteps, **condition, return_dict=False)[0]
        return output

    return predict


def image_losses(predict: Predict, batch: NoisyBatch) -> Tensor:
    """Returns the error of each image, averaged over its pixels, shape [B], with the batch's weights (of DDPM: L_simple)."""
    return _weighted(_errors(predict(batch.noisy, batch.timesteps, **batch.condition), batch.target), batch)


def distillation_losses(predict: Predict, teacher: Predict, batch: NoisyBatch, share: float) -> Tensor:
    """Returns the error of each image, shape [B], with `share` of it against the teacher's answer in place of the target."""
    predicted = predict(batch.noisy, batch.timesteps, **batch.condition)
    with torch.no_grad():
        asked = teacher(batch.noisy, batch.timesteps, **batch.condition)
    return _weighted((1 - share) * _errors(predicted, batch.target) + share * _errors(predicted, asked), batch)


def _errors(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).square().flatten(1).mean(dim=1)


def _weighted(losses: Tensor, batch: NoisyBatch) -> Tensor:
    return losses if batch.weights is None else losses * batch.weights
