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
from repro.errors import INTERRUPTED, InterruptionError, ReproError

if TYPE_CHECKING:
    from repro.harness.cells import Cell, Experiment, Method

Number = TypeVar("Number", int, float)
STARTED = time.monotonic()
WATCH_SEC = 2.0
DEFAULT_METHODS = ("floor", "noise", "base", "untrained", "untrained_random", "ofa", "diff_pruning", "random")
EPILOG = """examples:
  python -m repro run                                     the whole comparison on handwritten digits, about 15 minutes on two cores
  python -m repro run --methods ofa --sizes 0.5           one cell, and what it needs
  python -m repro run --methods ofa_open --seeds 0,1,2    an ablation; README, "What is compared", lists them
  python -m repro estimate --config cifar10               what it would take, here and on other devices
  python -m repro run --set ofa_training.steps=2000 --results results/local-2000 --runs runs-2000
  python -m repro run --config cifar10 --ranks 8 --yes    on eight GPUs of this machine; --hostfile FILE for several machines
  python -m repro run --config cifar10 --parallel-cells 8 eight cells at a time, a GPU each
  python -m repro run --config cifar10 --slurm jobs       writes a job array, a cell for each index; submits nothing
  python -m repro status --watch                          what is done, running, interrupted, failed, missing
  python -m repro sizes --allocation uniform              what each size realises
  python -m repro extract --size 0.5 --out subnet         a folder that diffusers can load
  python -m paper_figures                                 tables and figures from the records

exit codes: 0 done, 1 a cell failed (its record says why), 2 a mistake in what was asked for, 75 interrupted or busy: run it again"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except InterruptionError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        if "torch" not in sys.modules or not _lost_rank(error):
            raise
        print(f"error: another rank has gone ({str(error).splitlines()[0]}); run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing more may be written to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _lost_rank(error: RuntimeError) -> bool:
    from repro.harness.distributed import is_loss_of_a_rank

    return is_loss_of_a_rank(error)


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
        verb.add_argument("--ranks", type=int, default=1, metavar="N", help="processes on this machine that share every batch, a GPU each")
        verb.add_argument("--parallel-cells", type=int, default=1, metavar="N", help="independent cells at a time, on GPUs of their own")
        verb.add_argument("--hostfile", type=Path, metavar="FILE", help="ranks on other machines, through DeepSpeed's launcher")
        verb.add_argument("--slurm", type=Path, metavar="DIR", help="write a Slurm job array there, a cell for each index, and stop")
        verb.add_argument("--submit", action="store_true", help="with --slurm: submit it too")
    if name == "status":
        verb.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
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
    from repro.harness.interruption import listen

    _check_launch(options)
    listen()
    if options.hostfile or (options.ranks > 1 and options.parallel_cells == 1):
        from repro.launch import run_hosts, run_ranks

        load_config(options.config, options.set)  # a mistake is told once, not by every rank
        command = ["run", *_shared(options), *_asked(options)]
        return run_hosts(command, options.hostfile) if options.hostfile else run_ranks(command, options.ranks)
    experiment, methods, cells = _planned(options)
    if options.slurm:
        return _slurm(options, experiment, methods, cells)
    from repro.budget import set_budget
    from repro.harness import distributed
    from repro.harness.experiment import run_cells
    from repro.preflight import preflight

    begun = time.monotonic()
    if distributed.ranks() > 1:
        distributed.start(experiment.config.execution.rank_timeout_sec)
    experiment = set_budget(experiment, methods, keep=True)
    unpaid = time.monotonic() - begun + preflight(experiment, methods, cells, yes=options.yes)
    if options.parallel_cells > 1:
        from repro.side_by_side import run_side_by_side

        return run_side_by_side(experiment, methods, cells, _shared(options), count=options.parallel_cells, ranks=options.ranks)
    run_cells(experiment, methods, cells, started=STARTED + unpaid)
    if distributed.ranks() > 1:
        distributed.stop()
    return 0


def _check_launch(options: argparse.Namespace) -> None:
    """Makes sure that the ways to start a run do not contradict each other."""
    for flag, value in (("--ranks", options.ranks), ("--parallel-cells", options.parallel_cells)):
        if value < 1:
            raise ReproError(f"{flag} {value}: must be at least 1")
    several = [flag for flag, used in (("--ranks", options.ranks > 1), ("--parallel-cells", options.parallel_cells > 1)) if used]
    for flag, used in (("--hostfile", options.hostfile), ("--slurm", options.slurm)):
        if used and several:
            raise ReproError(
                f"{flag}: goes without {several[0]}; the {'file' if flag == '--hostfile' else 'section cluster'} says how many"
            )
    if options.hostfile and options.slurm:
        raise ReproError("--slurm: goes without --hostfile; the scheduler chooses the hosts")
    if options.submit and not options.slurm:
        raise ReproError("--submit: goes with --slurm DIR")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (several or options.hostfile or options.slurm):
        raise ReproError(f"{(several or ['--hostfile, --slurm'])[0]}: this process is a rank of a run already; leave it out")


def _slurm(options: argparse.Namespace, experiment: "Experiment", methods: dict[str, "Method"], cells: list["Cell"]) -> int:
    import subprocess

    from repro.harness.experiment import cells_to_run
    from repro.slurm import write_slurm

    todo = cells_to_run(experiment, methods, cells)
    if not todo:
        print(f"all {len(cells)} cells are done already")
        return 0
    script = write_slurm(experiment, methods, todo, options.slurm, _shared(options))
    print(f"{len(todo)} cells; submit them with {script}")
    return subprocess.run([str(script)], check=False).returncode if options.submit else 0


def _shared(options: argparse.Namespace) -> list[str]:
    """Returns the words of a command that all of its cells share."""
    words = ["--config", options.config, *(word for value in options.set for word in ("--set", value))]
    places = ("results", "runs", "cache", "data_root", "inception_weights")
    given = {name.replace("_", "-"): getattr(options, name) for name in places if getattr(options, name) is not None}
    return [*words, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def _asked(options: argparse.Namespace) -> list[str]:
    """Returns the words of a command that name its cells."""
    words = ["--methods", ",".join(options.methods)] if options.methods else []
    words += ["--sizes", ",".join(f"{size:g}" for size in options.sizes)] if options.sizes else []
    return [*words, "--seeds", ",".join(map(str, options.seeds)), *(["--yes"] if options.yes else [])]


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
    while True:
        text = _status_text(options, experiment, methods)
        print(f"\x1b[2J\x1b[H{text}" if options.watch else text, flush=True)
        if not options.watch:
            return 0
        time.sleep(WATCH_SEC)


def _status_text(options: argparse.Namespace, experiment: "Experiment", methods: dict[str, "Method"]) -> str:
    from repro.harness.cells import plan_cells, state_of

    begun = {path.stem.partition("-")[0] for folder in (experiment.results, experiment.runs) for path in folder.glob("*-seed*")}
    own = [name for name, method in methods.items() if method.variant is None or name in begun]
    names = _known(options.methods or own, list(methods))
    rows = []
    for cell in plan_cells(experiment.config, methods, names, options.sizes, options.seeds):
        state, remark = state_of(experiment, cell)
        rows.append((cell.name, state, remark))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {state:<11}  {remark}".rstrip() for name, state, remark in rows]
    counts = {state: sum(row[1] == state for row in rows) for state in ("done", "running", "interrupted", "failed", "missing")}
    return "\n".join([*lines, f"{', '.join(f'{count} {state}' for state, count in counts.items())}   ({experiment.results})"])


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
