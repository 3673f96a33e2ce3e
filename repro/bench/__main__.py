"""The command line: `python -m repro.bench [--config NAME] [--only PART,...] [--out DIR]`."""

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from repro.bench import growth, inference, machine, training
from repro.bench.setting import Setting
from repro.bench.table import IN_CPU_SECONDS, IN_TURN, as_markdown, write
from repro.bench.timing import Row
from repro.config import load_config
from repro.errors import ReproError
from repro.files.places import Places, default_cache
from repro.metrics.inception import inception_layer
from repro.runtime import distributed
from repro.runtime.environment import set_for_profiler
from repro.runtime.heartbeat import duration
from repro.runtime.precision import set_arithmetic
from repro.runtime.progress import say
from repro.runtime.provenance import device_name

Part = Callable[[Setting], Iterator[Row]]
GROWTH = "growth"  # minutes of one core, and a table of its own: it is measured where it is asked for
PARTS: dict[str, tuple[str, Part]] = {
    "sharing": ("supernet beside standalone networks", training.sharing),
    "harness": ("the harness's loop beside a bare one", training.harness),
    "usual": ("a diffusers-style loop beside the harness's", training.usual),
    "smaller": ("smaller sizes beside full size", training.smaller),
    "paper": ("the paper's network on a CPU", training.smaller_on_cpu),
    "importance": ("importance, one by one beside batched", inference.importance),
    "sampling": ("DDIMPipeline beside the harness's sampler", inference.sampling),
    "fid": ("from a network to its FID", inference.to_fid),
    "memory": ("peak memory", machine.memory),
    "peak": ("share of what the device can do", machine.peak_share),
    "start": ("seconds until the program answers", machine.start_up),
    GROWTH: ("cost against records, sizes, images and parameters", growth.growth),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        rows = _measure(options)
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(as_markdown(rows))
    grown = options.only == [GROWTH]
    for path in write(rows, options.out, GROWTH if grown else _slug(device_name()), options.config, IN_CPU_SECONDS if grown else IN_TURN):
        print(path)
    return 0


def _measure(options: argparse.Namespace) -> list[Row]:
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        raise ReproError(f"--only {unknown[0]}: no such part; there are {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")
    config = load_config(options.config, options.set)
    set_for_profiler()
    set_arithmetic(config.compute)
    distributed.start()
    weights = options.inception_weights
    layer = inception_layer("fid768", Places(cache=default_cache(), inception_weights=weights)) if weights else None
    setting = Setting(config=config, rounds=options.rounds, steps=options.steps, inception=layer)
    rows: list[Row] = []
    chosen = options.only or [name for name in PARTS if name != GROWTH]
    begun = time.monotonic()
    for number, name in enumerate(chosen, 1):
        about, part = PARTS[name]
        say(f"[{number}/{len(chosen)}] {about} ({duration((time.monotonic() - begun) / 3600)} so far)", to_stderr=True)
        for row in part(setting):
            rows.append(row)
            say(f"  {row.what}: {row.value:.3g} {row.unit}", to_stderr=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m repro.bench", description="Measures what the harness costs on this machine.", allow_abbrev=False
    )
    parser.add_argument(
        "--config", default="cifar10_short" if on_gpu else "digits", metavar="NAME", help="what is timed (default: %(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], metavar="A,B", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each pair is timed (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="training steps of a round (default: %(default)s)")
    parser.add_argument("--inception-weights", type=Path, metavar="FILE", help="for the part fid; a random classifier stands in otherwise")
    parser.add_argument(
        "--out", type=Path, default=Path("results/local/bench"), metavar="DIR", help="where the table goes (default: %(default)s)"
    )
    return parser


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
