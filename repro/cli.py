"""The command line: `python -m repro VERB --config NAME`.

Only the parser is built before a verb is known, so that `--help` is quick.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from repro.config import SHIPPED, load_config
from repro.errors import ReproError

if TYPE_CHECKING:
    from repro.harness.cells import Cell, Experiment, Method

Number = TypeVar("Number", int, float)
STARTED = time.monotonic()
DEFAULT_METHODS = ("floor", "noise", "base", "untrained", "untrained_random", "ofa", "diff_pruning", "random")
EPILOG = """examples:
  python -m repro run                                     the whole comparison on handwritten digits, about 15 minutes on two cores
  python -m repro run --methods ofa --sizes 0.5           one cell, and what it needs
  python -m repro run --methods ofa_open --seeds 0,1,2    an ablation; README, "What is compared", lists them
  python -m repro estimate --config cifar10               what it would take, here and on other devices
  python -m repro run --set ofa_training.steps=2000 --results results/local-2000 --runs runs-2000
  python -m repro status                                  what is done, running, interrupted, failed, missing
  python -m repro sizes --allocation uniform              what each size realises
  python -m repro extract --size 0.5 --out subnet         a folder that diffusers can load
  python -m paper_figures                                 tables and figures from the records

exit codes: 0 done, 1 a cell failed (its record says why), 2 a mistake in what was asked for"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing more may be written to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m repro",
        description="Trains OFA-Diffusion Compression (arXiv 2604.12668) beside per-size independent pruning; records cost, FID and MACs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
    for name, function, summary in (
        ("run", _run, "run cells of the grid: skip what is done, go on with what was interrupted"),
        ("estimate", _estimate, "show what a run would take: images, PFLOP, GB and device-hours, here and on other devices"),
        ("status", _status, "show the state of every cell"),
        ("sizes", _sizes, "show what each size realises: params, MACs, widths"),
        ("extract", _extract, "save the subnet of a size as a folder that diffusers can load"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        verb.set_defaults(verb=function)
        verb.add_argument(
            "--config", default="digits", metavar="NAME", help=f"a shipped configuration ({shipped}) or the path of a TOML file"
        )
        verb.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated")
        verb.add_argument(
            "--results",
            type=Path,
            default=Path("results/local"),
            metavar="DIR",
            help="where records go, in a folder of the experiment's name (default: %(default)s)",
        )
        verb.add_argument(
            "--runs",
            type=Path,
            default=Path("runs"),
            metavar="DIR",
            help="where weights and checkpoints go, likewise (default: %(default)s)",
        )
        verb.add_argument(
            "--cache",
            type=Path,
            metavar="DIR",
            help="where downloads go, and what is computed once (default: ofa-diffusion in your cache folder)",
        )
        verb.add_argument("--data-root", type=Path, metavar="DIR", help="an offline copy of the data set; nothing is downloaded then")
        verb.add_argument("--inception-weights", type=Path, metavar="FILE", help="Inception's weights, in place of their download")
        _add_options(name, verb)
    return parser


def _add_options(name: str, verb: argparse.ArgumentParser) -> None:
    if name in ("run", "estimate", "status"):
        verb.add_argument(
            "--methods",
            type=_names,
            metavar="A,B",
            help=f"methods (default: {','.join(DEFAULT_METHODS)}; status: all but ablations not begun)",
        )
        verb.add_argument("--sizes", type=_floats, metavar="P,Q", help="sizes (default: all that the configuration reports)")
        verb.add_argument("--seeds", type=_integers, default=[0], metavar="K,L", help="seeds (default: 0)")
    if name == "run":
        verb.add_argument("--yes", action="store_true", help="go on without being asked, however long it takes")
    if name == "sizes":
        verb.add_argument("--allocation", metavar="RULE", help="gradual, formula5 or uniform (default: the configuration's)")
        verb.add_argument("--sizes", type=_floats, metavar="P,Q", help="sizes (default: all that the configuration trains)")
        verb.add_argument("--baselines", action="store_true", help="prune to the reported sizes too, and show published networks beside")
        verb.add_argument("--json", action="store_true", help="print JSON, with the width of every layer that a size narrows")
    if name == "extract":
        verb.add_argument("--size", type=float, required=True, metavar="P", help="one of the trained sizes")
        verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
        verb.add_argument("--seed", type=int, default=0, metavar="K", help="the seed of the joint training run (default: 0)")


def _run(options: argparse.Namespace) -> int:
    experiment, methods, cells = _planned(options)
    from repro.budget import set_budget
    from repro.harness.experiment import run_cells
    from repro.preflight import preflight

    begun = time.monotonic()
    experiment = set_budget(experiment, methods, keep=True)
    unpaid = time.monotonic() - begun + preflight(experiment, methods, cells, yes=options.yes)
    run_cells(experiment, methods, cells, started=STARTED + unpaid)
    return 0


def _estimate(options: argparse.Namespace) -> int:
    experiment, methods, cells = _planned(options)
    from repro.budget import set_budget
    from repro.estimate import estimate
    from repro.harness.progress import say
    from repro.stages import unfinished

    todo = unfinished(experiment, cells)
    if not todo:
        say(f"all {len(cells)} cells are done already")
        return 0
    experiment = set_budget(experiment, methods, keep=False)
    say(estimate(experiment, methods, todo).text())
    return 0


def _planned(options: argparse.Namespace) -> tuple["Experiment", dict[str, "Method"], list["Cell"]]:
    """Returns what `_experiment` does, and the cells that were asked for."""
    experiment, methods = _experiment(options)
    from repro.harness.cells import plan_cells
    from repro.planning import check_sizes

    names = _known(options.methods or list(DEFAULT_METHODS), list(methods))
    cells = plan_cells(experiment.config, methods, names, options.sizes, options.seeds)
    check_sizes(experiment)
    return experiment, methods, cells


def _status(options: argparse.Namespace) -> int:
    experiment, methods = _experiment(options)
    from repro.harness.cells import plan_cells, state_of

    begun = {path.stem.partition("-")[0] for folder in (experiment.results, experiment.runs) for path in folder.glob("*-seed*")}
    own = [name for name, method in methods.items() if method.variant is None or name in begun]
    names = _known(options.methods or own, list(methods))
    rows = []
    for cell in plan_cells(experiment.config, methods, names, options.sizes, options.seeds):
        state, remark = state_of(experiment, cell)
        rows.append((cell.name, state, remark))
    width = max(len(name) for name, _, _ in rows)
    for name, state, remark in rows:
        print(f"{name:<{width}}  {state:<11}  {remark}".rstrip())
    counts = {state: sum(row[1] == state for row in rows) for state in ("done", "running", "interrupted", "failed", "missing")}
    print(", ".join(f"{count} {state}" for state, count in counts.items()), f"  ({experiment.results})")
    return 0


def _sizes(options: argparse.Namespace) -> int:
    if options.allocation:
        options.set.append(f'allocation.rule="{options.allocation}"')
    experiment, _ = _experiment(options)
    from repro.sizes import describe_sizes

    print(describe_sizes(experiment, only=options.sizes, pruned=options.baselines, as_json=options.json))
    return 0


def _extract(options: argparse.Namespace) -> int:
    experiment, _ = _experiment(options)
    from repro.extraction import extract_subnet

    print(extract_subnet(experiment, size=options.size, seed=options.seed, out=options.out))
    return 0


def _experiment(options: argparse.Namespace) -> tuple["Experiment", dict[str, "Method"]]:
    """Loads the configuration and everything heavy; training steps that were set for this machine take the place of those written."""
    config = load_config(options.config, options.set)
    _quiet()
    from repro.budget import with_budget
    from repro.harness.cells import Experiment
    from repro.harness.places import Places, default_cache
    from repro.methods import METHODS

    places = Places(cache=options.cache or default_cache(), data_root=options.data_root, inception_weights=options.inception_weights)
    source = shlex.join(["--config", options.config, *(word for value in options.set for word in ("--set", value))])
    folders = {"results": options.results / config.name, "runs": options.runs / config.name}
    return with_budget(Experiment(config=config, methods=METHODS, source=source, places=places, **folders)), METHODS


def _quiet() -> None:
    """Silences what libraries say about themselves; it would tear the progress bar."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("diffusers", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _known(names: list[str], known: list[str]) -> list[str]:
    import difflib

    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ReproError(f"--methods {name}: no such method; did you mean '{near[0]}'? Known: {', '.join(known)}")
    return names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _floats(text: str) -> list[float]:
    return _numbers(text, float)


def _integers(text: str) -> list[int]:
    return _numbers(text, int)


def _numbers(text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(value) for value in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers; write them as 1,2") from error
