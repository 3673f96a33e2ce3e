"""Evaluation: samples of a network, kept batch by batch, and their distance to the training images."""

import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor

from repro.errors import ReproError
from repro.harness import distributed
from repro.harness.cells import Experiment
from repro.harness.classifier import classifier_for
from repro.harness.diffusion import image_noise, predictor, sample_pixels
from repro.harness.fid import TOOL, frechet_distance
from repro.harness.progress import CellProgress
from repro.harness.storage import write_atomically

STRIP_IMAGES = 16


def draw_samples(experiment: Experiment, model: UNet2DModel, folder: Path, report: CellProgress) -> list[Tensor]:
    """Samples what a configuration asks for, split over the ranks; batches that lie in the folder are not drawn again.

    Returns:
        uint8 images, [N, C, H, W], one set for each sampling seed.
    """
    settings = experiment.config.evaluation
    starts = range(0, settings.samples, settings.batch_size)
    batches = [(seed, start) for seed in settings.sampling_seeds for start in starts]
    model = model.to(distributed.device()).eval()
    report.stage("sampling")
    for done, (seed, start) in enumerate(batches):
        path = folder / f"seed{seed}-{start:06d}.npy"
        if done % distributed.ranks() == distributed.rank() and not path.exists():
            indices = range(start, min(start + settings.batch_size, settings.samples))
            noise = image_noise(indices, experiment.image_shape, seed).to(distributed.device())
            _save(path, sample_pixels(predictor(model), experiment.schedule, noise, settings))
        report(done + 1, len(batches))
    distributed.wait_for_all()
    return [torch.cat([_load(folder / f"seed{seed}-{start:06d}.npy") for start in starts]) for seed in settings.sampling_seeds]


def judge(experiment: Experiment, sets: list[Tensor], reference: Tensor, report: CellProgress, *, sampled: bool) -> dict[str, Any]:
    """Returns what a record says of quality: the metric of each set of images, and all that its value depends on."""
    settings, images = experiment.config.evaluation, experiment.images
    report.stage("classifier")
    extractor = classifier_for(images, experiment.config.classifier, experiment.runs, report)
    values = [frechet_distance(pixels, reference, extractor) for pixels in sets]
    sampler = {
        "name": "ddim",
        "steps": settings.sampler_steps,
        "spacing": settings.spacing,
        "eta": 0.0,
        "clip_sample": settings.clip_sample,
    }
    return {
        "metric": settings.metric,
        "tool": TOOL,
        "extractor": {"name": "classifier", "sha256": extractor.sha256, "held_out_accuracy": extractor.held_out_accuracy},
        "n_samples": len(sets[0]),
        "reference": {"name": images.name, "n": len(reference), "sha256": images.sha256},
        "sampler": sampler if sampled else None,
        "mean": statistics.fmean(values),
        "values": values,
        "sampling_seeds": list(settings.sampling_seeds) if sampled else list(range(len(values))),
    }


def save_strip(pixels: Tensor, results: Path, cell_name: str) -> dict[str, Any]:
    """Saves the first images of a set side by side, losslessly, beside the records."""
    chosen = pixels[:STRIP_IMAGES]
    row = torch.cat(list(chosen), dim=2)
    buffer = io.BytesIO()
    Image.fromarray((row[0] if len(row) == 1 else row.permute(1, 2, 0)).numpy()).save(buffer, format="PNG")
    write_atomically(results / "samples" / f"{cell_name}.png", buffer.getvalue())
    return {"file": f"samples/{cell_name}.png", "count": len(chosen), "height": chosen.shape[2], "width": chosen.shape[3]}


def _save(path: Path, pixels: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, pixels.numpy(), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _load(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ReproError(f"{path}: not readable samples ({error}); delete it and run the command again") from error
