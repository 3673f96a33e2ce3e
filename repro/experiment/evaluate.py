"""Evaluation: draws samples, keeps them batch by batch, and measures their distance to the training images."""

import hashlib
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Evaluation
from repro.data.images import Images, png_of
from repro.diffusion.batches import image_noise
from repro.diffusion.formulation import predictor
from repro.diffusion.sampler import about_sampler, conditioned, sample_pixels
from repro.errors import ReproError, RunError
from repro.experiment.cells import Cell, Experiment
from repro.files.sealed import DamagedError, read_sealed, write_sealed
from repro.files.writing import write_atomically
from repro.metrics.fid import KID_SUBSETS, kernel_distance
from repro.metrics.metric import Context, Metric
from repro.models.memory import sampling_batch
from repro.runtime import distributed
from repro.runtime.gpu import copied
from repro.runtime.precision import laid_out
from repro.runtime.progress import CellProgress, say

STRIP_IMAGES = 16
LEAST_IMAGES = 2  # of a set that is compared with another


def draw_samples(experiment: Experiment, model: nn.Module, cell: Cell, digest: str, report: CellProgress, *, of: str = "") -> list[Tensor]:
    """Samples what a configuration asks for, split over the ranks; batches that this network left in the cell's folder are not drawn again.

    A GPU whose memory does not hold a batch draws it in parts; the files are of whole batches.

    The starting noise depends on the cell's seed and the sampling seed: every method meets the same noise at a seed, so that their
    differences are paired, and another noise at another seed, so that the spread over seeds holds the noise of sampling too.

    Args:
        experiment: The configuration and its folders.
        model: The network.
        cell: Its cell.
        digest: Of the cell's manifest; batches of another network are drawn anew.
        report: The cell's bar.
        of: Which of the cell's networks it is, where it has several.

    Returns:
        uint8 images, [N, C, H, W], one set for each sampling seed.
    """
    settings, folder = experiment.config.evaluation, experiment.folder(cell) / "samples" / of
    starts = range(0, settings.samples, settings.batch_size)
    batches = [(seed, start) for seed in settings.sampling_seeds for start in starts]
    model = laid_out(model, experiment.config.compute, distributed.device()).eval()
    draw = Drawing(experiment, model, cell, settings.batch_size)
    report.stage("sampling", settings.batch_size)
    for done, (seed, start) in enumerate(batches):
        path, indices = _batch_path(folder, seed, start), range(start, min(start + settings.batch_size, settings.samples))
        if done % distributed.ranks() == distributed.rank() and _kept(path, digest, len(indices)) is None:
            _keep(path, draw(indices, seed), digest)
        report(done + 1, len(batches))
    distributed.wait_for_all()
    sets = {seed: [_kept(_batch_path(folder, seed, start), digest) for start in starts] for seed in settings.sampling_seeds}
    if any(kept is None for batches in sets.values() for kept in batches):
        raise ReproError(f"{folder}: samples changed while they were drawn; run the command again")
    return [torch.cat([kept for kept in batches if kept is not None]) for batches in sets.values()]


class Drawing:
    """Draws the images of a cell from its network; what an image is depends on the seeds and its index alone.

    Args:
        experiment: The configuration and its parts.
        model: The network, laid out on the device, in evaluation mode.
        cell: Its cell.
        most: Images at a time; fewer where a GPU's memory does not hold them.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, cell: Cell, most: int) -> None:
        self._experiment, self._model, self._cell = experiment, model, cell
        self._batch = sampling_batch(model, experiment.network_shape, most, experiment.config.execution)
        condition, guided = experiment.condition, experiment.config.evaluation.guidance != 1
        null = condition.null(experiment.images) if guided else {}
        self._space, self._formulation = experiment.space.to(distributed.device()), experiment.formulation.to(distributed.device())
        self._null = {name: copied(row, distributed.device()) for name, row in null.items()}

    def __call__(self, indices: range, sampling_seed: int) -> Tensor:
        """Returns the images of some indices, uint8, on the CPU, [N, C, H, W]."""
        noise = image_noise(indices, self._experiment.network_shape, self._cell.seed, sampling_seed)
        rows = self._experiment.condition.of_samples(self._experiment.images, indices, self._cell.seed, sampling_seed)

        def draw(chosen: Tensor) -> Tensor:
            here, experiment, settings = distributed.device(), self._experiment, self._experiment.config.evaluation
            given = {name: copied(values[chosen], here) for name, values in rows.items()}
            predict = conditioned(predictor(self._model), given, self._null, settings.guidance)

            def fresh(time: int) -> Tensor:
                these = [indices[position] for position in chosen.tolist()]
                return copied(image_noise(these, experiment.network_shape, self._cell.seed, sampling_seed, time), here)

            start = copied(noise[chosen], here)
            return sample_pixels(predict, self._formulation, start, settings, experiment.sampler, self._space, fresh)

        return self._batch(draw, torch.arange(len(indices)))


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


def judge(
    experiment: Experiment, sets: list[Tensor], reference: Tensor, report: CellProgress, *, sampled: bool, further: bool = True
) -> dict[str, Any]:
    """Returns what a record says of quality: the metric of each set of images, and all that its value depends on.

    Every rank must call this, since they share the images; the distances are computed on the first, and the others get nothing. The kernel
    distance beside an Inception metric and the metrics of `evaluation.also` are left out where they are not asked for.
    """
    settings, images = experiment.config.evaluation, experiment.images
    reference = reference[: settings.reference_images or None]
    found = _measured(experiment, experiment.metric, sets, reference, report, kernel=further)
    others = [_measured(experiment, metric, sets, reference, report, kernel=False) for metric in experiment.metrics[1:] if further]
    if distributed.rank() > 0:
        return {}
    listed = {"files_sha256": images.files_sha256} if images.files_sha256 else {}
    kid = found.pop("kid", None)
    quality = found | {
        "n_samples": len(sets[0]),
        "reference": {"name": images.name, "n": len(reference), "sha256": images.sha256} | listed,
        "sampler": about_sampler(experiment.sampler, settings, experiment.formulation) if sampled else None,
        "sampling_seeds": list(settings.sampling_seeds) if sampled else list(range(len(sets))),
    }
    if sampled and experiment.condition.name != "none":
        quality["condition"] = {"name": experiment.condition.name} | experiment.condition.about(images)
    return quality | ({"kid": kid} if kid else {}) | ({"also": others} if others else {})


def _measured(
    experiment: Experiment, metric: Metric, sets: list[Tensor], reference: Tensor, report: CellProgress, *, kernel: bool
) -> dict[str, Any]:
    """Returns the values of one metric, and its extractor; nothing but on the first rank."""
    images = experiment.images
    report.stage(metric.section or "weights")
    layer = metric.layer(Context(config=experiment.config, images=images, places=experiment.places, runs=experiment.runs), report)
    report.stage("reference features", 1)
    of_training = torch.equal(reference, images.pixels[: len(reference)])
    expected = layer.reference_features(reference, images.sha256, report) if of_training else layer.features(reference, report)
    values, kernels = [], []
    for pixels in sets:
        report.stage("features", 1)
        features = layer.features(pixels, report)
        if distributed.rank() > 0:
            continue
        report.stage("distance")
        values.append(_positive(metric.name, metric.distance(features, expected)))
        if metric.kernel and kernel:
            kernels.append(kernel_distance(features, expected))
    if distributed.rank() > 0:
        return {}
    found = {"metric": metric.name, "tool": metric.tool, "extractor": layer.about, "mean": statistics.fmean(values), "values": values}
    if kernels:
        means, deviations, sizes = zip(*kernels, strict=True)
        found["kid"] = {
            "metric": metric.kernel,
            "mean": statistics.fmean(means),
            "values": list(means),
            "std_over_subsets": list(deviations),
            "subsets": KID_SUBSETS,
            "subset_size": sizes[0],
        }
    return found


def strip_of(pixels: Tensor) -> Tensor:
    """Returns the first images of a set side by side, uint8 [C, H, N * W]."""
    return torch.cat(list(pixels[:STRIP_IMAGES]), dim=2)


def save_strip(pixels: Tensor, results: Path, cell_name: str) -> dict[str, Any]:
    """Saves the first images of a set side by side, losslessly, beside the records."""
    chosen, content = pixels[:STRIP_IMAGES], png_of(strip_of(pixels))
    write_atomically(results / "samples" / f"{cell_name}.png", content)
    about = {"count": len(chosen), "height": chosen.shape[2], "width": chosen.shape[3]}
    return {"file": f"samples/{cell_name}.png", "sha256": hashlib.sha256(content).hexdigest()} | about


def _positive(name: str, distance: float) -> float:
    """Returns a distance that a record can hold.

    Raises:
        RunError: It is no positive number.
    """
    if not 0 < distance < math.inf:
        raise RunError(f"evaluation.metric: {name} found a distance of {distance}; it must be a positive, finite number")
    return float(distance)


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
