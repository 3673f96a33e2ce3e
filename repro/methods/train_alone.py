"""Trains one network of one size: the base, a baseline or a fine-tune, optionally distilled from a teacher."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from repro.config import Training
from repro.diffusion.formulation import NoisyBatch, Predict, distillation_losses, image_losses, predictor
from repro.experiment.cells import Cell, Experiment
from repro.experiment.run import load_model, train_cell
from repro.models.cost import count_macs
from repro.runtime import distributed
from repro.runtime.clock import Clock
from repro.runtime.precision import laid_out
from repro.runtime.progress import CellProgress
from repro.training.snapshots import put_weights


def losses_of(experiment: Experiment, base: nn.Module, settings: Training) -> tuple[Callable[[Predict, NoisyBatch], Tensor], float]:
    """Returns the losses of a batch's images, and the MACs of training that a teacher's forward pass amounts to.

    Args:
        experiment: The configuration and its folders.
        base: The teacher, where there is one; a copy is kept.
        settings: The budget, with the share of distillation.
    """
    if not settings.distillation:
        return image_losses, 0.0
    teacher = laid_out(copy.deepcopy(base), experiment.config.compute, distributed.device()).eval().requires_grad_(False)

    def losses(predict: Predict, batch: NoisyBatch) -> Tensor:
        return distillation_losses(predict, predictor(teacher), batch, settings.distillation)

    return losses, count_macs(teacher, experiment.network_shape).total / 3  # training takes a forward pass and twice that backward


def train_alone(
    experiment: Experiment, cell: Cell, model: Any, settings: Training, clock: Clock, report: CellProgress, teacher: nn.Module
) -> dict[str, Any]:
    """Trains one network of one size in place, and returns what the record says of it.

    Args:
        experiment: The configuration and its folders.
        cell: The cell; its seed and identity are the run's.
        model: The network, on the CPU or its device.
        settings: The budget, such as `experiment.config.baseline_training`.
        clock: The cell's clock.
        report: The cell's bar.
        teacher: The base, which is asked where `settings.distillation` says so.
    """
    losses, taught = losses_of(experiment, teacher, settings)
    macs = count_macs(model, experiment.network_shape).total + taught

    def loss(module: nn.Module, batch: NoisyBatch, _step: int) -> Tensor:
        return losses(predictor(module), batch).mean()

    return train_cell(experiment, cell, model, settings, loss=loss, macs=lambda _step: macs, clock=clock, report=report)


def networks_alone(experiment: Experiment, cell: Cell, weights: Mapping[str, Tensor]) -> dict[float, nn.Module]:
    """Returns the one network of a snapshot of a training alone, by its size."""
    assert cell.size is not None, cell.name
    model = load_model(experiment, cell)
    put_weights(model, weights)
    return {cell.size: model}
