"""A configuration on many GPUs, on paper: steps, communication and hours from counts and data sheets. Nothing is measured."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from repro.budget.estimate import PEAKS, UTILISATION, precision_of
from repro.budget.work import stages
from repro.config import Config, Training
from repro.config.networks import Denoiser
from repro.errors import ReproError
from repro.experiment.cells import BASE, Experiment, plan_cells
from repro.experiment.stage import GB, Stage
from repro.models.denoiser import meta_base
from repro.models.example import conditions_of
from repro.text_table import text_table

GPU = "H100/H200"
# From NVIDIA's data sheets: H100 SXM has 3.35 TB/s of memory bandwidth and 900 GB/s of NVLink, both ways together; a DGX H100 has eight of
# them and a network port of 400 Gb/s for each.
MEMORY_BYTES_PER_SEC, NVLINK_BYTES_PER_SEC, NETWORK_BYTES_PER_SEC = 3.35e12, 450e9, 50e9
GPUS_PER_NODE = 8
LAUNCH_SEC = 5e-6  # of a kernel, from eager PyTorch: an assumption, of the usual order
WEIGHTS, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4  # bytes a parameter, in float32
METHODS = ("ofa", "diff_pruning")
TITLES = (
    *("GPUs", "images a GPU", "step ms", "all-reduce ms", "img/s", "img/s, batch x GPUs"),
    *("hours, joint run", "hours, a run each", "hours, evaluation"),
)


def sent_bytes(gradient_bytes: float, ranks: int, zero_stage: int = 0) -> float:
    """Returns what each rank sends in a step: 2 (n - 1) / n of the gradients' bytes, a ring's all-reduce (Patarasuk and Yuan, 2009).

    At ZeRO stages 1 and 2 every rank updates its part of the weights and gathers the others': half as much again.

    Args:
        gradient_bytes: Of all parameters that are trained. A supernet's are the base's, whichever size a step trains.
        ranks: n.
        zero_stage: Of DeepSpeed, 0 to 2.
    """
    return (2 + (zero_stage > 0)) * (ranks - 1) / ranks * gradient_bytes


def saved_bytes(params: int, ranks: int, zero_stage: int) -> float:
    """Returns by how much ZeRO lowers a rank's memory: its share of Adam's moments from stage 1 on, of the gradients too at stage 2."""
    return params * (MOMENTS * (zero_stage > 0) + GRADIENT * (zero_stage > 1)) * (1 - 1 / ranks)


def link_bytes_per_sec(ranks: int) -> float:
    """Returns how fast the slowest link of a ring is: NVLink inside a node, a GPU's own network port between nodes."""
    return NVLINK_BYTES_PER_SEC if ranks <= GPUS_PER_NODE else NETWORK_BYTES_PER_SEC


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What the operators of a forward and a backward pass, or of a forward pass alone, do with a batch.

    Attributes:
        count: How many there are; views are none.
        roofline_sec: Of all of them, each as long as its FLOP take at the peak or its bytes at the memory's bandwidth, whichever is longer.
    """

    count: int
    roofline_sec: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimisation step, shared by GPUs.

    Attributes:
        batch_size: Images, over all of them.
        flop: Of an image, forward and backward: 6 x MACs.
        gradient_bytes: Of all parameters that are trained.
        kernels: Of a forward and a backward pass.
        flop_per_sec: What a GPU reaches.
        zero_stage: Of DeepSpeed.
    """

    batch_size: int
    flop: float
    gradient_bytes: float
    kernels: int
    flop_per_sec: float
    zero_stage: int = 0

    def communication_sec(self, gpus: int) -> float:
        """Returns how long the gradients, and under ZeRO the weights, take around the ring; nothing else is done meanwhile."""
        return sent_bytes(self.gradient_bytes, gpus, self.zero_stage) / link_bytes_per_sec(gpus)

    def sec(self, gpus: int) -> float:
        """Returns how long it takes: its work, but no less than the launch of its kernels, and its communication."""
        work = self.batch_size / gpus * self.flop / self.flop_per_sec
        return max(work, self.kernels * LAUNCH_SEC) + self.communication_sec(gpus)


class _Roofline(TorchDispatchMode):
    """Counts operators, and how long each takes at a peak of FLOP and a bandwidth."""

    def __init__(self, flop_per_sec: float, item_bytes: int) -> None:
        super().__init__()
        self.flop_per_sec, self.item_bytes = flop_per_sec, item_bytes
        self.count, self.seconds = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if func.is_view or packet in (torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten._unsafe_view):
            return out
        flop = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        moved = sum(each.numel() * self.item_bytes for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor))
        self.count += 1
        self.seconds += max(flop / self.flop_per_sec, moved / MEMORY_BYTES_PER_SEC)
        return out


def kernels_of(network: nn.Module, images: int, shape: tuple[int, int, int], precision: str, *, backward: bool) -> Kernels:
    """Counts the operators of a pass of a network on the meta device, and how long they take at least: a roofline, operator by operator.

    Args:
        network: On the meta device.
        images: Of a batch.
        shape: [C, H, W] of an image.
        precision: "bfloat16", "tf32" or "float32": says the peak, and how many bytes a number has.
        backward: Whether a backward pass follows.
    """
    mode = _Roofline(PEAKS[GPU][precision] * 1e12, 2 if precision == "bfloat16" else 4)
    with torch.device("meta"), torch.set_grad_enabled(backward):
        inputs, timesteps = torch.empty(images, *shape), torch.zeros(images)
        conditions = conditions_of(network, images, "meta")
        with mode:
            output = network(inputs, timesteps, **conditions).sample
            if backward:
                output.square().mean().backward()
    return Kernels(count=mode.count, roofline_sec=mode.seconds)


def scaling(experiment: Experiment, gpus: int) -> str:
    """Returns what an experiment would take on one GPU, on a node of eight, and on as many as are asked for: a table and its assumptions.

    Args:
        experiment: The configuration and its folders; nothing of it is run.
        gpus: How many.

    Raises:
        ReproError: The batches of a training cannot be shared by so many.
    """
    config = experiment.config
    trainings = {"ofa_training": config.ofa_training, "baseline_training": config.baseline_training}
    for key, settings in trainings.items():
        if settings.batch_size % gpus:
            raise ReproError(
                f"--gpus {gpus}: {key}.batch_size, {settings.batch_size}, cannot be shared by so many; name one that divides it"
            )
    work = {method: _stages(experiment, method) for method in METHODS}
    counts = sorted({count for count in (1, GPUS_PER_NODE, gpus) if not any(each.batch_size % count for each in trainings.values())})
    rows = [_row(experiment, work, count) for count in counts]
    return "\n".join([*text_table([TITLES, *rows], "r" * len(TITLES)), "", *_notes(experiment, work["ofa"])])


def _stages(experiment: Experiment, method: str) -> list[Stage]:
    cells = [cell for cell in plan_cells(experiment, [method], None, [0]) if cell.method != BASE]
    return stages(experiment, cells, afresh=True)


def _row(experiment: Experiment, work: dict[str, list[Stage]], gpus: int) -> list[str]:
    joint = _joint_step(experiment, work["ofa"])
    weak = dataclasses.replace(joint, batch_size=gpus * joint.batch_size)
    return [
        f"{gpus}",
        f"{joint.batch_size // gpus}",
        f"{1e3 * joint.sec(gpus):.3g}",
        f"{1e3 * joint.communication_sec(gpus):.2g}" if gpus > 1 else "",
        f"{joint.batch_size / joint.sec(gpus):,.0f}",
        f"{weak.batch_size / weak.sec(gpus):,.0f}",
        *(f"{sum(_hours(experiment, stage, gpus) for stage in work[method] if stage.kind == 'training'):.3g}" for method in METHODS),
        f"{sum(_hours(experiment, stage, gpus) for stage in work['ofa'] if stage.kind in ('sampling', 'features')):.3g}",
    ]


def _joint_step(experiment: Experiment, work: list[Stage]) -> Step:
    return _step(experiment, next(stage for stage in work if stage.budget), runs=1)


def _step(experiment: Experiment, stage: Stage, runs: int) -> Step:
    """Returns the mean step of the trainings that a stage holds; what it leaves on the disk are the weights, as many bytes as gradients."""
    config, settings = experiment.config, getattr(experiment.config, stage.budget)
    return Step(
        batch_size=settings.batch_size,
        flop=stage.pflop * 1e15 / stage.images,
        gradient_bytes=stage.kept_gb * GB / runs,
        kernels=_kernels(experiment, settings.batch_size, backward=True).count,
        flop_per_sec=_reached(config, "training"),
        zero_stage=settings.zero_stage,
    )


def _hours(experiment: Experiment, stage: Stage, gpus: int) -> float:
    """Returns how long a stage takes, shared by GPUs."""
    if stage.budget:
        settings: Training = getattr(experiment.config, stage.budget)
        steps = stage.images // settings.batch_size
        return steps * _step(experiment, stage, steps // settings.steps).sec(gpus) / 3600
    launches = 0.0
    if stage.kind == "sampling":
        at_once = experiment.config.evaluation.batch_size
        batches = math.ceil(stage.images / at_once / gpus)
        launches = batches * experiment.nfe * _kernels(experiment, at_once, backward=False).count * LAUNCH_SEC
    return max(stage.pflop * 1e15 / gpus / _reached(experiment.config, stage.kind), launches) / 3600


def _kernels(experiment: Experiment, images: int, *, backward: bool) -> Kernels:
    config = experiment.config
    precision = precision_of(config, "training" if backward else "sampling")
    return _counted(config.denoiser, images, experiment.network_shape, precision, backward)


@cache
def _counted(denoiser: Denoiser, images: int, shape: tuple[int, int, int], precision: str, backward: bool) -> Kernels:
    return kernels_of(meta_base(denoiser), images, shape, precision, backward=backward)


def _reached(config: Config, kind: str) -> float:
    """Returns the FLOP that a GPU does in a second, by the kind of work."""
    return PEAKS[GPU][precision_of(config, kind)] * 1e12 * UTILISATION


def _notes(experiment: Experiment, work: list[Stage]) -> list[str]:
    config, settings = experiment.config, experiment.config.ofa_training
    joint = _joint_step(experiment, work)
    whole = _kernels(experiment, settings.batch_size, backward=True)
    params = round(joint.gradient_bytes / GRADIENT)
    held, saved = params * (WEIGHTS + GRADIENT + MOMENTS + AVERAGE), [saved_bytes(params, GPUS_PER_NODE, stage) / GB for stage in (1, 2)]
    inside, between, limit = NVLINK_BYTES_PER_SEC / GB, NETWORK_BYTES_PER_SEC / GB, settings.batch_size / whole.roofline_sec
    peak, launch = f"{UTILISATION:.0%} of the dense peak ({precision_of(config, 'training')} in training)", f"{LAUNCH_SEC * 1e6:.0f} us"
    return [
        f"On paper, for {GPU} by NVIDIA's data sheets: {peak}, no faster than {launch} for each of the {whole.count:,} kernels of a step; "
        f"a roofline of each of them allows {limit:,.0f} img/s at P = 1.",
        f"All-reduce: a GPU sends up to twice the {joint.gradient_bytes / GB:.3g} GB of the base's gradients, whichever size a step "
        f"trains: NVLink, {inside:.0f} GB/s, up to {GPUS_PER_NODE} GPUs, {between:.0f} GB/s a GPU beyond.",
        f"Memory: weights, gradients, Adam and EMA take {held / GB:.3g} GB of a GPU. ZeRO at {GPUS_PER_NODE} GPUs saves {saved[0]:.3g} GB "
        f"(stage 1) or {saved[1]:.3g} GB (stage 2) of it and sends half as much again: worth it where they do not fit.",
    ]
