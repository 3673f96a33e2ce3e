"""The methods of the grid: the base, the paper's, its controls, and the baselines, each as cells."""

from collections.abc import Callable
from functools import partial
from typing import Any

import safetensors.torch
import torch

from baselines.recipes import RECIPES, Criterion, Task, scoring_gradients, starting_network
from repro.config import Config, changed
from repro.harness import distributed
from repro.harness.cells import Cell, Experiment, Method, Product, Variant, base_cell
from repro.harness.clock import Clock
from repro.harness.cost import count_macs, train_pflop
from repro.harness.denoiser import build_base, set_dropout
from repro.harness.experiment import load_model, load_tensors
from repro.harness.pretrained import load_pretrained
from repro.harness.progress import CellProgress
from repro.harness.randomness import derive_seed, generator
from repro.harness.shipped import shipped_base
from repro.joint import extracted, joint_cell, make_finetuned, make_joint, make_subnet
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law
from repro.ofa.supernet import Supernet
from repro.planning import params_at, plan_of, ranking_scores, score_base, size_of
from repro.single import train_alone
from repro.variants import FINETUNED, METHOD, TRAINED_ALONE, TRAINED_ONCE

GRADIENTS = "gradients.safetensors"
PRUNING_FACTORS = ("threshold", "channels")  # they change which channels go, so nothing at size 1


def _make_base(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the base, or takes one that was trained elsewhere."""
    config = experiment.config
    if config.base.source == "shipped":
        return shipped_base(config, cell.seed)
    if config.base.source != "train":
        return Product(model=load_pretrained(config, experiment.places.cache), realised=1.0)
    model = build_base(config.denoiser, seed=derive_seed("base", cell.seed))
    set_dropout(model, config.base_training.dropout)
    return Product(model=model, training=train_alone(experiment, cell, model, config.base_training, clock, report, model), realised=1.0)


def _make_untrained(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Takes a size out of the base by the method's own plan, without training."""
    base = load_model(experiment, base_cell(experiment.config, cell.seed)).to(distributed.device())
    report.stage("importance")
    with clock.phase("importance"):
        importance = score_base(experiment, base, cell.seed)
        plan = plan_of(experiment, base, importance, ranking_scores(experiment, base, importance, cell.seed))
    model = extracted(Supernet(base, pipes_of(base), plan).eval(), cell)
    return Product(model=model, realised=size_of(base, model))


def _make_scores(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
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


def _make_baseline(
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


def scores_cell(method: str, cell: Cell) -> Cell:
    """Returns the cell that holds the one gradient pass which all sizes of a method share at a seed."""
    return Cell(method=f"{method}_scores", size=None, seed=cell.seed)


def _make_floor(experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Sets one half of the real images against the other: the least that a distance of so few images can be."""
    pixels = experiment.images.pixels[: experiment.config.evaluation.reference_images or None]
    order = torch.randperm(len(pixels), generator=generator(torch.device("cpu"), "floor", cell.seed))
    half = len(pixels) // 2
    return Product(pixels=(pixels[order[:half]], pixels[order[half : 2 * half]]))


def _make_noise(experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Sets uniform noise against the real images: what no network may be worse than."""
    shape = (experiment.config.evaluation.samples, *experiment.image_shape)
    stream = generator(torch.device("cpu"), "noise", cell.seed)
    return Product(pixels=(torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream), experiment.images.pixels))


def _reported(config: Config) -> tuple[float, ...]:
    return config.sizes.reported


def _pruned(config: Config) -> tuple[float, ...]:
    return tuple(size for size in config.sizes.reported if size < 1)


def _sizeless(_config: Config) -> tuple[None]:
    return (None,)


def needs_base(config: Config, cell: Cell) -> tuple[Cell, ...]:
    """Returns the base of a cell's seed, as the one cell that it needs."""
    return (base_cell(config, cell.seed),)


def _title(variant: Variant) -> str:
    return f"{variant.of} with another {variant.factor}: {variant.label}" if variant.factor != METHOD else variant.label


def _varied(sizes: Callable[[Config], tuple[Any, ...]], variant: Variant | None) -> Callable[[Config], tuple[Any, ...]]:
    """Returns the sizes of a variant's cells: none where the configuration has its values already."""
    if variant is None:
        return sizes
    return lambda config: sizes(config) if changed(config, variant.changes(config)) != config else ()


def trained_once(name: str, summary: str, variant: Variant | None = None, law: Law | None = None) -> list[Method]:
    """Returns a method that trains one supernet for all sizes, and its joint training run.

    Args:
        name: What the user types.
        summary: One line for the help.
        variant: What it changes of another method.
        law: The sampling law in place of the configuration's.
    """

    def needs_joint(_config: Config, cell: Cell) -> tuple[Cell, ...]:
        return (joint_cell(cell, name),)

    joint = Method(
        name=f"{name}_joint",
        summary=f"{summary}: the one training run for all sizes",
        sizes=_varied(_sizeless, variant),
        make=make_joint,
        needs=needs_base,
        budget=lambda _config: "ofa_training",
        judged=False,
        scores="formula4",
        prunes="pipes",
        variant=variant,
        law=law,
    )
    subnets = Method(
        name=name,
        summary=f"{summary}: a size extracted from the jointly trained supernet",
        sizes=_varied(_reported, variant),
        make=partial(make_subnet, name),
        needs=needs_joint,
        delivered_by=needs_joint,
        prunes="pipes",
        variant=variant,
    )
    return [joint, subnets]


def trained_alone(name: str, recipe: str, summary: str, variant: Variant | None = None, criterion: Criterion | None = None) -> list[Method]:
    """Returns a method that prunes and trains every size alone, after the gradient pass that its sizes share where it has one of its own.

    Args:
        name: What the user types.
        recipe: One of `baselines.recipes.RECIPES`, or the method's own name where a criterion is given.
        summary: One line for the help.
        variant: What it changes of another method.
        criterion: Scores the channels in place of the recipe's own.
    """
    # At size 1 nothing is pruned: the recipes that inherit weights would be one run under several names; diff_pruning holds it. How
    # channels are chosen changes nothing there either.
    own_whole = recipe == "scratch" or (recipe == "diff_pruning" and (variant is None or variant.factor not in PRUNING_FACTORS))
    scored_by = ""
    if recipe == "diff_pruning" and criterion is None:
        scored_by = name if variant is None or variant.factor == "threshold" else variant.of

    def delivered_by(_config: Config, cell: Cell) -> tuple[Cell, ...]:
        return (scores_cell(scored_by, cell),) if scored_by and cell.size != 1 else ()

    def needs(config: Config, cell: Cell) -> tuple[Cell, ...]:
        return (*needs_base(config, cell), *delivered_by(config, cell))

    method = Method(
        name=name,
        summary=summary,
        sizes=_varied(_reported if own_whole else _pruned, variant),
        make=partial(_make_baseline, recipe, True, criterion=criterion, scored_by=scored_by),
        needs=needs,
        delivered_by=delivered_by,
        budget=lambda _config: "baseline_training",
        variant=variant,
    )
    if scored_by != name:
        return [method]
    scores = Method(
        name=f"{name}_scores",
        summary=f"{summary}: the one gradient pass that scores the channels for all sizes",
        sizes=_varied(_sizeless, variant),
        make=_make_scores,
        needs=needs_base,
        judged=False,
        scores="diff_pruning",
        variant=variant,
    )
    return [scores, method]


CONTROLS = [
    Method(
        name="floor",
        summary="one half of the real images against the other",
        sizes=_sizeless,
        make=_make_floor,
        pixels=lambda _settings, reference: 2 * (reference // 2),
    ),
    Method(
        name="noise",
        summary="uniform noise against the real images",
        sizes=_sizeless,
        make=_make_noise,
        pixels=lambda settings, _reference: settings.samples,
    ),
    Method(
        name="untrained",
        summary="a size of the base by the method's plan, without training",
        sizes=_pruned,
        make=_make_untrained,
        needs=needs_base,
        scores="formula4",
        prunes="pipes",
    ),
    Method(
        name="untrained_random",
        summary="the base pruned at random, without training",
        sizes=_pruned,
        make=partial(_make_baseline, "random", False),
        needs=needs_base,
    ),
]
BASE = Method(
    name="base",
    summary="the pretrained network that all start from",
    sizes=lambda _config: (1.0,),
    make=_make_base,
    budget=lambda config: "base_training" if config.base.source == "train" else "",
    prunes="pipes",
)
THE_METHOD = trained_once("ofa", "OFA-Diffusion")
BASELINES = [method for recipe, summary in RECIPES.items() for method in trained_alone(recipe, recipe, summary)]
VARIANTS = [
    *(method for name, variant in TRAINED_ONCE.items() for method in trained_once(name, _title(variant), variant)),
    Method(
        name="ofa_finetuned",
        summary=_title(FINETUNED),
        sizes=_reported,
        make=make_finetuned,
        needs=lambda _config, cell: (joint_cell(cell),),
        delivered_by=lambda _config, cell: (joint_cell(cell),),
        budget=lambda _config: "finetuning",
        prunes="pipes",
        variant=FINETUNED,
    ),
    *(method for name, variant in TRAINED_ALONE.items() for method in trained_alone(name, variant.of, _title(variant), variant)),
]
METHODS = {method.name: method for method in [*CONTROLS, BASE, *THE_METHOD, *BASELINES, *VARIANTS]}
