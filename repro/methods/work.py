"""The work of scoring channels, beside that of training (the contract `Method.work`)."""

from collections.abc import Sequence

from repro.experiment.cells import Cell, Experiment
from repro.experiment.stage import Costs, Stage, training_work, weights_gb
from repro.models.flop import activation_gradient_pflop, train_pflop


def formula4_work(experiment: Experiment, cells: Sequence[Cell], costs: Costs) -> list[Stage]:
    """Returns Formula 4's scoring of the base, once for each cell, and what follows it by the method's budget.

    Args:
        experiment: The experiment, under the configuration of the cells' method.
        cells: Those of one method that are to be made; at least one.
        costs: Of every size of these cells, and of every trained one.
    """
    images = len(cells) * experiment.config.importance.images
    pflop = activation_gradient_pflop(costs.macs[1.0], images)
    scoring = Stage(name=f"{cells[0].method}: importance", kind="training", images=images, passes=images, pflop=pflop)
    return [scoring, *training_work(experiment, cells, costs)]


def diff_pruning_work(experiment: Experiment, cells: Sequence[Cell], costs: Costs) -> list[Stage]:
    """Returns Diff-Pruning's pass: a batch at every timestep down to the threshold, so at most at all; it keeps a gradient a weight."""
    config, name = experiment.config, cells[0].method
    images = len(cells) * config.pruning.images * (config.pruning.timesteps or config.diffusion.num_train_timesteps)
    title = f"{name}: importance" + ("" if config.pruning.timesteps else ", at most")
    return [
        Stage(name=title, kind="training", images=images, passes=images, pflop=train_pflop(costs.macs[1.0], images)),
        Stage(name=f"{name}: gradients", kind="other", kept_gb=weights_gb(len(cells) * costs.params[1.0])),
    ]
