"""The sessions that a user types; each shares one environment, made on first use.

Arguments after `--` reach the command: `nox -s baselines -- --config digits --seeds 0,1`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nox

HERE = Path(__file__).parent
OWN = HERE / ".venv"
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
HAS_PROJECT = "import importlib.metadata as m, torch; m.distribution('ofa-diffusion')"

# What the claims rest on, as (methods, further arguments). A threshold is judged at the size of Diff-Pruning's published network.
EVIDENCE = (
    ("floor,noise,base,untrained,untrained_random,random,slimmable,ofa_finetuned,ofa_long", ("--seeds", "0,1,2")),
    ("ofa,ofa_open,ofa_uniform,ofa_random,ofa_m1,diff_pruning,diff_pruning_short", ("--seeds", "0,1,2,3,4")),
    (
        "ofa_n7,ofa_n31,ofa_formula5,ofa_magnitude,ofa_prefix,ofa_regroup,ofa_m5,ofa_weighted,ofa_sandwich,ofa_distilled",
        ("--seeds", "0,1,2"),
    ),
    ("diff_pruning_averaged", ("--seeds", "0,1,2")),
    ("diff_pruning_t0,diff_pruning_t02,diff_pruning_distilled", ("--seeds", "0,1,2", "--sizes", "0.5")),
)
# The same where trainings are judged on their way, [curves] of a configuration: time to quality.
CURVES = (
    ("floor,noise,base,ofa,ofa_open,ofa_open_long,ofa_half,ofa_long,slimmable,diff_pruning,random,scratch", ("--seeds", "0,1,2,3,4")),
)

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; `-- -m quick` in a minute, `-- --all` with the slow ones, which guard what rarely changes."""
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")  # in the order of tests/conftest.py
    session.run(_python(session, "tests"), "-m", "pytest", *workers, *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, stop, fill, damage and cheat real runs, and print what was survived: under 20 minutes on two cores."""
    session.run(_python(session, "tests"), "-m", "faults", *session.posargs, env={"PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'tests'}"})


@nox.session
def damage(session: nox.Session) -> None:
    """Damage every file that a finished run leaves, and its images, and count what is not noticed: minutes on two cores."""
    session.run(_python(session, "tests"), "-m", "damage", *session.posargs, env={"PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'tests'}"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    python = _python(session, "lint")
    session.run(python, "-m", "ruff", "check", ".")
    session.run(python, "-m", "ruff", "format", "--check", ".")
    session.run(python, "-m", "mypy")


@nox.session
def reproduce_digits(session: nox.Session) -> None:
    """Train and judge everything on handwritten digits, then draw it: minutes on a CPU; `-- --config digits_edm` under EDM."""
    python = _python(session)
    request = ["--config", "digits", *session.posargs]
    session.run(python, "-m", "repro", "run", *request, *_lanes(session.posargs))
    _draw(session, python, request)


@nox.session
def reproduce_cifar10(session: nox.Session) -> None:
    """Estimate, check, run all of CIFAR-10 and draw it; `-- --config cifar10_short` in an hour of a GPU, `-- --config NAME` another."""
    python = _python(session)
    request = ["--config", "cifar10", "--methods", "floor,noise,base,ofa,diff_pruning,random", *session.posargs]
    try:
        session.run(python, "-m", "repro", "run", *request)
    except nox.command.CommandFailed as error:
        if error.reason == "Returned code 2":  # a mistake, or no GPU: nox itself would make it 1
            raise SystemExit(2) from error
        raise
    _draw(session, python, request)


@nox.session
def baselines(session: nox.Session) -> None:
    """Prune and train every size alone, by each baseline; `-- --config NAME` for another experiment than digits."""
    python = _python(session)
    methods = ("--methods", "diff_pruning,magnitude,random,scratch")
    session.run(python, "-m", "repro", "run", *methods, *session.posargs, *_lanes(session.posargs))


@nox.session
def evidence(session: nox.Session) -> None:
    """Run every ablation, rival, budget and curve that the claims rest on, three seeds or five, then judge them: hours of two cores."""
    python = _python(session)
    asked = _last(session.posargs, "--config")
    for config in [asked] if asked else ["digits", "digits_curves"]:
        rest = session.posargs if asked else ["--config", config, *session.posargs]
        for methods, arguments in CURVES if "curves" in _toml_of(config) else EVIDENCE:
            session.run(python, "-m", "repro", "run", "--methods", methods, *arguments, *rest, *_lanes(rest))
        session.run(python, "-m", "paper_figures", "claims", "--results", "results/local", "--experiment", _name_of(config))


@nox.session
def claims(session: nox.Session) -> None:
    """Judge every claim of the paper by the committed records and draw the ablations, in seconds."""
    session.run(_python(session), "-m", "paper_figures", "claims", *(session.posargs or ["--experiment", "digits"]))


@nox.session
def figures(session: nox.Session) -> None:
    """Redraw tables and figures from the records, in seconds."""
    session.run(_python(session), "-m", "paper_figures", *(session.posargs or ["all"]))


@nox.session
def report(session: nox.Session) -> None:
    """Write one page for each experiment, with its tables, figures, samples and records, in seconds."""
    session.run(_python(session), "-m", "paper_figures", "report", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write pages of `repro.api` from its docstrings, offline, into site/."""
    session.run(_python(session, "docs"), "-m", "pdoc", "--docformat", "google", "--output-directory", "site", "repro.api")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what the harness costs on this machine beside plain loops, in pairs: about ten minutes on a CPU."""
    session.run(_python(session, "bench"), "-m", "repro.bench", *session.posargs)


@nox.session
def overhead(session: nox.Session) -> None:
    """Print what one training run for all sizes costs beside one run for each."""
    session.run(_python(session), "-m", "paper_figures", "overhead", *session.posargs)


def _draw(session: nox.Session, python: str, request: Sequence[str]) -> None:
    """Draws the experiment that was run, and prints its training overhead."""
    chosen = ["--results", _last(request, "--results") or "results/local", "--experiment", _name_of(_last(request, "--config"))]
    session.run(python, "-m", "paper_figures", *chosen, "--show")
    session.run(python, "-m", "paper_figures", "overhead", *chosen)


def _lanes(arguments: Sequence[str]) -> list[str]:
    """Returns what has a CPU run two cells at a time, where a core would idle and the arguments do not say how a run is started.

    A cell comes to the same numbers beside another as alone where its configuration says how many threads it has; else torch would share
    the cores out among the cells, and other threads round otherwise.
    """
    flags = ("--parallel-cells", "--ranks", "--hostfile", "--slurm")
    told = any(word.partition("=")[0] in flags or "compute.threads" in word for word in arguments)
    threads = _threads(_last(["--config", "digits", *arguments], "--config"))
    idle = threads > 0 and _cores() >= 2 * threads and shutil.which("nvidia-smi") is None
    return ["--parallel-cells", "2"] if idle and not told else []


def _threads(config: str) -> int:
    """Returns how many threads a configuration asks for; 0 where it leaves that to torch, or where the run itself will refuse it."""
    try:
        return int(dict(_toml_of(config).get("compute", {})).get("threads", 0))
    except (OSError, TypeError, ValueError):
        return 0


def _cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last(arguments: Sequence[str], flag: str) -> str:
    """Returns the value of a flag where it stands last; empty where it is missing."""
    values = [
        after if word == flag else word.partition("=")[2]
        for word, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if word.partition("=")[0] == flag
    ]
    return values[-1] if values else ""


def _name_of(config: str) -> str:
    """Returns the name of a configuration, which names the folder of its records."""
    return str(_toml_of(config)["name"])


def _toml_of(config: str) -> dict[str, Any]:
    """Returns what a shipped configuration, or a TOML file, says."""
    shipped = HERE / "repro" / "configs" / f"{config}.toml"
    return nox.project.load_toml(shipped if shipped.exists() else config)


def _python(session: nox.Session, *groups: str) -> str:
    """Returns the interpreter to use: that of an environment which has the project already, else the checkout's own.

    So a cluster's CUDA environment serves, and torch is installed once, not once for each session.
    """
    active = [f"{os.environ[name]}/bin/python" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    for python in (sys.executable, *active):
        if _has_project(python):
            for group in groups:
                _install(session, python, nox.project.dependency_groups(PROJECT, group))
            return python
    python = str(OWN / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if not Path(python).exists():
        shutil.rmtree(OWN, ignore_errors=True)
        session.run(sys.executable, "-m", "venv", str(OWN), external=True)
    _install_once(session, python, "project", ["--editable", str(HERE)])
    for group in groups:
        _install_once(session, python, group, nox.project.dependency_groups(PROJECT, group))
    return python


def _has_project(python: str) -> bool:
    """Says whether an interpreter has the project and torch; -P keeps the checkout itself from answering."""
    try:
        return subprocess.run([python, "-P", "-c", HAS_PROJECT], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _install_once(session: nox.Session, python: str, name: str, requirements: Sequence[str]) -> None:
    """Installs into the checkout's own environment, once for each state of pyproject.toml."""
    state = hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()[:16]
    stamp = OWN / f".installed-{name}-{state}"
    if not stamp.exists():
        _install(session, python, requirements)
        stamp.touch()


def _install(session: nox.Session, python: str, requirements: Sequence[str]) -> None:
    session.run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements, external=True)
