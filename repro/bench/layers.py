"""Profile of a training step by kind of layer, at full and at a smaller size."""

from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile

from repro.bench.setting import Setting
from repro.diffusion.formulation import image_losses, predictor
from repro.runtime.distributed import device
from repro.runtime.gpu import is_gpu
from repro.runtime.precision import autocast, laid_out

KINDS = {
    "convolution": ("convolution", "conv2d", "mkldnn_conv", "cudnn_conv"),
    "matrix product": ("mm", "linear", "matmul"),
    "attention": ("attention", "softmax"),
    "normalisation": ("norm",),
    "activation": ("silu", "sigmoid"),
    "sum and copy": ("add", "copy", "cat", "mul", "sum", "fill", "zero", "upsample", "clone", "div"),
}
STEPS = 5


def shares_by_layer(setting: Setting, whole: nn.Module, small: nn.Module) -> dict[str, list[float]]:
    """Returns the milliseconds of a step that every kind of layer takes, forwards and backwards, at full size and at a smaller one."""
    large, little = _by_kind(setting, whole), _by_kind(setting, small)
    return {kind: [large.get(kind, 0.0), little.get(kind, 0.0)] for kind in sorted(large, key=lambda kind: -large[kind])}


def _by_kind(setting: Setting, model: nn.Module) -> dict[str, float]:
    model = laid_out(model, setting.config.compute, device()).train()
    source, predict = setting.batches(), predictor(model)

    def steps() -> None:
        for step in range(STEPS):
            with autocast(setting.config.compute.precision, device()):
                loss = image_losses(predict, source(step)).mean()
            loss.backward()
            model.zero_grad()

    steps()
    on_gpu = is_gpu(device())
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        steps()
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        spent: Any = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[_kind(event.key)] = found.get(_kind(event.key), 0.0) + spent / 1000 / STEPS
    return found


def _kind(operator: str) -> str:
    name = operator.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
