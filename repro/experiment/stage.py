"""Stages of work, which `Method.work` returns for the estimate, and the default of a method that returns none of its own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from repro.config import Allocation, Config, Training
from repro.config.networks import Denoiser, network_shape
from repro.models.flop import train_pflop

if TYPE_CHECKING:
    from repro.experiment.cells import Cell, Experiment
    from repro.ofa.accounting import BaseMacs

CHECKPOINT_TENSORS = 4  # weights, their EMA, Adam's two moments, all float32
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the work.

    Attributes:
        name: What the table calls it.
        kind: `training`, `sampling`, `features` (another network than the denoiser, in float32) or `other`.
        images: Trained on, drawn, or put through a feature extractor.
        passes: How often the denoiser sees an image: a training step counts once, a sampled image NFE times.
        pflop: 10^15 FLOP.
        kept_gb: What it leaves on the disk.
        passing_gb: What lies there besides, as long as it runs.
        in_cache: Whether that is in the cache, not in the runs folder.
        budget: The section of the configuration whose `steps` it follows; empty where it follows none.
        seconds: What does not depend on the device.
    """

    name: str
    kind: str
    images: int = 0
    passes: float = 0.0
    pflop: float = 0.0
    kept_gb: float = 0.0
    passing_gb: float = 0.0
    in_cache: bool = False
    budget: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What every size is taken to cost, before any network has been made; 1.0, the base, is always among them.

    Attributes:
        macs: Size -> MACs of one forward pass on one image, with attention's matrix products.
        params: Size -> parameters.
    """

    macs: dict[float, float]
    params: dict[float, int]


def training_work(experiment: "Experiment", cells: "Sequence[Cell]", costs: Costs) -> list[Stage]:
    """Returns the work of a method that does not say its own: the training of its `budget`, or nothing but networks to keep.

    A cell trains a network of its size; a cell without a size trains all sizes, each as often as the sampling law draws it.

    Args:
        experiment: The experiment, under the configuration of the cells' method.
        cells: Those of one method that are to be made; at least one.
        costs: Of every size of these cells, and of every trained one.
    """
    name, method = cells[0].method, experiment.method_of(cells[0])
    if section := method.budget(experiment.config):
        return [training_stage(experiment, cells, costs, getattr(experiment.config, section), budget=section)]
    networks = 0 if method.pixels else sum(_params(cells, costs))
    return [Stage(name=f"{name}: networks", kind="other", kept_gb=weights_gb(networks))]


def training_stage(experiment: "Experiment", cells: "Sequence[Cell]", costs: Costs, settings: Training, *, budget: str = "") -> Stage:
    """Returns the stage in which each of a method's cells trains by the same settings; what it trains is said at `training_work`.

    Args:
        experiment: The experiment, under the configuration of the cells' method.
        cells: Those of one method that are to be made; at least one.
        costs: Of every size of these cells, and of every trained one.
        settings: The steps, the batch, and whether a teacher is asked, whose forward pass is a third of a training step's work.
        budget: The section of the configuration whose steps these are; empty where they are the method's own.
    """
    images = settings.steps * settings.batch_size
    taught = costs.macs[1.0] / 3 if settings.distillation else 0.0
    params = _params(cells, costs)
    shares = [_joint_shares(experiment, cell) if cell.size is None else {cell.size: 1.0} for cell in cells]
    return Stage(
        name=f"{cells[0].method}: training",
        kind="training",
        images=images * len(cells),
        passes=images * len(cells) * (1 + (1 / 3 if taught else 0)),
        pflop=sum(train_pflop(taught + sum(costs.macs[size] * share for size, share in each.items()), images) for each in shares),
        kept_gb=weights_gb(sum(params)),
        # The new checkpoint lies beside the old ones until it is whole.
        passing_gb=(experiment.config.execution.checkpoints_kept + 1) * 4 * CHECKPOINT_TENSORS * max(params) / GB,
        budget=budget,
    )


def weights_gb(params: int) -> float:
    """Returns what parameters take on the disk, in float32."""
    return 4 * params / GB


def _params(cells: "Sequence[Cell]", costs: Costs) -> list[int]:
    return [costs.params[1.0 if cell.size is None else cell.size] for cell in cells]


def _joint_shares(experiment: "Experiment", cell: "Cell") -> dict[float, float]:
    """Returns the share of a joint run's images that each size sees."""
    sizes = experiment.config.sizes
    if sizes.candidates == "open":  # every width alike, from the floor to the whole: on average the middle
        return {max(sizes.trained): 0.5, min(sizes.trained): 0.5}
    return experiment.law_of(cell).shares(sizes.trained)


@lru_cache
def base_macs(network: Denoiser, resampling_units: str) -> "BaseMacs":
    """Counts the MACs of a base and of its pipes, from which those of every width follow."""
    from repro.models.denoiser import meta_base
    from repro.ofa.accounting import count_base_macs
    from repro.ofa.pipes import pipes_of

    base = meta_base(network)
    return count_base_macs(base, pipes_of(base, resampling_units), network_shape(network))


@lru_cache
def base_params(network: Denoiser, resampling_units: str) -> tuple[int, int]:
    """Counts the parameters of a base, and those of them that its pipes hold."""
    from repro.models.cost import count_params
    from repro.models.denoiser import meta_base
    from repro.ofa.accounting import internal_params
    from repro.ofa.pipes import pipes_of

    base = meta_base(network)
    return count_params(base.parameters()), internal_params(pipes_of(base, resampling_units))


def costs_of(config: Config, rule: str, sizes: tuple[float, ...] = ()) -> Costs:
    """Returns what sizes cost under an allocation rule with equal importances, as long as no base has been scored.

    Args:
        config: The network, its allocation and its sizes.
        rule: "gradual", "formula5" or "uniform".
        sizes: The sizes P; the trained ones where none are named.
    """
    return _planned_costs(config.denoiser, config.allocation, rule, sizes or config.sizes.trained)


@lru_cache
def _planned_costs(network: Denoiser, settings: Allocation, rule: str, sizes: tuple[float, ...]) -> Costs:
    from repro.models.cost import count_params
    from repro.models.denoiser import meta_base
    from repro.ofa.allocation import make_plan
    from repro.ofa.importance import equal_importance
    from repro.ofa.pipes import pipes_of

    base = meta_base(network)
    pipes, params = pipes_of(base, settings.resampling_units), count_params(base.parameters())
    plan = make_plan(pipes, equal_importance(pipes), sizes, params_base=params, rule=rule, floor=settings.floor)
    counted = base_macs(network, settings.resampling_units)
    macs = {size: counted.keeping({pipe.name: len(kept[pipe.name]) / pipe.width for pipe in pipes}) for size, kept in plan.kept.items()}
    return Costs(macs=macs | {1.0: float(counted.whole)}, params=plan.params | {1.0: params})


def affine_costs(network: Denoiser, resampling_units: str, sizes: Iterable[float]) -> Costs:
    """Returns what sizes cost with both counts affine in P, which asks for no plan: near what is realised, and at once."""
    from repro.ofa.accounting import params_of_size

    macs, (whole, internal) = base_macs(network, resampling_units), base_params(network, resampling_units)
    named = {1.0, *sizes}
    params = {size: params_of_size(size, params_base=whole, params_internal=internal) for size in named}
    return Costs(macs={size: macs.at(size) for size in named}, params=params)
