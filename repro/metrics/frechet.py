"""The package's metrics: Frechet distances between features of Inception (`fid`, `fid768`), or of a classifier (`fid_classifier`)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repro.config import Config
from repro.data.images import Images
from repro.files.places import Places
from repro.metrics import classifier
from repro.metrics.classifier_network import Classifier
from repro.metrics.fid import TOOL, FeatureLayer, classifier_layer, frechet_distance
from repro.metrics.inception import inception_layer
from repro.metrics.metric import Context, Metric, Report

INCEPTION_BYTES = 96_000_000


class Frechet(Metric):
    """Compares the mean and covariance of features."""

    tool = TOOL

    def distance(self, features: Tensor, reference: Tensor) -> float:
        """Returns the Frechet distance."""
        return frechet_distance(features, reference)


class OnInception(Frechet):
    """Features of Inception, in the cache.

    Args:
        name: `fid` or `fid768`.
        kernel: The name of its kernel distance.
        width: Features of an image.
        macs: Of one image at 299 x 299 up to the layer: torch-fidelity 0.4.0's network under torch's FlopCounterMode on the meta device.
    """

    def __init__(self, name: str, *, kernel: str, width: int, macs: int) -> None:
        self.name, self.kernel, self.cached_width, self.macs = name, kernel, width, macs

    def layer(self, context: Context, report: Report) -> FeatureLayer:
        """Fetches the weights and checks them."""
        found = inception_layer(self.name, context.places)
        return replace(found, cache=context.places.cache, execution=context.config.execution)

    def flop(self, image_shape: tuple[int, int, int], config: Config) -> float:
        """Returns the FLOP up to the layer; images of every size are enlarged to 299 x 299."""
        return 2.0 * self.macs

    def download_bytes(self, places: Places) -> int:
        """Returns the size of the weights until they are there."""
        return 0 if places.inception_weights or any(places.cache.glob("*inception*")) else INCEPTION_BYTES

    def check_weights(self, places: Places) -> str:
        """Fetches the weights, and says which they are."""
        about = inception_layer(self.name, places).about
        kind = "official" if about["official"] else "not official"
        return f"{about['name']}, layer {about['layer']}, {kind} weights, sha256 {about['sha256'][:16]}"


class OnClassifier(Frechet):
    """Features of a classifier of the experiment's own, in its runs folder: it came with the package or is trained on first use."""

    name, section = "fid_classifier", "classifier"

    def layer(self, context: Context, report: Report) -> FeatureLayer:
        """Trains the classifier, where it lacks; the ranks share its batches."""
        extractor = classifier.classifier_for(context.images, context.config.classifier, context.runs, report)
        return replace(classifier_layer(extractor), cache=context.runs, execution=context.config.execution)

    def flop(self, image_shape: tuple[int, int, int], config: Config) -> float:
        """Counts the FLOP of one image on the meta device."""
        settings = config.classifier
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = Classifier(image_shape[0], 10, settings.width, settings.levels, settings.blocks)
            network(torch.empty(1, *image_shape))
        return float(counter.get_total_flops())

    def training(self, image_shape: tuple[int, int, int], config: Config) -> tuple[int, float]:
        """Counts forward and twice that backward on every image of the training."""
        settings = config.classifier
        images = 0 if settings.sha256 else settings.steps * settings.batch_size
        return images, 3 * self.flop(image_shape, config) * images

    def check_images(self, images: Images, config: Config) -> None:
        """Makes sure that there are labels, and images enough."""
        classifier.check_images(images, config.classifier)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        OnInception("fid", kernel="kid", width=2048, macs=5_711_168_096),
        OnInception("fid768", kernel="kid768", width=768, macs=4_709_229_152),
        OnClassifier(),
    )
}
