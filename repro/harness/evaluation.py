"""Evaluation: samples of a network, kept batch by batch, and their distance to the training images."""

import hashlib
import io
import statistics
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from repro.config import Evaluation
from repro.errors import ReproError
from repro.harness import distributed
from repro.harness.arithmetic import laid_out
from repro.harness.cells import Cell, Experiment
from repro.harness.classifier import classifier_for
from repro.harness.data import Images
from repro.harness.diffusion import image_noise, predictor, sample_pixels, sampling_timesteps
from repro.harness.fid import (
    KID_SUBSETS,
    TOOL,
    FeatureLayer,
    cached_features,
    classifier_layer,
    features_of,
    frechet_distance,
    kernel_distance,
)
from repro.harness.inception import KERNEL_METRICS, LAYERS, inception_layer
from repro.harness.progress import CellProgress, say
from repro.harness.sealed import DamagedError, read_sealed, write_sealed
from repro.harness.storage import write_atomically

STRIP_IMAGES = 16
LEAST_IMAGES = 2  # of a set that is compared with another


def draw_samples(experiment: Experiment, model: nn.Module, cell: Cell, digest: str, report: CellProgress) -> list[Tensor]:
    """Samples what a configuration asks for, split over the ranks; batches that this network left in the cell's folder are not drawn again.

    The starting noise depends on the cell's seed and the sampling seed: every method meets the same noise at a seed, so that their
    differences are paired, and another noise at another seed, so that the spread over seeds holds the noise of sampling too.

    Args:
        experiment: The configuration and its folders.
        model: The network.
        cell: Its cell.
        digest: Of the cell's manifest; batches of another network are drawn anew.
        report: The cell's bar.

    Returns:
        uint8 images, [N, C, H, W], one set for each sampling seed.
    """
    settings, folder = experiment.config.evaluation, experiment.folder(cell) / "samples"
    starts = range(0, settings.samples, settings.batch_size)
    batches = [(seed, start) for seed in settings.sampling_seeds for start in starts]
    model = laid_out(model, experiment.config.compute, distributed.device()).eval()
    report.stage("sampling", settings.batch_size)
    for done, (seed, start) in enumerate(batches):
        path, indices = _batch_path(folder, seed, start), range(start, min(start + settings.batch_size, settings.samples))
        if done % distributed.ranks() == distributed.rank() and _kept(path, digest, len(indices)) is None:
            noise = image_noise(indices, experiment.image_shape, cell.seed, seed).to(distributed.device())
            _keep(path, sample_pixels(predictor(model), experiment.schedule, noise, settings), digest)
        report(done + 1, len(batches))
    distributed.wait_for_all()
    sets = {seed: [_kept(_batch_path(folder, seed, start), digest) for start in starts] for seed in settings.sampling_seeds}
    if any(batch is None for batches in sets.values() for batch in batches):
        raise ReproError(f"{folder}: samples changed while they were drawn; run the command again")
    return [torch.cat([batch for batch in batches if batch is not None]) for batches in sets.values()]


def check_images(settings: Evaluation, images: Images, *, halved: bool) -> None:
    """Makes sure that there are images enough to judge against, before anything is computed.

    Args:
        settings: The section of the configuration.
        images: The training images.
        halved: Whether one half of them is judged against the other, too.

    Raises:
        ReproError: There are too few, or fewer than `reference_images`.
    """
    count = settings.reference_images
    if count > len(images):
        raise ReproError(f"evaluation.reference_images: {count:,}, and {images.name} has {len(images):,}; ask for fewer, or 0 for all")
    needed, why = LEAST_IMAGES, "a covariance takes two"
    if halved:
        needed, why = 2 * LEAST_IMAGES, "the method floor sets one half against the other, and a covariance takes two"
    if (count or len(images)) < needed:
        key = "evaluation.reference_images" if count else f"data.name: {images.name}"
        raise ReproError(f"{key}: {count or len(images)} images are too few, at least {needed} are needed: {why}")


def judge(experiment: Experiment, sets: list[Tensor], reference: Tensor, report: CellProgress, *, sampled: bool) -> dict[str, Any]:
    """Returns what a record says of quality: the metric of each set of images, and all that its value depends on.

    Every rank must call this, since they share the images; the distances are computed on the first, and the others get nothing.
    """
    settings, images = experiment.config.evaluation, experiment.images
    layer = _feature_layer(experiment, report)
    reference = reference[: settings.reference_images or None]
    expected = _reference_features(experiment, reference, layer, report)
    values, kernel = [], []
    for pixels in sets:
        report.stage("features", 1)
        features = features_of(pixels, layer, report)
        if distributed.rank() > 0:
            continue
        report.stage("distance")
        values.append(frechet_distance(features, expected))
        if settings.metric in KERNEL_METRICS:
            kernel.append(kernel_distance(features, expected))
    if distributed.rank() > 0:
        return {}
    listed = {"files_sha256": images.files_sha256} if images.files_sha256 else {}
    quality = {
        "metric": settings.metric,
        "tool": TOOL,
        "extractor": layer.about,
        "n_samples": len(sets[0]),
        "reference": {"name": images.name, "n": len(reference), "sha256": images.sha256} | listed,
        "sampler": _sampler(settings, experiment.config.diffusion.num_train_timesteps) if sampled else None,
        "mean": statistics.fmean(values),
        "values": values,
        "sampling_seeds": list(settings.sampling_seeds) if sampled else list(range(len(values))),
    }
    if kernel:
        means, deviations, sizes = zip(*kernel, strict=True)
        quality["kid"] = {
            "metric": KERNEL_METRICS[settings.metric],
            "mean": statistics.fmean(means),
            "values": list(means),
            "std_over_subsets": list(deviations),
            "subsets": KID_SUBSETS,
            "subset_size": sizes[0],
        }
    return quality


def save_strip(pixels: Tensor, results: Path, cell_name: str) -> dict[str, Any]:
    """Saves the first images of a set side by side, losslessly, beside the records."""
    chosen = pixels[:STRIP_IMAGES]
    row = torch.cat(list(chosen), dim=2)
    buffer = io.BytesIO()
    Image.fromarray((row[0] if len(row) == 1 else row.permute(1, 2, 0)).numpy()).save(buffer, format="PNG")
    write_atomically(results / "samples" / f"{cell_name}.png", buffer.getvalue())
    about = {"count": len(chosen), "height": chosen.shape[2], "width": chosen.shape[3]}
    return {"file": f"samples/{cell_name}.png", "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()} | about


def _feature_layer(experiment: Experiment, report: CellProgress) -> FeatureLayer:
    """Returns the features that the metric compares."""
    metric = experiment.config.evaluation.metric
    report.stage("classifier" if metric == "fid_classifier" else "weights")
    if metric in LAYERS:
        return inception_layer(metric, experiment.places)
    return classifier_layer(classifier_for(experiment.images, experiment.config.classifier, experiment.runs, report))


def _reference_features(experiment: Experiment, reference: Tensor, layer: FeatureLayer, report: CellProgress) -> Tensor:
    """Returns the features of the reference; those of training images are kept, since every cell of the metric needs them."""
    report.stage("reference features", 1)
    images = experiment.images
    if not torch.equal(reference, images.pixels[: len(reference)]):
        return features_of(reference, layer, report)
    # A classifier is the experiment's own; Inception serves many.
    cache = experiment.places.cache if experiment.config.evaluation.metric in LAYERS else experiment.runs
    return cached_features(reference, images.sha256, layer, cache, report)


def _sampler(settings: Evaluation, train_timesteps: int) -> dict[str, Any]:
    return {
        "name": "ddim",
        "steps": settings.sampler_steps,
        "nfe": len(sampling_timesteps(train_timesteps, settings.sampler_steps, settings.spacing)),
        "spacing": settings.spacing,
        "eta": 0.0,
        "clip_sample": settings.clip_sample,
        "precision": settings.precision,
    }


def _batch_path(folder: Path, seed: int, start: int) -> Path:
    return folder / f"seed{seed}-{start:06d}.safetensors"


def _keep(path: Path, pixels: Tensor, digest: str) -> None:
    write_sealed(path, {"pixels": pixels}, {"network": digest, "file": path.name})


def _kept(path: Path, digest: str, count: int | None = None) -> Tensor | None:
    """Returns a batch of samples that a network left, as it was written; None where there is none, or a damaged or another one."""
    if not path.exists():
        return None
    try:
        tensors, said = read_sealed(path)
        if said == {"network": digest, "file": path.name} and count in (None, len(tensors["pixels"])):
            return tensors["pixels"]
        reason = f"{path}: the samples of another network"
    except (DamagedError, KeyError) as error:
        reason = str(error)
    say(f"{reason}; they are drawn again", to_stderr=True)
    return None
