"""The command line: `python -m repro VERB --config NAME`.

Only the parser is built before a verb is known, so that `--help` is quick.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from repro.cli.arguments import DEFAULT_CONFIG, DEFAULT_PLACES, Verb, parser
from repro.cli.completion import completed
from repro.cli.ending import ended, notify
from repro.config import load_config
from repro.config.sections import check
from repro.errors import INTERRUPTED, ReproError
from repro.methods.names import DEFAULT
from repro.program import MODULE, SCRIPT, Program
from repro.runtime.environment import set_for_cublas
from repro.size_text import size_text
from repro.text_table import text_table

if TYPE_CHECKING:
    from repro.config import Config
    from repro.experiment.cells import Cell, Experiment, Method
    from repro.experiment.parts import Part, Parts

STARTED = time.monotonic()
WATCH_SEC = 2.0
MOST_GPUS = 2**16
MOST_PROCESSES = 1024  # on one machine


def main(
    arguments: Sequence[str] | None = None,
    *,
    own: Sequence["Method"] = (),
    parts: Sequence["Part"] = (),
    default: Sequence[str] = (),
    program: Program = MODULE,
) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: The words of the command; None takes those that the process was started with.
        own: Methods beside those of the package.
        parts: Metrics, samplers and other parts beside those of the package.
        default: The methods that are run where `--methods` names none; where this is empty, those of one's own, or else the package's.
        program: What the command begins with.
    """
    default = list(default) or [method.name for method in own if method.judged] or list(DEFAULT)

    given = argparse.Namespace(own=own, parts=parts, default=default, program=program, notify=None)

    def command() -> int:
        options = completed(parser(VERBS, program=program, default=default)).parse_args(arguments, given)
        return int(options.verb(options))

    words = sys.argv[1:] if arguments is None else arguments
    cut_short = words[:1] == ["run"] and {"-h", "--help"}.isdisjoint(words)  # the same command resumes an unfinished run
    code = 1
    try:
        code = ended(command, unread=INTERRUPTED if cut_short else 0)
    finally:  # after what nobody foresaw, too
        if given.notify:
            notify(given.notify, code)
    return code


def console() -> int:
    """Runs one command of the console script `ofa-diffusion`."""
    return main(program=SCRIPT)


def _run(options: argparse.Namespace) -> int:
    from repro.runtime.signals import listen

    _check_launch(options)
    if options.dry_run:
        return _dry_run(options)
    listen()
    if options.hostfile or (options.ranks > 1 and options.parallel_cells == 1):
        from repro.launch.processes import run_hosts, run_ranks

        _config(options)  # a mistake is told once, not by every rank
        command = ["run", *_shared(options), *_asked(options)]
        if options.hostfile:
            return run_hosts(options.program, command, options.hostfile)
        return run_ranks(options.program, command, options.ranks)
    experiment, cells = _planned(options)
    if options.slurm:
        return _slurm(options, experiment, cells)
    from repro.budget.hours import set_budget
    from repro.budget.preflight import preflight
    from repro.experiment.run import run_cells
    from repro.launch.parallel_cells import deal, run_side_by_side
    from repro.runtime import distributed

    lanes = deal(options.parallel_cells, options.ranks) if options.parallel_cells > 1 else []
    distributed.engine_library()  # its import belongs to the start of the process, not to the first training that needs it
    begun = time.monotonic()
    if distributed.ranks() > 1:
        distributed.start(experiment.config.execution.rank_timeout_sec)
    experiment = set_budget(experiment, keep=True)
    unpaid = time.monotonic() - begun + preflight(experiment, cells, yes=options.yes)
    if lanes:
        return run_side_by_side(experiment, cells, _shared(options), lanes=lanes, ranks=options.ranks)
    run_cells(experiment, cells, started=STARTED + unpaid)
    if distributed.ranks() > 1:
        distributed.stop()
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    """Prints the cells that a run would make, in the order in which one at a time is made, and what they would take."""
    experiment, cells = _planned(options)
    from repro.experiment.cells import state_of

    rows = [(f"{number}", cell.name, *state_of(experiment, cell)) for number, cell in enumerate(cells, start=1)]
    print("\n".join(text_table(rows, "rlll")) + "\n", flush=True)
    return _say_estimate(experiment, cells)


def _check_launch(options: argparse.Namespace) -> None:
    """Checks that the flags which start processes do not contradict each other."""
    for flag, value in (("--ranks", options.ranks), ("--parallel-cells", options.parallel_cells)):
        check(f"{flag} {value}", 1 <= value <= MOST_PROCESSES, f"must be at least 1 and at most {MOST_PROCESSES:,}")
    several = [flag for flag, used in (("--ranks", options.ranks > 1), ("--parallel-cells", options.parallel_cells > 1)) if used]
    for flag, used in (("--hostfile", options.hostfile), ("--slurm", options.slurm)):
        if used and several:
            raise ReproError(
                f"{flag}: goes without {several[0]}; the {'file' if flag == '--hostfile' else 'section cluster'} says how many"
            )
    if options.hostfile and options.slurm:
        raise ReproError("--slurm: goes without --hostfile; the scheduler chooses the hosts")
    if options.dry_run and options.notify:
        raise ReproError("--notify: goes without --dry-run, which runs nothing; leave one of the two out")
    if options.slurm and options.notify:
        raise ReproError("--notify: goes without --slurm, whose jobs end later; --set 'cluster.options=[\"--mail-type=END,FAIL\"]' does")
    if options.submit and not options.slurm:
        raise ReproError("--submit: goes with --slurm DIR")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (several or options.hostfile or options.slurm):
        raise ReproError(f"{(several or ['--hostfile, --slurm'])[0]}: this process is a rank of a run already; leave it out")


def _slurm(options: argparse.Namespace, experiment: "Experiment", cells: list["Cell"]) -> int:
    import subprocess

    from repro.experiment.run import cells_to_run
    from repro.launch.slurm import resources, write_slurm

    todo = cells_to_run(experiment, cells)
    if not todo:
        print(f"all {len(cells)} cells are done already")
        return 0
    script = write_slurm(experiment, todo, options.slurm, _shared(options))
    print(f"{resources(experiment.config.cluster)}\n{len(todo)} cells; submit them with {script}")
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
    words += ["--sizes", ",".join(map(size_text, options.sizes))] if options.sizes else []
    return [*words, "--seeds", ",".join(map(str, options.seeds)), *(["--yes"] if options.yes else [])]


def _estimate(options: argparse.Namespace) -> int:
    if options.gpus is None:
        return _say_estimate(*_planned(options))
    check(f"--gpus {options.gpus}", 1 <= options.gpus <= MOST_GPUS, f"must be at least 1 and at most {MOST_GPUS:,}")
    experiment = _experiment(options)
    from repro.budget.scale import scaling

    print(scaling(experiment, options.gpus))
    return 0


def _say_estimate(experiment: "Experiment", cells: list["Cell"]) -> int:
    from repro.budget.estimate import estimate
    from repro.budget.hours import set_budget
    from repro.budget.work import unfinished
    from repro.runtime.progress import say

    todo = unfinished(experiment, cells)
    if not todo:
        say(f"all {len(cells)} cells are done already")
        return 0
    experiment = set_budget(experiment, keep=False)
    say(estimate(experiment, todo).text())
    return 0


def _planned(options: argparse.Namespace) -> tuple["Experiment", list["Cell"]]:
    """Returns what `_experiment` does, and the cells that were asked for."""
    experiment = _experiment(options)
    from repro.experiment.cells import plan_cells
    from repro.methods.plan import check_sizes

    cells = plan_cells(experiment, options.methods or options.default, options.sizes, options.seeds)
    check_sizes(experiment)
    return experiment, cells


def _status(options: argparse.Namespace) -> int:
    experiment = _experiment(options)
    while True:
        text = _status_text(options, experiment)
        print(f"\x1b[2J\x1b[H{text}" if options.watch and sys.stdout.isatty() else text, flush=True)
        if not options.watch:
            return 0
        time.sleep(WATCH_SEC)


def _status_text(options: argparse.Namespace, experiment: "Experiment") -> str:
    """Returns the state of every cell, as a table or, where it was asked for, as one line of JSON."""
    import json

    from repro.experiment.cells import plan_cells, state_of

    begun = {path.stem.partition("-")[0] for folder in (experiment.results, experiment.runs) for path in folder.glob("*-seed*")}
    own = [name for name, method in experiment.methods.items() if method.variant is None or name in begun]
    cells = plan_cells(experiment, options.methods or own, options.sizes, options.seeds)
    rows = [(cell.name, *state_of(experiment, cell)) for cell in cells]
    counts = {state: sum(row[1] == state for row in rows) for state in ("done", "running", "interrupted", "failed", "missing")}
    if options.json:
        listed = [{"cell": name, "state": state, "remark": remark} for name, state, remark in rows]
        return json.dumps({"results": str(experiment.results), "counts": counts, "cells": listed})
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join([*text_table(rows, "lll"), f"{total}   ({experiment.results})"])


def _sizes(options: argparse.Namespace) -> int:
    budget = _budget(options)
    if options.network:
        from repro.deliver.network_sizes import describe_network

        unread = {"--config": options.config, "--set": options.set, "--max-...": budget}
        unread |= {"--baselines": options.baselines, "--recorded": options.recorded}
        for flag, given in unread.items():
            if given:
                raise ReproError(f"{flag}: goes without --network, whose sizes follow from its own file; leave one of the two out")
        _quiet()
        about = {"only": options.sizes, "rule": options.allocation, "as_json": options.json, "sample_size": options.sample_size}
        print(describe_network(options.network, **about))
        return 0
    if options.sample_size:
        raise ReproError("--sample-size: goes with --network; a configuration's is --set network.sample_size=...")
    options.config = options.config or DEFAULT_CONFIG
    if options.recorded:
        from repro.deliver.recorded_sizes import describe_recorded

        for flag, given in {"--allocation": options.allocation, "--baselines": options.baselines, "--max-...": budget}.items():
            if given:
                raise ReproError(f"{flag}: goes without --recorded, which builds no network; leave one of the two out")
        print(describe_recorded(_experiment(options), only=options.sizes, as_json=options.json))
        return 0
    if options.allocation:
        options.set.append(f'allocation.rule="{options.allocation}"')
    experiment = _experiment(options)
    if budget:
        from repro.deliver.largest_size import describe_largest

        for flag, given in {"--sizes": options.sizes, "--baselines": options.baselines}.items():
            if given:
                raise ReproError(f"{flag}: goes without a budget such as --max-params, which says the size; leave one of the two out")
        print(describe_largest(experiment, budget, as_json=options.json))
        return 0
    from repro.deliver.sizes import describe_sizes

    print(describe_sizes(experiment, only=options.sizes, pruned=options.baselines, as_json=options.json))
    return 0


def _extract(options: argparse.Namespace) -> int:
    experiment = _experiment(options)
    from repro.deliver.extract import extract_subnet

    print(extract_subnet(experiment, size=options.size, seed=options.seed, out=options.out, onnx=options.onnx))
    return 0


def _experiment(options: argparse.Namespace) -> "Experiment":
    """Loads the configuration and everything heavy; training steps that were set for this machine take the place of those written."""
    config, parts = _config(options)
    _quiet()
    set_for_cublas()
    from repro.budget.hours import with_budget
    from repro.experiment.cells import Experiment
    from repro.files.places import Places, default_cache

    places = Places(cache=options.cache or default_cache(), data_root=options.data_root, inception_weights=options.inception_weights)
    source = shlex.join(["--config", options.config, *(word for value in options.set for word in ("--set", value)), *_places(options)])
    folders = {"results": options.results / config.name, "runs": options.runs / config.name}
    known = {"methods": _methods(options.own), "parts": parts, "program": options.program}
    return with_budget(Experiment(config=config, source=source, places=places, **folders, **known))


def _config(options: argparse.Namespace) -> "tuple[Config, Parts]":
    """Loads the configuration, and the parts that it may name."""
    from repro.experiment.parts import parts_of

    parts = parts_of(options.parts)
    return load_config(options.config, options.set, parts.names, parts.architectures), parts


def _places(options: argparse.Namespace) -> list[str]:
    """Returns the words that name the folders and files which are not where they are by default."""
    given = {name: getattr(options, name) for name in ("results", "runs", "cache", "data_root", "inception_weights")}
    words = ([f"--{name.replace('_', '-')}", str(path)] for name, path in given.items() if path not in (None, DEFAULT_PLACES.get(name)))
    return [word for pair in words for word in pair]


def _methods(own: Sequence["Method"]) -> "Mapping[str, Method]":
    """Returns the methods of the package and those of one's own, by name.

    Raises:
        ReproError: One of one's own has a name that another has, or that a file cannot have.
    """
    from repro.grid import METHODS

    methods = dict(METHODS)
    for method in own:
        if not method.name.isidentifier():
            raise ReproError(f"method '{method.name}': its records are named by it; give it a name of letters, digits and _")
        if method.name in methods:
            raise ReproError(f"method '{method.name}': there is one of this name already; give yours another")
        methods[method.name] = method
    return methods


def _quiet() -> None:
    """Silences warnings and logs of libraries, which would break the progress bar."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("diffusers", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _budget(options: argparse.Namespace) -> dict[str, float]:
    """Returns the limits that were given."""
    limits = {"params": options.max_params, "macs": options.max_macs}
    limits |= {"latency_ms": options.max_latency_ms, "memory_mb": options.max_memory_mb}
    return {key: limit for key, limit in limits.items() if limit is not None}


def _choose(options: argparse.Namespace) -> int:
    if not options.out and (options.onnx or options.between):
        raise ReproError(f"{'--onnx' if options.onnx else '--between'}: goes with --out DIR")
    experiment = _experiment(options)
    from repro.deliver.choice_text import choice_text
    from repro.deliver.choose import choose

    choice = choose(experiment, _budget(options), seed=options.seed)
    if options.measure:
        from repro.deliver.between import measure_between

        choice = measure_between(experiment, choice)
    print(choice_text(experiment, choice))
    if options.out:
        from repro.deliver.between import take

        print(f"\n{take(experiment, choice, out=options.out, between=options.between, onnx=options.onnx)}")
    return 0


VERBS: dict[str, tuple[Verb, str]] = {
    "run": (_run, "run cells of the grid: skip what is done, go on with what was interrupted"),
    "estimate": (_estimate, "show what a run would take: images, PFLOP, GB and device-hours, here and on other devices"),
    "status": (_status, "show the state of every cell"),
    "sizes": (_sizes, "show what each size realises: params, MACs, widths"),
    "choose": (_choose, "pick the best recorded subnet within a budget, and extract it"),
    "extract": (_extract, "save the subnet of a size as a folder that diffusers can load"),
}
