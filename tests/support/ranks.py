"""One rank of a distributed run: trains small networks at every ZeRO stage and leaves the weights in a folder.

RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/support/ranks.py FOLDER
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

import repro  # noqa: F401  (before diffusers)
from repro.config import Config, Training, load_config
from repro.data.images import digits
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.errors import ReproError
from repro.experiment.cells import Experiment
from repro.grid import METHODS
from repro.methods.plan import score_base
from repro.models.cost import count_params
from repro.models.denoiser import build_base
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import named_law
from repro.ofa.supernet import Supernet
from repro.runtime import distributed
from repro.runtime.clock import Clock
from repro.training.loop import Run, train

KINDS = ("base", "linear", "sandwich")
PARTS = 2  # of a rank's slice, where it is accumulated
STEPS = 6
SIZES = (1.0, 0.75, 0.5, 0.25)
BATCH = 24  # for up to 4 ranks, of 2 parts, of the 3 subnets of a sandwich step


class StoppedError(Exception):
    """Stands for a crash."""


def settings(zero_stage: int, batch_size: int = 8, checkpoint_every_steps: int = 100) -> Training:
    return Training(
        steps=STEPS,
        batch_size=batch_size,
        learning_rate=1e-3,
        gradient_clipping=0.3,
        ema_decay=0.5,
        zero_stage=zero_stage,
        checkpoint_every_steps=checkpoint_every_steps,
    )


def network(config: Config, kind: str) -> torch.nn.Module:
    base = build_base(config.network, seed=3)
    if kind == "base":
        return base
    pipes = pipes_of(base)
    stream = torch.Generator().manual_seed(5)
    importance = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
    return Supernet(
        base, pipes, make_plan(pipes, importance, SIZES, params_base=count_params(base.parameters()), rule="gradual", floor=0.25)
    )


def sizes_of(kind: str, step: int) -> tuple[float, ...]:
    return named_law(kind, m=3.0, sandwich_random=1).draw(SIZES, seed=1, step=step)


def run_of(config: Config, kind: str, batch_size: int = 8, folder: Path | None = None, accumulation: int = 1) -> Run:
    batches = NoisyBatches(
        digits(),
        DDPM(config.diffusion),
        batch_size=batch_size,
        seed=2,
        device=torch.device("cpu"),
        rank=distributed.rank(),
        ranks=distributed.ranks(),
    )

    def loss(module, batch, step):
        if kind == "base":
            return image_losses(predictor(module), batch).mean()
        sizes = sizes_of(kind, step)
        shared = zip(sizes, batch.shares(len(sizes)), strict=True)
        return torch.stack([image_losses(predictor(module, size), part).mean() for size, part in shared]).mean()

    more = {"accumulation": accumulation, "split": NoisyBatch.parts}
    return Run(identity="test", seed=0, batches=batches, loss=loss, folder=folder, **more)


def scored(config: Config) -> Experiment:
    """An experiment whose importance is asked for: 7 batches, so that ranks have different numbers of them."""
    settings = replace(config.importance, images=56, batch_size=8)
    return Experiment(config=replace(config, importance=settings), results=Path(), runs=Path(), source="", methods=METHODS)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base."): value.detach().clone().contiguous() for name, value in module.named_parameters()}


def quiet(_step: int, _steps: int, _loss: float) -> None:
    """Shows nothing."""


def stop_at(last: int):
    def report(step: int, _steps: int, _loss: float) -> None:
        if step == last:
            raise StoppedError

    return report


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = load_config(str(Path(__file__).parents[1] / "tiny.toml"))

    def keep(name: str, module: torch.nn.Module, curve: list[list[float]]) -> None:
        if distributed.rank() == 0:
            safetensors.torch.save_file(weights(module), folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(curve))

    for kind in KINDS:
        for stage in (0, 1, 2):
            module = network(config, kind)
            curve = train(module, run_of(config, kind, BATCH), settings(stage, BATCH), Clock(), quiet)
            keep(f"{kind}-{stage}", module, curve)
    for stage in (0, 2):
        module = network(config, "linear")
        curve = train(module, run_of(config, "linear", BATCH, accumulation=PARTS), settings(stage, BATCH), Clock(), quiet)
        keep(f"accumulated-{stage}", module, curve)
    importance = score_base(scored(config), network(config, "base"), seed=1)
    if distributed.rank() == 0:
        safetensors.torch.save_file(importance, folder / "importance.safetensors")
    for stage in (1, 2):
        run = run_of(config, "linear", BATCH, folder=folder / f"resumed-{stage}")
        budget = settings(stage, BATCH, checkpoint_every_steps=2)
        try:
            train(network(config, "linear"), run, budget, Clock(), stop_at(3))
        except StoppedError:
            distributed.wait_for_all()
        module = network(config, "linear")
        curve = train(module, run, budget, Clock(), quiet)
        keep(f"resumed-{stage}", module, curve)
    try:
        train(network(config, "base"), run_of(config, "base", 7), settings(0, 7), Clock(), quiet)
    except ReproError as error:
        (folder / f"uneven-{distributed.rank()}.txt").write_text(str(error))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
