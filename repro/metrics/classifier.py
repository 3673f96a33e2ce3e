"""Feature extractor of `fid_classifier`: a small classifier, trained reproducibly on the labelled images themselves.

Inception's features mean nothing on 8x8 digits, and its weights are not always to be had.
"""

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from repro.config import Classifier as Settings
from repro.config import Compute, Training, build
from repro.config.sections import MOST_CHANNELS, check, within
from repro.data.images import Images, to_unit_range
from repro.errors import ReproError, RunError
from repro.files.reading import open_regular
from repro.files.sealed import DamagedError, read_sealed, write_sealed
from repro.files.shipped_files import shipped_file
from repro.files.weights import load_weights
from repro.files.writing import sha256_of_file
from repro.metrics.classifier_network import Classifier
from repro.metrics.labelled_batches import LabelledBatches
from repro.runtime import distributed
from repro.runtime.clock import Clock
from repro.runtime.seeds import derive_seed, generator
from repro.training.loop import Reporter, Run, train

EXTRACTOR = "classifier"
LAYER = "features"
CHECKPOINT_EVERY_STEPS = 250
MEASURED_IMAGES = 2000  # at most, when the stored accuracy is measured again
MEASURED_TOLERANCE = 0.03  # four standard errors of 0.9 on so many
_MEASURED: dict[tuple[str, str, Settings], float] = {}


class ClassifierFeatures(FeatureExtractorBase):
    """torch-fidelity's view of a trained classifier; grey images come as three equal channels."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_kwargs: object) -> None:
        super().__init__(name, features_list)
        self.classifier, _ = load_classifier(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names the one layer."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Names the one layer, whatever the metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """Says no: compiling costs more than it saves here."""
        return False

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """Maps uint8 pixels, [B, 3, H, W], to features, [B, F]."""
        channels = self.classifier.stem.in_channels
        return (self.classifier.features(to_unit_range(pixels[:, :channels])),)


register_feature_extractor(EXTRACTOR, ClassifierFeatures)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature extractor on disk.

    Attributes:
        path: Its safetensors file.
        sha256: The file's hash.
        held_out_accuracy: Share that it labels right of images that it was not trained on.
    """

    path: Path
    sha256: str
    held_out_accuracy: float


def classifier_for(images: Images, settings: Settings, cache: Path, report: Reporter) -> Extractor:
    """Returns the classifier of a labelled set: the one that came with the package, or one that is trained on first use.

    One that is trained here is cached by the hash of all that determines it; its distances are on a scale of their own, by its hash.

    Where it has yet to be trained, every rank must call this: the ranks share each batch.

    Args:
        images: The labelled set; its test images, where it has some, are what the accuracy is measured on.
        settings: The section of the configuration.
        cache: The folder of the file and, while it is trained, of its checkpoint; shared by the ranks.
        report: Shows how far the training is.

    Raises:
        RunError: It labels fewer images that it has not seen right than the configuration asks for.
        ReproError: The images have no labels or are too few, or the cached file is damaged.
    """
    check_images(images, settings)
    if settings.sha256:
        return _shipped(images, settings)
    labels = hashlib.sha256(images.labels.numpy().tobytes()).hexdigest()
    test = images.test.sha256 if images.test is not None else None
    key = f"{derive_seed('classifier', images.sha256, labels, test, sorted(asdict(settings).items())):016x}"
    path = cache / f"classifier-{images.name}-{key}.safetensors"
    for _ in distributed.once(path):
        model, accuracy = train_classifier(images, settings, report, path.with_suffix(""))
        if accuracy < settings.least_accuracy:
            raise RunError(
                f"the classifier labels {accuracy:.1%} of the images right that it was not trained on, "
                f"classifier.least_accuracy asks for {settings.least_accuracy:.1%}; raise classifier.steps"
            )
        if distributed.rank() == 0:
            save_classifier(path, model, settings, accuracy, key)
    try:
        _, said = read_sealed(path)
    except DamagedError as error:
        raise ReproError(f"{error}; delete it and run the command again") from error
    if said.get("key") != key:
        raise ReproError(f"{path}: a classifier of other images or settings, under the name of these; delete it and run the command again")
    return _measured_again(path, *load_classifier(path), sha256_of_file(path), images, settings)


def _shipped(images: Images, settings: Settings) -> Extractor:
    path = shipped_file(settings.sha256, "classifier.sha256")
    model, stored = load_classifier(path)
    theirs, ours = (model.stem.in_channels, model.head.out_features), (images.pixels.shape[1], _count_classes(images))
    if theirs != ours:
        raise ReproError(
            f"classifier.sha256: it takes {theirs[0]} channels and has {theirs[1]} labels, {images.name} {ours[0]} and {ours[1]}"
        )
    return _measured_again(path, model, stored, settings.sha256, images, settings)


def _measured_again(path: Path, model: Classifier, stored: float, sha256: str, images: Images, settings: Settings) -> Extractor:
    """Returns a classifier once it was seen to label the images at hand as well as its file says; measured once by a process.

    Raises:
        ReproError: It labels them worse, so it was trained on others.
    """
    key = (sha256, images.sha256, settings)
    if key not in _MEASURED:
        pixels, labels = _split(images, settings)[1]
        _MEASURED[key] = _accuracy(model, pixels[:MEASURED_IMAGES], labels[:MEASURED_IMAGES])
    if _MEASURED[key] < stored - MEASURED_TOLERANCE:
        raise ReproError(
            f"{path}: the classifier labels {_MEASURED[key]:.1%} of the images of {images.name} right that it was not trained on, its file "
            f"says {stored:.1%}: it was trained on other images; restore the data, or train one on these: --set classifier.sha256=''"
        )
    return Extractor(path=path, sha256=sha256, held_out_accuracy=stored)


def save_classifier(path: Path, model: Classifier, settings: Settings, accuracy: float, key: str) -> None:
    """Writes a classifier, what it takes to build it again, its accuracy, and the key of all that determined it."""
    about = {
        "key": key,
        "accuracy": accuracy,
        "channels": model.stem.in_channels,
        "classes": model.head.out_features,
        "width": settings.width,
        "levels": settings.levels,
        "blocks": settings.blocks,
    }
    write_sealed(path, model.state_dict(), about)


def load_classifier(path: Path) -> tuple[Classifier, float]:
    """Loads a classifier and its accuracy; the file may come from a stranger.

    Raises:
        ReproError: The file is damaged.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
        shape = build(Settings, {key: about[key] for key in ("width", "levels", "blocks")})
        for key in ("channels", "classes"):
            within(key, about[key], MOST_CHANNELS)
        check("accuracy", 0 <= about["accuracy"] <= 1, "must lie in [0, 1]")
        with torch.device("meta"):
            model = Classifier(about["channels"], about["classes"], shape.width, shape.levels, shape.blocks)
        load_weights(model, path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ReproError) as error:
        raise ReproError(f"{path}: not a readable classifier ({error}); delete it and run the command again") from error
    return model.eval(), float(about["accuracy"])


def train_classifier(images: Images, settings: Settings, report: Reporter, folder: Path | None = None) -> tuple[Classifier, float]:
    """Trains a classifier and returns it with its accuracy on images that it was not trained on.

    Args:
        images: The labelled set.
        settings: The section of the configuration.
        report: Shows how far the training is.
        folder: Keeps the checkpoint until the training is done; None keeps nothing.

    Raises:
        ReproError: The images have no labels, or are too few, or too small to be shifted as far as configured.
    """
    check_images(images, settings)
    classes = _count_classes(images)
    training, unseen = _split(images, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("classifier weights", settings.seed))
        model = Classifier(images.pixels.shape[1], classes, settings.width, settings.levels, settings.blocks)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor], _step: int) -> Tensor:
        return functional.cross_entropy(module(batch[0]), batch[1], label_smoothing=settings.label_smoothing)

    run = Run(
        identity=folder.name if folder else images.name,
        seed=settings.seed,
        batches=LabelledBatches(*training, settings, rank=distributed.rank(), ranks=distributed.ranks(), device=distributed.device()),
        loss=loss,
        folder=folder,
        compute=Compute(precision=settings.precision, channels_last=False),  # one layout, so that all devices measure on one scale
    )
    train(model, run, _budget(settings), Clock(), report)
    accuracy = _accuracy(model, *unseen)
    if folder is not None and distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return model, accuracy


def _count_classes(images: Images) -> int:
    if len(images.labels.unique()) < 2:
        by_folder = "put those of each label into a folder of its own in data.folder, or " if images.files_sha256 else ""
        raise ReproError(
            f"evaluation.metric: fid_classifier needs labelled images, and those of {images.name} have one label; {by_folder}use fid or "
            "fid768"
        )
    return int(images.labels.max()) + 1


def check_images(images: Images, settings: Settings) -> None:
    """Makes sure that a classifier can be trained on images, and its accuracy measured on others.

    Raises:
        ReproError: They have one label or are too few; the message says how many are needed.
    """
    _count_classes(images)
    labels = len(images.labels.unique())
    if settings.crop_padding >= min(images.pixels.shape[2:]):
        raise ReproError(f"classifier.crop_padding: {settings.crop_padding} shifts the images out of themselves; make it smaller")
    if images.test is not None:
        return
    needed = next(count for count in itertools.count(labels) if _held_out(count, settings) and count - _held_out(count, settings) >= labels)
    if len(images) < needed:
        raise ReproError(
            f"evaluation.metric: the classifier of fid_classifier needs at least {needed} images, for {labels} labels and "
            f"classifier.held_out = {settings.held_out:g}; {images.name} has {len(images)}: add some, or use fid or fid768"
        )


def _held_out(count: int, settings: Settings) -> int:
    """Returns how many of some images are not trained on."""
    return round(settings.held_out * count)


def _budget(settings: Settings) -> Training:
    return Training(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        schedule="cosine",
        ema_decay=0.9,
        checkpoint_every_steps=CHECKPOINT_EVERY_STEPS,
    )


def _split(images: Images, settings: Settings) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns what is trained on and what the accuracy is measured on, each as (pixels, labels)."""
    if images.test is not None:
        return (images.pixels, images.labels), (images.test.pixels, images.test.labels)
    order = torch.randperm(len(images), generator=generator(torch.device("cpu"), "held out", settings.seed))
    held_out, kept = order.tensor_split([_held_out(len(images), settings)])
    trained_on, unseen = ((images.pixels[part].contiguous(), images.labels[part]) for part in (kept, held_out))
    return trained_on, unseen


@torch.no_grad()
def _accuracy(model: Classifier, pixels: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Returns the share of images that a classifier labels right."""
    device = distributed.device()
    model = model.to(device).eval()
    logits = [model(to_unit_range(batch.to(device))) for batch in pixels.split(batch_size)]
    right = torch.cat(logits).argmax(dim=1).cpu() == labels
    return float(right.float().mean())
