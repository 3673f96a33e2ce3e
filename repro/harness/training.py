"""The one training loop, on DeepSpeed: the base, the supernet, every baseline and the classifier go through it.

So their cost is measured by the same clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from repro.config import Compute, Training
from repro.errors import ReproError, RunError
from repro.harness import checkpoint, distributed
from repro.harness.arithmetic import autocast, compiled, forward_in, laid_out, restore_layout
from repro.harness.clock import Clock
from repro.harness.distributed import deepspeed
from repro.harness.randomness import derive_seed

Batch = TypeVar("Batch")
CURVE_POINTS = 50
CHECKPOINT = "checkpoint.safetensors"


class Reporter(Protocol):
    """Shows how far a run is."""

    def __call__(self, step: int, steps: int, loss: float, /) -> None:
        """Takes the steps done, all steps, and the mean loss at the last point of the curve (NaN before the first)."""


@dataclass(frozen=True, kw_only=True)
class Run(Generic[Batch]):
    """What is trained, on what, and where its state is kept.

    Attributes:
        identity: Names the configuration and cell; a checkpoint of another identity is refused.
        seed: Seeds dropout; batches and losses bring their own.
        batches: This rank's slice of the batch of a step.
        loss: The mean loss of a batch at a step, a scalar; the module is called as often as the step asks, and backward runs once.
        folder: Keeps the checkpoint; None keeps nothing.
        compute: Precision and memory layout.
        compiled: The modules that go through `torch.compile`; none by default.
        warm_up: The steps whose losses between them use each of these modules, so that all are compiled before the training's clock runs.
        last_seen: The phases, in seconds, at the last sign of an earlier life of the run.
    """

    identity: str
    seed: int
    batches: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch, int], Tensor]
    folder: Path | None = None
    compute: Compute = field(default_factory=Compute)
    compiled: tuple[nn.Module, ...] = ()
    warm_up: tuple[int, ...] = (0,)
    last_seen: dict[str, float] = field(default_factory=dict)


def train(module: nn.Module, run: Run[Batch], settings: Training, clock: Clock, report: Reporter) -> list[list[float]]:
    """Trains a module in place; at the end it holds the EMA of its weights.

    A run that was killed goes on from its last checkpoint and ends in the same weights as one that was not.

    Returns:
        The training curve: [step, mean loss since the point before] pairs.

    Raises:
        ReproError: The batch cannot be shared by the ranks, or the checkpoint is damaged or another run's.
        RunError: The loss became NaN or infinite, or the disk is full.
    """
    if settings.batch_size % distributed.ranks():
        raise ReproError(f"a batch of {settings.batch_size} cannot be shared by {distributed.ranks()} ranks; make batch_size a multiple")
    saved = _load(module, run)
    module = laid_out(module, run.compute, distributed.device())
    with compiled(run.compiled), forward_in(module, run.compute.precision, distributed.device()):
        return _train(module, run, settings, clock, report, saved)


def _train(
    module: nn.Module,
    run: Run[Batch],
    settings: Training,
    clock: Clock,
    report: Reporter,
    saved: tuple[dict[str, Tensor], checkpoint.Progress] | None,
) -> list[list[float]]:
    """Trains a module that is where and how it has to be, from its first step or from a checkpoint."""
    if run.compiled:
        _warm_up(module, run)
    engine, schedule = _initialize(module, settings)
    ema = EMAModel(module.parameters(), decay=settings.ema_decay, foreach=True)
    step, curve, pending = 0, [], []
    if saved:
        tensors, progress = saved
        step, curve, pending = progress.step, progress.curve, progress.pending
        checkpoint.restore_optimizer(engine, tensors, step)
        ema.shadow_params = [tensors[f"ema/{name}"].to(p.device) for name, p in module.named_parameters()]
        ema.optimization_step = step
        clock.resume(progress.seconds, run.last_seen)
    with clock.phase("train"):
        loop = _Loop(engine, schedule, ema, run, settings, clock, report, curve, [torch.tensor(loss) for loss in pending])
        loop.run(step)
    ema.copy_to(module.parameters())
    engine.destroy()
    restore_layout(module)
    return curve


@dataclass
class _Loop(Generic[Batch]):
    """The loop and what it carries from step to step."""

    engine: Any
    schedule: Callable[[int], float]
    ema: EMAModel
    run_: Run[Batch]
    settings: Training
    clock: Clock
    report: Reporter
    curve: list[list[float]]
    pending: list[Tensor]

    def run(self, step: int) -> None:
        """Trains from a step to the last."""
        every = max(1, self.settings.steps // CURVE_POINTS)
        self.engine.train()
        while step < self.settings.steps:
            self.pending.append(self._step(step))
            step += 1
            saving = step % self.settings.checkpoint_every_steps == 0 and step < self.settings.steps
            if step % every == 0 or saving or step == self.settings.steps:
                mean = self._mean(step)
                if step % every == 0 or step == self.settings.steps:
                    self.curve.append([step, mean])
                    self.pending = []
            self.report(step, self.settings.steps, self.curve[-1][1] if self.curve else math.nan)
            if saving:
                self._save(step)

    def _step(self, step: int) -> Tensor:
        """Takes one optimisation step and returns its loss."""
        batch = self.run_.batches(step)
        # Dropout alone draws from the global stream.
        if self.settings.dropout:
            torch.manual_seed(derive_seed("dropout", self.run_.seed, step, distributed.rank()))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.schedule(step)
        with autocast(self.run_.compute.precision, distributed.device()):
            loss = self.run_.loss(self.engine, batch, step)
        self.engine.backward(loss)
        self.engine.step()
        self.ema.step(self.engine.module.parameters())
        return loss.detach()

    def _mean(self, step: int) -> float:
        """Returns the mean loss since the last point of the curve, over all ranks."""
        values = distributed.gather(torch.stack(self.pending).mean().item())
        mean = float(sum(values) / len(values))
        if not math.isfinite(mean):
            raise RunError(f"the loss became {mean} by step {step}; lower its learning_rate; the last checkpoint is kept")
        return mean

    def _save(self, step: int) -> None:
        """Writes a checkpoint, from the first rank."""
        if self.run_.folder is None:
            return
        with self.clock.phase("checkpoint"):
            tensors = checkpoint.optimizer_state(self.engine)
            names = [name for name, _ in self.engine.module.named_parameters()]
            tensors |= {f"param/{name}": p for name, p in self.engine.module.named_parameters()}
            tensors |= {f"ema/{name}": p for name, p in zip(names, self.ema.shadow_params, strict=True)}
            seconds = self.clock.seconds()
            pending = [loss.item() for loss in self.pending]
            progress = checkpoint.Progress(run=self.run_.identity, step=step, seconds=seconds, curve=self.curve, pending=pending)
            if distributed.rank() == 0:
                checkpoint.save_checkpoint(self.run_.folder / CHECKPOINT, tensors, progress)


def _load(module: nn.Module, run: Run[Batch]) -> tuple[dict[str, Tensor], checkpoint.Progress] | None:
    """Reads the run's checkpoint, if it has one, and puts its weights into the module."""
    if run.folder is None or not (run.folder / CHECKPOINT).exists():
        return None
    tensors, progress = checkpoint.load_checkpoint(run.folder / CHECKPOINT, run.identity)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[f"param/{name}"])
    return tensors, progress


def _warm_up(module: nn.Module, run: Run[Batch]) -> None:
    """Has everything compiled, forwards and backwards, by taking losses that change no weight."""
    module.train()
    for step in run.warm_up:
        with autocast(run.compute.precision, distributed.device()):
            loss = run.loss(module, run.batches(step), step)
        loss.backward()
    module.zero_grad()


def _initialize(module: nn.Module, settings: Training) -> tuple[Any, Callable[[int], float]]:
    """Wraps a module for DeepSpeed, with Adam; returns it and the learning rate's factor at each step."""
    distributed.start()
    on_gpu = distributed.device().type == "cuda"
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate, fused=on_gpu)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config={
            "train_batch_size": settings.batch_size,
            "train_micro_batch_size_per_gpu": settings.batch_size // distributed.ranks(),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.gradient_clipping,  # DeepSpeed clips at 1.0 where the key is missing
            "zero_optimization": {"stage": settings.zero_stage},
            "steps_per_print": 10**12,
        },
    )
    schedule = get_scheduler(
        "cosine" if settings.schedule == "cosine" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=settings.steps,
    )
    return engine, schedule.lr_lambdas[0]
