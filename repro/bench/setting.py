"""The subject of a benchmark: networks of a configuration with random weights, on batches of noise."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from repro.config import Config, Training
from repro.config.networks import network_shape
from repro.data.images import Images
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.formulation import Formulation
from repro.experiment.parts import Parts
from repro.metrics.fid import FeatureLayer
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import build_base
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime import distributed

IMAGES = 2048
LEAST_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The configuration that is timed, and how long.

    Attributes:
        config: The configuration.
        rounds: How often the two things of a row are timed.
        steps: Training steps of a round.
        batch_size: Images of a training step; 0 takes those of the joint training, at least 64.
        inception: The features of an evaluation, where Inception's weights are at hand; a random classifier stands in for them otherwise.
    """

    config: Config
    rounds: int
    steps: int
    batch_size: int = 0
    inception: FeatureLayer | None = None

    @property
    def training(self) -> Training:
        """The budget of a round."""
        settings = self.config.ofa_training
        return dataclasses.replace(settings, batch_size=self.batch_size or max(LEAST_BATCH, settings.batch_size), distillation=0.0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W]."""
        return network_shape(self.config.denoiser)

    @property
    def formulation(self) -> Formulation:
        """How diffusion is formulated."""
        return Parts().formulation(self.config.diffusion)

    def base(self) -> nn.Module:
        """Builds the base."""
        base: nn.Module = build_base(self.config.denoiser, seed=0)
        return base

    def supernet(self) -> Supernet:
        """Builds a supernet of the trained sizes by random importances: kept channels lie scattered, as they do after a real scoring."""
        base = self.base()
        pipes = pipes_of(base)
        stream = torch.Generator().manual_seed(0)
        importance = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
        settings = self.config.allocation
        plan = make_plan(
            pipes,
            importance,
            self.config.sizes.trained,
            params_base=count_params(base.parameters()),
            rule=settings.rule,
            floor=settings.floor,
            groupnorm=settings.groupnorm,
        )
        return Supernet(base, pipes, plan)

    def batches(self, batch_size: int | None = None) -> NoisyBatches:
        """Returns batches as a training has them, of noise in place of images."""
        return NoisyBatches(
            noise_images(self.image_shape),
            self.formulation,
            batch_size=batch_size or self.training.batch_size,
            seed=0,
            device=distributed.device(),
            horizontal_flip=self.training.horizontal_flip,
        )

    def macs(self, model: nn.Module) -> int:
        """Returns the MACs of one forward pass of a network on one image."""
        return count_macs(model, self.image_shape).total


def noise_images(shape: tuple[int, int, int]) -> Images:
    """Returns a data set of noise."""
    pixels = torch.randint(0, 256, (IMAGES, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(name="noise", pixels=pixels, labels=torch.zeros(IMAGES, dtype=torch.int64), sha256="")
