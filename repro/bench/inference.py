"""Benchmarks of importance, sampling and evaluation."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDIMPipeline
from torch import Tensor, nn

from repro.bench.setting import Setting, noise_images
from repro.bench.timing import LEAST_ROUNDS, Row, Target, in_turn, now, ratio, spread, timed
from repro.diffusion.batches import image_noise
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.diffusion.sampler import sample_pixels
from repro.experiment.parts import Parts
from repro.files.writing import sha256_of_file
from repro.metrics.classifier import Extractor, save_classifier
from repro.metrics.classifier_network import Classifier
from repro.metrics.fid import FeatureLayer, classifier_layer, features_of, frechet_distance
from repro.ofa.importance import Importance, pipe_importance
from repro.ofa.pipes import Pipe, pipes_of
from repro.runtime.distributed import device
from repro.runtime.gpu import is_gpu
from repro.runtime.precision import laid_out

IMPORTANCE_IMAGES = 1024
MOST_STEPS = 10  # of a sampler: an image takes as long at each
SAMPLING_BATCHES = (16, 32, 64, 128, 256, 512, 1024)


def importance(setting: Setting) -> Iterator[Row]:
    """Yields the importance of 1,024 images from 1,024 backward passes, as Formula 4 reads, beside that from batches."""
    base = setting.base().to(device())
    pipes, batch_size = pipes_of(base), setting.config.importance.batch_size
    source = setting.batches(batch_size)
    batches = [source(step) for step in range(max(1, IMPORTANCE_IMAGES // batch_size))]
    images = sum(len(batch.timesteps) for batch in batches)

    def batched() -> Importance:
        return pipe_importance(base, pipes, batches, lambda model, batch: image_losses(predictor(model), batch))

    one_by_one = timed(lambda: image_by_image(base, pipes, batches), images)
    pair = in_turn(one_by_one, timed(batched, images), max(LEAST_ROUNDS, setting.rounds // 3))
    target = None if is_gpu(device()) else Target(limit=30, at_most=False)
    yield ratio(f"importance of {images:,} images: one by one / batched", *pair, target=target, unit_ms="image_ms")


def image_by_image(model: nn.Module, pipes: tuple[Pipe, ...], batches: list[NoisyBatch]) -> Importance:
    """Scores channels from the gradient of each image's loss by the weights (paper, Formula 4), one backward pass for each image."""
    was_training, images = model.training, sum(len(batch.timesteps) for batch in batches)
    model.eval()
    scores = {pipe.name: torch.zeros(pipe.width, device=device()) for pipe in pipes}
    for batch in batches:
        for image in batch.parts(len(batch.timesteps)):
            image_losses(predictor(model), image).mean().backward()
            for pipe in pipes:
                scores[pipe.name] += _one_image(model, pipe)
            model.zero_grad()
    model.train(was_training)
    return {name: score / images for name, score in scores.items()}


@torch.no_grad()
def _one_image(model: nn.Module, pipe: Pipe) -> Tensor:
    """Returns | sum_j w_ij * dL/dw_ij | for every channel of a pipe, added over its two ends, shape [width]."""
    score = torch.zeros(pipe.width, device=device())
    for names, dimension in ((pipe.producers, 0), (pipe.consumers, 1)):
        for name in names:
            weight = model.get_parameter(f"{name}.weight")
            assert weight.grad is not None, name
            score += (weight * weight.grad).transpose(0, dimension).flatten(1).sum(dim=1).abs()
    return score.view(pipe.groups, pipe.units).sum(dim=0).repeat(pipe.groups) if pipe.kind == "attention" else score


def sampling(setting: Setting) -> Iterator[Row]:
    """Yields diffusers' `DDIMPipeline` beside the harness's sampler, from the same network, each at the batch size that suits it best."""
    evaluation = replace(setting.config.evaluation, sampler_steps=min(MOST_STEPS, setting.config.evaluation.sampler_steps))
    setting = replace(setting, config=replace(setting.config, evaluation=evaluation))
    count = min(evaluation.samples, 4 * evaluation.batch_size)
    model = laid_out(setting.base(), setting.config.compute, device()).eval()
    scheduler = setting.formulation.scheduler(clip_sample=evaluation.clip_sample)
    pipeline = DDIMPipeline(unet=setting.base().to(device()).eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def theirs(batch_size: int) -> None:
        for start in range(0, count, batch_size):
            pipeline(batch_size=min(batch_size, count - start), num_inference_steps=evaluation.sampler_steps, eta=0.0, output_type="np")

    def ours(batch_size: int) -> None:
        draw(setting, model, count, batch_size)

    def best(work: Callable[[int], None]) -> int:
        sizes = sorted({min(size, count) for size in SAMPLING_BATCHES})
        return min(sizes, key=lambda size: min(timed(lambda: work(size), count)() for _ in range(2)))

    mine, other = best(ours), best(theirs)
    pair = in_turn(timed(lambda: theirs(other), count), timed(lambda: ours(mine), count), setting.rounds)
    target = Target(limit=2.0 if is_gpu(device()) else 1.0, at_most=False)
    note = f"{count} images, {evaluation.sampler_steps} steps, each at its best batch: {other} and {mine}"
    yield ratio("DDIMPipeline / harness's sampler", *pair, target=target, note=note, unit_ms="image_ms")


def draw(setting: Setting, model: nn.Module, count: int, batch_size: int) -> Tensor:
    """Draws images as an evaluation does, uint8, [count, C, H, W]."""
    evaluation, sampler = setting.config.evaluation, Parts().sampler(setting.config.evaluation.sampler)
    pixels = []
    for start in range(0, count, batch_size):
        noise = image_noise(range(start, min(start + batch_size, count)), setting.image_shape, 0, 0)
        pixels.append(sample_pixels(predictor(model), setting.formulation, noise.to(device()), evaluation, sampler))
    return torch.cat(pixels)


def to_fid(setting: Setting) -> Iterator[Row]:
    """Yields the seconds that images take from noise to their distance, and what each stage has of it; weights are random."""
    evaluation = setting.config.evaluation
    count = min(evaluation.samples, 2 * evaluation.batch_size)
    model = laid_out(setting.base(), setting.config.compute, device()).eval()
    with tempfile.TemporaryDirectory() as folder:
        layer = setting.inception or _random_classifier(setting, Path(folder))
        reference = features_of(noise_images(setting.image_shape).pixels, layer, _quiet)
        stages: dict[str, list[float]] = {"sampling": [], "features": [], "distance": []}
        for _ in range(1 + max(LEAST_ROUNDS, setting.rounds // 3)):
            begun = now()
            pixels = draw(setting, model, count, evaluation.batch_size)
            drawn = now()
            features = features_of(pixels, layer, _quiet)
            seen = now()
            frechet_distance(features, reference)
            for name, seconds in zip(stages, (drawn - begun, seen - drawn, now() - seen), strict=True):
                stages[name].append(seconds)
    totals = [sum(round_) for round_ in zip(*stages.values(), strict=True)][1:]  # the first warms up
    shares = ", ".join(f"{name} {100 * statistics.median(times[1:]) / statistics.median(totals):.0f} %" for name, times in stages.items())
    about = f"{count} images, {evaluation.sampler_steps} steps, {layer.extractor}"
    yield spread("from noise to distance", totals, unit="s", note=f"{about}: {shares}")


def _random_classifier(setting: Setting, folder: Path) -> FeatureLayer:
    settings, path = setting.config.classifier, folder / "classifier.safetensors"
    model = Classifier(setting.image_shape[0], 10, settings.width, settings.levels, settings.blocks)
    save_classifier(path, model, settings, accuracy=0.0, key="")
    return classifier_layer(Extractor(path=path, sha256=sha256_of_file(path), held_out_accuracy=0.0))


def _quiet(_done: int, _total: int) -> None:
    """Shows nothing."""
