"""The picture of the rooms: what is an edge, which are drawn, and in which layer a room lies."""

import subprocess
import sys
from pathlib import Path

import pytest

from paper_figures.architecture import edges, in_words, levels, picture, reduced, svg

pytestmark = pytest.mark.quick

pytestmark = pytest.mark.quick

CHAIN = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}}
CYCLE = {"a": set(), "b": {"a", "c"}, "c": {"a", "b"}, "d": {"c"}}
FILES = {
    "repro/errors.py": "import json\n",
    "repro/grid.py": "from repro.files.locks import lock\n",
    "repro/__main__.py": "from repro.cli import main\n",
    "repro/files/locks.py": "from repro.errors import ReproError\n",
    "repro/files/deep/inner.py": "import repro.files.locks\n",
    "repro/cli/__init__.py": "def main():\n    from repro import errors, grid\n",
    "baselines/recipes.py": "from repro.files import locks\n",
}


def test_an_import_inside_a_function_of_a_module_or_of_a_name_is_an_edge_between_rooms(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        for package in (tmp_path / name).relative_to(tmp_path).parents[:-1]:
            (tmp_path / package / "__init__.py").touch()
    assert edges(tmp_path) == {
        "repro": set(),
        "files": {"repro"},
        "grid.py": {"files"},
        "cli": {"repro", "grid.py"},
        "baselines": {"files"},
    }


def test_an_edge_that_a_path_implies_is_left_out_and_a_cycle_stays():
    assert reduced(CHAIN) == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c"}}
    assert reduced(CYCLE) == {"a": set(), "b": {"a", "c"}, "c": {"a", "b"}, "d": {"c"}}


def test_a_room_lies_above_all_that_it_imports_and_a_cycle_in_one_layer():
    assert levels(CHAIN) == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert levels(CYCLE) == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_the_drawing_does_not_depend_on_the_order_of_the_rooms():
    drawing = svg(CHAIN)
    assert drawing == svg(dict(reversed(CHAIN.items())))
    (axes,) = picture(CHAIN).axes
    assert [text.get_text() for text in axes.texts] == list(CHAIN)
    assert len(axes.patches) == 4 and len(axes.lines) == 3
    ends = [(round(line.get_ydata()[-1]), round(line.get_ydata()[0])) for line in axes.lines]
    assert ends == [(1, 0), (2, 1), (3, 2)]  # b to a, c to b, d to c
    assert "a imports none; b imports a; c imports b; d imports c" in drawing


# The rooms of this repository

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up: a room may import those before it.
ORDER = (
    *("repro", "files", "config", "runtime", "models", "ofa", "data", "diffusion", "training", "metrics", "experiment"),
    *("baselines", "methods", "grid.py", "budget", "deliver", "launch", "cli", "api.py", "bench"),
)
NAMES_OF_OLD = "harness"  # by which saved folders know `repro.models.denoiser`
MOST_FILES = 15
BELOW_THE_METHOD = {"repro", "models"}  # errors, and how a layer is narrowed and counted
HEAVY = ("torch", "diffusers", "deepspeed", "pandas", "matplotlib", "scipy", "sklearn")
LIGHT = (
    *("repro.cli", "repro.config", "repro.grid", "repro.launch.processes", "repro.methods.variants", "repro.budget.hours"),
    *("repro.experiment.cells", "repro.experiment.artefacts", "repro.experiment.records", "repro.deliver.averages"),
    *("repro.experiment.stage", "repro.methods.work", "repro.budget.batches"),
    *("repro.deliver.candidates", "repro.deliver.choose", "repro.deliver.choice_text", "repro.runtime.clock", "repro.runtime.heartbeat"),
    *("repro.deliver.recorded_sizes", "repro.text_table"),
)


def test_imports_go_down_only():
    found = edges(ROOT)
    assert found.keys() - {"paper_figures", NAMES_OF_OLD} == set(ORDER)
    upwards = [
        (room, other)
        for room, others in found.items()
        if room in ORDER
        for other in others
        if other not in ORDER or ORDER.index(other) >= ORDER.index(room)
    ]
    assert not upwards


def test_the_method_needs_nothing_of_the_harness():
    assert edges(ROOT)["ofa"] <= BELOW_THE_METHOD


def test_no_room_has_more_files_than_a_reader_can_hold():
    rooms = {path.parent for package in ("repro", "baselines") for path in (ROOT / package).rglob("*.py")}
    assert not {room.name: count for room in rooms if (count := len(list(room.glob("*.py")))) > MOST_FILES}


@pytest.mark.parametrize("module", LIGHT)
def test_what_reads_json_and_toml_alone_stays_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_picture_is_that_of_the_imports():
    """The words in it are compared: another matplotlib may write the same picture in other bytes."""
    assert f"<dc:description>{in_words(edges(ROOT))}</dc:description>" in (ROOT / "docs" / "architecture.svg").read_text()
