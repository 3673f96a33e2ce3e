"""The methods of the grid: the base, the paper's, its controls, and the baselines, each as cells."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.recipes import RECIPES, Task, starting_network
from repro.config import Config, Training, changed
from repro.errors import ReproError
from repro.harness import distributed
from repro.harness.arithmetic import laid_out
from repro.harness.cells import Cell, Experiment, Method, Product, Variant, base_cell
from repro.harness.clock import Clock
from repro.harness.cost import count_macs, count_params, pipe_macs
from repro.harness.denoiser import build_base, set_dropout
from repro.harness.diffusion import NoisyBatch, NoisyBatches, Predict, distillation_losses, image_losses, predictor
from repro.harness.experiment import load_model, train_cell
from repro.harness.pretrained import load_pretrained
from repro.harness.progress import CellProgress
from repro.harness.randomness import derive_seed, generator
from repro.ofa.allocation import Plan, floor_units, kept_channels, make_plan, rankings
from repro.ofa.importance import Importance, other_scores, pipe_importance
from repro.ofa.pipes import unet2d_pipes
from repro.ofa.sampling_law import draw_sizes, draw_widths, loss_weight
from repro.ofa.supernet import Supernet
from repro.variants import FINETUNED, METHOD, TRAINED_ALONE, TRAINED_ONCE

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A subnet that a step trains.

    Attributes:
        subnet: What the supernet is called with.
        macs: Of one forward pass on one image.
        weight: The factor on its loss.
    """

    subnet: Any
    macs: float
    weight: float = 1.0


def joint_cell(cell: Cell, method: str = "ofa") -> Cell:
    """Returns the joint training run of a method that trains once, at the seed of a cell."""
    return Cell(method=f"{method}_joint", size=None, seed=cell.seed)


def score_base(experiment: Experiment, base: nn.Module, seed: int) -> Importance:
    """Scores the channels of a base on training images without augmentation (paper, Formula 4)."""
    settings = experiment.config.importance
    batches = NoisyBatches(experiment.images, experiment.schedule, batch_size=settings.batch_size, seed=seed, device=distributed.device())
    steps = range(max(1, settings.images // settings.batch_size))
    return pipe_importance(
        base, unet2d_pipes(base), (batches(step) for step in steps), lambda model, batch: image_losses(predictor(model), batch)
    )


def check_sizes(experiment: Experiment) -> None:
    """Makes sure that the plan can reach every trained size, before anything is trained.

    Raises:
        ReproError: It cannot; names the smallest size that it can.
    """
    with torch.device("meta"):
        base = build_base(experiment.config.network, seed=0)
    plan_of(experiment, base, equal_importance(base))


def check_shares(config: Config) -> None:
    """Makes sure that the subnets of a step can share its batch out evenly.

    Raises:
        ReproError: They cannot.
    """
    law, batch_size = config.sampling_law, config.ofa_training.batch_size
    if config.sizes.candidates == "open":
        return
    count = len(draw_sizes(config.sizes.trained, law=law.law, m=law.m, sandwich_random=law.sandwich_random, seed=0, step=0))
    if batch_size // distributed.ranks() % count:
        raise ReproError(
            f"ofa_training.batch_size: the {count} subnets of a {law.law} step cannot share {batch_size} images among "
            f"{distributed.ranks()} rank(s) evenly; make it a multiple of {count * distributed.ranks()}, or change "
            "sampling_law.sandwich_random"
        )


def equal_importance(base: nn.Module) -> Importance:
    """Returns the same importance for every channel."""
    return {pipe.name: torch.ones(pipe.width) for pipe in unet2d_pipes(base)}


def plan_of(experiment: Experiment, base: nn.Module, importance: Importance, scores: Importance | None = None) -> Plan:
    """Computes the plan of a base for the trained sizes; `scores` rank the channels where the importances do not."""
    settings = experiment.config.allocation
    return make_plan(
        unet2d_pipes(base),
        importance,
        experiment.config.sizes.trained,
        params_base=count_params(base.parameters()),
        rule=settings.rule,
        floor=settings.floor,
        scores=scores,
        groupnorm=settings.groupnorm,
    )


def ranking_scores(experiment: Experiment, base: nn.Module, importance: Importance, seed: int) -> Importance:
    """Returns what ranks the channels of every pipe: the importances, or what stands in for them."""
    ranking = experiment.config.allocation.ranking
    return importance if ranking == "importance" else other_scores(base, unet2d_pipes(base), ranking, derive_seed("ranking", seed))


def load_supernet(experiment: Experiment, joint: Cell) -> Supernet:
    """Loads a trained supernet.

    Raises:
        ReproError: The joint training has not been run here, or its files are damaged.
    """
    base = load_model(experiment, joint)
    path = experiment.folder(joint) / PLAN
    try:
        plan = Plan.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReproError(f"{path}: not a readable plan ({error}); delete the folder {path.parent} and run the command again") from error
    return Supernet(base, unet2d_pipes(base), plan).eval()


def internal_params(base: nn.Module) -> int:
    """Returns how many of a base's parameters its pipes hold."""
    return sum(pipe.units * pipe.params_per_unit for pipe in unet2d_pipes(base))


def params_at(base: nn.Module, size: float) -> int:
    """Returns the parameter size that P names: params_fixed + P * params_internal."""
    return round(count_params(base.parameters()) - (1 - size) * internal_params(base))


def size_of(base: nn.Module, model: nn.Module) -> float:
    """Returns the size P that a network's parameters amount to, the inverse of `params_at`."""
    return 1 - (count_params(base.parameters()) - count_params(model.parameters())) / internal_params(base)


def _make_base(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the base, or takes one that was trained elsewhere."""
    config = experiment.config
    if config.base.source != "train":
        return Product(model=load_pretrained(config, experiment.places.cache), realised=1.0)
    model = build_base(config.network, seed=derive_seed("base", cell.seed), dropout=config.base_training.dropout)
    return Product(model=model, training=_train_alone(experiment, cell, model, config.base_training, clock, report, model), realised=1.0)


def _make_joint(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the supernet: one run for all sizes."""
    config, settings = experiment.config, experiment.config.ofa_training
    base = load_model(experiment, base_cell(config)).to(distributed.device())
    pipes = unet2d_pipes(base)
    with clock.phase("importance"):
        importance = score_base(experiment, base, cell.seed)
        scores = ranking_scores(experiment, base, importance, cell.seed)
        plan = plan_of(experiment, base, importance, scores)
    losses, taught = _losses(experiment, base, settings)
    set_dropout(base, settings.dropout)
    supernet = Supernet(base, pipes, plan)
    if config.sizes.candidates == "open":
        draws = _open_set(experiment, supernet, scores, cell.seed)
    else:
        draws = _chain(experiment, supernet, cell.seed)

    def loss(module: nn.Module, batch: NoisyBatch, step: int) -> Tensor:
        drawn = draws(step)
        shared = zip(drawn, batch.shares(len(drawn)), strict=True)
        return torch.stack([draw.weight * losses(predictor(module, draw.subnet), part).mean() for draw, part in shared]).mean()

    def macs(step: int) -> float:
        drawn = draws(step)
        return sum(draw.macs for draw in drawn) / len(drawn) + taught

    training = train_cell(
        experiment,
        cell,
        supernet,
        settings,
        loss=loss,
        macs=macs,
        clock=clock,
        report=report,
        parts=supernet.skeletons,
        warm_up=_first_steps(draws, supernet.sizes, settings.steps) if config.compute.compile else (),
    )
    return Product(model=base, training=training, files={PLAN: plan.to_json().encode()})


def _chain(experiment: Experiment, supernet: Supernet, seed: int) -> Callable[[int], list[Draw]]:
    """Returns what a step trains where the candidates are the chain of the trained sizes (the paper's restricted set)."""
    law = experiment.config.sampling_law
    macs = {size: count_macs(supernet.extract(size), experiment.image_shape).total for size in supernet.sizes}

    def draws(step: int) -> list[Draw]:
        sizes = draw_sizes(supernet.sizes, law=law.law, m=law.m, sandwich_random=law.sandwich_random, seed=seed, step=step)
        return [Draw(subnet=size, macs=macs[size], weight=loss_weight(size, supernet.sizes, law=law.law, m=law.m)) for size in sizes]

    return draws


def _open_set(experiment: Experiment, supernet: Supernet, scores: Importance, seed: int) -> Callable[[int], list[Draw]]:
    """Returns what a step trains where every pipe has a random width of its own at every step, its channels by the same ranking."""
    pipes = unet2d_pipes(supernet.base)
    order = rankings(pipes, scores, groupnorm=experiment.config.allocation.groupnorm)
    units = {pipe.name: pipe.units for pipe in pipes}
    floors = {pipe.name: floor_units(pipe, experiment.config.allocation.floor) for pipe in pipes}
    with torch.device("meta"):
        base = build_base(experiment.config.network, seed=0)
    whole, shares = count_macs(base, experiment.image_shape).total, pipe_macs(base, pipes, experiment.image_shape)

    def draws(step: int) -> list[Draw]:
        widths = draw_widths(units, floors, seed=seed, step=step)
        kept = {name: torch.tensor(kept_channels(order[name], width), device=distributed.device()) for name, width in widths.items()}
        return [Draw(subnet=kept, macs=whole - sum(shares[name] * (1 - width / units[name]) for name, width in widths.items()))]

    return draws


def _losses(experiment: Experiment, base: nn.Module, settings: Training) -> tuple[Callable[[Predict, NoisyBatch], Tensor], float]:
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

    return losses, count_macs(teacher, experiment.image_shape).total / 3  # training takes a forward pass and twice that backward


def _first_steps(draws: Callable[[int], list[Draw]], sizes: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Returns the first step of each size."""
    first: dict[float, int] = {}
    for step in range(steps):
        for draw in draws(step):
            first.setdefault(draw.subnet, step)
        if len(first) == len(sizes):
            break
    return tuple(sorted(set(first.values())))


def _make_subnet(method: str, experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Extracts a size from the trained supernet of a method."""
    supernet = load_supernet(experiment, joint_cell(cell, method))
    model = _extract(supernet, cell)
    return Product(model=model, realised=size_of(supernet.base, model))


def _make_finetuned(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Extracts a size from OFA's trained supernet and trains it on, alone."""
    supernet = load_supernet(experiment, joint_cell(cell))
    model = _extract(supernet, cell)
    settings = experiment.config.finetuning
    set_dropout(model, settings.dropout)
    base = load_model(experiment, base_cell(experiment.config))
    training = _train_alone(experiment, cell, model, settings, clock, report, base)
    return Product(model=model, training=training, realised=size_of(supernet.base, model))


def _make_untrained(experiment: Experiment, cell: Cell, clock: Clock, _report: CellProgress) -> Product:
    """Takes a size out of the base by the method's own plan, without training."""
    base = load_model(experiment, base_cell(experiment.config)).to(distributed.device())
    with clock.phase("importance"):
        importance = score_base(experiment, base, cell.seed)
        plan = plan_of(experiment, base, importance, ranking_scores(experiment, base, importance, cell.seed))
    model = _extract(Supernet(base, unet2d_pipes(base), plan).eval(), cell)
    return Product(model=model, realised=size_of(base, model))


def _extract(supernet: Supernet, cell: Cell) -> Any:
    assert cell.size is not None, cell.name
    return supernet.extract(cell.size)


def _make_baseline(recipe: str, trained: bool, experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Prunes the base to a size and, if asked to, trains what is left."""
    config = experiment.config
    base = load_model(experiment, base_cell(config)).to(distributed.device())
    assert cell.size is not None, cell.name
    task = Task(
        base=base,
        params=params_at(base, cell.size),
        images=experiment.images,
        schedule=experiment.schedule,
        settings=config.pruning,
        seed=cell.seed,
    )
    with clock.phase("importance"):
        model = starting_network(recipe, task)
    realised = size_of(base, model)
    if not trained:
        return Product(model=model, realised=realised)
    set_dropout(model, config.baseline_training.dropout)
    training = _train_alone(experiment, cell, model, config.baseline_training, clock, report, base)
    return Product(model=model, training=training, realised=realised)


def _train_alone(
    experiment: Experiment, cell: Cell, model: Any, settings: Training, clock: Clock, report: CellProgress, teacher: nn.Module
) -> dict[str, Any]:
    """Trains one network of one size; the teacher is asked where the settings say so."""
    losses, taught = _losses(experiment, teacher, settings)
    macs = count_macs(model, experiment.image_shape).total + taught

    def loss(module: nn.Module, batch: NoisyBatch, _step: int) -> Tensor:
        return losses(predictor(module), batch).mean()

    return train_cell(experiment, cell, model, settings, loss=loss, macs=lambda _step: macs, clock=clock, report=report)


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


def _needs_base(config: Config, _cell: Cell) -> tuple[Cell, ...]:
    return (base_cell(config),)


def _title(variant: Variant) -> str:
    return f"{variant.of} with another {variant.factor}: {variant.label}" if variant.factor != METHOD else variant.label


def _varied(sizes: Callable[[Config], tuple[Any, ...]], variant: Variant | None) -> Callable[[Config], tuple[Any, ...]]:
    """Returns the sizes of a variant's cells: none where the configuration has its values already."""
    if variant is None:
        return sizes
    return lambda config: sizes(config) if changed(config, variant.changes(config)) != config else ()


def _trained_once(name: str, summary: str, variant: Variant | None = None) -> list[Method]:
    """Returns a method that trains one supernet for all sizes, and its joint training run."""

    def needs_joint(_config: Config, cell: Cell) -> tuple[Cell, ...]:
        return (joint_cell(cell, name),)

    joint = Method(
        name=f"{name}_joint",
        summary=f"{summary}: the one training run for all sizes",
        sizes=_varied(_sizeless, variant),
        make=_make_joint,
        needs=_needs_base,
        budget=lambda _config: "ofa_training",
        judged=False,
        scores="formula4",
        prunes="pipes",
        variant=variant,
    )
    subnets = Method(
        name=name,
        summary=f"{summary}: a size extracted from the jointly trained supernet",
        sizes=_varied(_reported, variant),
        make=partial(_make_subnet, name),
        needs=needs_joint,
        delivered_by=needs_joint,
        prunes="pipes",
        variant=variant,
    )
    return [joint, subnets]


def _trained_alone(name: str, recipe: str, summary: str, variant: Variant | None = None) -> Method:
    """Returns a method that prunes and trains every size alone."""
    # At size 1 nothing is pruned: the recipes that inherit weights would be one run under several names; diff_pruning holds it. A
    # threshold changes nothing there either.
    own_whole = recipe == "scratch" or (recipe == "diff_pruning" and (variant is None or variant.factor != "threshold"))
    return Method(
        name=name,
        summary=summary,
        sizes=_varied(_reported if own_whole else _pruned, variant),
        make=partial(_make_baseline, recipe, True),
        needs=_needs_base,
        budget=lambda _config: "baseline_training",
        scores="diff_pruning" if recipe == "diff_pruning" else "",
        variant=variant,
    )


CONTROLS = [
    Method(name="floor", summary="one half of the real images against the other", sizes=_sizeless, make=_make_floor),
    Method(name="noise", summary="uniform noise against the real images", sizes=_sizeless, make=_make_noise),
    Method(
        name="untrained",
        summary="a size of the base by the method's plan, without training",
        sizes=_pruned,
        make=_make_untrained,
        needs=_needs_base,
        scores="formula4",
        prunes="pipes",
    ),
    Method(
        name="untrained_random",
        summary="the base pruned at random, without training",
        sizes=_pruned,
        make=partial(_make_baseline, "random", False),
        needs=_needs_base,
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
THE_METHOD = _trained_once("ofa", "OFA-Diffusion")
BASELINES = [_trained_alone(recipe, recipe, summary) for recipe, summary in RECIPES.items()]
VARIANTS = [
    *(method for name, variant in TRAINED_ONCE.items() for method in _trained_once(name, _title(variant), variant)),
    Method(
        name="ofa_finetuned",
        summary=_title(FINETUNED),
        sizes=_reported,
        make=_make_finetuned,
        needs=lambda _config, cell: (joint_cell(cell),),
        delivered_by=lambda _config, cell: (joint_cell(cell),),
        budget=lambda _config: "finetuning",
        prunes="pipes",
        variant=FINETUNED,
    ),
    *(_trained_alone(name, variant.of, _title(variant), variant) for name, variant in TRAINED_ALONE.items()),
]
METHODS = {method.name: method for method in [*CONTROLS, BASE, *THE_METHOD, *BASELINES, *VARIANTS]}
