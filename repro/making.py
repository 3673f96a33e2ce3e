"""How the base, the controls and the baselines come by their networks; the method's own makers are in `joint`."""

import safetensors.torch
import torch

from baselines.recipes import Criterion, Task, scoring_gradients, starting_network
from repro.harness import distributed
from repro.harness.cells import Cell, Experiment, Product, base_cell, scores_cell
from repro.harness.clock import Clock
from repro.harness.cost import count_macs, train_pflop
from repro.harness.denoiser import build_base, set_dropout
from repro.harness.evaluation import check_images
from repro.harness.experiment import load_model, load_tensors
from repro.harness.pretrained import load_pretrained
from repro.harness.progress import CellProgress
from repro.harness.randomness import derive_seed, generator
from repro.harness.shipped import shipped_base
from repro.joint import extracted
from repro.ofa.accounting import params_at, size_of
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.planning import plan_of, ranking_scores, score_base
from repro.single import train_alone

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
        importance = score_base(experiment, base, cell.seed)
        plan = plan_of(experiment, base, importance, ranking_scores(experiment, base, importance, cell.seed))
    model = extracted(Supernet(base, pipes_of(base), plan).eval(), cell)
    return Product(model=model, realised=size_of(base, model))


def make_scores(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Takes Diff-Pruning's gradients of a base, once for all sizes."""
    base = load_model(experiment, base_cell(experiment.config, cell.seed)).to(distributed.device())
    settings = experiment.config.pruning
    report.stage("importance")
    with clock.phase("importance"):
        gradients, timesteps = scoring_gradients(base, experiment.images, experiment.schedule, settings, cell.seed)
    images = timesteps * min(settings.images, len(experiment.images))
    pflop = train_pflop(count_macs(base, experiment.image_shape).total, images)
    about = {"images": images, "timesteps": timesteps, "train_pflop": pflop, "scoring_pflop": pflop}
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
    base = load_model(experiment, base_cell(config, cell.seed)).to(distributed.device())
    assert cell.size is not None, cell.name
    task = Task(
        base=base,
        params=params_at(base, cell.size),
        images=experiment.images,
        schedule=experiment.schedule,
        settings=config.pruning,
        seed=cell.seed,
        gradients=load_tensors(experiment, scores_cell(scored_by, cell), GRADIENTS) if scored_by and cell.size < 1 else {},
    )
    report.stage("importance")
    with clock.phase("importance"):
        model = starting_network(recipe, task, criterion)
    realised = size_of(base, model)
    if not trained:
        return Product(model=model, realised=realised)
    set_dropout(model, config.baseline_training.dropout)
    training = train_alone(experiment, cell, model, config.baseline_training, clock, report, base)
    return Product(model=model, training=training, realised=realised)


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
