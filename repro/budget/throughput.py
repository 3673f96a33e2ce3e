"""Measures throughput: a few steps of the real training loop and of the real sampler, on noise."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from repro.config import Config, Sizes
from repro.data.images import Images
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.diffusion.sampler import conditioned, sample_pixels
from repro.errors import ReproError
from repro.experiment.cells import Experiment
from repro.experiment.run import training_batches
from repro.methods.plan import plan_of
from repro.models.cost import count_macs
from repro.models.denoiser import build_base
from repro.models.example import conditions_of
from repro.models.memory import parts_of_batch, sampling_batch
from repro.ofa.importance import equal_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime import distributed, gpu
from repro.runtime.clock import Clock
from repro.runtime.precision import laid_out, set_arithmetic
from repro.runtime.provenance import device_name, peak_memory_gib, reset_peak_memory
from repro.training.loop import Run, train

SLOW_STEP_SEC = 3.0
CPU_STEP_FLOP = 8e10  # about a second on two cores
SAMPLER_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What work costs one device: seconds = fixed_sec x passes + sec_per_pflop x PFLOP.

    Narrow networks reach fewer FLOP in a second than the base; the first term holds what does not shrink with the width.

    Attributes:
        fixed_sec: Seconds of one pass of one image, whatever the width.
        sec_per_pflop: Seconds of 10^15 FLOP.
    """

    fixed_sec: float
    sec_per_pflop: float

    def seconds(self, passes: float, pflop: float) -> float:
        """Returns the seconds that work costs."""
        return self.fixed_sec * passes + self.sec_per_pflop * pflop


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What was measured.

    Attributes:
        device: The hardware.
        on_gpu: Whether it is a GPU.
        ranks: How many worked at once; the figures are those of the slowest.
        training: Of the training loop.
        sampling: Of the sampler.
        features: Of a network that runs in float32, as a feature extractor does; taken from the base at full size.
        batch: Images of one training step of a rank.
        training_img_per_sec: Images that a rank trains on in a second, at full size.
        sampling_img_per_sec: Images that a rank draws in a second, at full size, with the configured sampler.
        peak_memory_gib: Of the training steps; None where it is not to be had.
    """

    device: str
    on_gpu: bool
    ranks: int
    training: Rate
    sampling: Rate
    features: Rate
    batch: int
    training_img_per_sec: float
    sampling_img_per_sec: float
    peak_memory_gib: float | None


def fit(flop: tuple[float, float], seconds: list[float]) -> Rate:
    """Returns the rate that fits an image's seconds at full size and at the smallest.

    Args:
        flop: FLOP of one pass of one image, at full size and at the smallest.
        seconds: What it took; where the fit would be negative, full size decides.
    """
    (large, small), (slow, fast) = flop, seconds
    slope = (slow - fast) / (large - small) if large > small else slow / large
    fixed = min(max(slow - slope * large, 0.0), slow)
    return Rate(fixed_sec=fixed, sec_per_pflop=1e15 * (slow - fixed) / large)


def measure(experiment: Experiment) -> Throughput:
    """Measures the training loop and the sampler at the largest and the smallest trained size, in seconds.

    On a GPU the batches are those of the configuration, on a CPU they are as small as will do. `torch.compile` is left out.

    Raises:
        ReproError: A batch does not fit the GPU's memory, or cannot be shared by the ranks.
    """
    config = experiment.config
    set_arithmetic(config.compute)
    sizes = (max(config.sizes.trained), min(config.sizes.trained))
    supernet = _supernet(experiment, sizes)
    large, small = (2.0 * count_macs(supernet.extract(size), experiment.network_shape).total for size in sizes)
    batch = _batch(config, large)
    reset_peak_memory()
    try:
        training = _slowest(_time_training(experiment, supernet, sizes, batch))
        memory = peak_memory_gib()
        sampling = _slowest([_time_sampling(experiment, supernet, size, batch) for size in sizes])
        (features,) = _slowest([_time_features(experiment, supernet, sizes[0], batch, sampling[0])])
    except torch.cuda.OutOfMemoryError as error:
        raise ReproError(
            f"ofa_training.batch_size: {config.ofa_training.batch_size} images do not fit this GPU's memory even in parts; end what else "
            "runs on it, or share the batch among more ranks"
        ) from error
    return Throughput(
        device=device_name(),
        on_gpu=_on_gpu(),
        ranks=distributed.ranks(),
        training=fit((3 * large, 3 * small), training),
        sampling=fit((large, small), sampling),
        features=Rate(fixed_sec=0.0, sec_per_pflop=1e15 * features / large),
        batch=batch,
        training_img_per_sec=1 / training[0],
        sampling_img_per_sec=1 / (sampling[0] * experiment.nfe),
        peak_memory_gib=memory,
    )


def _supernet(experiment: Experiment, sizes: tuple[float, ...]) -> Supernet:
    """Returns an untrained supernet of the sizes, planned with equal importances."""
    chosen = tuple(dict.fromkeys(sizes))
    config = dataclasses.replace(experiment.config, sizes=Sizes(trained=chosen, reported=chosen))
    base = build_base(config.denoiser, seed=0)
    pipes = pipes_of(base, config.allocation.resampling_units)
    return Supernet(base, pipes, plan_of(dataclasses.replace(experiment, config=config), base, equal_importance(pipes)))


def _batch(config: Config, flop: float) -> int:
    """Returns the images of a rank's training step: those of the configuration, fewer on a CPU."""
    share = max(1, config.ofa_training.batch_size // distributed.ranks())
    return share if _on_gpu() else min(share, max(2, int(CPU_STEP_FLOP / (3 * flop))))


def _time_training(experiment: Experiment, supernet: Supernet, sizes: tuple[float, float], batch: int) -> list[float]:
    """Returns the seconds of one image of a training step at the two sizes; every size is warmed up first.

    A step of many seconds, as of bfloat16 on a CPU that has no instructions for it, needs no warm-up and no second one.
    """
    if not _on_gpu():
        once = _step_seconds(experiment, supernet, sizes[:1], batch)
        if once[0] > SLOW_STEP_SEC:
            return [seconds / batch for seconds in once + _step_seconds(experiment, supernet, sizes[1:], batch)]
    warm, timed = (5, 10) if _on_gpu() else (1, 2)
    each = warm + timed
    found = _step_seconds(experiment, supernet, sizes[:1] * each + sizes[1:] * each, batch)
    return [median(found[warm:each]) / batch, median(found[each + warm :]) / batch]


def _step_seconds(experiment: Experiment, supernet: Supernet, sizes: tuple[float, ...], batch: int) -> list[float]:
    """Returns the seconds of each of a training's steps, which train one size each; the first is timed without its batch's making."""
    times: list[float] = []

    def loss(module: nn.Module, images: NoisyBatch, step: int) -> Tensor:
        if not times:
            times.append(_now())
        return image_losses(predictor(module, sizes[step]), images).mean()

    def report(_step: int, _steps: int, _loss: float) -> None:
        times.append(_now())

    config = experiment.config
    settings = dataclasses.replace(config.ofa_training, steps=len(sizes), batch_size=batch * distributed.ranks())
    compute = dataclasses.replace(config.compute, compile=False)
    run = Run(
        identity="throughput",
        seed=0,
        batches=training_batches(experiment, settings, seed=0, images=_noise_images(experiment, settings.batch_size)),
        loss=loss,
        compute=compute,
        accumulation=parts_of_batch(config, settings) if _on_gpu() else 1,
        split=NoisyBatch.parts,
    )
    train(supernet, run, settings, Clock(), report)
    return [later - earlier for earlier, later in pairwise(times)]


def _noise_images(experiment: Experiment, count: int) -> Images:
    """Returns noise in place of images."""
    pixels = torch.randint(0, 256, (count, *experiment.image_shape), dtype=torch.uint8)
    return Images(name="noise", pixels=pixels, labels=torch.zeros(count, dtype=torch.int64), sha256="")


def _time_sampling(experiment: Experiment, supernet: Supernet, size: float, batch: int) -> float:
    """Returns the seconds of one denoiser evaluation of one image at a size."""
    config = experiment.config
    settings = dataclasses.replace(config.evaluation, sampler_steps=min(SAMPLER_STEPS, config.evaluation.sampler_steps), guidance=1.0)
    batch = settings.batch_size if _on_gpu() else batch
    model = laid_out(supernet, config.compute, distributed.device()).eval()
    noise = torch.randn(batch, *experiment.network_shape, device=distributed.device())
    formulation, space = experiment.formulation.to(distributed.device()), experiment.space.to(distributed.device())
    at_once, ends = sampling_batch(supernet.extract(size), experiment.network_shape, batch, config.execution), []

    def draw(part: Tensor) -> Tensor:
        given = conditions_of(supernet.base, len(part), part.device)
        predict = conditioned(predictor(model, size), given, {}, 1.0)
        return sample_pixels(predict, formulation, part, settings, experiment.sampler, space, lambda _time: torch.randn_like(part))

    for _ in range(6 if _on_gpu() else 2):  # the first one warms up
        at_once(draw, noise)
        ends.append(_now())
    return median(later - earlier for earlier, later in pairwise(ends)) / (batch * experiment.sampler.nfe(settings, experiment.formulation))


def _time_features(experiment: Experiment, supernet: Supernet, size: float, batch: int, sampling: float) -> float:
    """Returns the seconds of a forward pass of one image in float32 without TF32, which is how features are computed."""
    config = experiment.config
    if not _on_gpu() and config.evaluation.precision == "float32":
        return sampling
    compute, evaluation = dataclasses.replace(config.compute, tf32=False), dataclasses.replace(config.evaluation, precision="float32")
    set_arithmetic(compute)
    changed = dataclasses.replace(config, compute=compute, evaluation=evaluation)
    seconds = _time_sampling(dataclasses.replace(experiment, config=changed), supernet, size, batch)
    set_arithmetic(config.compute)
    return seconds


def _on_gpu() -> bool:
    return gpu.is_gpu(distributed.device())


def _now() -> float:
    """Returns the time, once the device has done what it was given."""
    return gpu.settled_time(distributed.device())


def _slowest(times: list[float]) -> list[float]:
    """Returns the times of the slowest rank."""
    return [max(ranks) for ranks in zip(*distributed.gather(times), strict=True)]
