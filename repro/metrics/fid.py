"""Features of images and the distances between two sets of them, by torch-fidelity.

Features are computed once, and every distance from them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from repro.config import Execution
from repro.errors import ReproError, RunError
from repro.files.sealed import DamagedError, read_sealed, write_sealed
from repro.metrics import classifier
from repro.models import cost, memory
from repro.runtime import distributed
from repro.runtime.gpu import is_gpu
from repro.runtime.seeds import derive_seed

TOOL = f"torch-fidelity {version('torch-fidelity')}"
KID_SUBSETS = 100  # torch-fidelity's defaults
KID_SUBSET_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """A layer of a feature extractor, with weights on disk.

    Attributes:
        extractor: The name under which torch-fidelity knows the extractor.
        layer: The name of the layer.
        weights: The file of the weights.
        sha256: That file's hash.
        about: What a record says of it.
        batch_size: Images of a forward pass, at most; the features do not depend on it.
        image_bytes: The most bytes of activations of an image that are alive at the same time; 0 where any GPU holds a batch.
        channels_last: Whether a CPU computes it with the channels of an image side by side, which rounds otherwise.
        execution: Says what memory a rank may use.
        cache: The folder that keeps the features of the training images; None keeps none.
    """

    extractor: str
    layer: str
    weights: Path
    sha256: str
    about: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    image_bytes: int = 0
    channels_last: bool = False
    execution: Execution = field(default_factory=Execution)
    cache: Path | None = None

    def features(self, pixels: Tensor, report: Callable[[int, int], None]) -> Tensor:
        """Returns the features of images, as `features_of` does."""
        return features_of(pixels, self, report)

    def reference_features(self, pixels: Tensor, images_sha256: str, report: Callable[[int, int], None]) -> Tensor:
        """Returns the features of the first training images, kept in the cache."""
        if self.cache is None:
            return self.features(pixels, report)
        return cached_features(pixels, images_sha256, self, self.cache, report)


class PixelSet(Dataset[Tensor]):
    """uint8 images in three channels, as torch-fidelity expects them.

    Args:
        pixels: [N, C, H, W] with C = 1 or 3.
    """

    def __init__(self, pixels: Tensor) -> None:
        assert pixels.dtype == torch.uint8, pixels.dtype
        self._pixels = pixels.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index].contiguous()


def classifier_layer(extractor: classifier.Extractor) -> FeatureLayer:
    """Returns the features of a trained classifier."""
    about = {"name": classifier.EXTRACTOR, "sha256": extractor.sha256, "held_out_accuracy": extractor.held_out_accuracy}
    return FeatureLayer(
        extractor=classifier.EXTRACTOR, layer=classifier.LAYER, weights=extractor.path, sha256=extractor.sha256, about=about
    )


def features_of(pixels: Tensor, layer: FeatureLayer, report: Callable[[int, int], None]) -> Tensor:
    """Returns the features of images, [N, F], float32, on the CPU of every rank; on a GPU they are computed without TF32.

    The ranks share the images in whole batches, so every batch is what it would be on one rank; all must call this.

    Args:
        pixels: uint8, [N, C, H, W]; none is dropped, whatever the batch.
        layer: Whose features.
        report: Is told how many of how many images are done.

    Raises:
        RunError: The weights give features that are not finite.
    """
    batches = -(-len(pixels) // layer.batch_size)
    bounds = [layer.batch_size * (batches * rank // distributed.ranks()) for rank in range(distributed.ranks() + 1)]
    mine = pixels[bounds[distributed.rank()] : bounds[distributed.rank() + 1]]
    ours = _own_features(mine, layer, report) if len(mine) else torch.empty(0, 0)
    width = max(distributed.gather(ours.shape[1]))
    features = torch.cat(distributed.gather_tensors(ours.reshape(-1, width)))
    if not features.isfinite().all():
        raise RunError(f"{layer.weights}: these weights give features that are not finite; name another file")
    return features


def _own_features(pixels: Tensor, layer: FeatureLayer, report: Callable[[int, int], None]) -> Tensor:
    """Returns the features of the images of this rank."""
    on_gpu = is_gpu(distributed.device())
    network = create_feature_extractor(
        layer.extractor, [layer.layer], cuda=on_gpu, feature_extractor_weights_path=str(layer.weights), verbose=False
    )
    size, done = layer.batch_size, 0
    if on_gpu:
        limit = memory.limit_gib(layer.execution)
        size = memory.fitting(size, limit, weights=cost.weight_bytes(network), image_bytes=layer.image_bytes)
    elif layer.channels_last:
        network.to(memory_format=torch.channels_last)
    batch, forward = memory.InferenceBatch("features", size), network.forward
    network.forward = lambda images: (batch(lambda part: forward(part)[0], images),)

    def count(_network: object, given: tuple[Tensor], _features: object) -> None:
        nonlocal done
        done += len(given[0])
        report(done, len(pixels))

    network.register_forward_hook(count)
    with _full_float32(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its data loader uses what torch has deprecated
        found = get_featuresdict_from_dataset(PixelSet(pixels), network, layer.batch_size, on_gpu, save_cpu_ram=True, verbose=False)
    del network.forward  # a reference cycle through it would keep the network's memory
    features: Tensor = found[layer.layer]
    return features


def cached_features(pixels: Tensor, name: str, layer: FeatureLayer, cache: Path, report: Callable[[int, int], None]) -> Tensor:
    """Returns the features of images that stand against many sets, computed on first use and kept with a hash; by every rank.

    Args:
        pixels: uint8, [N, C, H, W].
        name: Says which images these are, together with their number: the hash of the set that they are the first of.
        layer: Whose features.
        cache: The file goes into its folder `features`.
        report: Is told how many of how many images are done.

    Raises:
        ReproError: The cached file is damaged.
    """
    identity = {"images": name, "n": str(len(pixels)), "weights": layer.sha256, "layer": layer.layer, "tool": TOOL}
    key = derive_seed("features", sorted(identity.items()))
    path = cache / "features" / f"{layer.extractor}-{layer.layer}-{key:016x}.safetensors"
    for _ in distributed.once(path):
        features = features_of(pixels, layer, report)
        if distributed.rank() == 0:
            write_sealed(path, {"features": features}, identity)
    try:
        tensors, said = read_sealed(path)
        kept = tensors["features"]
    except (DamagedError, KeyError) as error:
        raise ReproError(f"{error}; delete it and run the command again") from error
    if said != identity:
        raise ReproError(f"{path}: the features of other images; delete it and run the command again")
    return kept


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Returns the Frechet distance between two sets of features (Heusel et al., 2017, Eq. 6), by torch-fidelity; 0 where they are alike.

    Args:
        features: Of the images that are judged, float, shape [N, F].
        reference: Of those that they are held against, float, shape [M, F].
    """
    statistics = [fid_features_to_statistics(each) for each in (features, reference)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, float, int]:
    """Returns the kernel distance between two sets of features, [N, F] and [M, F] (Binkowski et al., 2018, Section 4).

    It is without bias whatever N and M are, where the Frechet distance of few images reads too high.

    Returns:
        Mean and standard deviation over the subsets, and the features in each of these.
    """
    size = min(KID_SUBSET_SIZE, len(features), len(reference))
    metrics = kid_features_to_metric(features, reference, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return metrics[KEY_METRIC_KID_MEAN], metrics[KEY_METRIC_KID_STD], size


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keeps a GPU from rounding float32 to TF32, so that features are the same wherever they are computed."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
