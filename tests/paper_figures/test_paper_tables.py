"""The tables of a paper, compiled by a real LaTeX in an article of one column and of two, and what they say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.record_factory import make_cifar10_records, make_record, make_records, quality, write_records

from paper_figures.__main__ import main
from paper_figures.latex import PACKAGES, latex_number, long_table
from paper_figures.markup import printable
from paper_figures.paper_tables import table_ablation, table_claims, table_main, table_overhead
from paper_figures.tables import results_table
from repro.experiment.records import read_records

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted(path.parent.name for path in ROOT.glob("results/*/tables"))
FLOATS = (table_main, table_overhead, table_claims, table_ablation)
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def compiled(folder, source, name="paper"):
    """Compiles a document in a folder as often as long tables need and returns its log; any error ends it."""
    (folder / f"{name}.tex").write_text(source)
    for _ in range(3):
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"{name}.tex"]
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / f"{name}.log").read_text(errors="replace")


def article(options, *names):
    floats, long = ([name for name in names if name.startswith("table_") is float_] for float_ in (True, False))
    inputs = [*(rf"\input{{{name}}}" for name in floats), r"\clearpage\onecolumn", *(rf"\input{{{name}}}" for name in long)]
    return f"\\documentclass[{options}]{{article}}\\usepackage{{{PACKAGES}}}\\begin{{document}}{''.join(inputs)}\\end{{document}}"


def check_fits(folder):
    names = sorted(path.stem for path in folder.glob("*.tex"))
    for options in ("onecolumn", "twocolumn"):
        log = compiled(folder, article(options, *names))
        assert not re.findall(r"^Overfull .*|^LaTeX Warning: .*", log, flags=re.MULTILINE), options
        (folder / "paper.tex").unlink()


@needs_latex
@pytest.mark.parametrize("name", COMMITTED)
def test_committed_tables_fit_an_article_of_one_column_and_of_two(name, tmp_path):
    for path in (ROOT / "results" / name / "tables").glob("*.tex"):
        shutil.copy(path, tmp_path)
    check_fits(tmp_path)


@needs_latex
def test_tables_of_many_sizes_of_literature_and_of_awkward_names_fit(tmp_path):
    awkward = make_record("my_own_method", 0.5, status="failed", reason=r"50% & {x}_y ~ ^ # $ \ <a|b>" + "\nline two", quality=None)
    many = [
        make_record(method, size, quality=quality([9.0])) for method in ("ofa", "random") for size in (0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2)
    ]
    write_records(tmp_path / "digits", [*make_records(), *many, awkward])
    write_records(tmp_path / "cifar10", make_cifar10_records())
    assert main(["tables", "--results", str(tmp_path), "--published", str(ROOT / "repro/shipped/published.toml")]) == 0
    for name in ("digits", "cifar10"):
        check_fits(tmp_path / name / "tables")


@needs_latex
def test_a_table_compiles_by_the_command_in_its_first_line(tmp_path):
    text = table_main(make_records())
    (tmp_path / "table_main.tex").write_text(text)
    command = text.splitlines()[0].partition("Alone: ")[2]
    done = subprocess.run(["bash", "-c", f"{command} < /dev/null"], check=False, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "table_main.pdf").stat().st_size > 1000, done.stdout[-1000:]


def test_latex_is_balanced_and_escaped():
    awkward = make_record("my_own_method", 0.5, status="failed", reason=r"50% & {x}_y ~ ^ # $ \ <a|b>" + "\nline two", quality=None)
    shown, notes = printable(results_table([*make_records(), awkward]))
    for text in (long_table(shown, notes, "Results of my_experiment", name="results", experiment="digits"), table_main(make_records())):
        opened, closed = (re.findall(rf"\\{word}\{{(\w+\*?)\}}", text.split("\n", 1)[1]) for word in ("begin", "end"))
        assert opened == closed[::-1] and opened[0] in ("landscape", "table")
        body = text.split("\n", 2)[2]
        assert not re.search(r"(?<!\\)[_#~]|(?<!\$)\^", body.replace("{tab:digits:table_main}", ""))
        assert len(re.findall(r"(?<!\\)\{", body)) == len(re.findall(r"(?<!\\)\}", body))


def test_numbers_have_real_signs_and_errors_in_small():
    assert latex_number("-59.9 % .. +3.1 %") == r"$-$59.9 \% .. +3.1 \%"
    assert latex_number("3.79 ± 0.49") == r"3.79\,{\tiny$\pm$\,0.49}"
    assert latex_number("4.24 x") == r"4.24\,$\times$"


def judged(method, values, size=0.5):
    return [make_record(method, size, seed, quality=quality([value])) for seed, value in enumerate(values)]


def cells_of(text, label):
    """The cells of a method in the part of qualities."""
    (line,) = [line for line in text.split(r"\midrule")[1].splitlines() if line.startswith(label)]
    return [cell.strip().removesuffix(r"\\").strip() for cell in line.split("&")[1:]]


def test_bold_are_the_best_and_what_cannot_be_told_from_it():
    records = [*judged("random", (3.0, 3.3, 2.8)), *judged("diff_pruning", (3.2, 3.2, 2.9)), *judged("ofa", (6.1, 6.5, 5.7))]
    records += judged("untrained", (1.0, 1.1, 1.2))
    text = table_main(records)
    bold = {label: r"\textbf" in cells_of(text, label)[0] for label in ("OFA", "Diff-Pruning", "Random", "Untrained, importance")}
    assert bold == {"OFA": False, "Diff-Pruning": True, "Random": True, "Untrained, importance": False}
    assert r"\textbf" not in table_main(make_records())  # of one seed each: nothing can be told


def test_one_training_is_paid_once_and_hours_of_a_busy_machine_are_marked():
    text = table_main(make_records())
    hours = text.split("Device-hours of the training")[1]
    joint = make_record("ofa_joint", None)["cost"]["device_hours"] + 4 * make_record("ofa", 0.5)["cost"]["device_hours"]
    assert rf"OFA & \multicolumn{{4}}{{r}}{{{joint:.4f}, one training for all}}" in hours
    assert r"$^\dagger$" not in hours and "GPU" not in text
    digits = (ROOT / "results/digits/tables/table_main.tex").read_text()
    assert r"$^\dagger$, one training for all" in digits and "Other work ran on the machine" in digits


def test_every_committed_table_of_a_paper_is_what_its_records_make():
    for name in COMMITTED:
        records = read_records(ROOT / "results" / name)
        for make in FLOATS:
            assert (ROOT / "results" / name / "tables" / f"{make.__name__}.tex").read_text() == make(records), (name, make.__name__)


def test_what_the_records_do_not_allow_is_left_out_with_a_line(tmp_path, capsys):
    write_records(tmp_path / "digits", [make_record("floor", None)])
    assert main(["tables", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "table_main: left out, no evaluated network; run `python -m repro run`" in out and "table_overhead: left out" in out
    assert not list((tmp_path / "digits/tables").glob("table_*.tex"))
