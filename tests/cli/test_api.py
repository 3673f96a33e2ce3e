"""A script has the command line's verbs, messages and exit codes; and a reader that leaves early ends a command quietly."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from repro import api
from repro.api import METHODS, Law, Method, Product, ReproError, main, needs_base, trained_alone, trained_once
from repro.experiment.cells import Experiment, plan_cells
from repro.launch.slurm import write_slurm
from repro.program import MODULE, Program

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
SCRIPT = """\
import sys

from repro.api import main, trained_alone

if __name__ == "__main__":
    sys.exit(main(trained_alone("own", "random", "pruned at random under a name of its own")))
"""


OF_SCRIPT = trained_alone("own", "random", "pruned at random under a name of its own")


class Cubic(Law):
    def shares(self, sizes):
        total = sum(1 / size**3 for size in sizes)
        return {size: 1 / size**3 / total for size in sizes}


def own(name="own"):
    return trained_alone(name, "random", "pruned at random")


def places(folder):
    return ["--config", str(TINY), "--results", str(folder / "results"), "--runs", str(folder / "runs")]


def script(folder, *words):
    path = folder / "own.py"
    path.write_text(SCRIPT)
    command = [sys.executable, path.name, words[0], *places(folder), *words[1:]]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder where a script has run its method, two cells at a time."""
    folder = tmp_path_factory.mktemp("script")
    done = script(folder, "run", "--sizes", "0.5", "--parallel-cells", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in api.__all__ if inspect.isfunction(getattr(api, name))])
def test_a_public_function_says_what_each_of_its_arguments_is(name):
    function = getattr(api, name)
    told = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (\w+):", told, flags=re.MULTILINE) == [*inspect.signature(function).parameters]


@pytest.mark.quick
def test_a_recipe_that_does_not_exist_is_refused_where_it_is_named():
    with pytest.raises(
        ReproError, match=r"trained_alone, method 'own': recipe: unknown value 'randon', use diff_pruning.*; did you mean 'random'"
    ):
        trained_alone("own", "randon", "pruned at random")
    trained_alone("own", "own", "by a criterion of its own", criterion=lambda _task: None)


@pytest.mark.slow
def test_the_pages_of_the_api_name_all_that_is_public(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "--output-directory", str(tmp_path), "repro.api"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "repro" / "api.html").read_text()
    assert all(f'id="{name}"' in page for name in api.__all__)


@pytest.mark.slow
def test_a_script_makes_the_cells_of_its_method_also_in_processes_of_their_own(ran, capsys):
    record = json.loads((ran / "results" / "tiny" / "own-0.5-seed0.json").read_text())
    assert record["status"] == "done" and record["quality"]
    assert (
        record["provenance"]["command"]
        == f"OMP_NUM_THREADS=1 python own.py run {' '.join(places(ran))} --methods own --sizes 0.5 --seeds 0"
    )
    assert main(OF_SCRIPT, arguments=["status", *places(ran), "--sizes", "0.5", "--methods", "base,own"]) == 0
    assert "2 done, 0 running" in capsys.readouterr().out


@pytest.mark.slow
def test_a_script_beside_a_run_of_another_configuration_ends_in_one_line(ran, capsys):
    assert main(OF_SCRIPT, arguments=["run", *places(ran), "--sizes", "0.5", "--set", "baseline_training.steps=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "made by another configuration" in line and "--results" in line


@pytest.mark.parametrize(
    ("methods", "words", "named"),
    [
        (own("ofa"), ["status"], "method 'ofa': there is one of this name already"),
        ([*own(), *own()], ["status"], "method 'own': there is one of this name already"),
        (own("../own"), ["status"], "method '../own': its records are named by it"),
        (own(), ["run", "--methods", "owm"], "--methods owm: no such method; did you mean 'own'?"),
        (trained_once("own", "a law that is none", law=print), ["estimate"], "is no sampling law"),
    ],
)
def test_a_mistake_in_a_script_is_one_line(tmp_path, capsys, methods, words, named):
    assert main(methods, arguments=[words[0], *places(tmp_path), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


def test_without_names_the_methods_of_a_script_are_run(tmp_path, capsys):
    one = Method(name="one", summary="the base once more", sizes=lambda _config: (0.5,), make=lambda *_: Product(), needs=needs_base)
    methods = (one, trained_once("two", "a cubic law", law=Cubic()))
    assert main(*methods, arguments=["status", *places(tmp_path), "--sizes", "0.5"]) == 0
    assert {"one-0.5-seed0", "two_joint-seed0", "two-0.5-seed0", "ofa-0.5-seed0"} <= set(capsys.readouterr().out.split())
    for default, named in (([], "one,two"), (["random", "one"], "random,one")):
        with pytest.raises(SystemExit):
            main(*methods, default=default, arguments=["run", "--help"])
        assert f"(default: {named};" in " ".join(capsys.readouterr().out.split())


def test_jobs_and_launchers_start_the_script(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = Program(words=("/there/own.py",), typed="python own.py")
    methods = METHODS | {method.name: method for method in own()}
    experiment = Experiment(config=tiny, methods=methods, results=tmp_path, runs=tmp_path, source="", program=program)
    write_slurm(experiment, plan_cells(experiment, ["own"], [0.5], [0]), tmp_path / "jobs", ["--config", "tiny"])
    text = (tmp_path / "jobs" / "cells.sbatch").read_text()
    assert "shared=(python /there/own.py run --config tiny)" in text and "`python own.py run --slurm`" in text
    assert program.for_launcher() == ["/there/own.py"] and MODULE.for_launcher() == ["--module", "repro"]


@pytest.mark.parametrize("command", ["repro status --config digits", "repro --help", "paper_figures overhead --results results"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(command):
    line = f"{sys.executable} -m {command} | true; exit ${{PIPESTATUS[0]}}"  # nobody reads by the time that it prints
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_is_not_done(tmp_path):
    words = ["repro", "run", "--config", str(ROOT / "tests" / "tiny.toml"), "--methods", "floor", *places(tmp_path)]
    line = f"{sys.executable} -m {shlex.join(map(str, words))} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 75 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("floor-seed0.json"))


def test_the_state_of_every_cell_is_told_without_torch(tmp_path):
    code = (
        "import sys; from repro.cli import main; code = main(sys.argv[1:]); "
        "print('loaded:', *{'torch', 'diffusers', 'deepspeed', 'scipy', 'sklearn', 'numpy'} & set(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, "status", *places(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
