"""Interference: how far the gradients of two sizes agree on the weights that they share, and which weights a size pays with.

Two sizes help each other where their mean gradients point the same way, and fight where they point apart. A gradient that is measured on
finitely many batches is the mean gradient plus noise: noise of one's own draws a cosine towards 0, noise that both sizes share, because
they see the same batches, towards 1. So each size's gradient is measured twice, on two halves a and b of the batches, and only products of
different halves are taken, whose noise is independent (the correction for attenuation, Spearman, 1904):

    cos(s, l) = (a_s . b_l + a_l . b_s) / 2 / sqrt((a_s . b_s) (a_l . b_l))
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from repro.ofa.pipes import Pipe
from repro.ofa.supernet import Supernet

Batch = TypeVar("Batch")
Pair = tuple[float, float]  # two sizes, the smaller one first
ALL = "all"  # the layers taken together
NORMS, EMBEDDING, STREAM = "norms", "embedding", "stream"


def gradient_cosines(
    supernet: Supernet, halves: tuple[Sequence[Batch], Sequence[Batch]], loss: Callable[[float, Batch], Tensor]
) -> tuple[dict[float, float | None], dict[Pair, dict[str, float | None]]]:
    """Measures the mean gradient of every size, and compares those of every two, on the weights that the smaller one holds.

    Args:
        supernet: The shared weights; their `grad` is left as it is.
        halves: Batches whose noise is independent; both sizes see the same ones.
        loss: (size, batch) -> the mean loss of the size, a scalar.

    Returns:
        Size -> norm of its mean gradient, and pair of sizes -> layer, or `ALL` -> cosine; None where the noise hides a gradient. Noise may
        carry a cosine a little past 1.
    """
    parameters = dict(supernet.base.named_parameters())
    measured = {
        size: [_mean_gradient(parameters, half, lambda batch, of=size: loss(of, batch)) for half in halves]  # type: ignore[misc]
        for size in supernet.sizes
    }
    norms = {size: _norm(*measured[size]) for size in supernet.sizes}
    found, held_by = {}, {size: supernet.held(size) for size in supernet.sizes}
    for larger, smaller in combinations(supernet.sizes, 2):
        held = held_by[smaller]
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
        for name in parameters:
            ours, theirs = ([half[name][held[name]].double() for half in measured[size]] for size in (smaller, larger))
            products = _products(ours, theirs)
            for layer in (_layer(name), ALL):
                sums[layer] = sums[layer] + products
        found[smaller, larger] = {layer: _cosine(*products.tolist()) for layer, products in sums.items()}
    return norms, found


def _norm(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    square = sum(float((one[name].double() * other[name].double()).sum()) for name in one)
    return square**0.5 if square > 0 else None


def _mean_gradient(parameters: Mapping[str, Tensor], batches: Sequence[Batch], loss: Callable[[Batch], Tensor]) -> dict[str, Tensor]:
    """Returns the mean over batches of the gradient, by parameter; 0 where a loss does not depend on one."""
    mean = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        gradients = torch.autograd.grad(loss(batch), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(mean, gradients, strict=True):
            if gradient is not None:
                mean[name] += gradient / len(batches)
    return mean


def _products(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Returns the products of two sizes' halves, each of two different ones: of both sizes, of the one and of the other, [3]."""
    (our_a, our_b), (their_a, their_b) = ours, theirs
    both = ((our_a * their_b).sum() + (their_a * our_b).sum()) / 2
    return torch.stack([both, (our_a * our_b).sum(), (their_a * their_b).sum()]).cpu()


def _cosine(both: float, ours: float, theirs: float) -> float | None:
    return both / (ours * theirs) ** 0.5 if ours > 0 and theirs > 0 else None


def groups_of(model: nn.Module, pipes: Sequence[Pipe]) -> dict[str, str]:
    """Returns the group of every parameter: what its layer does.

    The groups are `first convolutions` and `second convolutions`, which write and read the pipes of residual units; `attention`;
    `feed-forward`; `norms`; `embedding`, the layers named after the timestep; and `stream`, the rest: the first and last layer,
    shortcuts, and what changes the resolution.
    """
    of_layer: dict[str, str] = {}
    for pipe in pipes:
        for layers, group in ((pipe.producers, "first convolutions"), (pipe.consumers, "second convolutions")):
            of_layer |= dict.fromkeys(layers, group if pipe.kind == "conv" else pipe.kind.replace("_", "-"))
    norms = {layer for layer, module in model.named_modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)}

    def group_of(layer: str) -> str:
        if layer in norms:
            return NORMS
        return EMBEDDING if any(part.startswith("time") for part in layer.split(".")) else of_layer.get(layer, STREAM)

    return {name: group_of(_layer(name)) for name, _ in model.named_parameters()}


def _layer(name: str) -> str:
    """Returns the layer that a parameter belongs to; one of the network's own is a layer by itself."""
    return name.rpartition(".")[0] or name


@torch.no_grad()
def swapped_losses(model: nn.Module, before: Mapping[str, Tensor], groups: Mapping[str, str], loss: Callable[[], float]) -> dict[str, Any]:
    """Measures what each group of parameters did to a network's loss: one is given back, and one alone is taken over.

    Args:
        model: The trained network; it is left as it was.
        before: Name -> parameter before the training.
        groups: Name -> group.
        loss: The loss of the network as it stands.

    Returns:
        `before` and `after`, the losses of both networks, and `groups`: group -> `params`, how many it has; `given_back`, the loss with
        this group as it was before; `taken_over`, the loss of the network as it was before with this group as it is now.
    """
    parameters = dict(model.named_parameters())
    after = {name: parameter.clone() for name, parameter in parameters.items()}

    def loss_with(old: Callable[[str], bool]) -> float:
        for name, parameter in parameters.items():
            parameter.copy_(before[name] if old(name) else after[name])
        return loss()

    measured = {
        group: {
            "params": sum(parameters[name].numel() for name in parameters if groups[name] == group),
            "given_back": loss_with(lambda name, of=group: groups[name] == of),  # type: ignore[misc]
            "taken_over": loss_with(lambda name, of=group: groups[name] != of),  # type: ignore[misc]
        }
        for group in dict.fromkeys(groups[name] for name in parameters)
    }
    return {"before": loss_with(lambda _name: True), "after": loss_with(lambda _name: False), "groups": measured}
