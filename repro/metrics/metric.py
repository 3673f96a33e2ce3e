"""The contract of a metric: features of images, the distance between two sets of them, and what both take. Nothing heavy is imported."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from repro.config import Config
from repro.files.places import Places

if TYPE_CHECKING:
    from torch import Tensor

    from repro.data.images import Images


class Report(Protocol):
    """Shows how far a stage is."""

    def __call__(self, done: int, total: int, loss: float = 0.0, /) -> None:
        """Is told how many of how many images or steps are done."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a feature extractor may be made of.

    Attributes:
        config: The configuration.
        images: The training images.
        places: Paths of caches, offline data and extractor weights.
        runs: The experiment's folder of weights and checkpoints.
    """

    config: Config
    images: "Images"
    places: Places
    runs: Path


class Layer(Protocol):
    """The features that a metric compares, their extractor at hand."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a record says of the extractor: all that the features depend on beside the images, as plain values."""

    @abstractmethod
    def features(self, pixels: "Tensor", report: Report) -> "Tensor":
        """Returns the features of images on the CPU, float32, [N, F]; every rank calls this, and gets those of all images.

        Args:
            pixels: uint8, [N, C, H, W].
            report: Shows how many images are done.
        """

    def reference_features(self, pixels: "Tensor", images_sha256: str, report: Report) -> "Tensor":
        """Returns the features of the first training images; a layer may keep them, since every cell needs them.

        Args:
            pixels: uint8, [N, C, H, W].
            images_sha256: The hash of the set that they are the first of.
            report: Shows how many images are done.
        """
        return self.features(pixels, report)


@runtime_checkable
class Metric(Protocol):
    """How far drawn images are from the training images.

    One of one's own derives from this class, and an object of it is given to `repro.api.main`.

    Attributes:
        name: Its value of `evaluation.metric`; records and tables call it that.
        tool: What computes it, for the record.
        kernel: What the record calls the kernel distance (KID) of the same features; empty leaves it out.
        section: The section of the configuration that its extractor is trained by, whose `batch_size` the ranks share; empty for none.
        cached_width: Features of an image, where those of the reference are kept in the cache; 0 where they are not.
    """

    name: str
    tool: str = "a script"
    kernel: str = ""
    section: str = ""
    cached_width: int = 0

    @abstractmethod
    def layer(self, context: Context, report: Report) -> Layer:
        """Returns the features that are compared, their extractor fetched or trained, and checked; every rank calls this."""

    @abstractmethod
    def distance(self, features: "Tensor", reference: "Tensor") -> float:
        """Returns the distance between the features of two sets, [N, F] and [M, F]: positive, the lower the nearer."""

    @abstractmethod
    def flop(self, image_shape: tuple[int, int, int], config: Config) -> float:
        """Returns the FLOP of one image's features, for the estimate."""

    def training(self, image_shape: tuple[int, int, int], config: Config) -> tuple[int, float]:
        """Returns how many images the extractor is trained on and the FLOP of that, for the estimate; zeros where it is not trained."""
        return 0, 0.0

    def download_bytes(self, places: Places) -> int:
        """Returns how many bytes have yet to be fetched."""
        return 0

    def check_images(self, images: "Images", config: Config) -> None:
        """Makes sure, before a run, that the training images suit the metric; raises a `ReproError` that says what they lack."""
        return

    def check_weights(self, places: Places) -> str:
        """Makes sure, before a run, that weights which are not made here are at hand and right; returns what to say of them."""
        return ""
