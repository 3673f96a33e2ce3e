"""The supernet: the base's full-width weights, shared by all sizes and trained once.

For each size it holds a skeleton, the base's module tree with reduced shapes and no storage. A forward pass gathers the kept rows and
columns of every parameter and runs the skeleton on them, so a subnet computes exactly what the standalone net computes, and autograd
spreads the gradients over the shared weights.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repro.models.narrowed import reshape_modules
from repro.ofa.allocation import Plan
from repro.ofa.pipes import Pipe

KEPT = ("kept", "places")  # what a supernet holds for each pipe at each size
Slot = tuple[str, dict[str, Any], str]  # a tensor's qualified name, the dictionary of a module that holds it, and its name in there


class Supernet(nn.Module):
    """The shared weights and, for every size of a plan, the subnet that they hold.

    Args:
        base: The pretrained denoiser; its parameters become the shared weights (no copy is made).
        pipes: The internal widths of the base.
        plan: For every size, the kept channels of every pipe.

    Raises:
        ReproError: The plan is another network's.
    """

    def __init__(self, base: nn.Module, pipes: tuple[Pipe, ...], plan: Plan) -> None:
        super().__init__()
        self.base = base
        self.plan = plan
        self._widths = {pipe.name: pipe.width for pipe in pipes}
        plan.check(self._widths)
        self.pipes = pipes
        self._slots = _slots(base)
        self._buffer_names = {
            size: tuple({name: _buffer(what, size, name) for name in kept} for what in KEPT) for size, kept in plan.kept.items()
        }
        device = next(base.parameters()).device
        for size in plan.kept:
            for name, channels in plan.kept[size].items():
                kept = torch.tensor(channels)
                for what, indices in zip(KEPT, (kept, _places(kept, self._widths[name])), strict=True):
                    self.register_buffer(_buffer(what, size, name), indices.to(device), persistent=False)
        # Skeletons are no submodules: they own no parameters, and the shared weights must be listed once.
        self._skeletons = {size: self._skeleton(size) for size in plan.kept}
        self._slots_of = {size: _slots(skeleton) for size, skeleton in self._skeletons.items()}

    @property
    def sizes(self) -> tuple[float, ...]:
        """The sizes that the supernet holds, largest first."""
        return tuple(self.plan.kept)

    @property
    def skeletons(self) -> tuple[nn.Module, ...]:
        """The modules that run, one for each size: what `torch.compile` has to see."""
        return tuple(self._skeletons.values())

    def train(self, mode: bool = True) -> "Supernet":
        """Sets the mode of the skeletons too: it is they that run."""
        super().train(mode)
        for skeleton in self._skeletons.values():
            skeleton.train(mode)
        return self

    def forward(self, subnet: float | Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Computes what a subnet computes.

        Args:
            subnet: One of the plan's sizes, or the kept channels of every pipe, ascending, int64.
            *args: What the base's forward takes: images [B, C, H, W] and timesteps [B].
            **kwargs: Likewise.
        """
        if isinstance(subnet, Mapping):
            places = {pipe: _places(kept, self._widths[pipe]) for pipe, kept in subnet.items()}
            tensors = self._gather(subnet, places)
            size = self.sizes[0]  # every layer computes with the shapes of the weights that it is given, so any skeleton will do
        else:
            size, tensors = subnet, self._gather(*self._kept(subnet))
        with _filled(self._slots_of[size], tensors):
            return self._skeletons[size](*args, **kwargs)

    @torch.no_grad()
    def extract(self, size: float) -> nn.Module:
        """Returns the subnet of a size as a module of its own, with a copy of its weights."""
        subnet = copy.deepcopy(self._skeletons[size])
        tensors = {name: tensor.detach().clone() for name, tensor in self._gather(*self._kept(size)).items()}
        saved = subnet.state_dict()
        subnet.load_state_dict({name: tensors[name] for name in saved}, assign=True)
        for name, holder, leaf in _slots(subnet):
            if name not in saved:  # a buffer that is part of no state
                holder[leaf] = tensors[name]
        return subnet.train(self.training)

    def held(self, size: float) -> dict[str, Tensor]:
        """Returns which elements of every shared parameter a size computes with: bool, of the parameter's shape, by name."""
        shared = dict(self.base.named_parameters())
        with torch.enable_grad():
            gathered = self._gather(*self._kept(size))
            total = torch.stack([gathered[name].sum() for name in shared]).sum()
            touched = torch.autograd.grad(total, list(shared.values()))
        return {name: gradient != 0 for name, gradient in zip(shared, touched, strict=True)}

    def _kept(self, size: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the kept channels of every pipe at a size, and where each channel of the base lies among them."""
        (kept, places), held = self._buffer_names[size], dict[str, Any](self._buffers)
        return {pipe: held[name] for pipe, name in kept.items()}, {pipe: held[name] for pipe, name in places.items()}

    def _gather(self, kept_by_pipe: Mapping[str, Tensor], places_by_pipe: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the parameters and buffers of a subnet; nothing is gathered where all channels are kept."""
        tensors: dict[str, Tensor] = {name: holder[leaf] for name, holder, leaf in self._slots}
        for pipe in self.pipes:
            kept = kept_by_pipe[pipe.name]
            if len(kept) < pipe.width:
                names, dimensions = zip(*pipe.slices, strict=True)
                whole = [tensors[name] for name in names]
                gathered = _Gather.apply(kept, places_by_pipe[pipe.name], dimensions, *whole)
                # Matrix products on the CPU choose their kernel by this flag too: a gathered tensor carries it, as the extracted one does.
                tensors |= {
                    name: part if part.requires_grad else part.requires_grad_(tensor.requires_grad)
                    for name, part, tensor in zip(names, gathered, whole, strict=True)
                }
        return tensors

    def _skeleton(self, size: float) -> nn.Module:
        """Returns the base's module tree with the shapes of a size, on the meta device."""
        shapes = {name: tensor.shape for name, tensor in self._gather(*self._kept(size)).items()}
        # With its parameters already in the memo, the copy never allocates the base's storage.
        memo = {id(tensor): nn.Parameter(tensor.detach().to("meta")) for tensor in self.base.parameters()}
        skeleton = copy.deepcopy(self.base, memo)
        return reshape_modules(skeleton, {name: tuple(shape) for name, shape in shapes.items()})


class _Gather(torch.autograd.Function):
    """Gathers the kept channels of a pipe from all tensors that it enters.

    Every kept channel comes from one place, so the gradient of the whole is gathered too: from the parts' and from zeros where nothing was
    kept. Nothing is added up, so no order of additions can change it.
    """

    @staticmethod
    def forward(ctx: Any, kept: Tensor, places: Tensor, dimensions: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(places)
        ctx.dimensions, ctx.kept = dimensions, len(kept)
        return tuple(_select(tensor, dimension, kept, len(places)) for tensor, dimension in zip(tensors, dimensions, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        spread = [_spread(gradient, dimension, places, ctx.kept) for gradient, dimension in zip(gradients, ctx.dimensions, strict=True)]
        return None, None, None, *spread


def _select(tensor: Tensor, dimension: int, kept: Tensor, width: int) -> Tensor:
    """Returns the kept channels of a tensor, from each of the runs of `width` channels that its dimension holds."""
    if tensor.shape[dimension] > width:
        runs: Tensor = tensor.unflatten(dimension, (-1, width))
        return _select(runs, dimension + 1, kept, width).flatten(dimension, dimension + 1)
    return tensor.index_select(dimension, kept)


def _spread(gradient: Tensor, dimension: int, places: Tensor, kept: int) -> Tensor:
    """Returns the gradient of the whole tensor: that of the kept channels at their places, and zeros."""
    if gradient.shape[dimension] > kept:
        runs: Tensor = gradient.unflatten(dimension, (-1, kept))
        return _spread(runs, dimension + 1, places, kept).flatten(dimension, dimension + 1)
    shape = list(gradient.shape)
    shape[dimension] = 1
    return torch.cat([gradient, gradient.new_zeros(shape)], dimension).index_select(dimension, places)


def _places(kept: Tensor, width: int) -> Tensor:
    """Returns for every channel of the base its place among the kept ones, shape [width]; the others have the place after the last."""
    return kept.new_full((width,), len(kept)).index_copy_(0, kept, torch.arange(len(kept), device=kept.device))


def _slots(model: nn.Module) -> list[Slot]:
    """Lists where a module tree holds its parameters and buffers, so that no step has to walk it."""
    return [
        (f"{path}.{leaf}" if path else leaf, holder, leaf)
        for path, module in model.named_modules()
        for holder in (module._parameters, module._buffers)
        for leaf, tensor in holder.items()
        if tensor is not None
    ]


@contextmanager
def _filled(slots: list[Slot], tensors: dict[str, Tensor]) -> Iterator[None]:
    """Lets a module tree compute with other tensors until the block ends, as `torch.func.functional_call` does, but walks no tree."""
    before = [holder[leaf] for _, holder, leaf in slots]
    for name, holder, leaf in slots:
        holder[leaf] = tensors[name]
    try:
        yield
    finally:
        for (_, holder, leaf), tensor in zip(slots, before, strict=True):
            holder[leaf] = tensor


def _buffer(what: str, size: float, pipe: str) -> str:
    return f"{what} {size} {pipe}".replace(".", "/")
