"""The sessions use the second core of a machine without a GPU, unless the user says how a run is started."""

from pathlib import Path

import pytest

from baselines.names import RECIPES
from repro.grid import METHODS
from repro.methods.names import COMPARED

pytestmark = pytest.mark.quick

pytest.importorskip("nox")
ROOT = Path(__file__).resolve().parents[1]
TWO = ["--parallel-cells", "2"]


@pytest.fixture
def sessions(monkeypatch):
    """The sessions, on a machine of two cores without a GPU."""
    monkeypatch.syspath_prepend(ROOT)
    import noxfile

    monkeypatch.setattr(noxfile, "_cores", lambda: 2)
    monkeypatch.setattr(noxfile.shutil, "which", lambda _name: None)
    return noxfile


@pytest.mark.parametrize("words", [[], ["--seeds", "0,1"], ["--config", "digits_transformer"]])
def test_two_cells_run_at_a_time_where_a_core_would_idle(sessions, words):
    assert sessions._lanes(words) == TWO


@pytest.mark.parametrize(
    "words",
    [
        ["--parallel-cells", "1"],
        ["--parallel-cells=4"],
        ["--ranks", "2"],
        ["--hostfile", "hosts"],
        ["--slurm=jobs"],
        ["--set", "compute.threads=2"],
        ["--config", "nowhere"],
        ["--config", "nowhere.toml"],
        ["--config", "cifar10"],  # its threads are torch's choice: another number of cells would give other numbers
    ],
)
def test_who_says_how_a_run_is_started_is_heeded(sessions, words):
    assert sessions._lanes(words) == []


def test_the_sessions_name_methods_as_the_grid_does(sessions):
    """They run before the project is installed, so they cannot ask it."""
    source = (ROOT / "noxfile.py").read_text()
    assert f'"--methods", "{",".join(COMPARED)}"' in source and f'"--methods", "{",".join(RECIPES)}"' in source
    assert {name for methods, _ in sessions.EVIDENCE for name in methods.split(",")} <= METHODS.keys()


def test_one_core_and_a_gpu_run_one_cell_at_a_time(sessions, monkeypatch):
    monkeypatch.setattr(sessions, "_cores", lambda: 1)
    assert sessions._lanes([]) == []
    monkeypatch.setattr(sessions, "_cores", lambda: 64)
    monkeypatch.setattr(sessions.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert sessions._lanes([]) == []
