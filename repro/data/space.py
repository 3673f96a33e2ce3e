"""The contract of a space, what a network sees of images (pixels, latents); pixels."""

from abc import abstractmethod
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from repro.data.images import to_pixels, to_unit_range

Shape = tuple[int, int, int]


@runtime_checkable
class Space(Protocol):
    """Maps images to what a network is trained on, and back to what is judged.

    One of one's own derives from this class, and an object of it is given to `repro.api.main`.

    Attributes:
        name: Its value of `data.space`.
    """

    name: str

    @abstractmethod
    def image_shape(self, network_shape: Shape) -> Shape:
        """Returns [C, H, W] of the images that are judged, given that of what the network sees."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Returns what the network sees of images, float32, [B, c, h, w]; of uint8 pixels, [B, C, H, W]. It may not wait for a GPU."""

    @abstractmethod
    def decode(self, encoded: Tensor) -> Tensor:
        """Returns images as uint8 pixels, [B, C, H, W]; of what a sampler drew, [B, c, h, w]."""

    def flop(self, network_shape: Shape) -> float:
        """Returns the FLOP of decoding one image, for the estimate."""
        return 0.0

    def to(self, device: torch.device) -> Self:
        """Returns the space with its weights on a device."""
        return self


class Pixels(Space):
    """Pixels, in [-1, 1]."""

    name = "pixels"

    def image_shape(self, network_shape: Shape) -> Shape:
        """Returns the same."""
        return network_shape

    def encode(self, pixels: Tensor) -> Tensor:
        """Maps 0 to 255 to [-1, 1]."""
        return to_unit_range(pixels)

    def decode(self, encoded: Tensor) -> Tensor:
        """Rounds to the nearest of the 256 levels."""
        return to_pixels(encoded)


PIXELS = Pixels()
SPACES: dict[str, Space] = {PIXELS.name: PIXELS}
