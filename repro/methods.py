"""The methods of the grid: the base, the paper's, its controls, and the baselines, each as cells."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.recipes import RECIPES, Task, starting_network
from repro.config import Config, Training
from repro.errors import ReproError
from repro.harness import distributed
from repro.harness.cells import Cell, Experiment, Method, Product, base_cell
from repro.harness.clock import Clock
from repro.harness.cost import count_macs, count_params
from repro.harness.denoiser import build_base, set_dropout
from repro.harness.diffusion import NoisyBatch, NoisyBatches, image_losses, predictor
from repro.harness.experiment import load_model, train_cell
from repro.harness.pretrained import load_pretrained
from repro.harness.progress import CellProgress
from repro.harness.randomness import derive_seed, generator
from repro.ofa.allocation import Plan, make_plan
from repro.ofa.importance import Importance, pipe_importance
from repro.ofa.pipes import unet2d_pipes
from repro.ofa.sampling_law import draw_sizes
from repro.ofa.supernet import Supernet

PLAN = "plan.json"


def joint_cell(_config: Config, cell: Cell) -> Cell:
    """Returns the joint training run of a seed."""
    return Cell(method="ofa_joint", size=None, seed=cell.seed)


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


def equal_importance(base: nn.Module) -> Importance:
    """Returns the same importance for every channel."""
    return {pipe.name: torch.ones(pipe.width) for pipe in unet2d_pipes(base)}


def plan_of(experiment: Experiment, base: nn.Module, importance: Importance) -> Plan:
    """Computes the plan of a base for the trained sizes."""
    config = experiment.config
    return make_plan(
        unet2d_pipes(base),
        importance,
        config.sizes.trained,
        params_base=count_params(base.parameters()),
        rule=config.allocation.rule,
        floor=config.allocation.floor,
    )


def load_supernet(experiment: Experiment, cell: Cell) -> Supernet:
    """Loads the trained supernet of a seed.

    Raises:
        ReproError: The joint training has not been run here, or its files are damaged.
    """
    joint = joint_cell(experiment.config, cell)
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
    return Product(model=model, training=_train_alone(experiment, cell, model, config.base_training, clock, report), realised=1.0)


def _make_joint(experiment: Experiment, cell: Cell, clock: Clock, report: CellProgress) -> Product:
    """Trains the supernet: one run for all sizes."""
    config = experiment.config
    base = load_model(experiment, base_cell(config)).to(distributed.device())
    with clock.phase("importance"):
        plan = plan_of(experiment, base, score_base(experiment, base, cell.seed))
    set_dropout(base, config.ofa_training.dropout)
    supernet = Supernet(base, unet2d_pipes(base), plan)
    macs = {size: count_macs(supernet.extract(size), experiment.image_shape).total for size in supernet.sizes}

    def sizes_of(step: int) -> tuple[float, ...]:
        return draw_sizes(supernet.sizes, **dataclasses.asdict(config.sampling_law), seed=cell.seed, step=step)

    def loss(module: nn.Module, batch: NoisyBatch, step: int) -> Tensor:
        losses = [image_losses(predictor(module, size), batch).mean() for size in sizes_of(step)]
        return torch.stack(losses).mean()

    training = train_cell(
        experiment,
        cell,
        supernet,
        config.ofa_training,
        loss=loss,
        macs=lambda step: sum(macs[size] for size in sizes_of(step)),
        clock=clock,
        report=report,
        parts=supernet.skeletons,
        warm_up=_first_steps(sizes_of, supernet.sizes, config.ofa_training.steps),
    )
    return Product(model=base, training=training, files={PLAN: plan.to_json().encode()})


def _first_steps(sizes_of: Callable[[int], tuple[float, ...]], sizes: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Returns the first step of each size."""
    first: dict[float, int] = {}
    for step in range(steps):
        for size in sizes_of(step):
            first.setdefault(size, step)
        if len(first) == len(sizes):
            break
    return tuple(sorted(set(first.values())))


def _make_subnet(experiment: Experiment, cell: Cell, _clock: Clock, _report: CellProgress) -> Product:
    """Extracts a size from the trained supernet."""
    supernet = load_supernet(experiment, cell)
    model = _extract(supernet, cell)
    return Product(model=model, realised=size_of(supernet.base, model))


def _make_untrained(experiment: Experiment, cell: Cell, clock: Clock, _report: CellProgress) -> Product:
    """Takes a size out of the base by the method's own plan, without training."""
    base = load_model(experiment, base_cell(experiment.config)).to(distributed.device())
    with clock.phase("importance"):
        plan = plan_of(experiment, base, score_base(experiment, base, cell.seed))
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
    training = _train_alone(experiment, cell, model, config.baseline_training, clock, report)
    return Product(model=model, training=training, realised=realised)


def _train_alone(experiment: Experiment, cell: Cell, model: Any, settings: Training, clock: Clock, report: CellProgress) -> dict[str, Any]:
    """Trains one network of one size."""
    macs = count_macs(model, experiment.image_shape).total

    def loss(module: nn.Module, batch: NoisyBatch, _step: int) -> Tensor:
        return image_losses(predictor(module), batch).mean()

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


def _needs_joint(config: Config, cell: Cell) -> tuple[Cell, ...]:
    return (joint_cell(config, cell),)


CONTROLS = [
    Method(name="floor", summary="one half of the real images against the other", sizes=_sizeless, make=_make_floor),
    Method(name="noise", summary="uniform noise against the real images", sizes=_sizeless, make=_make_noise),
    Method(
        name="untrained",
        summary="a size of the base by the method's plan, without training",
        sizes=_pruned,
        make=_make_untrained,
        needs=_needs_base,
    ),
    Method(
        name="untrained_random",
        summary="the base pruned at random, without training",
        sizes=_pruned,
        make=partial(_make_baseline, "random", False),
        needs=_needs_base,
    ),
]
THE_METHOD = [
    Method(
        name="base",
        summary="the pretrained network that all start from",
        sizes=lambda _config: (1.0,),
        make=_make_base,
        budget=lambda config: config.base_training if config.base.source == "train" else None,
    ),
    Method(
        name="ofa_joint",
        summary="OFA-Diffusion's one training run for all sizes",
        sizes=_sizeless,
        make=_make_joint,
        needs=_needs_base,
        budget=lambda config: config.ofa_training,
        judged=False,
    ),
    Method(
        name="ofa",
        summary="OFA-Diffusion: a size extracted from the jointly trained supernet",
        sizes=_reported,
        make=_make_subnet,
        needs=_needs_joint,
        delivered_by=_needs_joint,
    ),
]
BASELINES = [
    Method(
        name=recipe,
        summary=summary,
        # At size 1 nothing is pruned, so the recipes that inherit weights would be one run under three names; diff_pruning holds it.
        sizes=_pruned if recipe in ("magnitude", "random") else _reported,
        make=partial(_make_baseline, recipe, True),
        needs=_needs_base,
        budget=lambda config: config.baseline_training,
    )
    for recipe, summary in RECIPES.items()
]
METHODS = {method.name: method for method in [*CONTROLS, *THE_METHOD, *BASELINES]}
