"""What the parts of a run share: the tiny experiment, a look at every step, and what is left when a part is done."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
from torch import Tensor, nn

import repro  # noqa: F401  (before diffusers)
from baselines.recipes import Criterion
from repro.config import load_config
from repro.experiment import run
from repro.experiment.cells import Cell, Experiment, Product
from repro.grid import METHODS
from repro.methods import products, train_once
from repro.models.denoiser import build_base
from repro.runtime import distributed, gpu
from repro.runtime.clock import Clock
from repro.runtime.precision import set_arithmetic
from repro.runtime.watchers import Watchers
from repro.training import loop
from support.tally import counts

TINY = str(Path(__file__).parents[1] / "tiny.toml")
STEPS, POINTS = 6, 2
JOINT = Cell(method="ofa_joint", size=None, seed=0)
SMALL = [f"{section}.steps={STEPS}" for section in ("base_training", "ofa_training", "baseline_training", "finetuning", "classifier")]
SHORT = ["importance.images=32", "pruning.threshold=0.9999"]
NEVER = [f"{section}.checkpoint_every_steps=1000" for section in ("base_training", "ofa_training", "baseline_training", "finetuning")]
TWO_PARTS = "execution.memory_gib=0.004"  # of a batch of 16: so much does a rank need for 8
HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


class StoppedError(Exception):
    """Stands for a crash."""


class Watch:
    """A cell's progress that looks at the tally after every step of a training.

    Attributes:
        steps: Kind -> count, of every step from the second on.
    """

    last_seen: dict[str, float] = {}  # noqa: RUF012  (of no earlier life)
    watch = Watchers()  # nobody else looks

    def __init__(self, stop_at: int = 0) -> None:
        self.steps: list[dict[str, int]] = []
        self._before: dict[str, int] | None = None
        self._stop_at = stop_at

    def __call__(self, step: int, _steps: int, _loss: float = 0.0) -> None:
        now = counts.totals()
        if self._before is not None and self._training:
            self.steps.append({kind: now[kind] - self._before[kind] for kind in now})
        self._before = now
        if step == self._stop_at:
            raise StoppedError

    def stage(self, name: str, _images: int = 0) -> None:
        self._training = name == "training"
        self._before = None

    _training = True


def begin() -> None:
    """Sets what a run sets, and has two points on a training curve of six steps."""
    set_arithmetic(load_config(TINY).compute)
    loop.CURVE_POINTS = POINTS


def experiment_of(folder: Path, *overrides: str, config: str = TINY) -> Experiment:
    """Returns the tiny experiment, or another, with changes."""
    own = METHODS["magnitude"]
    own = replace(own, name="own", make=partial(products.make_baseline, "own", True, criterion=_own_criterion))
    loaded = load_config(config, [*SMALL, *SHORT, *NEVER, *overrides])
    return Experiment(config=loaded, results=folder / "results", runs=folder / "runs", source="", methods=METHODS | {"own": own})


def _own_criterion(_task: Any) -> Criterion:
    """Scores a group by the weights of its first layer, as a script of one's own may, on the device."""
    return lambda group: group[0].dep.target.module.weight.detach().flatten(1).abs().mean(dim=1)


def new_base(experiment: Experiment) -> nn.Module:
    """Returns a base with random weights."""
    return build_base(experiment.config.denoiser, seed=3).eval()


def sha256_of(tensors: Any) -> str:
    """Returns the hash of a network's weights, or of tensors, as the CPU has them; NHWC or not makes no difference."""
    digest = hashlib.sha256()
    with counts.paused():
        for tensor in tensors.state_dict().values() if isinstance(tensors, nn.Module) else tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def norms_of(model: nn.Module) -> list[float]:
    """Returns the norm of every parameter, for comparisons that cannot be exact."""
    with counts.paused():
        return [float(parameter.detach().norm()) for parameter in model.parameters()]


def left_behind(module: nn.Module) -> list[str]:
    """Returns what an engine left on a module: hooks, attributes of its own, and gradients."""
    left = [f"{name} {hooks}" for name, part in module.named_modules() for hooks in HOOKS if getattr(part, hooks, None)]
    left += [f"{name} {key}" for name, part in module.named_modules() for key in vars(part) if key.startswith("ds_")]
    for name, parameter in module.named_parameters():
        left += [
            f"{name} {key}"
            for key in dir(parameter)
            if key.startswith(("ds_", "_hp_", "_z3", "get_full_hp")) or key == "_index_in_param_group"
        ]
        left += [f"{name} grad"] * (parameter.grad is not None)
        left += [f"{name} part of a buffer"] * (parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size())
    return left


@contextmanager
def bases_given(experiment_: Experiment) -> Iterator[list[nn.Module]]:
    """Gives what is trained a random base, and no manifests; yields the modules that are trained."""
    trained_modules: list[nn.Module] = []
    train = run.train

    def watched(module: nn.Module, *rest: Any) -> Any:
        trained_modules.append(module)
        return train(module, *rest)

    def gradients(own: Experiment, *_rest: Any) -> dict[str, Tensor]:
        cell = Cell(method="diff_pruning_scores", size=None, seed=0)
        product = products.make_scores(own, cell, new_clock(), Watch())
        return safetensors.torch.load(product.files[products.GRADIENTS])

    with (
        mock.patch.object(train_once, "load_model", lambda own, _cell: new_base(own)),
        mock.patch.object(products, "load_model", lambda own, _cell: new_base(own)),
        mock.patch.object(products, "load_tensors", gradients),
        mock.patch.object(run, "inputs_of", return_value={}),
        mock.patch.object(run, "train", watched),
    ):
        yield trained_modules


def new_clock() -> Clock:
    """Returns a clock as a cell has it."""
    try:
        return Clock(None, 1, partial(gpu.synchronize, distributed.device()))
    except TypeError:
        return Clock(None, 1)  # one that does not wait for the device


def make(own: Experiment, cell: Cell, stop_at: int = 0) -> tuple[Product, Watch, list[nn.Module]]:
    """Makes a cell's product on a random base."""
    watch = Watch(stop_at)
    with bases_given(own) as modules:
        product = own.of(cell).method_of(cell).make(own.of(cell), cell, new_clock(), watch)
    return product, watch, modules
