"""Batches of noisy images that can be told apart, and data whose exact noise predictor is known."""

import numpy as np
import torch

from repro.data.images import Images
from repro.diffusion.batches import NoisyBatches

CPU = torch.device("cpu")
# The linear schedule by hand: alpha_bar_t is the product of 1 - beta up to and including t.
ALPHA_BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
MEAN, DEVIATION = 0.3, 0.2


def numbered_images(count=100):
    """Images that can be told apart: the left half holds the image's number, the right half is black."""
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    return Images(name="numbered", pixels=pixels, labels=torch.zeros(count, dtype=torch.int64), sha256="")


def batches_of(images, formulation, **settings):
    return NoisyBatches(images, formulation, **({"batch_size": 32, "seed": 0, "device": CPU} | settings))


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("noisy", "target", "timesteps"))


def gaussian_predictor(images, timesteps):
    """The exact noise predictor when all data are N(MEAN, DEVIATION^2)."""
    alpha_bar = torch.from_numpy(ALPHA_BARS)[timesteps].view(-1, 1, 1, 1).to(images.dtype)
    return (1 - alpha_bar).sqrt() * (images - alpha_bar.sqrt() * MEAN) / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
