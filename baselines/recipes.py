"""The recipes: how each baseline comes by its starting network; all then train through the harness's one loop."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from baselines import criteria
from baselines.pruning import Score, prune_to_params
from repro.config import Pruning
from repro.data.condition import UNCONDITIONAL, Condition
from repro.data.images import Images
from repro.data.space import PIXELS, Space
from repro.diffusion.formulation import Formulation, image_losses, predictor
from repro.errors import ReproError
from repro.models.denoiser import count_params
from repro.models.example import example_of
from repro.runtime.seeds import derive_seed, generator


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a recipe works on.

    Attributes:
        base: The network to prune; left as it is.
        params: The parameter size to meet.
        images: Where the pruning criterion's images come from.
        formulation: How they are noised.
        settings: How many images, and the threshold.
        seed: The cell's seed.
        levels: How many noise levels `scoring_gradients` visits at most.
        space: What the network sees of an image.
        condition: What else it is given.
        gradients: Of the base's parameters, by name, where the recipe's criterion needs them: see `scoring_gradients`.
    """

    base: nn.Module
    params: int
    images: Images
    formulation: Formulation
    settings: Pruning
    seed: int
    levels: int = 1000
    space: Space = PIXELS
    condition: Condition = UNCONDITIONAL
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


Criterion = Callable[[Task], Score]


def starting_network(recipe: str, task: Task, criterion: Criterion | None = None) -> nn.Module:
    """Returns the network that a recipe starts its training from.

    Args:
        recipe: One of `baselines.names.RECIPES`, or any name where a criterion is given.
        task: What it works on.
        criterion: Makes what scores the channels; it may put gradients on the task's base. None takes the recipe's own.

    Raises:
        ReproError: The size cannot be met.
    """
    if task.params >= count_params(task.base.parameters()):
        network = copy.deepcopy(task.base)  # nothing to prune, so nothing to score
    else:
        _, *shape = task.space.encode(task.images.pixels[:1]).shape
        example = example_of(task.base, shape, next(task.base.parameters()).device)
        task.base.eval().zero_grad()
        score = criterion(task) if criterion else _own_score(recipe, task)
        network = prune_to_params(task.base, task.params, score, example, channels=task.settings.channels)
    if recipe == "scratch":
        _forget(network, task.seed)
    return network


def _own_score(recipe: str, task: Task) -> Score:
    """Returns what a recipe scores channels by."""
    if recipe == "random":
        return criteria.random(task.seed)
    if recipe == "diff_pruning":
        for name, parameter in task.base.named_parameters():
            parameter.grad = task.gradients[name].to(parameter.device)
        return criteria.taylor_without_norms() if task.settings.channels == "averaged" else criteria.taylor()
    return criteria.magnitude()


def scoring_gradients(task: Task) -> tuple[dict[str, Tensor], int]:
    """Returns Diff-Pruning's gradients of one batch and one noise, summed from the least noise on, and how many noise levels they hold.

    They depend on the base and the seed, not on a size: one pass serves all.

    Returns:
        Parameter name -> gradient, on the CPU; and the number of noise levels.
    """
    base, device = task.base, next(task.base.parameters()).device
    formulation = task.formulation.to(device)
    stream = generator(torch.device("cpu"), "diff-pruning", task.seed)
    chosen = torch.randperm(len(task.images), generator=stream)[: task.settings.images]
    clean = task.space.encode(task.images.pixels[chosen].contiguous()).to(device)
    noise = torch.randn(clean.shape, generator=stream).to(device)
    condition = {name: rows[chosen].to(device) for name, rows in task.condition.rows(task.images).items()}
    ladder = formulation.ladder(task.levels).to(device)

    def loss(rung: int) -> Tensor:
        batch = formulation.noised(clean, noise, ladder[rung].repeat(len(clean)))
        return image_losses(predictor(base), replace(batch, condition=condition)).mean()

    base.eval()
    used = criteria.accumulate_gradients(base, loss, train_timesteps=len(ladder), threshold=task.settings.threshold)
    gradients = {name: parameter.grad.cpu() for name, parameter in base.named_parameters() if parameter.grad is not None}
    base.zero_grad()
    return gradients, used


def _forget(model: nn.Module, seed: int) -> None:
    """Gives a network the random weights that one of its kind begins with, drawn by the seed.

    Raises:
        ReproError: Some parameters would keep what was learned, since nothing says how they begin.
    """
    learned = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("scratch", seed))
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        if callable(initialise := getattr(model, "initialise", None)):
            initialise()
    for name, parameter in model.named_parameters():
        if torch.equal(parameter, learned[name]) and parameter.unique().tolist() not in ([0.0], [1.0]):
            raise ReproError(
                f"scratch: {name} of {type(model).__name__} would keep what the base has learned; give the class a method "
                "`initialise` that sets its initial weights, or leave scratch out"
            )
