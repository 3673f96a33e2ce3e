"""The supernet: the base's full-width weights, shared by all sizes and trained once.

For each size it holds a skeleton, the base's module tree with reduced shapes and no storage. A forward pass gathers the kept rows and
columns of every parameter and calls the skeleton with them, so a subnet computes exactly what the standalone net computes, and autograd
scatters the gradients into the shared weights.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repro.ofa.allocation import Plan
from repro.ofa.pipes import Pipe

Keeps = dict[str, list[tuple[int, str]]]


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
        # parameter -> [(dimension, pipe)]: what has to be gathered, the same for every size
        self._slices: Keeps = defaultdict(list)
        for pipe in pipes:
            for parameter, dimension in pipe.slices:
                self._slices[parameter].append((dimension, pipe.name))
        for size in plan.kept:
            for name, kept in plan.kept[size].items():
                self.register_buffer(_buffer(size, name), torch.tensor(kept), persistent=False)
        # Skeletons are no submodules: they own no parameters, and the shared weights must be listed once.
        self._skeletons = {size: self._skeleton(size) for size in plan.kept}

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
            # Every layer computes with the shapes of the weights that it is given, so any skeleton will do.
            return functional_call(next(iter(self._skeletons.values())), self._gather(subnet), args, kwargs)
        return functional_call(self._skeletons[subnet], self._gather(self._kept(subnet)), args, kwargs)

    @torch.no_grad()
    def extract(self, size: float) -> nn.Module:
        """Returns the subnet of a size as a module of its own, with a copy of its weights."""
        subnet = copy.deepcopy(self._skeletons[size])
        subnet.load_state_dict({name: tensor.detach().clone() for name, tensor in self._gather(self._kept(size)).items()}, assign=True)
        return subnet.train(self.training)

    def _kept(self, size: float) -> dict[str, Tensor]:
        """Returns the kept channels of every pipe at a size."""
        return {pipe: self.get_buffer(_buffer(size, pipe)) for pipe in self._widths}

    def _gather(self, kept_by_pipe: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the parameters and buffers of a subnet; nothing is gathered where all channels are kept."""
        tensors: dict[str, Tensor] = dict(self.base.named_buffers())
        for parameter, tensor in self.base.named_parameters():
            gathered: Tensor = tensor
            for dimension, pipe in self._slices.get(parameter, ()):
                kept = kept_by_pipe[pipe]
                if len(kept) < self._widths[pipe]:
                    gathered = gathered.index_select(dimension, kept)
            # Matrix products on the CPU choose their kernel by this flag too: a gathered tensor must carry it, as the extracted one does.
            tensors[parameter] = gathered if gathered.requires_grad else gathered.requires_grad_(tensor.requires_grad)
        return tensors

    def _skeleton(self, size: float) -> nn.Module:
        """Returns the base's module tree with the shapes of a size, on the meta device."""
        shapes = {name: tensor.shape for name, tensor in self._gather(self._kept(size)).items()}
        # With its parameters already in the memo, the copy never allocates the base's storage.
        memo = {id(tensor): nn.Parameter(tensor.detach().to("meta")) for tensor in self.base.parameters()}
        skeleton = copy.deepcopy(self.base, memo)
        return reshape_modules(skeleton, {name: tuple(shape) for name, shape in shapes.items()})


def reshape_modules(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Gives the parameters of a module tree new shapes, on the meta device, and its layers the widths to match.

    Args:
        model: Changed in place.
        shapes: Parameter name -> shape; a name that is missing keeps its shape.

    Returns:
        The model.
    """
    for name, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            shape = shapes.get(f"{name}.{leaf}" if name else leaf, tuple(parameter.shape))
            if shape != tuple(parameter.shape):
                setattr(module, leaf, nn.Parameter(torch.empty(shape, device="meta")))
        match module:
            case nn.Conv2d():
                module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
            case nn.Linear():
                module.out_features, module.in_features = module.weight.shape
            case nn.GroupNorm(affine=True):
                module.num_channels = module.weight.shape[0]
    for module in model.modules():
        # diffusers' up- and downsampling layers check their input against a width of their own.
        if hasattr(module, "channels") and isinstance(conv := getattr(module, "conv", None), nn.Conv2d):
            setattr(module, "channels", conv.in_channels)  # noqa: B010  (mypy takes a plain one for a submodule)
    return model


def _buffer(size: float, pipe: str) -> str:
    return f"kept {size} {pipe}".replace(".", "/")
