"""The methods of the grid: the base, the paper's, its controls, and the baselines, each as cells.

This table is light: what makes a cell's product, and all that it needs, is imported once a cell is made.
"""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.names import RECIPES
from repro.config import Config, changed
from repro.config.sections import one_of
from repro.errors import ReproError
from repro.experiment.cells import (
    Cell,
    Experiment,
    Method,
    Product,
    Variant,
    base_cell,
    contradicts_method,
    joint_cell,
    scores_cell,
)
from repro.experiment.record_checks import CLOSE, training_pflop
from repro.experiment.records import REMEDY, Record, read_records, record_path
from repro.methods.variants import FINETUNED, METHOD, TRAINED_ALONE, TRAINED_APART, TRAINED_ONCE
from repro.methods.work import diff_pruning_work, formula4_work
from repro.ofa.sampling_law import Law
from repro.runtime.clock import Clock

if TYPE_CHECKING:
    from baselines.recipes import Criterion
    from repro.runtime.progress import CellProgress

PRUNING_FACTORS = ("threshold", "channels")  # they change which channels go, so nothing at size 1
Maker = Callable[[Experiment, Cell, Clock, "CellProgress"], Product]


def _maker(module: str, function: str, *first: Any, **named: Any) -> Maker:
    """Returns a function of a module with some of its arguments given; the module is imported when it is called."""

    def make(experiment: Experiment, cell: Cell, clock: Clock, report: "CellProgress") -> Product:
        product: Product = getattr(importlib.import_module(module), function)(*first, experiment, cell, clock, report, **named)
        return product

    return make


def _imported(module: str, function: str) -> Callable[..., Any]:
    """Returns a function of a module, which is imported when it is called."""

    def call(*given: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*given)

    return call


def _reported(config: Config) -> tuple[float, ...]:
    return config.sizes.reported


def _pruned(config: Config) -> tuple[float, ...]:
    return tuple(size for size in config.sizes.reported if size < 1)


def _sizeless(_config: Config) -> tuple[None]:
    return (None,)


def _allocated(config: Config) -> str:
    return config.allocation.rule


def needs_base(config: Config, cell: Cell) -> tuple[Cell, ...]:
    """Returns the base of a cell's seed, as the one cell that it needs: what `Method.needs` of a method that starts from the base is.

    Args:
        config: The configuration, which says whether every seed has a base of its own.
        cell: The cell that starts from it.
    """
    return (base_cell(config, cell.seed),)


def _title(variant: Variant) -> str:
    return f"{variant.of} with another {variant.factor}: {variant.label}" if variant.factor != METHOD else variant.label


def _varied(sizes: Callable[[Config], tuple[Any, ...]], variant: Variant | None) -> Callable[[Config], tuple[Any, ...]]:
    """Returns the sizes of a variant's cells, under its own configuration: none where that is the one that it varies."""
    if variant is None:
        return sizes
    return lambda config: sizes(varied) if (varied := changed(config, variant.changes(config))) != config else ()


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
        make=_maker("repro.methods.train_once", "make_joint"),
        needs=needs_base,
        budget=lambda _config: "ofa_training",
        judged=False,
        networks=_imported("repro.methods.train_once", "networks_of_all"),
        interference=_imported("repro.methods.interference", "interference_of"),
        rule=_allocated,
        work=formula4_work,
        variant=variant,
        law=law,
    )
    subnets = Method(
        name=name,
        summary=f"{summary}: a size extracted from the jointly trained supernet",
        sizes=_varied(_reported, variant),
        make=_maker("repro.methods.train_once", "make_subnet", name),
        needs=needs_joint,
        delivered_by=lambda cell: (joint_cell(cell, name),),
        rule=_allocated,
        variant=variant,
    )
    return [joint, subnets]


def finetuned(name: str, variant: Variant, joint: str) -> Method:
    """Returns a method that trains every size further, alone, after its extraction from the supernet of the method `joint`."""
    return Method(
        name=name,
        summary=_title(variant),
        sizes=_varied(_reported, variant) if joint == name else _reported,
        make=_maker("repro.methods.train_once", "make_finetuned", joint),
        needs=lambda _config, cell: (joint_cell(cell, joint),),
        delivered_by=lambda cell: (joint_cell(cell, joint),),
        budget=lambda _config: "finetuning",
        rule=_allocated,
        variant=variant,
    )


def trained_alone(
    name: str, recipe: str, summary: str, variant: Variant | None = None, criterion: "Criterion | None" = None
) -> list[Method]:
    """Returns a method that prunes and trains every size alone, after the gradient pass that its sizes share where it has one of its own.

    Args:
        name: What the user types.
        recipe: One of `baselines.names.RECIPES`, or the method's own name where a criterion is given.
        summary: One line for the help.
        variant: What it changes of another method.
        criterion: Scores the channels in place of the recipe's own.

    Raises:
        ReproError: It is no such recipe.
    """
    one_of(f"trained_alone, method '{name}': recipe", recipe, (*RECIPES, name) if criterion else tuple(RECIPES))
    # At size 1 nothing is pruned: the recipes that inherit weights would be one run under several names; diff_pruning holds it. How
    # channels are chosen changes nothing there either.
    own_whole = recipe == "scratch" or (recipe == "diff_pruning" and (variant is None or variant.factor not in PRUNING_FACTORS))
    scored_by = ""
    if recipe == "diff_pruning" and criterion is None:
        scored_by = name if variant is None or variant.factor == "threshold" else variant.of

    def delivered_by(cell: Cell) -> tuple[Cell, ...]:
        return (scores_cell(scored_by, cell),) if scored_by and cell.size != 1 else ()

    def needs(config: Config, cell: Cell) -> tuple[Cell, ...]:
        return (*needs_base(config, cell), *delivered_by(cell))

    method = Method(
        name=name,
        summary=summary,
        sizes=_varied(_reported if own_whole else _pruned, variant),
        make=_maker("repro.methods.products", "make_baseline", recipe, True, criterion=criterion, scored_by=scored_by),
        needs=needs,
        delivered_by=delivered_by,
        budget=lambda _config: "baseline_training",
        networks=_imported("repro.methods.train_alone", "networks_alone"),
        variant=variant,
    )
    if scored_by != name:
        return [method]
    scores = Method(
        name=f"{name}_scores",
        summary=f"{summary}: the one gradient pass that scores the channels for all sizes",
        sizes=_varied(_sizeless, variant),
        make=_maker("repro.methods.products", "make_scores"),
        needs=needs_base,
        judged=False,
        work=diff_pruning_work,
        variant=variant,
    )
    return [scores, method]


CONTROLS = [
    Method(
        name="floor",
        summary="one half of the real images against the other",
        sizes=_sizeless,
        make=_maker("repro.methods.products", "make_floor"),
        pixels=lambda _settings, reference: 2 * (reference // 2),
    ),
    Method(
        name="noise",
        summary="uniform noise against the real images",
        sizes=_sizeless,
        make=_maker("repro.methods.products", "make_noise"),
        pixels=lambda settings, _reference: settings.samples,
    ),
    Method(
        name="untrained",
        summary="a size of the base by the method's plan, without training",
        sizes=_pruned,
        make=_maker("repro.methods.products", "make_untrained"),
        needs=needs_base,
        rule=_allocated,
        work=formula4_work,
    ),
    Method(
        name="untrained_random",
        summary="the base pruned at random, without training",
        sizes=_pruned,
        make=_maker("repro.methods.products", "make_baseline", "random", False),
        needs=needs_base,
    ),
]
BASE = Method(
    name="base",
    summary="the pretrained network that all start from",
    sizes=lambda _config: (1.0,),
    make=_maker("repro.methods.products", "make_base"),
    budget=lambda config: "base_training" if config.base.source == "train" else "",
    rule=_allocated,
)
THE_METHOD = trained_once("ofa", "OFA-Diffusion")
BASELINES = [method for recipe, summary in RECIPES.items() for method in trained_alone(recipe, recipe, summary)]
VARIANTS = [
    *(method for name, variant in TRAINED_ONCE.items() for method in trained_once(name, _title(variant), variant)),
    finetuned("ofa_finetuned", FINETUNED, "ofa"),
    *(
        method
        for name, variant in TRAINED_APART.items()
        for method in (trained_once(name, _title(variant), variant)[0], finetuned(name, variant, name))
    ),
    *(method for name, variant in TRAINED_ALONE.items() for method in trained_alone(name, variant.of, _title(variant), variant)),
]
METHODS = {method.name: method for method in [*CONTROLS, BASE, *THE_METHOD, *BASELINES, *VARIANTS]}


def known_records(folder: Path) -> list[Record]:
    """Reads every record of an experiment's folder and holds it against its method, where that is one of these.

    Raises:
        ReproError: The folder does not exist, or a record is corrupt, or contradicts itself or its method.
    """
    records = read_records(folder)
    for record in records:
        if problem := _contradicts_method(record):
            raise ReproError(f"{record_path(folder, record['cell']['name'])}: the record {problem}; {REMEDY}")
    return records


def _contradicts_method(record: Record) -> str:
    """Says what a record says that its method does not do; empty where there is nothing, or the method is none of these."""
    work = training_pflop(record) if record["cell"]["method"] in METHODS else None
    if work is not None and not math.isclose(record["training"]["train_pflop"], work, rel_tol=CLOSE):
        return f"has {record['training']['train_pflop']:g} PFLOP of training, and its MACs and images make {work:g}"
    return contradicts_method(record, METHODS)
