"""The parts of a run, each on its own, at the tiny network: what each asks of the device, step by step, and what it computes."""

import gc
import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import repro  # noqa: F401  (before diffusers)
from repro.budget import throughput
from repro.data import step_pixels
from repro.data.images import digits
from repro.deliver import device_costs
from repro.deliver.candidates import Candidate
from repro.deliver.extract import save_subnet
from repro.experiment import evaluate
from repro.experiment.cells import Cell, Experiment
from repro.files.sealed import read_sealed
from repro.methods.plan import score_base
from repro.metrics import classifier
from repro.metrics.fid import classifier_layer, features_of
from repro.models import cost
from repro.models.cost import count_params
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime import distributed
from repro.runtime.precision import laid_out, set_arithmetic
from repro.training import loop
from support import virtual_gpu
from support.part_tools import (
    JOINT,
    TINY,
    TWO_PARTS,
    StoppedError,
    Watch,
    begin,
    experiment_of,
    left_behind,
    make,
    new_base,
    norms_of,
    sha256_of,
)
from support.tally import counts


def all_parts(*, channels_last: bool) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Returns every part by name, as a function of a folder.

    Args:
        channels_last: Whether weights lie in NHWC on the device.
    """
    laid = f"compute.channels_last={str(channels_last).lower()}"
    parts = {name: partial(trained, [laid, *settings]) for name, settings in TRAININGS.items()}
    return parts | {
        "base": partial(trained, [laid], cell=Cell(method="base", size=1.0, seed=0)),
        "magnitude": partial(trained, [laid], cell=Cell(method="magnitude", size=0.5, seed=0)),
        "random": partial(trained, [laid], cell=Cell(method="random", size=0.5, seed=0)),
        "scratch": partial(trained, [laid], cell=Cell(method="scratch", size=0.5, seed=0)),
        "diff_pruning": partial(trained, [laid], cell=Cell(method="diff_pruning", size=0.5, seed=0)),
        "own_criterion": partial(trained, [laid], cell=Cell(method="own", size=0.5, seed=0)),
        "augmented": partial(augmented, laid),
        "on_the_host": partial(on_the_host, laid),
        "small_gpu": partial(on_a_small_gpu, laid),
        "checkpoints": partial(checkpoints, laid),
        "resumed": partial(resumed, laid, "ofa_training.zero_stage=0"),
        "resumed_zero1": partial(resumed, laid, "ofa_training.zero_stage=1"),
        "warm_up": partial(warm_up, laid),
        "importance": partial(importance, laid),
        "sampler": partial(sampler, laid),
        "heun": partial(sampler, laid, "evaluation.sampler=heun", "diffusion.formulation=edm"),
        "churn": partial(sampler, laid, "evaluation.sampler=heun", "diffusion.formulation=edm", "evaluation.churn=2", steps_with_noise=3),
        **{name: partial(sampler, laid, f"evaluation.sampler={name}", "diffusion.formulation=vp") for name in SOLVERS},
        "extraction": partial(extraction, laid),
        "latency": partial(latency, laid),
        "choice": partial(choice, laid),
        "throughput": partial(measured_throughput, laid),
        "classifier": partial(trained_classifier, laid),
        "features": partial(features, laid),
    }


TRAININGS = {
    "linear": [],
    "uniform": ["sampling_law.law=uniform"],
    "weighted": ["sampling_law.law=weighted"],
    "sandwich": ["sampling_law.law=sandwich", "ofa_training.batch_size=24"],
    "open": ["sizes.candidates=open"],
    "accumulation": [TWO_PARTS],
    "distillation": ["ofa_training.distillation=0.5"],
    "min_snr": ["ofa_training.loss_weighting=min_snr"],
    "antithetic": ["ofa_training.timesteps=antithetic"],
    "dropout": ["ofa_training.dropout=0.1"],
    "flipped": ["ofa_training.horizontal_flip=true"],
    "summed": ["ofa_training.loss_reduction=sum"],
    "scheduled": ["ofa_training.schedule=cosine", "ofa_training.warmup_steps=2"],
    "unclipped": ["ofa_training.gradient_clipping=0.0"],
    "zero1": ["ofa_training.zero_stage=1"],
    "zero2": ["ofa_training.zero_stage=2"],
    "bfloat16": ["compute.precision=bfloat16"],
    "adamw": ["ofa_training.weight_decay=0.1", "ofa_training.betas=[0.9, 0.95]"],
    "half_life": ["ofa_training.ema_half_life_images=32", "ofa_training.ema_decay=0.9999", "ofa_training.warmup_images=16"],
    "edm": ["diffusion.formulation=edm"],
    "vp": ["diffusion.formulation=vp"],
}
SOLVERS = ("dpmsolver", "dpmsolver++", "unipc")
SONG = """[song_unet]
sample_size = 8
channels = 1
model_channels = 8
channel_mult = [1, 2]
num_blocks = 1
attn_resolutions = [4]
norm_num_groups = 2
num_class_embeds = 11
augment_dim = 9

"""
JOINT_TRAININGS = tuple(TRAININGS)


def trained(overrides: list[str], folder: Path, *, cell: Cell = JOINT, config: str = TINY) -> dict[str, Any]:
    """Trains a cell's network."""
    own = experiment_of(folder, *overrides, config=config)
    product, watch, modules = make(own, cell)
    return {
        "steps": watch.steps,
        "curve": product.training["curve"],
        "accumulation": product.training["accumulation"],
        "sha256": sha256_of(product.model),
        "norms": norms_of(product.model),
        "left": left_behind(modules[-1]),
        "strides": sorted({str(p.stride()) for p in product.model.parameters() if p.dim() == 4 and not p.is_contiguous()}),
    }


def augmented(laid: str, folder: Path) -> dict[str, Any]:
    """Trains EDM's UNet on augmented, labelled images, of which some labels are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    text, count = re.subn(r"\[network\]\n.*?\n\n", SONG, Path(TINY).read_text(), flags=re.DOTALL)
    assert count == 1
    (folder / "song.toml").write_text(text)
    changes = [
        "diffusion.formulation=edm",
        "ofa_training.augment_probability=0.5",
        "data.condition=class_labels",
        "data.condition_dropout=0.1",
    ]
    return trained([laid, *changes], folder, config=str(folder / "song.toml"))


def on_the_host(laid: str, folder: Path) -> dict[str, Any]:
    """Trains on images that stay on the host, as a set does that is large beside a GPU's memory."""
    with mock.patch.object(step_pixels, "resident", return_value=False):
        return trained([laid], folder)


def on_a_small_gpu(laid: str, folder: Path) -> dict[str, Any]:
    """Trains where a GPU has free memory for half a batch."""
    with mock.patch.object(virtual_gpu.memory, "free", int(0.0045 * 2**30)):
        return trained([laid], folder)


def checkpoints(laid: str, folder: Path) -> dict[str, Any]:
    """Trains with a checkpoint every second step, and reads the last one."""
    own = experiment_of(folder, laid, "ofa_training.checkpoint_every_steps=2")
    product, watch, _ = make(own, JOINT)
    files = sorted((own.folder(JOINT) / loop.CHECKPOINTS).glob("*.safetensors"))
    tensors, _ = read_sealed(files[-1])
    return {
        "steps": watch.steps,
        "tensors": len(tensors),
        "checkpoint_sha256": sha256_of([tensors[name] for name in sorted(tensors)]),
        "sha256": sha256_of(product.model),
    }


def resumed(laid: str, stage: str, folder: Path) -> dict[str, Any]:
    """Trains once without a stop, and once with one between two checkpoints."""
    overrides = (laid, stage, "ofa_training.checkpoint_every_steps=3", "ofa_training.dropout=0.1")
    whole, _, _ = make(experiment_of(folder / "whole", *overrides), JOINT)
    own = experiment_of(folder / "stopped", *overrides)
    try:
        make(own, JOINT, stop_at=5)
    except StoppedError:
        product, watch, _ = make(own, JOINT)
    return {
        "whole": sha256_of(whole.model),
        "sha256": sha256_of(product.model),
        "curves_equal": whole.training["curve"] == product.training["curve"],
        "steps_taken": len(watch.steps) + 1,
    }


def warm_up(laid: str, folder: Path) -> dict[str, Any]:
    """Trains with `torch.compile`, which compiles nothing here, in two parts a step; tells how many images a compiled module is given."""
    images: list[int] = []

    def noted(forward: Callable[..., Any], **_kwargs: Any) -> Callable[..., Any]:
        def call(noisy: Tensor, *rest: Any, **more: Any) -> Any:
            images.append(len(noisy))
            return forward(noisy, *rest, **more)

        return call

    own = experiment_of(folder, laid, TWO_PARTS, "compute.compile=true")
    with mock.patch.object(torch, "compile", noted):
        product, watch, _ = make(own, JOINT)
    return {"images": images, "steps": watch.steps, "accumulation": product.training["accumulation"]}


def importance(laid: str, folder: Path) -> dict[str, Any]:
    """Scores a base's channels."""
    own = experiment_of(folder, laid)
    base = new_base(own).to(distributed.device())
    own.images  # noqa: B018  (loaded before anything is counted)
    with counts.recording() as seen:
        scores = score_base(own, base, 0)
    return {"scoring": seen.totals(), "sha256": sha256_of(scores.values())}


def sampler(laid: str, *overrides: Any, steps_with_noise: int = 0) -> dict[str, Any]:
    """Draws 40 images in 3 batches; the last argument is the folder, those before it are changes."""
    *changes, folder = overrides
    own = experiment_of(folder, laid, *changes)
    base = laid_out(new_base(own), own.config.compute, distributed.device())
    cell = Cell(method="base", size=1.0, seed=0)
    with counts.recording() as seen:
        sets = evaluate.draw_samples(own, base, cell, "digest", Watch())
    return {
        "sampling": seen.totals(),
        "batches": 3,
        "copies": 3 * (1 + steps_with_noise),
        "sha256": sha256_of(sets),
        "device": sets[0].device.type,
    }


def _supernet(own: Experiment, device: torch.device) -> Supernet:
    base = new_base(own).to(device)
    pipes = pipes_of(base)
    stream = torch.Generator().manual_seed(5)
    scores = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
    sizes = own.config.sizes.trained
    plan = make_plan(pipes, scores, sizes, params_base=count_params(base.parameters()), rule="gradual", floor=0.25)
    return Supernet(base, pipes, plan).eval()


def extraction(laid: str, folder: Path) -> dict[str, Any]:
    """Saves a subnet with its sample images; and cuts one out of a supernet that is on the device."""
    own = experiment_of(folder, laid)
    cell, out = Cell(method="ofa", size=0.5, seed=0), folder / "subnet"
    on_cpu = _supernet(own, torch.device("cpu"))
    save_subnet(own, cell, on_cpu.extract(0.5), on_cpu.base, out=out, onnx=False, recorded=False)
    on_device = _supernet(own, distributed.device()).extract(0.5)
    return {
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*.safetensors")},
        "grid": hashlib.sha256((out / "samples.png").read_bytes()).hexdigest(),
        "sha256": sha256_of(on_device),
        "as_on_cpu": sha256_of(on_device) == sha256_of(on_cpu.extract(0.5)),
    }


def latency(laid: str, folder: Path) -> dict[str, Any]:
    """Times a network's forward pass."""
    own = experiment_of(folder, laid)
    model = laid_out(new_base(own), own.config.compute, distributed.device())
    with counts.recording() as seen, mock.patch.multiple(cost, WARM_UP_PASSES=1, MOST_PASSES=5):
        found = cost.measure_latency(model, own.image_shape, 2)
    return {"timing": seen.totals(), "passes": len(found.times)}


def choice(laid: str, folder: Path) -> dict[str, Any]:
    """Measures two candidates of `choose`."""
    own = experiment_of(folder, laid)
    networks = [_supernet(own, torch.device("cpu")).extract(size) for size in (1.0, 0.5)]
    found = [Candidate(size=size, costs={}, quality=None) for size in (1.0, 0.5)]
    with mock.patch.multiple(cost, WARM_UP_PASSES=1, FEWEST_PASSES=2, MOST_PASSES=2):
        timed = device_costs.measured(own, found, networks, {"latency_ms": 1.0, "memory_mb": 1.0})
    return {"latencies": [one.costs["latency_ms"] for one in timed], "memory": [one.costs["memory_mb"] for one in timed]}


def measured_throughput(laid: str, folder: Path) -> dict[str, Any]:
    """Measures the training loop and the sampler."""
    own = experiment_of(folder, laid)
    found = throughput.measure(own)
    set_arithmetic(own.config.compute)
    return {"batch": found.batch, "on_gpu": found.on_gpu, "training": found.training_img_per_sec, "sampling": found.sampling_img_per_sec}


def trained_classifier(laid: str, folder: Path) -> dict[str, Any]:
    """Trains a classifier, keeps it, and takes it up again."""
    own = experiment_of(folder, laid, "classifier.least_accuracy=0.05")
    folder.mkdir(exist_ok=True)
    watch = Watch()
    fresh = classifier.classifier_for(own.images, own.config.classifier, folder, watch)
    classifier._MEASURED.clear()
    again = classifier.classifier_for(own.images, own.config.classifier, folder, Watch())
    model, _ = classifier.load_classifier(fresh.path)
    return {"steps": watch.steps, "accuracy": fresh.held_out_accuracy, "again": again.held_out_accuracy, "sha256": sha256_of(model)}


def features(laid: str, folder: Path) -> dict[str, Any]:
    """Takes features of 300 images in 2 batches, by torch-fidelity."""
    own = experiment_of(folder, laid)
    folder.mkdir(exist_ok=True)
    model = classifier.Classifier(1, 10, 16).eval()
    with torch.no_grad():
        stream = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) / 8)
    path = folder / "classifier.safetensors"
    classifier.save_classifier(path, model, own.config.classifier, 0.9, "")
    layer = classifier_layer(classifier.Extractor(path=path, sha256="", held_out_accuracy=0.9))
    with counts.recording() as seen:
        found = features_of(digits().pixels[:300], layer, Watch())
    return {"extracting": seen.totals(), "batches": 2, "sha256": sha256_of([found]), "device": found.device.type}


def run(*, channels_last: bool, names: list[str] | None = None) -> dict[str, Any]:
    """Runs parts, by default all; one that fails leaves its error, and the others go on."""
    begin()
    found: dict[str, Any] = {}
    for name, part in all_parts(channels_last=channels_last).items():
        if names and name not in names:
            continue
        gc.collect()  # an engine of the part before may wait as it goes
        counts.reset()
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = part(Path(folder) / name)
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
        found[name] |= {"seconds": round(time.process_time() - began, 1), "totals": counts.totals(), "report": counts.report().get("", {})}
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return found | {"determinism": {"asked": enabled, "warn_only": warns}}
