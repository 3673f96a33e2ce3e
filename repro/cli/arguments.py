"""The parser of `python -m repro`: verbs, options and help. Nothing heavy is imported here."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from repro.cli.completion import completing
from repro.config import SHIPPED
from repro.config.sections import MOST_CHANNELS
from repro.methods.names import DEFAULT
from repro.program import MODULE, SCRIPT, Program

Number = TypeVar("Number", int, float)
NETWORKS = ", ".join(sorted(path.stem for path in (SHIPPED / "networks").glob("*.json")))
Verb = Callable[[argparse.Namespace], int]
DEFAULT_CONFIG = "digits"
EXAMPLES = (
    ("run", "the whole comparison on handwritten digits, about 15 minutes on two cores"),
    ("run --methods ofa --sizes 0.5", "one cell, and what it needs"),
    ("run --methods ofa_open --seeds 0,1,2", "an ablation; docs/concepts.md lists them"),
    ("estimate --config cifar10", "what it would take, here and on other devices"),
    ("run --dry-run", "the cells in their order and what they would take; starts nothing"),
    ("run --set ofa_training.steps=2000 --results results/local-2000 --runs runs-2000", ""),
    ("run --config cifar10 --ranks 8 --yes", "on eight GPUs of this machine; --hostfile FILE for several machines"),
    ("run --config cifar10 --parallel-cells 8", "eight cells at a time, a GPU each"),
    ("run --config cifar10 --slurm jobs", "writes a job array, a cell for each index; submits nothing"),
    ("status --watch", "what is done, running, interrupted, failed, missing"),
    ("sizes --allocation uniform", "what each size realises"),
    ("sizes --network stable-diffusion-1.5", "what the sizes of that network would be"),
    ("sizes --max-params 120k", "the largest size within a budget, and what training exactly it would take"),
    ("choose --max-params 100k --out subnet", "the best recorded subnet within a budget, as a folder that diffusers can load"),
    ("extract --size 0.5 --out subnet", "a folder that diffusers can load"),
)
EXIT_CODES = (
    "exit codes: 0 done, 1 a cell failed (its record says why), 2 a mistake in what was asked for, 75 interrupted or busy: run it again, "
    "130 interrupted from the keyboard: likewise"
)

DEFAULT_PLACES = {"results": Path("results/local"), "runs": Path("runs")}


def parser(
    verbs_by_name: Mapping[str, tuple[Verb, str]], *, program: Program = MODULE, default: Sequence[str] = DEFAULT
) -> argparse.ArgumentParser:
    """Builds the parser.

    Args:
        verbs_by_name: What a verb does with its options, and its summary.
        program: What the command begins with.
        default: The methods that are run where none is named.
    """
    root = argparse.ArgumentParser(
        prog=program.typed,
        description="Trains OFA-Diffusion Compression (arXiv 2604.12668) beside per-size independent pruning; records cost, FID and MACs.",
        epilog=(_examples(program) if program.words == MODULE.words else "") + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = root.add_subparsers(required=True, metavar="VERB")
    shipped = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    for name, (function, summary) in verbs_by_name.items():
        sentence = summary[0].upper() + summary[1:] + "."
        verb = verbs.add_parser(name, help=summary, description=sentence, epilog=EXIT_CODES, allow_abbrev=False)
        verb.set_defaults(verb=function)
        config = verb.add_argument(
            "--config",
            default=None if name == "sizes" else DEFAULT_CONFIG,  # None: not given, beside --network
            metavar="NAME",
            help=f"a shipped configuration ({', '.join(shipped)}) or the path of a TOML file (default: {DEFAULT_CONFIG})",
        )
        completing(config, shipped)
        verb.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated")
        verb.add_argument(
            "--results",
            type=Path,
            default=DEFAULT_PLACES["results"],
            metavar="DIR",
            help="folder of records, which go into a folder of the experiment's name (default: %(default)s)",
        )
        verb.add_argument(
            "--runs",
            type=Path,
            default=DEFAULT_PLACES["runs"],
            metavar="DIR",
            help="folder of weights and checkpoints, likewise (default: %(default)s)",
        )
        verb.add_argument(
            "--cache",
            type=Path,
            metavar="DIR",
            help="folder of downloads, decoded images and features (default: ofa-diffusion in your cache folder)",
        )
        verb.add_argument("--data-root", type=Path, metavar="DIR", help="an offline copy of the data set, in place of its download")
        verb.add_argument("--inception-weights", type=Path, metavar="FILE", help="Inception's weights, in place of their download")
        _add_options(name, verb, default)
    return root


def _examples(program: Program) -> str:
    """Returns commands to start from, as the program is typed."""
    commands = [(f"{program.typed} {words}", says) for words, says in EXAMPLES]
    figures = "ofa-figures" if program == SCRIPT else "python -m paper_figures"
    lines = [f"  {command:<55} {says}".rstrip() for command, says in [*commands, (figures, "tables and figures from the records")]]
    return "\n".join(["examples:", *lines, "", ""])


def _add_options(name: str, verb: argparse.ArgumentParser, default: Sequence[str]) -> None:
    if name in ("run", "estimate", "status"):
        verb.add_argument(
            "--methods",
            type=_names,
            metavar="A,B",
            help=f"methods (default: {','.join(default)}; status: all but ablations not begun)",
        )
        verb.add_argument("--sizes", type=_floats, metavar="P,Q", help="sizes (default: all that the configuration reports)")
        verb.add_argument("--seeds", type=_integers, default=[0], metavar="K,L", help="seeds (default: 0)")
    if name == "estimate":
        verb.add_argument("--gpus", type=int, metavar="N", help="what the joint run and a run for each size would take on N GPUs, on paper")
    if name == "run":
        verb.add_argument("--yes", action="store_true", help="start without asking, however long it takes")
        verb.add_argument("--ranks", type=int, default=1, metavar="N", help="data-parallel processes on this machine, a GPU each")
        verb.add_argument("--parallel-cells", type=int, default=1, metavar="N", help="cells to run concurrently, each on GPUs of its own")
        verb.add_argument("--hostfile", type=Path, metavar="FILE", help="ranks on other machines, through DeepSpeed's launcher")
        verb.add_argument("--slurm", type=Path, metavar="DIR", help="write a Slurm job array there, one index per cell, and stop")
        verb.add_argument("--submit", action="store_true", help="with --slurm: submit it too")
        verb.add_argument("--notify", metavar="COMMAND", help="a shell command for the end, of whatever kind; it finds OFA_STATUS set")
        verb.add_argument(
            "--dry-run", action="store_true", help="show the cells in their order and what they would take, and start nothing"
        )
    if name == "status":
        verb.add_argument("--watch", action="store_true", help="refresh every two seconds, until Ctrl-C")
        verb.add_argument("--json", action="store_true", help="print JSON, for other programs")
    if name == "sizes":
        verb.add_argument("--allocation", metavar="RULE", help="gradual, formula5 or uniform (default: the configuration's)")
        verb.add_argument("--sizes", type=_floats, metavar="P,Q", help="sizes (default: all that the configuration trains)")
        verb.add_argument("--baselines", action="store_true", help="prune to the reported sizes too, and show published networks beside")
        verb.add_argument("--recorded", action="store_true", help="show the recorded networks, from their records alone, without torch")
        verb.add_argument("--json", action="store_true", help="print JSON, with the width of every layer that a size narrows")
        verb.add_argument("--network", metavar="NAME", help=f"a network in place of --config's: {NETWORKS}, or a folder of diffusers")
        verb.add_argument("--sample-size", type=_sides, metavar="S|HxW", help="with --network: the images or latents that MACs count on")
    if name in ("choose", "sizes"):
        for flag, unit in (("params", "parameters"), ("macs", "MACs of one image")):
            verb.add_argument(f"--max-{flag}", type=_quantity, metavar="N", help=f"the most {unit}, such as 20M or 3.4G")
        verb.add_argument("--max-latency-ms", type=float, metavar="MS", help="the highest latency of one image, measured on this machine")
        verb.add_argument("--max-memory-mb", type=float, metavar="MB", help="the highest peak memory: weights and activations of one image")
    if name == "choose":
        verb.add_argument("--seed", type=int, default=0, metavar="K", help="the seed of the joint training run (default: 0)")
        verb.add_argument("--measure", action="store_true", help="measure the quality of the size in between")
        verb.add_argument("--out", type=Path, metavar="DIR", help="extract it into this folder, which must not exist")
        verb.add_argument("--between", action="store_true", help="with --out: take the size in between")
        verb.add_argument("--onnx", action="store_true", help="with --out: put an ONNX file beside it, checked in onnxruntime")
    if name == "extract":
        verb.add_argument("--size", type=float, required=True, metavar="P", help="one of the trained sizes")
        verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write, which must not exist")
        verb.add_argument("--seed", type=int, default=0, metavar="K", help="the seed of the joint training run (default: 0)")
        verb.add_argument("--onnx", action="store_true", help="put an ONNX file beside it, checked against torch in onnxruntime")


def _sides(text: str) -> tuple[int, int]:
    """Reads the size of an image, such as 64 or 64x96."""
    sides = text.lower().replace(" ", "").split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and 1 <= int(side[:9]) <= MOST_CHANNELS for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is no size of an image; write it as 64 or 64x96, height first")
    return int(sides[0]), int(sides[-1])


def _quantity(text: str) -> float:
    """Reads a count, such as 20M."""
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1.0)
    try:
        return float(text[:-1] if scale > 1 else text) * scale
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no count; write it as 20000000, 20M or 3.4G") from error


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
