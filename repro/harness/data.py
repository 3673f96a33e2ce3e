"""The images that a network is trained on and judged against."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from repro.config import Data
from repro.harness.places import Places


@dataclass(frozen=True, kw_only=True)
class Images:
    """A labelled set of images.

    Attributes:
        name: The name of the set.
        pixels: uint8, shape [N, C, H, W].
        labels: int64, shape [N].
        sha256: Hash of the pixels in [N, H, W, C] order.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.pixels)


def load_images(settings: Data, image_shape: tuple[int, int, int], places: Places) -> Images:
    """Loads the set that a configuration names.

    Args:
        settings: The section of the configuration.
        image_shape: [C, H, W] that the network takes.
        places: Where an offline copy lies, or where a download goes.
    """
    assert settings.name == "digits", settings.name
    return digits()


def digits() -> Images:
    """Loads the 1,797 handwritten 8x8 digits that scikit-learn ships, with their 17 grey levels spread over uint8.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test part.
    """
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return Images(
        name="digits",
        pixels=torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))),
        labels=torch.from_numpy(bunch.target.astype(np.int64)),
        sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
    )


def to_unit_range(pixels: Tensor) -> Tensor:
    """Maps uint8 pixels to [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Maps [-1, 1] to uint8, rounding to the nearest level."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
