"""The command line: `python -m paper_figures [VERB] [--results DIR] [--experiment NAME]`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paper_figures.cells import MissingRecordsError, Records
from paper_figures.compare import Side, compare_text
from paper_figures.curve_tables import until_all_text, write_time_to_quality
from paper_figures.curves import curves_in
from paper_figures.drawings import EVIDENCE, drawings_of, no_floor, write_figures
from paper_figures.evidence import Grid
from paper_figures.evidence_tables import claims_text, side_by_side_text, write_claims
from paper_figures.house_style import COLUMN, PAGE
from paper_figures.markup import markdown, printable
from paper_figures.overhead import write_overhead
from paper_figures.overhead_text import overhead_text
from paper_figures.paper_tables import table_ablation, table_claims, table_main, table_overhead, write_paper_table
from paper_figures.published import Published, load_published
from paper_figures.published_selection import Literature, literature_beside
from paper_figures.tables import results_table, with_published, write_tables
from repro.cli.completion import completed
from repro.cli.ending import ended
from repro.errors import ReproError
from repro.experiment.records import Record
from repro.files.shipped_files import PUBLISHED
from repro.grid import known_records

NARROWEST, WIDEST = 3.0, 12.0  # of a figure, in inches: its type stays of 7 and 8 pt

EPILOG = """\
Reads the records (one JSON file per cell) of each experiment and writes next to them, in FOLDER = results/NAME:
  FOLDER/tables/results.csv, .md, .tex          one row per method and size; the CSV has the raw numbers
  FOLDER/tables/overhead.csv                    what each approach paid for what
  FOLDER/tables/table_main.tex, table_overhead.tex   for a column of a paper; every other .tex is for its appendix
  FOLDER/figures/NAME.pdf, .png                 fid_vs_macs, fid_vs_params, overhead, samples
  FOLDER/figures/captions.md                    what the captions of the figures must say
and where there are ablations:
  FOLDER/tables/claims.*, ablations.*           the verdict on each claim of the paper, and every ablation beside its default
  FOLDER/tables/table_claims.tex, table_ablation.tex  the same for a column of a paper
  FOLDER/figures/NAME.pdf, .png                 ablations, balance, quality_vs_cost
where trainings were judged on their way ([curves] of a configuration):
  FOLDER/tables/time_to_quality.*               what each training took until a size was as good as a target
  FOLDER/figures/curves.pdf, .png               quality of each size over device-hours
and for `report`:
  FOLDER/report.html                            one page that holds tables, figures, samples and records, and needs no network
What the records do not allow is left out, with a line that says what to run. The same records give the same bytes.
Figures from the literature stand beside ours, marked as published, where the protocol is the same.

examples:
  python -m paper_figures                       everything, for every experiment
  python -m paper_figures tables --show         the table of results on the screen too
  python -m paper_figures --width 3.25in        figures for one column of a paper
  python -m paper_figures claims                the verdicts on the screen, each experiment's and side by side; their tables and figures
  python -m paper_figures overhead --experiment digits
  python -m paper_figures report                one page for each experiment, to be opened in a browser
  python -m paper_figures compare results/digits results/local/digits          two folders, such as two machines' or two versions'
  python -m paper_figures compare results/digits results/mine --pair ofa=mine  a method of one's own against one of these
"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks for beside a verb: the quality that time to quality is measured to, and the width of the figures in inches."""

    target: float | None
    width: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake is one line on stderr."""
    return ended(lambda: _run(completed(_parser()).parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    if options.verb == "compare" or options.folders or options.pair:
        return _compare(options)
    if options.width and options.verb not in DRAW:
        raise ReproError(f"--width: goes with {' and '.join(f'`{verb}`' for verb in DRAW)}, which draw figures, not with `{options.verb}`")
    folders = experiment_folders(options.results, options.experiment)
    published, read = _published(options), []
    for folder in folders:
        print(folder)
        records = Records(known_records(folder))
        read.append(records)
        literature = literature_beside(records, published)
        VERBS[options.verb](folder, records, literature, Asked(target=options.target, width=options.width))
        if options.show:
            _show(folder, records, literature)
    if options.verb == "claims" and (beside := side_by_side_text(read)):
        print("\n" + beside)
    return 0


def _compare(options: argparse.Namespace) -> int:
    """Prints what differs between two folders.

    Raises:
        ReproError: The arguments do not go together, or a folder holds no one experiment.
    """
    if options.verb != "compare":
        raise ReproError(f"{'--pair' if options.pair else options.folders[0]}: goes with `python -m paper_figures compare A B`")
    if len(options.folders) != 2:
        raise ReproError(f"compare: takes two folders, not {len(options.folders)}, such as results/digits results/local/digits")
    sides = []
    for folder in options.folders:
        found = experiment_folders(folder, options.experiment)
        if len(found) > 1:
            names = ", ".join(each.resolve().name for each in found)
            raise ReproError(f"{folder}: holds several experiments ({names}); name one of them: --experiment {found[0].resolve().name}")
        sides.append(Side.of(str(folder), known_records(found[0])))
    one, other = sides
    print(compare_text(one, other, options.pair))
    return 0


def experiment_folders(results: Path, experiment: str | None) -> list[Path]:
    """Returns the folders that hold records: `results` itself, or else those in it and in its `local/`.

    Raises:
        ReproError: There is none, or none of that name.
    """
    candidates = [results] if _holds_records(results) else [*results.glob("*/"), *(results / "local").glob("*/")]
    folders = sorted(folder for folder in candidates if _holds_records(folder))
    if not folders:
        raise ReproError(f"{results}: no experiment with records in it; run `python -m repro run` first or name a folder with --results")
    chosen = [folder for folder in folders if experiment in (None, folder.resolve().name)]
    if not chosen:
        names = ", ".join(sorted({folder.resolve().name for folder in folders}))
        raise ReproError(f"--experiment {experiment}: no such experiment in {results}; there are {names}")
    return chosen


def _published(options: argparse.Namespace) -> list[Published]:
    """Reads the published figures: the named file, or a `published.toml` in the folder of experiments or above it, or the package's."""
    if options.no_published:
        return []
    if options.published:
        return load_published(options.published)
    results = options.results.resolve()  # may be one experiment's folder, in results/ or in results/local/
    found = (folder / "published.toml" for folder in (results, *results.parents[:2]))
    return load_published(next((path for path in found if path.is_file()), PUBLISHED))


def _make_tables(folder: Path, records: Sequence[Record], literature: Literature, asked: Asked) -> None:
    _report(lambda: write_tables(folder, records, literature))
    for table in (table_main, table_overhead):
        _report(partial(write_paper_table, folder, records, table))
    if curves_in(Grid(records)).of:
        _report(lambda: write_time_to_quality(folder, records, asked.target))


def _make_all(folder: Path, records: Sequence[Record], literature: Literature, asked: Asked) -> None:
    _make_tables(folder, records, literature, asked)
    _report(lambda: write_overhead(folder, records))
    drawings = drawings_of(folder, records, literature.entries, asked.target)
    paths, notes = write_figures(folder, drawings, drawings, asked.width)
    for line in [*paths, *notes, *no_floor(records)]:
        print(f"  {line}")
    if Grid(records).variants():  # last, for it refuses records that cannot be compared
        _write_evidence(folder, records)


def _make_claims(folder: Path, records: Sequence[Record], literature: Literature, asked: Asked) -> None:
    """Prints the verdicts and writes the tables and figures of the evidence."""
    _write_evidence(folder, records)
    if curves_in(Grid(records)).of:
        _report(lambda: write_time_to_quality(folder, records, asked.target))
    drawings = drawings_of(folder, records, literature.entries, asked.target)
    paths, notes = write_figures(folder, drawings, EVIDENCE, asked.width)
    for line in [*paths, *notes]:
        print(f"  {line}")
    if drawings.keys() & set(EVIDENCE):
        print("\n" + claims_text(records))


def _make_report(folder: Path, records: Sequence[Record], literature: Literature, asked: Asked) -> None:
    """Writes the page of an experiment; its template is read only where it is wanted."""
    from paper_figures.report.page import write_report

    path = write_report(folder, records, literature, asked.target)
    print(f"  {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _write_evidence(folder: Path, records: Sequence[Record]) -> None:
    _report(lambda: write_claims(folder, records))
    if Grid(records).variants():
        for table in (table_claims, table_ablation):
            _report(partial(write_paper_table, folder, records, table))


def _print_overhead(folder: Path, records: Sequence[Record], literature: Literature, asked: Asked) -> None:
    print(overhead_text(records))
    if said := until_all_text(Grid(records), asked.target):
        print(said)


Verb = Callable[[Path, Sequence[Record], Literature, Asked], None]
VERBS: dict[str, Verb] = {
    "all": _make_all,
    "tables": _make_tables,
    "overhead": _print_overhead,
    "claims": _make_claims,
    "report": _make_report,
}


DRAW = ("all", "claims")


def _report(write: Callable[[], list[Path]]) -> None:
    """Prints the paths that were written, or why nothing was."""
    try:
        for path in write():
            print(f"  {path}")
    except MissingRecordsError as error:
        print(f"  {error}")


def _show(folder: Path, records: Sequence[Record], literature: Literature) -> None:
    table = with_published(results_table(records), literature.shown)
    if not table.empty:
        shown, notes = printable(table)
        print("\n" + markdown(shown, [*notes, *literature.footnotes], f"Results of the experiment {folder.resolve().name}"))


def _holds_records(folder: Path) -> bool:
    return next(folder.glob("*.json"), None) is not None


def _pairs(text: str) -> dict[str, str]:
    """Returns the methods of `A=B,C=D`."""
    pairs = [each.partition("=") for each in text.split(",")]
    if not all(mine and theirs for mine, _, theirs in pairs):
        raise argparse.ArgumentTypeError(f"must be A=B, a method of each folder, not {text!r}")
    return {mine: theirs for mine, _, theirs in pairs}


def _inches(text: str) -> float:
    """Returns the width of `3.25in` or `3.25`."""
    try:
        value = float(text.removesuffix("in"))
    except ValueError:
        value = 0.0
    if not NARROWEST <= value <= WIDEST:
        remedy = f"such as {COLUMN:g}in for one column or {PAGE:g}in for two"
        raise argparse.ArgumentTypeError(f"must be a width from {NARROWEST:g}in to {WIDEST:g}in, {remedy}, not {text!r}")
    return value


def _positive(text: str) -> float:
    """Returns a quality that may be asked for."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paper_figures",
        description="Makes the tables and figures from the records of finished experiments. Needs neither torch nor a GPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb_help = (
        "all: tables, overhead.csv and figures (default); tables: tables only; overhead: print the cost comparison; "
        "claims: print the verdicts, and write their tables and figures; report: write one page that holds everything; "
        "compare: print what differs between two folders"
    )
    parser.add_argument("verb", nargs="?", choices=(*VERBS, "compare"), default="all", help=verb_help)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of compare: two folders of records")
    pair_help = "of compare: which method of the first folder stands against which of the second (default: those of one name)"
    parser.add_argument("--pair", type=_pairs, metavar="A=B[,C=D]", help=pair_help)
    target_help = "the quality that time to quality is measured to (default: the last value of each independent run)"
    parser.add_argument("--target", type=_positive, metavar="QUALITY", help=target_help)
    width_help = "the width of every figure, such as 3.25in for one column or 6.75in for two (default: each one's own)"
    parser.add_argument("--width", type=_inches, metavar="INCHES", help=width_help)
    results_help = "folder of experiments, or one experiment's folder (default: results)"
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help=results_help)
    parser.add_argument("--experiment", metavar="NAME", help="only this experiment (default: every one that has records)")
    beside = parser.add_mutually_exclusive_group()
    published_help = "published figures to show beside ours (default: published.toml in the folder of experiments or above, or the shipped)"
    beside.add_argument("--published", type=Path, metavar="FILE", help=published_help)
    beside.add_argument("--no-published", action="store_true", help="show no published figures")
    parser.add_argument("--show", action="store_true", help="print the table of results as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
