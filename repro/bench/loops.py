"""Three training loops over the same network: the harness's, a minimal one of PyTorch, and one in the style of diffusers' examples."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from repro.bench.setting import Setting, noise_images
from repro.bench.timing import Timed, now, timed
from repro.diffusion.ddpm import noise_schedule
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.runtime.clock import Clock
from repro.runtime.distributed import device
from repro.runtime.precision import autocast, laid_out
from repro.training.loop import Run, train

WARM_UP = 3  # steps before a round's time is taken


def harness_loop(setting: Setting, module: nn.Module, size: float | None = None) -> Timed:
    """Returns the harness's training loop; its start and its end stand outside the time.

    Args:
        setting: What is timed.
        module: A network, or a supernet.
        size: Which of the supernet's sizes.
    """
    leading = () if size is None else (size,)
    source = setting.batches()

    def loss(net: nn.Module, batch: NoisyBatch, _step: int) -> Tensor:
        return image_losses(predictor(net, *leading), batch).mean()

    def seconds() -> float:
        times: list[float] = []

        def report(step: int, steps: int, _loss: float) -> None:
            if step in (WARM_UP, steps):
                times.append(now())

        settings = dataclasses.replace(setting.training, steps=WARM_UP + setting.steps)
        run = Run(identity="bench", seed=0, batches=source, loss=loss, compute=setting.config.compute)
        train(module, run, settings, Clock(), report)
        return (times[1] - times[0]) / setting.steps

    return seconds


def bare_loop(setting: Setting, model: nn.Module) -> Timed:
    """Returns the same arithmetic in a plain PyTorch loop: batch, loss, backward, clipping, Adam, EMA; nothing is watched."""
    settings, compute = setting.training, setting.config.compute
    model = laid_out(model, compute, device()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=settings.warmup_steps)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay, foreach=True)
    source, predict = setting.batches(), predictor(model)

    def steps() -> None:
        for step in range(setting.steps):
            batch = source(step)
            with autocast(compute.precision, device()):
                loss = image_losses(predict, batch).mean()
            loss.backward()
            if settings.gradient_clipping:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(model.parameters())

    return timed(steps, setting.steps)


def diffusers_loop(setting: Setting, model: nn.Module) -> Timed:
    """Returns a loop of the parts that diffusers' unconditional example is built of, in float32 and contiguous.

    A `DataLoader` over PIL images with torchvision's transforms, accelerate around network, optimiser, loader and schedule, AdamW,
    clipping, and `EMAModel` as it comes.
    """
    accelerator, settings = _accelerator(), setting.training
    steps_of_noise = [transforms.RandomHorizontalFlip()] if settings.horizontal_flip else []
    channels = setting.image_shape[0]
    prepare = transforms.Compose([*steps_of_noise, transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.5] * channels)])
    loader = DataLoader(_Pictures(noise_images(setting.image_shape).pixels, prepare), batch_size=settings.batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=10**6)
    model, optimizer, loader, schedule = accelerator.prepare(model.train(), optimizer, loader, schedule)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay)
    ema.to(accelerator.device)
    noising, endless = noise_schedule(setting.config.diffusion), _endless(loader)

    def steps() -> None:
        for _ in range(setting.steps):
            clean = next(endless)
            noise = torch.randn(clean.shape, device=clean.device)
            timesteps = torch.randint(0, noising.config.num_train_timesteps, (len(clean),), device=clean.device)
            with accelerator.accumulate(model):
                predicted = model(noising.add_noise(clean, noise, timesteps), timesteps).sample
                loss = nn.functional.mse_loss(predicted.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            ema.step(model.parameters())
            loss.detach().item()  # the example logs every step

    return timed(steps, setting.steps)


class _Pictures(Dataset[Tensor]):
    """Images as files give them: PIL, transformed one by one."""

    def __init__(self, pixels: Tensor, prepare: Callable[[Any], Tensor]) -> None:
        self._pictures = [transforms.functional.to_pil_image(image) for image in pixels]
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self._prepare(self._pictures[index])


def _endless(loader: Any) -> Iterator[Tensor]:
    while True:
        yield from loader


def _accelerator() -> Any:
    """Returns accelerate's, which would take this process for a rank of several by this variable alone."""
    from accelerate import Accelerator

    before = os.environ.pop("LOCAL_RANK", None)
    try:
        return Accelerator(mixed_precision="no")
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before
