"""What is built from the checkout works where it is installed, outside of any checkout."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.record_factory import make_cifar10_records, write_records

from repro.runtime import provenance

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("repro", "baselines", "paper_figures")
PAGES = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
SMALL = ("--set", "evaluation.samples=40", "--set", "evaluation.sampler_steps=3", "--set", "evaluation.sampling_seeds=[0]")


def done(*command, cwd, **variables):
    """Runs a command away from the checkout and returns what it printed."""
    apart = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment, command = apart | {"OMP_NUM_THREADS": "1"} | variables, [str(word) for word in command]
    ended = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the checkout, and a wheel of what is in it."""
    place = tmp_path_factory.mktemp("built")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", *PAGES):
        shutil.copy(ROOT / name, place / "checkout")
    sdist = place / done(sys.executable, "-c", BUILD, "build_sdist", place, cwd=place / "checkout").splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    unpacked = place / sdist.name.removesuffix(".tar.gz")
    wheel = place / done(sys.executable, "-c", BUILD, "build_wheel", place, cwd=unpacked).splitlines()[-1]
    return SimpleNamespace(wheel=wheel, unpacked=unpacked)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix()
        for name in PACKAGES
        for path in (folder / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        about = [name for name in wheel.namelist() if ".dist-info/" in name]
        assert set(wheel.namelist()) - set(about) == files_of(ROOT) == files_of(built.unpacked)
        (entries,) = [name for name in about if name.endswith("entry_points.txt")]
        assert {"ofa-diffusion = repro.cli:console", "ofa-figures = paper_figures.__main__:main"} < set(
            wheel.read(entries).decode().split("\n")
        )
    assert all((built.unpacked / name).read_bytes() == (ROOT / name).read_bytes() for name in PAGES)
    assert not (built.unpacked / "tests").exists()


@pytest.mark.quick
def test_the_citation_is_of_this_version():
    said = dict(line.split(": ", 1) for line in (ROOT / "CITATION.cff").read_text().splitlines() if re.match(r"(version|license): ", line))
    assert said == {"version": PROJECT["version"], "license": PROJECT["license"]}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel in an environment that sees the libraries of this one, but not the checkout; it lies in a checkout of something else."""
    place = tmp_path_factory.mktemp("installed")
    commit = ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--allow-empty", "--message", "other")
    for words in (("init", "--quiet"), commit):
        done("git", *words, cwd=place)
    done(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    # A line of a .pth file is a folder whose own .pth files, such as that of an editable installation, are not read.
    (own / "libraries.pth").write_text("\n".join(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})))
    done(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built.wheel, cwd=place)
    (place / "empty").mkdir()
    return SimpleNamespace(folder=place / "empty", bin=place / "venv" / "bin", own=own)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_commands_work_in_an_empty_folder(installed):
    folder, ours, figures = installed.folder, installed.bin / "ofa-diffusion", installed.bin / "ofa-figures"
    (folder / "tiny.toml").write_text((ROOT / "tests" / "tiny.toml").read_text().replace("trial = true\n", ""))
    where = done(installed.bin / "python", "-c", "import repro, baselines; print(repro.__file__, baselines.__file__)", cwd=folder)
    assert all(Path(path).is_relative_to(installed.own) for path in where.split())
    assert done(ours, "--help", cwd=folder).startswith("usage: ofa-diffusion ")
    assert "PFLOP" in done(ours, "estimate", "--config", "digits", cwd=folder)
    done(ours, "run", "--config", "digits", "--methods", "floor,base", *SMALL, cwd=folder)  # by the shipped base and classifier
    done(ours, "run", "--config", "tiny.toml", "--methods", "floor,base,ofa", "--sizes", "0.5", cwd=folder)
    assert "done" in done(ours, "status", "--config", "tiny.toml", "--methods", "ofa", cwd=folder)
    done(ours, "extract", "--config", "tiny.toml", "--size", "0.5", "--out", "half", cwd=folder)
    assert (folder / "half" / "README.md").exists()
    assert "| OFA" in done(figures, "--results", "results/local", "--experiment", "tiny", "--show", cwd=folder)
    done(figures, "report", "--results", "results/local", cwd=folder)
    assert (folder / "results" / "local" / "tiny" / "report.html").exists()
    record = json.loads((folder / "results" / "local" / "tiny" / "ofa-0.5-seed0.json").read_text())["provenance"]
    assert (record["git_commit"], record["git_dirty"], record["packages"]["ofa-diffusion"]) == (None, None, PROJECT["version"])
    assert record["command"].startswith("OMP_NUM_THREADS=1 ofa-diffusion run --config tiny.toml")
    assert {path.name for path in folder.iterdir()} == {"tiny.toml", "half", "results", "runs"}


@pytest.mark.slow
def test_the_published_figures_are_installed(installed, tmp_path):
    folder = write_records(tmp_path / "cifar10", make_cifar10_records())
    done(installed.bin / "ofa-figures", "tables", "--results", tmp_path, cwd=tmp_path)
    assert "Random (published)" in (folder / "tables" / "results.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("status",), ("choose", "--help"), ("--help",)])
def test_a_command_starts_in_under_half_a_second(installed, words, tmp_path):
    """Of a processor's time, so that a busy machine does not count."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done(installed.bin / "ofa-diffusion", *words, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.5


# Completion


def completions(line, folder, module="repro"):
    """What a shell is told where the cursor stands behind `line`."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "said"), "PYTHONPATH": str(ROOT)}
    assert done(sys.executable, "-m", module, cwd=folder, **asked) == ""
    return {word.strip() for word in (folder / "said").read_text().split("\n")}


@pytest.mark.quick
def test_the_shell_completes_verbs_options_and_configurations(tmp_path):
    pytest.importorskip("argcomplete")
    (tmp_path / "digits_mine.toml").touch()
    (tmp_path / "digits.txt").touch()
    assert {"run", "estimate", "status", "sizes", "choose", "extract"} <= completions("ofa-diffusion ", tmp_path)
    assert completions("ofa-diffusion run --par", tmp_path) == {"--parallel-cells"}
    found = completions("ofa-diffusion run --config digits", tmp_path)
    assert {"digits", "digits_edm", "digits_mine.toml"} <= found and "digits.txt" not in found
    assert completions("ofa-figures clai", tmp_path, "paper_figures") == {"claims"}
    assert not (tmp_path / "runs").exists()


# The commit of a record


@pytest.fixture
def asked_anew():
    provenance._commit.cache_clear()
    yield
    provenance._commit.cache_clear()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("noted", "commit"),
    [
        ({"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}, "ab" * 20),
        ({"url": "file:///x.whl", "archive_info": {}}, None),
        (None, None),
    ],
)
def test_elsewhere_a_record_states_the_commit_that_pip_noted_or_the_version(noted, commit, asked_anew, monkeypatch):
    monkeypatch.setattr(provenance, "CHECKOUT", ROOT / "repro")  # in a checkout, and not one of ours
    told = SimpleNamespace(read_text=lambda _name: noted and json.dumps(noted))
    monkeypatch.setattr(provenance, "distribution", lambda _name: told)
    monkeypatch.setattr(provenance, "version", lambda _name: "1.2.3")
    software = provenance.software()
    assert (software["git_commit"], software["git_dirty"]) == (commit, False if commit else None)
    assert software["packages"].get("ofa-diffusion") == (None if commit else "1.2.3")


@pytest.mark.quick
def test_in_a_checkout_a_record_states_its_commit(asked_anew):
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    software = provenance.software()
    assert software["git_commit"] == head and "ofa-diffusion" not in software["packages"]
