"""The images that a network is trained on and judged against."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from repro.config import Data
from repro.config.known_sets import KNOWN_SETS
from repro.data.cifar10 import read_cifar10
from repro.data.image_folder import read_folder, sha256_of_pixels
from repro.errors import ReproError
from repro.files.places import Places
from repro.runtime.seeds import generator

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}  # [C, H, W]; a folder's images take any


@dataclass(frozen=True, kw_only=True)
class Images:
    """A labelled set of images.

    Attributes:
        name: The name of the set.
        pixels: uint8, shape [N, C, H, W]. Those of a folder are mapped from the cache, image by image in [H, W, C] order: an image is read
            when it is asked for, and what is gathered has to be made contiguous.
        labels: int64, shape [N].
        sha256: Hash of the pixels in [N, H, W, C] order.
        test: Images that are never trained on: the official test split, or those of `data.held_out`.
        files_sha256: Hash of the files, their names and contents, where the set is a folder or a zip file.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    sha256: str
    test: "Images | None" = None
    files_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.pixels)


def load_images(settings: Data, image_shape: tuple[int, int, int], places: Places) -> Images:
    """Loads the set that a configuration names.

    Args:
        settings: The section of the configuration.
        image_shape: [C, H, W] that the network takes.
        places: Where an offline copy lies, or where a download goes.

    Raises:
        ReproError: The network takes images of another shape, or the set is missing, damaged, or not the one that the configuration names.
    """
    channels, *sides = SHAPES.get(settings.name, image_shape)
    size = sides[0] // settings.downsampling
    if (channels, size, size) != image_shape:
        raise ReproError(
            f"network.sample_size, network.channels: {settings.known_as} needs {size} and {channels}, "
            f"not {image_shape[1]} and {image_shape[0]}; change these, or data.name"
        )
    if places.data_root and settings.name != "cifar10":
        raise ReproError(f"--data-root: is for cifar10, not for {settings.name}; leave it out (a folder of images is named by data.folder)")
    if settings.name == "folder":
        images = folder_of_images(settings, image_shape, places)
    else:
        images = digits() if settings.name == "digits" else cifar10(places, copy_allowed=bool(settings.sha256))
    if settings.sha256 not in ("", images.sha256):
        raise ReproError(f"data.sha256: the training pixels of {settings.name} have {images.sha256}; name that, or other images")
    if settings.downsampling > 1:
        images = downsampled(images, settings.downsampling, settings.known_as)
    return _parted(images, settings.held_out) if settings.held_out else images


def downsampled(images: Images, factor: int, name: str) -> Images:
    """Returns a set whose pixels are each the mean of a block of the original's, rounded to the nearest level, halves up.

    This is area averaging (a box filter), in whole numbers, so it is the same on every machine.

    Args:
        images: The set, [N, C, H, W].
        factor: Pixels along each side of a block; H and W are multiples of it.
        name: What the smaller set is called.
    """
    count, channels, height, width = images.pixels.shape
    blocks = images.pixels.reshape(count, channels, height // factor, factor, width // factor, factor)
    sums = blocks.sum(dim=(3, 5), dtype=torch.int32)
    pixels = ((2 * sums + factor**2) // (2 * factor**2)).to(torch.uint8)
    test = None if images.test is None else downsampled(images.test, factor, f"{name}-test")
    return replace(images, name=name, pixels=pixels, sha256=_sha256(pixels), test=test)


def _parted(images: Images, held_out: int) -> Images:
    """Returns a set without some of its images, which become its test images; which ones depends on their numbers alone.

    Raises:
        ReproError: The set has test images of its own, or no two images would be left to train on.
    """
    if images.test is not None:
        raise ReproError(f"data.held_out: {images.name} has {len(images.test):,} test images of its own; set 0")
    if held_out > len(images) - 2:
        raise ReproError(f"data.held_out: {held_out:,}, and {images.name} has {len(images):,} images; hold fewer out")
    order = torch.randperm(len(images), generator=generator(torch.device("cpu"), "held-out images"))
    apart, kept = (part.sort().values for part in order.tensor_split([held_out]))
    return replace(_part(images, images.name, kept), test=_part(images, f"{images.name}-held-out", apart))


def _part(images: Images, name: str, indices: Tensor) -> Images:
    pixels = images.pixels[indices].contiguous()
    return replace(images, name=name, pixels=pixels, labels=images.labels[indices], sha256=_sha256(pixels))


def _sha256(pixels: Tensor) -> str:
    """Returns the hash of pixels [N, C, H, W], taken in [N, H, W, C] order."""
    return sha256_of_pixels(pixels.permute(0, 2, 3, 1).contiguous().numpy())


def digits() -> Images:
    """Loads the 1,797 handwritten 8x8 digits that scikit-learn ships, with their 17 grey levels spread over uint8.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), test part.
    """
    from sklearn.datasets import load_digits  # slow to import, and only these images need it

    bunch = load_digits()
    return _images("digits", np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target.astype(np.int64))


def cifar10(places: Places, *, copy_allowed: bool = False) -> Images:
    """Loads CIFAR-10, 50,000 training and 10,000 test images in 10 classes.

    Args:
        places: Where an offline copy lies, or where the download goes.
        copy_allowed: Whether images may come from a copy that is not the official archive; the caller then compares its hash.

    Raises:
        ReproError: No images can be had, they are damaged, or only a copy is there and none is allowed.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """
    train, test, official = read_cifar10(places)
    images = _images("cifar10", *train, test=_images("cifar10-test", *test))
    if not (official or copy_allowed):
        raise ReproError(
            f"{places.data_root}: not the official CIFAR-10 (its training pixels' sha256 is {images.sha256}); "
            f"to use this copy nonetheless say so: --set data.sha256={images.sha256}"
        )
    return images


def folder_of_images(settings: Data, image_shape: tuple[int, int, int], places: Places) -> Images:
    """Loads all images below a folder or in a zip file, resized and cropped to [C, H, W]; they stay in their file."""
    folder, known = Path(settings.folder).expanduser(), KNOWN_SETS.get(settings.holds)
    pixels, labels, sha256, files_sha256 = read_folder(folder, image_shape, places.cache / "data", crop=settings.crop, known=known)
    mapped = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return Images(name=settings.known_as, pixels=mapped, labels=torch.from_numpy(labels), sha256=sha256, files_sha256=files_sha256)


def _images(name: str, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], test: Images | None = None) -> Images:
    """Makes a set of pixels [N, H, W, C]."""
    return Images(
        name=name,
        pixels=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        labels=torch.from_numpy(labels),
        sha256=sha256_of_pixels(pixels),
        test=test,
    )


def png_of(pixels: Tensor) -> bytes:
    """Returns an image, uint8 [C, H, W], grey or RGB, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def to_unit_range(pixels: Tensor) -> Tensor:
    """Maps uint8 pixels to [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Maps [-1, 1] to uint8, rounding to the nearest level."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
