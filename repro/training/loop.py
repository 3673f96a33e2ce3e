"""The one training loop, on DeepSpeed: the base, the supernet, every baseline and the classifier go through it.

So their cost is measured by the same clock.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from repro.config import Compute, Execution, Training
from repro.errors import InterruptionError, ReproError, RunError
from repro.runtime import distributed, provenance, rank_watch, signals
from repro.runtime.clock import Clock, training_overhead
from repro.runtime.precision import autocast, compiled, forward_in, laid_out, listed, restore_layout
from repro.runtime.seeds import derive_seed
from repro.training import checkpoint, snapshots
from repro.training.engine import clips_itself, engine_of, left_as_found

Batch = TypeVar("Batch")
CURVE_POINTS = 50
CHECKPOINTS = "checkpoints"
CHECK_SEC = 1.0  # how often several ranks agree on whether to save or to stop
# An exploded loss is this many times the lowest point of the curve and of its first; noise of any size seen here is far from both.
EXPLODED = (100.0, 10.0)


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
        loss_unit: What the curve divides a loss by, so that one that is summed over pixels reads as their mean.
        folder: Keeps the checkpoints, in a folder of their own; None keeps nothing.
        inputs: What it is made from, as in a manifest; a checkpoint that began from something else is refused.
        compute: Precision and memory layout.
        execution: When checkpoints are written and how many are kept.
        watch: Is told the loss and the rate at each point of the curve, and after how many images that is; on the first rank.
        accumulation: In how many parts a rank takes its slice of a batch, one after the other.
        split: Deals a slice out in that many equal parts; needed where there is more than one.
        compiled: The modules that go through `torch.compile`; none by default.
        snapshots: The steps after which the average of the weights is kept, to be judged later.
        branches: Where to keep the whole state, too: step -> the folder of a run that goes on from there.
        about: What is kept beside a snapshot, of a step: plain values, as JSON has them.
        warm_up: The steps whose losses between them use each of these modules, so that all are compiled before the training's clock runs.
        last_seen: The phases, in device-seconds, at the last sign of an earlier life of the run.
    """

    identity: str
    seed: int
    batches: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch, int], Tensor]
    loss_unit: float = 1.0
    folder: Path | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    compute: Compute = field(default_factory=Compute)
    execution: Execution = field(default_factory=Execution)
    watch: Callable[[dict[str, float], int], None] = lambda _values, _images: None
    accumulation: int = 1
    split: Callable[[Batch, int], list[Batch]] = lambda batch, _count: [batch]
    compiled: tuple[nn.Module, ...] = ()
    snapshots: tuple[int, ...] = ()
    branches: Mapping[int, Path] = field(default_factory=dict)
    about: Callable[[int], dict[str, Any]] = lambda _step: {}
    warm_up: tuple[int, ...] = (0,)
    last_seen: dict[str, float] = field(default_factory=dict)


def train(module: nn.Module, run: Run[Batch], settings: Training, clock: Clock, report: Reporter) -> list[list[float]]:
    """Trains a module in place; at the end it holds the EMA of its weights.

    A run that was killed goes on from its last checkpoint and ends in the same weights as one that was not.

    Returns:
        The training curve: [step, mean loss since the point before] pairs.

    Raises:
        ReproError: The batch cannot be shared by the ranks and parts, or the checkpoint is another run's or of other versions.
        RunError: The loss became NaN or infinite or exploded, or the disk is full; the last good checkpoint is kept.
        InterruptionError: A signal asked to end; a checkpoint has been written.
    """
    if settings.batch_size % (distributed.ranks() * run.accumulation):
        parts = f" in {run.accumulation} parts each" if run.accumulation > 1 else ""
        raise ReproError(
            f"a batch of {settings.batch_size} cannot be shared by {distributed.ranks()} ranks{parts}; make batch_size a multiple"
        )
    saved = _load(module, run)
    module = module.to(distributed.device())
    with left_as_found(module), compiled(run.compiled), forward_in(module, run.compute.precision, distributed.device()), listed(module):
        return _train(module, run, settings, clock, report, saved)


def _train(
    module: nn.Module,
    run: Run[Batch],
    settings: Training,
    clock: Clock,
    report: Reporter,
    saved: tuple[dict[str, Tensor], checkpoint.Progress] | None,
) -> list[list[float]]:
    """Trains a module on its device, from its first step or from a checkpoint.

    ZeRO's partitions are slices of one flat buffer, and no NHWC weight is such a slice: only without them are the weights laid out anew.
    """
    layout = run.compute if settings.zero_stage == 0 else replace(run.compute, channels_last=False)
    if run.compiled:
        _warm_up(laid_out(module, layout, distributed.device()), run)
    engine = engine_of(restore_layout(module), settings, run.execution, accumulation=run.accumulation)
    laid_out(module, layout, distributed.device())
    ema = EMAModel(module.parameters(), foreach=True)
    step, curve, pending = 0, [], []
    if saved:
        tensors, progress = saved
        step, curve, pending = progress.step, progress.curve, progress.pending
        checkpoint.restore_optimizer(engine, tensors, step)
        ema.shadow_params = [checkpoint.beside(parameter, tensors[f"ema/{name}"]) for name, parameter in module.named_parameters()]
        ema.optimization_step = step
        clock.resume(progress.device_seconds, run.last_seen)
    with clock.phase("train"), signals.deferred():
        losses = list(torch.tensor(pending, device=distributed.device()))
        _Loop(engine, _rates(settings), ema, run, settings, clock, report, curve, losses).run(step)
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
        pulse = _Pulse(step, self.run_.execution.checkpoint_minutes)
        self.engine.train()
        while step < self.settings.steps:
            self.pending.append(self._step(step))
            step += 1
            stopping, due = pulse(step)
            last = step == self.settings.steps
            # What is still to be branched off is lost with the last step, where that has no checkpoint.
            saving = bool(self.run_.branches) if last else stopping or due or step % self.settings.checkpoint_every_steps == 0
            if step % every == 0 or saving or last:
                mean = self._mean(step)
                if step % every == 0 or last:
                    self._point(step, mean)
            self.report(step, self.settings.steps, self.curve[-1][1] if self.curve else math.nan)
            if step in self.run_.snapshots:
                self._snapshot(step)
            if step in self.run_.branches:
                self._save(step, self.run_.branches[step], "evaluate")
            if saving:
                self._save(step, self.run_.folder, "checkpoint")
                pulse.saved()
            if saving and stopping:
                distributed.wait_for_all()  # the first rank has written it
                raise InterruptionError(stopping)

    def _step(self, step: int) -> Tensor:
        """Takes one optimisation step and returns its loss."""
        batch = self.run_.batches(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.schedule(step)
        parts = self.run_.split(batch, self.run_.accumulation) if self.run_.accumulation > 1 else [batch]
        losses = []
        for index, part in enumerate(parts):
            # Dropout alone draws from the global stream.
            if self.settings.dropout:
                torch.manual_seed(derive_seed("dropout", self.run_.seed, step, distributed.rank(), *([index] if index else [])))
            with autocast(self.run_.compute.precision, distributed.device()):
                loss = self.run_.loss(self.engine, part, step)
            rank_watch.note(f"step {step}, the backward pass")  # where it waits for the others
            self.engine.backward(loss)  # divides by the number of parts
            if index == len(parts) - 1 and clips_itself(self.settings):
                torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.settings.gradient_clipping)
            self.engine.step()  # after the last of them only
            losses.append(loss.detach() / self.run_.loss_unit)
        # diffusers lets a decay rise to what is asked for; with the least decay set to it too, it holds from the second step on.
        self.ema.decay = self.ema.min_decay = ema_decay(self.settings, step)
        self.ema.step(self.engine.module.parameters())
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _mean(self, step: int) -> float:
        """Returns the mean loss since the last point of the curve, over all ranks."""
        values = distributed.gather(torch.stack(self.pending).mean().item())
        mean = float(sum(values) / len(values))
        if not math.isfinite(mean):
            raise RunError(f"the loss became {mean} by step {step}; lower its learning_rate; the last good checkpoint is kept")
        if self.curve and mean > EXPLODED[0] * min(loss for _, loss in self.curve) and mean > EXPLODED[1] * self.curve[0][1]:
            raise RunError(
                f"the loss exploded to {mean:.4g} by step {step} from {self.curve[-1][1]:.4g}; lower its learning_rate; "
                "the last good checkpoint is kept"
            )
        return mean

    def _point(self, step: int, mean: float) -> None:
        """Adds a point to the training curve."""
        self.curve.append([step, mean])
        self.pending = []
        rate = self.settings.learning_rate * self.schedule(step - 1)
        self.run_.watch({"train/loss": mean, "train/learning_rate": rate}, step * self.settings.batch_size)

    def _snapshot(self, step: int) -> None:
        """Keeps the average of the weights, from the first rank; judging is no training, so no rank's time that this takes is overhead."""
        if self.run_.folder is None:
            return
        rank_watch.note(f"step {step}, the snapshot")
        with self.clock.phase("evaluate"):
            if distributed.rank() == 0:
                average = zip(self.engine.module.named_parameters(), self.ema.shadow_params, strict=True)
                tensors = {name: shadow for (name, _), shadow in average}
                about = self.run_.about(step) | {"device_hours": training_overhead(self.clock.device_seconds()) / 3600}
                snapshots.keep(self.run_.folder, step, self.run_.identity, self.run_.inputs, tensors, about)
            distributed.wait_for_all()

    def _save(self, step: int, folder: Path | None, phase: str) -> None:
        """Writes a checkpoint below a folder, from the first rank; what that takes is counted under a phase of the clock."""
        if folder is None:
            return
        rank_watch.note(f"step {step}, the checkpoint")
        with self.clock.phase(phase):
            parameters = dict(self.engine.module.named_parameters())
            if not torch.stack([parameter.isfinite().all() for parameter in parameters.values()]).all():
                raise RunError(f"weights became NaN or infinite by step {step}; lower its learning_rate; the last good checkpoint is kept")
            tensors = checkpoint.optimizer_state(self.engine)
            tensors |= {f"param/{name}": p for name, p in parameters.items()}
            tensors |= {f"ema/{name}": p for name, p in zip(parameters, self.ema.shadow_params, strict=True)}
            # The losses of all ranks: a run may go on with another number of them.
            losses = distributed.gather_tensors(torch.stack(self.pending)[None]) if self.pending else []
            progress = checkpoint.Progress(
                run=self.run_.identity,
                inputs=self.run_.inputs,
                step=step,
                device_seconds=self.clock.device_seconds(),
                curve=self.curve,
                pending=torch.cat(losses).double().mean(dim=0).tolist() if losses else [],
                environment=provenance.environment(distributed.ranks()),
            )
            if distributed.rank() == 0:
                checkpoint.save_checkpoint(folder / CHECKPOINTS, tensors, progress, kept=self.run_.execution.checkpoints_kept)
            if phase != "checkpoint":
                distributed.wait_for_all()  # or the others would wait in the next step, and train


class _Pulse:
    """What the ranks agree on every second or so: the signal that asked to stop, 0 for none, and whether a checkpoint is due.

    A rank alone asks itself at every step, which costs nothing.

    Args:
        step: The steps done at the start.
        minutes: The longest time between two checkpoints.
    """

    def __init__(self, step: int, minutes: float) -> None:
        self._sec = 60 * minutes
        self._saved = self._asked = time.monotonic()
        self._last = step
        self._next = step + 1

    def __call__(self, step: int) -> tuple[int, bool]:
        """Returns what is agreed on after a step."""
        if step < self._next:
            return 0, False
        now = time.monotonic()
        step_sec = (now - self._asked) / (step - self._last)
        pause = 1 if distributed.ranks() == 1 else max(1, int(CHECK_SEC / max(step_sec, 1e-6)))
        signal, due, hurry = distributed.highest(signals.asked(), now - self._saved > self._sec, -pause)
        self._asked, self._last, self._next = now, step, step - int(hurry)
        return int(signal), bool(due)

    def saved(self) -> None:
        """Says that a checkpoint has been written."""
        self._saved = time.monotonic()


def _load(module: nn.Module, run: Run[Batch]) -> tuple[dict[str, Tensor], checkpoint.Progress] | None:
    """Reads the run's newest checkpoint that is whole, if there is one, and puts its weights into the module."""
    if run.folder is None:
        return None
    folder = run.folder / CHECKPOINTS
    # The first rank looks, since it removes what is damaged: all must go on from the same one.
    found = checkpoint.load_newest(folder, run.identity, run.inputs) if distributed.rank() == 0 else None
    step = distributed.gather(found[1].step if found else None)[0]
    if step is None:
        return None
    tensors, progress = found or checkpoint.load_checkpoint(folder, step, run.identity, run.inputs)
    provenance.changes(progress.environment, distributed.ranks(), run.folder)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[f"param/{name}"])
    return tensors, progress


def _warm_up(module: nn.Module, run: Run[Batch]) -> None:
    """Has everything compiled, forwards and backwards, by taking losses that change no weight, of as many images as the training takes."""
    module.train()
    for step in run.warm_up:
        part = run.split(run.batches(step), run.accumulation)[0]
        with autocast(run.compute.precision, distributed.device()):
            loss = run.loss(module, part, step)
        loss.backward()
    module.zero_grad()


def ema_decay(settings: Training, step: int) -> float:
    """Returns the decay of the average at a step, from 0: as configured, or by its half-life in images (Karras et al., 2022)."""
    if not settings.ema_half_life_images:
        return settings.ema_decay
    bound = settings.ema_ramp * step * settings.batch_size if settings.ema_ramp else math.inf  # of the images before this step
    half_life = min(settings.ema_half_life_images, bound)
    return 0.5 ** (settings.batch_size / half_life) if half_life else 0.0


def _rates(settings: Training) -> Callable[[int], float]:
    """Returns the learning rate's factor at each step."""
    if settings.warmup_images:
        settings = replace(settings, warmup_images=0, warmup_steps=math.ceil(settings.warmup_images / settings.batch_size))
    schedule = get_scheduler(
        "cosine" if settings.schedule == "cosine" else "constant_with_warmup",
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),  # of the schedule alone: the loop sets the rate itself
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=settings.steps,
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    steps, cooldown = settings.steps, round(settings.cooldown * settings.steps)
    return (lambda step: factor(step) * min(1.0, (steps - step) / (cooldown + 1))) if cooldown else factor
