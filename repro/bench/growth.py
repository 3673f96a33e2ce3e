"""Benchmarks of growth: CPU seconds against the number of records, of sizes, of images and of parameters.

Seconds are those of the processor, in its own process where a command is measured: another program on the machine takes none of them.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from repro.bench.setting import Setting
from repro.bench.synthetic import NAME, RESULTS, sizes_of, words_of, write_synthetic
from repro.bench.timing import Row, Target, spread
from repro.config import load_config
from repro.config.networks import Network
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.models.cost import count_params
from repro.models.denoiser import meta_base
from repro.ofa.allocation import make_plan
from repro.ofa.importance import pipe_importance
from repro.ofa.pipes import pipes_of
from repro.runtime.distributed import device

RECORDS = ((100, 4), (1000, 31), (3000, 31), (10_000, 121))  # at most so many records, of so many sizes
SIZES = (4, 31, 121)
IMAGES = (1024, 4096)
WIDER = 3  # times the widths of the paper's network, which makes nine times its parameters
LIMITS_SEC = {"status": 2.0, "tables": 20.0, "report": 30.0}  # of 10,000 records
LIMIT_MB = 20.0


def growth(setting: Setting) -> Iterator[Row]:
    """Yields what commands take with ever more records, and what a plan takes with more sizes, images and parameters."""
    if RESULTS.is_dir():
        for count, sizes in RECORDS:
            yield from of_records(count, sizes)
    yield from _of_sizes(setting)
    yield from _of_images(setting)
    yield from _of_parameters()


def of_records(count: int, sizes: int) -> Iterator[Row]:
    """Yields the CPU seconds of each command that reads records, and the size of the page, for a grid of at most so many records."""
    largest = (count, sizes) == RECORDS[-1]
    with tempfile.TemporaryDirectory() as name:
        folder, seeds = write_synthetic(Path(name), count, sizes)
        written = len(list(folder.glob("*.json")))
        over = f"{written:,} records of {sizes} sizes, {seeds} seeds"
        for verb, command in commands(folder, sizes, seeds).items():
            target = Target(limit=LIMITS_SEC[verb]) if largest and verb in LIMITS_SEC else None
            yield spread(f"{verb}, {over}", [cpu_seconds(command)], unit="s", target=target)
        megabytes = (folder / "report.html").stat().st_size / 1e6
        yield spread(f"page of the report, {over}", [megabytes], unit="MB", target=Target(limit=LIMIT_MB) if largest else None)


def commands(folder: Path, sizes: int, seeds: int) -> dict[str, list[str]]:
    """Returns the commands that read the records of a synthetic experiment, by their verbs."""
    places = ["--results", str(folder.parent), "--runs", str(folder.parent / "runs")]
    sets = [word for value in words_of(sizes_of(sizes)) for word in ("--set", value)]
    status = ["repro", "status", "--config", NAME, *places, "--seeds", ",".join(map(str, range(seeds))), *sets]
    drawn = {verb: ["paper_figures", verb, "--results", str(folder)] for verb in ("tables", "claims", "report")}
    return {"status": status, **drawn}


def cpu_seconds(command: list[str]) -> float:
    """Returns the seconds of the processor that `python -m COMMAND` takes, its start included.

    Raises:
        subprocess.CalledProcessError: It fails.
    """
    before = _of_children()
    subprocess.run([sys.executable, "-m", *command], cwd=RESULTS.parent, check=True, capture_output=True)
    return _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _of_sizes(setting: Setting) -> Iterator[Row]:
    for count in SIZES:
        sizes = dataclasses.replace(setting.config.sizes, trained=sizes_of(count), reported=sizes_of(count))
        grown = dataclasses.replace(setting, config=dataclasses.replace(setting.config, sizes=sizes))
        yield spread(f"plan and supernet of {count} sizes", [_taken(grown.supernet) for _ in range(setting.rounds)], unit="s")


def _of_images(setting: Setting) -> Iterator[Row]:
    base, batch_size = setting.base().to(device()), setting.config.importance.batch_size
    pipes, source = pipes_of(base), setting.batches(batch_size)
    for count in IMAGES:
        batches = [source(step) for step in range(max(1, count // batch_size))]
        taken = _taken(partial(pipe_importance, base, pipes, batches, _losses))
        yield spread(f"importance of {count:,} images", [taken], unit="s")


def _losses(model: nn.Module, batch: NoisyBatch) -> Tensor:
    return image_losses(predictor(model), batch)


def _of_parameters() -> Iterator[Row]:
    paper = load_config("cifar10").denoiser
    assert isinstance(paper, Network)
    wide = dataclasses.replace(paper, block_out_channels=tuple(WIDER * width for width in paper.block_out_channels))
    for network in (load_config(NAME).denoiser, paper, wide):
        begun = time.process_time()
        base = meta_base(network)
        pipes = pipes_of(base)
        params = count_params(base.parameters())
        stream = torch.Generator().manual_seed(0)
        importance = {pipe.name: torch.rand(pipe.width, generator=stream) for pipe in pipes}
        make_plan(pipes, importance, sizes_of(4), params_base=params, rule="gradual", floor=0.25, groupnorm="keep")
        taken = time.process_time() - begun
        yield spread(f"network on the meta device and plan of 4 sizes, {params / 1e6:,.1f} M parameters", [taken], unit="s")


def _taken(work: Callable[[], object]) -> float:
    """Returns the seconds of the processor that some work in this process takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun
