"""Data sets that come as a folder or a zip file: their numbers of images, and where they come from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A published data set.

    Attributes:
        title: What it is called.
        training: How many images are trained on: the first, by their names.
        whole: How many it has.
        origin: Where it comes from, for whom it is missing.
    """

    title: str
    training: int
    whole: int
    origin: str


# By its value of `data.holds`, which published figures name it by, too.
KNOWN_SETS = {
    "celeba": KnownSet(
        title="CelebA",
        training=162_770,
        whole=202_599,
        origin="img_align_celeba.zip, or its folder, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
    "ffhq": KnownSet(
        title="FFHQ",
        training=70_000,
        whole=70_000,
        origin="made of its images by dataset_tool.py, https://github.com/NVlabs/edm#preparing-datasets",
    ),
    "imagenet": KnownSet(
        title="ImageNet's training set",
        training=1_281_167,
        whole=1_281_167,
        origin="made of its images by dataset_tool.py, https://github.com/NVlabs/edm#preparing-datasets",
    ),
}


def known_as(name: str, holds: str = "", downsampling: int = 1) -> str:
    """Returns what images are called in records and among published figures, from the keys of `[data]`."""
    return (holds or name) + (f"-downsampled-{downsampling}" if downsampling != 1 else "")
