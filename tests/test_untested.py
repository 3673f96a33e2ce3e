"""A run of the tests says at its end what it did not test, and how to get it."""

import os
import subprocess
import sys
from pathlib import Path

from support.untested import REMEDIES

TESTS = Path(__file__).parent
REASONS = ["no chromium, chromium-browser or google-chrome on the PATH"] * 2 + ["pdflatex is not installed", "a reason of its own"]


def last_lines(folder, text):
    """Returns what a run of one file of tests says."""
    (folder / "test_some.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.untested", "-p", "no:cacheprovider", "test_some.py"]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True).stdout


def test_what_was_skipped_is_told_once_for_each_reason_with_its_remedy(tmp_path):
    skipped = "".join(f"@pytest.mark.skip(reason={reason!r})\ndef test_{i}():\n    pass\n\n" for i, reason in enumerate(REASONS))
    said = last_lines(tmp_path, f"import pytest\n\n{skipped}def test_skips():\n    pytest.importorskip('playwright_of_nobody')\n")
    assert "not tested here" in said
    told = said.partition("not tested here")[2].splitlines()
    (browser,) = (line for line in told if line.startswith("2 tests: the report in a browser"))
    assert "apt-get install chromium" in browser
    assert sum("the LaTeX tables" in line for line in told) == 1
    assert "1 test: a reason of its own" in told


def test_a_run_that_skips_nothing_says_nothing(tmp_path):
    assert "not tested here" not in last_lines(tmp_path, "def test_one():\n    pass\n")


def test_every_remedy_is_for_a_reason_that_some_test_has():
    texts = "".join(path.read_text() for path in TESTS.rglob("test_*.py") if path.stem != "test_untested")
    assert not [part for part in REMEDIES if part not in texts]
