"""Wraps a module in DeepSpeed's engine, and removes every trace of it after the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from repro.config import Execution, Training
from repro.runtime import distributed

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)  # torch's registers of a module


def clips_itself(settings: Training) -> bool:
    """Says whether the loop clips the gradients: where none are partitioned, torch does in one call what DeepSpeed does name by name."""
    return settings.gradient_clipping > 0 and settings.zero_stage == 0


def engine_of(module: nn.Module, settings: Training, execution: Execution, *, accumulation: int) -> Any:
    """Wraps a module for DeepSpeed, with its optimiser.

    Args:
        module: What is trained, on its device, in contiguous layout: DeepSpeed sends the weights from rank to rank as bytes.
        settings: The budget.
        execution: When a silent rank is given up.
        accumulation: In how many parts a rank takes its slice of a batch.
    """
    distributed.start(execution.rank_timeout_sec)
    engine, *_ = distributed.engine_library().initialize(
        model=module,
        optimizer=optimizer_of(module, settings),
        config={
            "train_batch_size": settings.batch_size,
            "train_micro_batch_size_per_gpu": settings.batch_size // distributed.ranks() // accumulation,
            "gradient_accumulation_steps": accumulation,
            # DeepSpeed clips at 1.0 where the key is missing.
            "gradient_clipping": 0.0 if clips_itself(settings) else settings.gradient_clipping,
            "zero_optimization": {"stage": settings.zero_stage},
            "steps_per_print": 10**12,
            "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a step
        },
    )
    return engine


def optimizer_of(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Returns Adam, or AdamW with two groups of parameters: those that decay, and those that a network's `no_weight_decay()` names."""
    common: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas, "fused": True}
    if not settings.weight_decay:
        return torch.optim.Adam(module.parameters(), **common)
    spared: set[int] = set()
    for part in module.modules():
        if callable(named := getattr(part, "no_weight_decay", None)):
            spared |= {id(part.get_parameter(name)) for name in named()}
    groups = [[each for each in module.parameters() if (id(each) in spared) == without] for without in (False, True)]
    decays = (settings.weight_decay, 0.0)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True) if group], **common
    )


@contextmanager
def left_as_found(module: nn.Module) -> Iterator[None]:
    """Takes from a module, when the block ends, what an engine put on it: hooks, attributes, gradients, views of its buffers.

    DeepSpeed's hooks outlive its engine: every later forward pass would go through them, and they keep Adam's moments in memory.
    """
    hooks = [(getattr(part, name), dict(getattr(part, name))) for part in module.modules() for name in HOOKS]
    marked = [(vars(each), set(vars(each))) for each in (*module.modules(), *module.parameters())]
    try:
        yield
    finally:
        for now, before in hooks:
            for handle in now.keys() - before.keys():
                del now[handle]
        for attributes, known in marked:
            for name in attributes.keys() - known:
                del attributes[name]
        for parameter in module.parameters():
            parameter.grad = None
            if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
                parameter.data = parameter.data.clone()
