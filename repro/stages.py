"""What the cells of an experiment take, stage by stage, before anything is trained: images, PFLOP and GB.

Work is counted, not tried: training costs 6 x MACs x images (forward, and twice that backward), sampling 2 x MACs x NFE x images.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from repro.config import Config, Training
from repro.harness.cells import Cell, Experiment, Method, base_cell, state_of
from repro.harness.classifier_network import Classifier
from repro.harness.cost import activation_gradient_pflop, count_macs, pipe_macs, train_pflop
from repro.harness.denoiser import build_base
from repro.harness.diffusion import sampling_timesteps
from repro.harness.image_folder import list_images
from repro.harness.manifest import is_made
from repro.ofa.accounting import params_at
from repro.ofa.pipes import pipes_of
from repro.planning import equal_importance, plan_of

# MACs of one image at 299 x 299 up to the layer: torch-fidelity 0.4.0's network under torch's FlopCounterMode on the meta device.
INCEPTION_MACS = {"fid": 5_711_168_096, "fid768": 4_709_229_152}
INCEPTION_FEATURES = {"fid": 2048, "fid768": 768}
INCEPTION_GB = 0.096
CIFAR10_GB = 0.171
IMAGES = {"digits": 1797, "cifar10": 50_000}
# What a cell takes besides, on two cores with 35.7 M parameters: DeepSpeed's start 2 s; the search for a pruning ratio 15 s, and the
# statistics and distance of 50,000 x 2,048 features 19 s.
START_SEC, OTHER_SEC_PER_PARAMETER = 2, 28 / 35.7e6
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
    """What every size is taken to cost.

    Attributes:
        macs: Size -> MACs of one forward pass on one image, with attention's matrix products.
        params: Size -> parameters.
    """

    macs: dict[float, float]
    params: dict[float, int]


def unfinished(experiment: Experiment, cells: list[Cell]) -> list[Cell]:
    """Returns the cells that have no record of success.

    Raises:
        ReproError: A record is corrupt, or another configuration made it.
    """
    return [cell for cell in cells if state_of(experiment, cell)[0] != "done"]


def stages(experiment: Experiment, cells: list[Cell], *, afresh: bool = False) -> list[Stage]:
    """Lists what is to be computed for cells, in the order in which it is.

    Args:
        experiment: The configuration, its methods and its folders.
        cells: What is to be done. What an interrupted cell has behind it is not taken off.
        afresh: Whether networks that lie in the runs folder count as well.
    """
    own, pruned = costs_of(experiment, experiment.config.allocation.rule), costs_of(experiment, "uniform")
    rows = [_downloads(experiment, cells, own)]
    for name in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == name]
        to_make = [cell for cell in mine if afresh or not is_made(experiment, cell)]
        method, config = experiment.method_of(mine[0]), experiment.config_of(mine[0])
        costs = pruned if method.prunes == "network" else own
        if set(config.sizes.trained) - own.macs.keys():
            costs = costs_of(experiment.of(mine[0]), config.allocation.rule)
        rows += [_scoring(config, method, to_make, own.macs[1.0]), _training(experiment, method, to_make, costs)]
        rows += [_sampling(experiment, mine, costs)] if method.judged else []
    judged = [cell for cell in cells if experiment.method_of(cell).judged]
    rows += [_classifier(experiment, judged), _features(experiment, judged), _other(cells, own)]
    return [row for row in rows if row.images or row.seconds or row.kept_gb]


def costs_of(experiment: Experiment, rule: str) -> Costs:
    """Returns what the sizes cost under an allocation rule with equal importances, since no base has been scored yet.

    Every layer's MACs are proportional to the width of the pipe that it holds, so one count of the base gives those of all sizes.
    """
    config = dataclasses.replace(experiment.config, allocation=dataclasses.replace(experiment.config.allocation, rule=rule))
    with torch.device("meta"):
        base = build_base(config.denoiser, seed=0)
    pipes = pipes_of(base)
    plan = plan_of(dataclasses.replace(experiment, config=config), base, equal_importance(base))
    whole = count_macs(base, experiment.image_shape).total
    shares = pipe_macs(base, pipes, experiment.image_shape)
    macs = {
        size: whole - sum(shares[pipe.name] * (1 - len(kept[pipe.name]) / pipe.width) for pipe in pipes) for size, kept in plan.kept.items()
    }
    return Costs(macs=macs | {1.0: float(whole)}, params=plan.params | {1.0: params_at(base, 1.0)})


def training_images(experiment: Experiment) -> int:
    """Returns how many images the data set has, without loading it."""
    data = experiment.config.data
    return IMAGES.get(data.name) or len(list_images(Path(data.folder).expanduser())[0])


def _downloads(experiment: Experiment, cells: list[Cell], costs: Costs) -> Stage:
    """What is fetched into the cache, where it does not lie there already."""
    config, places = experiment.config, experiment.places
    data = config.data.name == "cifar10" and places.data_root is None and not (places.cache / "data" / "cifar-10-python.tar.gz").exists()
    inception = config.evaluation.metric in INCEPTION_MACS and not (places.inception_weights or any(places.cache.glob("*inception*")))
    base = config.base.source == "hub" and base_cell(config, 0) in cells and not (places.cache / "hub").exists()
    gb = CIFAR10_GB * data + INCEPTION_GB * inception + base * 4 * costs.params[1.0] / GB
    return Stage(name="data and weights", kind="other", kept_gb=gb, in_cache=True)


def _scoring(config: Config, method: Method, cells: list[Cell], macs: float) -> Stage:
    """Formula 4 for the method; for Diff-Pruning, one batch at every timestep down to the threshold, so at most at all of them."""
    images = 0
    work = train_pflop
    if method.scores == "formula4":
        images, work = len(cells) * config.importance.images, activation_gradient_pflop
    if method.scores == "diff_pruning":
        images = len(cells) * config.pruning.images * (config.pruning.timesteps or config.diffusion.num_train_timesteps)
    at_most = method.scores == "diff_pruning" and not config.pruning.timesteps
    title = f"{method.name}: importance" + (", at most" if at_most else "")
    return Stage(name=title, kind="training", images=images, passes=images, pflop=work(macs, images))


def _training(experiment: Experiment, method: Method, cells: list[Cell], costs: Costs) -> Stage:
    """The training of a method's cells, and what they leave: networks, or gradients, which are as many as the base's weights.

    A teacher's forward pass is a third of a training step's.
    """
    config = method.config(experiment.written or experiment.config)
    params = [costs.params[1.0 if cell.size is None else cell.size] for cell in cells if method.pixels is None]
    kept, section = 4 * sum(params) / GB, method.budget(config)
    if not section:
        left = "gradients" if method.scores == "diff_pruning" else "networks"
        return Stage(name=f"{method.name}: {left}", kind="other", kept_gb=kept)
    settings: Training = getattr(config, section)
    images = settings.steps * settings.batch_size
    shares = [_joint_shares(experiment, cell) if cell.size is None else {cell.size: 1.0} for cell in cells]
    taught = costs.macs[1.0] / 3 if settings.distillation else 0.0
    return Stage(
        name=f"{method.name}: training",
        kind="training",
        images=images * len(cells),
        passes=images * len(cells) * (1 + (1 / 3 if taught else 0)),
        pflop=sum(train_pflop(taught + sum(costs.macs[size] * share for size, share in each.items()), images) for each in shares),
        kept_gb=kept,
        # The new checkpoint lies beside the old ones until it is whole.
        passing_gb=(config.execution.checkpoints_kept + 1) * 4 * CHECKPOINT_TENSORS * max(params, default=0) / GB,
        budget=section,
    )


def _joint_shares(experiment: Experiment, cell: Cell) -> dict[float, float]:
    """Returns the share of a joint run's images that each size sees."""
    sizes = experiment.config_of(cell).sizes
    if sizes.candidates == "open":  # every width alike, from the floor to the whole: on average the middle
        return {max(sizes.trained): 0.5, min(sizes.trained): 0.5}
    return experiment.law_of(cell).shares(sizes.trained)


def _sampling(experiment: Experiment, cells: list[Cell], costs: Costs) -> Stage:
    settings = experiment.config.evaluation
    each = settings.samples * len(settings.sampling_seeds)
    nfe = len(sampling_timesteps(experiment.config.diffusion.num_train_timesteps, settings.sampler_steps, settings.spacing))
    drawn = [cell.size for cell in cells if cell.size is not None]
    return Stage(
        name=f"{cells[0].method}: sampling",
        kind="sampling",
        images=each * len(drawn),
        passes=float(each * len(drawn) * nfe),
        pflop=sum(2 * costs.macs[size] * nfe * each / 1e15 for size in drawn),
        passing_gb=each * math.prod(experiment.image_shape) / GB,
    )


def _classifier(experiment: Experiment, judged: list[Cell]) -> Stage:
    settings, metric = experiment.config.classifier, experiment.config.evaluation.metric
    trained = metric == "fid_classifier" and not settings.sha256
    images = settings.steps * settings.batch_size if trained and judged else 0
    return Stage(name="classifier: training", kind="features", images=images, pflop=train_pflop(_classifier_macs(experiment), images))


def _features(experiment: Experiment, judged: list[Cell]) -> Stage:
    """Every set that is judged, and the reference once, which is kept."""
    settings = experiment.config.evaluation
    reference = min(settings.reference_images or training_images(experiment), training_images(experiment))
    each = settings.samples * len(settings.sampling_seeds)
    own = [experiment.method_of(cell).pixels for cell in judged]
    images = (reference if judged else 0) + sum(each if pixels is None else pixels(settings, reference) for pixels in own)
    macs = INCEPTION_MACS.get(settings.metric) or _classifier_macs(experiment)
    kept = 4 * reference * INCEPTION_FEATURES.get(settings.metric, 0) / GB
    return Stage(
        name=f"features for {settings.metric}", kind="features", images=images, pflop=2 * macs * images / 1e15, kept_gb=kept, in_cache=True
    )


def _classifier_macs(experiment: Experiment) -> float:
    settings = experiment.config.classifier
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = Classifier(experiment.image_shape[0], 10, settings.width, settings.levels, settings.blocks)
        network(torch.empty(1, *experiment.image_shape))
    return float(counter.get_total_flops()) / 2


def _other(cells: list[Cell], costs: Costs) -> Stage:
    each = START_SEC + OTHER_SEC_PER_PARAMETER * costs.params[1.0]
    return Stage(name="all else", kind="other", seconds=each * len(cells))
