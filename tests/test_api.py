"""Scripts with methods of their own have the command line's manners."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = str(Path(__file__).parent / "tiny.toml")
SCRIPT = """
import sys
from repro.api import Law, main, trained_once

class Cubic(Law):
    def shares(self, sizes):
        total = sum(1 / size**3 for size in sizes)
        return {size: 1 / size**3 / total for size in sizes}

if __name__ == "__main__":
    sys.exit(main(trained_once("cubic", "under a cubic law", law=Cubic())))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "cubic_law.py"
    path.write_text(SCRIPT)

    def run(*words):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, path.name, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_a_script_without_a_verb_runs_its_own_methods_and_shows_their_state(script):
    ran = script("--config", TINY, "--sizes", "0.5")
    assert ran.returncode == 0, ran.stderr
    assert "cubic-0.5-seed0" in ran.stdout and "cubic_joint-seed0" in ran.stdout and "diff_pruning" not in ran.stdout
    shown = script("status", "--config", TINY, "--methods", "cubic")
    assert "cubic-0.5-seed0" in shown.stdout and "1 missing" in shown.stdout  # size 1 was not asked for
    # Beside a run of another configuration it ends in one line, with a remedy that it knows.
    other = script("--config", TINY, "--sizes", "0.5", "--set", "ofa_training.steps=9")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1 and other.stderr.startswith("error: ")
    assert "ofa_training.steps was 8, is 9" in other.stderr and "--results" in other.stderr
    again = script("--config", TINY, "--sizes", "0.5", "--set", "ofa_training.steps=9", "--results", "elsewhere", "--runs", "elsewhere")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("words", [("--ranks", "2"), ("--parallel-cells", "2"), ("--slurm", "jobs")])
def test_other_processes_that_would_not_know_its_methods_are_refused(script, words):
    ran = script("--config", TINY, *words)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: {words[0]}: starts other processes") and ran.stderr.count("\n") == 1


def test_a_mistake_names_the_script(script):
    ran = script("--no-such-option")
    assert ran.returncode == 2 and "python cubic_law.py" in ran.stderr


@pytest.mark.parametrize("module", [["repro", "status", "--config", "digits"], ["paper_figures", "overhead", "--results", "results"]])
def test_a_reader_that_has_seen_enough_is_no_error(module):
    command = f"{sys.executable} -m {' '.join(module)} | head -n 1"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr and "BrokenPipe" not in ran.stderr
