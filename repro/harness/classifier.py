"""The feature extractor of `fid_classifier`: a small classifier, trained reproducibly on the labelled images themselves.

Inception's features mean nothing on 8x8 digits, and its weights are not always to be had.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from repro.config import Classifier as Settings
from repro.config import Training
from repro.errors import ReproError, RunError
from repro.harness.clock import Clock
from repro.harness.data import Images, to_unit_range
from repro.harness.randomness import derive_seed, generator
from repro.harness.storage import sha256_of_file, write_atomically
from repro.harness.training import Reporter, Run, train

EXTRACTOR = "classifier"
LAYER = "features"


class Classifier(nn.Module):
    """A residual network with two levels; its features are the average over positions of the last level.

    Args:
        channels: Channels of the images.
        classes: Number of labels.
        width: Channels of the first level; the features are twice as many.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.first = Residual(width)
        self.down = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.second = Residual(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images in [-1, 1], [B, C, H, W], to features, [B, 2 * width]."""
        return functional.silu(self.second(self.down(self.first(self.stem(images))))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images in [-1, 1], [B, C, H, W], to logits, [B, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Residual(nn.Module):
    """Two normalised convolutions and the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])

    def forward(self, images: Tensor) -> Tensor:
        """Maps [B, width, H, W] to the same shape."""
        hidden = images
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(functional.silu(norm(hidden)))
        return images + hidden


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
        held_out_accuracy: Share of the held-out images that it labels right.
    """

    path: Path
    sha256: str
    held_out_accuracy: float


def classifier_for(images: Images, settings: Settings, cache: Path, report: Reporter) -> Extractor:
    """Returns the classifier of a labelled set, trained on first use and cached by the hash of all that determines it.

    Raises:
        RunError: It labels fewer held-out images right than the configuration asks for.
        ReproError: The cached file is damaged.
    """
    key = derive_seed("classifier", images.sha256, sorted(asdict(settings).items()))
    path = cache / f"classifier-{images.name}-{key:016x}.safetensors"
    if not path.exists():
        model, accuracy = train_classifier(images, settings, report)
        if accuracy < settings.least_accuracy:
            raise RunError(
                f"the classifier labels {accuracy:.1%} of the held-out images right, classifier.least_accuracy asks for "
                f"{settings.least_accuracy:.1%}; raise classifier.steps"
            )
        about = {"accuracy": accuracy, "channels": model.stem.in_channels, "classes": model.head.out_features, "width": settings.width}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(path, safetensors.torch.save(tensors, metadata={"about": json.dumps(about)}))
    _, accuracy = load_classifier(path)
    return Extractor(path=path, sha256=sha256_of_file(path), held_out_accuracy=accuracy)


def load_classifier(path: Path) -> tuple[Classifier, float]:
    """Loads a classifier and its held-out accuracy.

    Raises:
        ReproError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
        model = Classifier(about["channels"], about["classes"], about["width"])
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ReproError(f"{path}: not a readable classifier ({error}); delete it and run the command again") from error
    return model.eval(), float(about["accuracy"])


def train_classifier(images: Images, settings: Settings, report: Reporter) -> tuple[Classifier, float]:
    """Trains a classifier on a part of the images and returns it with its accuracy on the rest."""
    cpu = torch.device("cpu")
    order = torch.randperm(len(images), generator=generator(cpu, "held out", settings.seed))
    held_out, kept = order.split([round(settings.held_out * len(images)), len(images) - round(settings.held_out * len(images))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("classifier weights", settings.seed))
        model = Classifier(images.pixels.shape[1], int(images.labels.max()) + 1, settings.width)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = kept[torch.randint(len(kept), (settings.batch_size,), generator=generator(cpu, "classifier", settings.seed, step))]
        device = next(model.parameters()).device
        return to_unit_range(images.pixels[chosen]).to(device), images.labels[chosen].to(device)

    budget = Training(
        steps=settings.steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate, schedule="cosine", ema_decay=0.9
    )
    run = Run(identity="classifier", seed=settings.seed, batches=batch, loss=_cross_entropy)
    train(model, run, budget, Clock(), report)
    with torch.no_grad():
        logits = model.eval()(to_unit_range(images.pixels[held_out]).to(next(model.parameters()).device))
    right = logits.argmax(dim=1).cpu() == images.labels[held_out]
    return model, float(right.float().mean())


def _cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor], _step: int) -> Tensor:
    return functional.cross_entropy(module(batch[0]), batch[1])
