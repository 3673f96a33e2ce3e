"""Checks that batches divide among the ranks, before a run starts or a job waits in a queue."""

from collections.abc import Sequence

from repro.errors import ReproError
from repro.experiment.artefacts import is_made
from repro.experiment.cells import Cell, Experiment


def check_batches(experiment: Experiment, cells: Sequence[Cell], ranks: int) -> None:
    """Checks that every batch size which is still to be trained with is a multiple of the ranks.

    Args:
        experiment: The configuration and its methods.
        cells: What is to be run; what is made already trains no more.
        ranks: Over all nodes of a run.

    Raises:
        ReproError: One cannot.
    """
    in_play = []
    for cell in cells:
        config = experiment.config_of(cell)
        section = experiment.method_of(cell).budget(config)
        if section and not is_made(experiment, cell):
            in_play.append((section, getattr(config, section).batch_size))
    for section in filter(None, (metric.section for metric in experiment.metrics)):
        in_play.append((section, getattr(experiment.config, section).batch_size))
    for section, batch_size in in_play:
        if batch_size % ranks:
            raise ReproError(f"{section}.batch_size: {batch_size} images cannot be shared by {ranks} ranks; make it a multiple of {ranks}")
