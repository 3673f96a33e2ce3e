"""Importance: first-order Taylor saliency of every channel (paper, Formula 4).

    I_i = (1/N) * sum_n | sum_j w_ij * dL_n/dw_ij |

The paper's formula asks for one backward pass per image. For a layer y = W x + b the inner sum is also

    sum_j w_ij * dL_n/dw_ij = sum_positions (y_i - b_i) * dL_n/dy_i      for an output channel i,
    sum_i w_ij * dL_n/dw_ij = sum_positions x_j * dL_n/dx_j              for an input channel j,

so one batched backward of the *sum* of the per-image losses gives every per-image value exactly.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from repro.errors import ReproError
from repro.ofa.pipes import Pipe

Importance = dict[str, Tensor]
Batch = TypeVar("Batch")


Scored = tuple[int, Importance]  # images of a batch, and the sum over them of every channel's score


def equal_importance(pipes: tuple[Pipe, ...]) -> Importance:
    """Returns the same importance for every channel."""
    return {pipe.name: torch.ones(pipe.width) for pipe in pipes}


def pipe_importance(
    model: nn.Module,
    pipes: tuple[Pipe, ...],
    batches: Iterable[Batch],
    losses: Callable[[nn.Module, Batch], Tensor],
    collect: Callable[[list[Scored]], list[Scored]] = lambda scored: scored,
) -> Importance:
    """Scores every channel of every pipe at both its ends and adds the two (paper, Formula 4).

    Args:
        model: The base; put into evaluation mode for the time of the call.
        pipes: What to score.
        batches: Batches of images with whatever `losses` needs.
        losses: Returns the training loss of each image of a batch, shape [B].
        collect: Makes of the batches that were scored here all that were scored anywhere, in an order that does not depend on who did.

    Returns:
        For every pipe its channels' importances, shape [width]. In an attention pipe a channel is an offset inside a head: its score
        is summed over the heads and stands at that offset of every head.
    """
    was_training = model.training
    model.eval()
    try:
        scored = collect([_batch_scores(model, pipes, batch, losses) for batch in batches])
    finally:
        model.train(was_training)
    images = sum(count for count, _ in scored)
    # One after the other: another order would round otherwise.
    return {pipe.name: sum((scores[pipe.name] for _, scores in scored[1:]), scored[0][1][pipe.name]) / images for pipe in pipes}


def other_scores(model: nn.Module, pipes: tuple[Pipe, ...], ranking: str, seed: int) -> Importance:
    """Scores the channels of every pipe by what the paper's importance has to beat, shape [width] each.

    Args:
        model: The base.
        pipes: What to score.
        ranking: "magnitude" (the absolute values of the weights at both ends of the channel, added up), "random", or "prefix" (the
            channels in the order that they happen to have, as in slimmable networks).
        seed: Seed of the ranking "random".

    Raises:
        ReproError: The ranking is unknown.
    """
    if ranking == "magnitude":
        return {pipe.name: _magnitude(model, pipe) for pipe in pipes}
    if ranking == "random":
        stream = torch.Generator().manual_seed(seed)
        drawn = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
        return {pipe.name: _shared_by_heads(pipe, drawn[pipe.name]) for pipe in pipes}
    if ranking == "prefix":
        return {pipe.name: torch.zeros(pipe.width) for pipe in pipes}  # ties go to the lower index
    raise ReproError(f"allocation.ranking: unknown ranking '{ranking}'; use importance, magnitude, random or prefix")


def _magnitude(model: nn.Module, pipe: Pipe) -> Tensor:
    """Adds up | w | over a channel's rows in the producers and its columns in the consumers, shape [width]."""
    rows = [model.get_parameter(f"{name}.weight").detach().abs().flatten(1).sum(dim=1) for name in pipe.producers]
    rows = [row.view(-1, pipe.width).sum(dim=0) for row in rows]
    columns = [model.get_parameter(f"{name}.weight").detach().abs().transpose(0, 1).flatten(1).sum(dim=1) for name in pipe.consumers]
    return _shared_by_heads(pipe, torch.stack([*rows, *columns]).sum(dim=0))


def _shared_by_heads(pipe: Pipe, score: Tensor) -> Tensor:
    """Gives an offset inside a head of an attention one score, its sum over the heads; elsewhere every channel keeps its own."""
    return score.view(pipe.groups, pipe.units).sum(dim=0).repeat(pipe.groups) if pipe.kind == "attention" else score


def _batch_scores(model: nn.Module, pipes: tuple[Pipe, ...], batch: Batch, losses: Callable[[nn.Module, Batch], Tensor]) -> Scored:
    """Returns the number of images of a batch and the sum over them of every channel's score."""
    tapped: dict[str, Tensor] = {}
    hooks = []
    for pipe in pipes:
        for name in pipe.producers:
            hooks.append(model.get_submodule(name).register_forward_hook(_tap(tapped, name, of_output=True)))
        for name in pipe.consumers:
            hooks.append(model.get_submodule(name).register_forward_hook(_tap(tapped, name, of_output=False)))
    try:
        loss = losses(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    names = list(tapped)
    gradients = dict(zip(names, torch.autograd.grad(loss.sum(), [tapped[name] for name in names]), strict=True))
    with torch.no_grad():
        return len(loss), {pipe.name: _pipe_score(model, pipe, tapped, gradients) for pipe in pipes}


def _tap(tapped: dict[str, Tensor], name: str, *, of_output: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tapped[name] = output if of_output else inputs[0]

    return hook


def _pipe_score(model: nn.Module, pipe: Pipe, tapped: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """Adds the scores of both ends of a pipe, summed over the images of the batch, shape [width]."""
    score = torch.zeros(pipe.width, device=next(iter(tapped.values())).device)
    for name in pipe.producers:
        layer = model.get_submodule(name)
        score += _saliency(layer, tapped[name], gradients[name], layer.bias, pipe.width)
    for name in pipe.consumers:
        score += _saliency(model.get_submodule(name), tapped[name], gradients[name], None, pipe.width)
    return _shared_by_heads(pipe, score)


def _saliency(layer: nn.Module, activation: Tensor, gradient: Tensor, bias: object, width: int) -> Tensor:
    """Returns sum_n | sum_positions (a - bias) * dL_n/da | for every channel of an activation, shape [width].

    A layer may hold a channel several times, as the two halves of a GEGLU do: the sum over its weights is then one over all of them.
    """
    channels_first = isinstance(layer, nn.Conv2d)
    activation, gradient = activation.float(), gradient.float()
    if isinstance(bias, Tensor):
        activation = activation - (bias.view(-1, 1, 1) if channels_first else bias)
    product = activation * gradient
    positions = tuple(range(2, product.ndim)) if channels_first else tuple(range(1, product.ndim - 1))
    sums = product.sum(dim=positions) if positions else product
    return sums.view(len(sums), -1, width).sum(dim=1).abs().sum(dim=0)
