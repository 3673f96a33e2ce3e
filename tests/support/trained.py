"""The tiny experiment with most kinds of cells, run from nothing in a process of its own, once for all tests and workers of a session."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from repro.files.locks import one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
METHODS = "floor,noise,base,untrained,untrained_random,ofa,diff_pruning,magnitude,random,scratch"
FOLDERS = ("results", "runs")


@dataclass(frozen=True)
class Trained:
    """A finished experiment.

    Attributes:
        folder: Where the command was typed; holds `results` and `runs`.
        wall_sec: How long its process took.
        said: What it printed.
        left: The names of all that lay in the folder when it had ended.
        elsewhere: What it wrote into the checkout.
    """

    folder: Path
    wall_sec: float
    said: str
    left: list[str]
    elsewhere: list[str]

    @property
    def results(self):
        return self.folder / "results" / "tiny"

    @property
    def runs(self):
        return self.folder / "runs" / "tiny"

    @cached_property
    def records(self):
        """The records by the names of their cells, as they are when this is first asked for."""
        return {path.stem: json.loads(path.read_text()) for path in self.results.glob("*.json")}

    def copied(self, folder):
        """Copies what was made into a folder, to go on from or to spoil."""
        for name in FOLDERS:
            shutil.copytree(self.folder / name, folder / name)
        return folder


def trained(tmp_path_factory):
    """Returns the experiment, which the first worker that asks for it runs; nobody changes it."""
    root = tmp_path_factory.getbasetemp()
    place = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    about = place / "about.json"
    with one_at_a_time(about):
        if not about.exists():
            shutil.rmtree(place / "folder", ignore_errors=True)  # of a worker that was ended
            about.write_text(json.dumps(_run(place / "folder")))
    return Trained(place / "folder", **json.loads(about.read_text()))


def _run(folder):
    folder.mkdir()
    before = _in_the_checkout()
    places = ["--results", "results", "--runs", "runs"]
    command = [sys.executable, "-m", "repro", "run", "--config", str(TINY), *places, "--methods", METHODS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    wall_sec = time.monotonic() - begun
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    left = sorted(path.name for path in folder.iterdir())
    return {"wall_sec": wall_sec, "said": done.stdout, "left": left, "elsewhere": sorted(_in_the_checkout() - before)}


def _in_the_checkout():
    return {str(path) for name in FOLDERS for path in (ROOT / name).rglob("*")}
