"""Makes the base, the controls and the baselines; OFA's own products are made in `train_once`."""

from dataclasses import replace

import safetensors.torch
import torch
from torch import nn

from baselines.recipes import Criterion, Task, scoring_gradients, starting_network
from repro.experiment.cells import Cell, Experiment, Product, base_cell, scores_cell
from repro.experiment.evaluate import check_images
from repro.experiment.pretrained import load_pretrained
from repro.experiment.run import load_model, load_tensors
from repro.experiment.shipped import shipped_base
from repro.methods.plan import planned
from repro.methods.train_alone import train_alone
from repro.methods.train_once import extracted
from repro.models.cost import count_macs
from repro.models.denoiser import build_base, set_dropout
from repro.models.flop import train_pflop
from repro.ofa.accounting import params_at, size_of
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime import distributed
from repro.runtime.clock import Clock
from repro.runtime.progress import CellProgress
from repro.runtime.seeds import derive_seed, generator

GRADIENTS = "gradients.safetensors"


def make_base(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the base, or takes one that was trained elsewhere."""
    config = experiment.config
    if config.base.source == "shipped":
        return shipped_base(config, cell.seed)
    if config.base.source != "train":
        return Product(model=load_pretrained(config, experiment.places.cache), realised=1.0)
    model = build_base(config.denoiser, seed=derive_seed("base", cell.seed))
    set_dropout(model, config.base_training.dropout)
    return Product(model=model, training=train_alone(experiment, cell, model, config.base_training, clock, report, model), realised=1.0)


def make_untrained(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Takes a size out of the base by the method's own plan, without training."""
    base = load_model(experiment, base_cell(experiment.config, cell.seed)).to(distributed.device())
    report.stage("importance")
    with clock.phase("importance"):
        plan, _ = planned(experiment, base, cell.seed)
    units = experiment.config.allocation.resampling_units
    model = extracted(Supernet(base, pipes_of(base, units), plan).eval(), cell)
    return Product(model=model, realised=size_of(base, model, units))


def make_scores(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Takes Diff-Pruning's gradients of a base, once for all sizes."""
    base = load_model(experiment, base_cell(experiment.config, cell.seed)).to(distributed.device())
    settings = experiment.config.pruning
    report.stage("importance")
    with clock.phase("importance"):
        gradients, levels = scoring_gradients(_task(experiment, base, cell))
    images = levels * min(settings.images, len(experiment.images))
    pflop = train_pflop(count_macs(base, experiment.network_shape).total, images)
    about = {"images": images, "timesteps": levels, "train_pflop": pflop, "scoring_pflop": pflop}
    return Product(training=about, files={GRADIENTS: safetensors.torch.save(gradients)})


def make_baseline(
    recipe: str,
    trained: bool,
    experiment: Experiment,
    cell: Cell,
    clock: Clock,
    report: CellProgress,
    criterion: Criterion | None = None,
    scored_by: str = "",
) -> Product:
    """Prunes the base to a size, by the recipe's criterion or another, and, if asked to, trains what is left."""
    config = experiment.config
    base = load_model(experiment, base_cell(config, cell.seed))
    if criterion:  # one of one's own may run the network; the others compare weights, one group of layers after another, and copy much
        base = base.to(distributed.device())
    assert cell.size is not None, cell.name
    gradients = load_tensors(experiment, scores_cell(scored_by, cell), GRADIENTS) if scored_by and cell.size < 1 else {}
    task = replace(_task(experiment, base, cell), gradients=gradients)
    report.stage("importance")
    with clock.phase("importance"):
        model = starting_network(recipe, task, criterion)
    realised = size_of(base, model, config.allocation.resampling_units)
    if not trained:
        return Product(model=model, realised=realised)
    set_dropout(model, config.baseline_training.dropout)
    training = train_alone(experiment, cell, model, config.baseline_training, clock, report, base)
    return Product(model=model, training=training, realised=realised)


def _task(experiment: Experiment, base: nn.Module, cell: Cell) -> Task:
    """Returns what a recipe works on."""
    return Task(
        base=base,
        params=params_at(base, 1.0 if cell.size is None else cell.size, experiment.config.allocation.resampling_units),
        images=experiment.images,
        formulation=experiment.formulation,
        space=experiment.space,
        condition=experiment.condition,
        levels=experiment.config.diffusion.num_train_timesteps,
        settings=experiment.config.pruning,
        seed=cell.seed,
    )


def make_floor(experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Sets one half of the real images against the other: the least that a distance of so few images can be."""
    pixels = experiment.images.pixels[: experiment.config.evaluation.reference_images or None]
    order = torch.randperm(len(pixels), generator=generator(torch.device("cpu"), "floor", cell.seed))
    check_images(experiment.config.evaluation, experiment.images, halved=True)
    half = len(pixels) // 2
    return Product(pixels=(pixels[order[:half]], pixels[order[half : 2 * half]]))


def make_noise(experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Sets uniform noise against the real images: what no network may be worse than."""
    shape = (experiment.config.evaluation.samples, *experiment.image_shape)
    stream = generator(torch.device("cpu"), "noise", cell.seed)
    return Product(pixels=(torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream), experiment.images.pixels))
