"""What the tests share: a tiny configuration and its base."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

import repro  # noqa: F401  (before diffusers)
from repro.config import Config, load_config
from repro.harness.denoiser import build_base

# Two processes of two threads each on two cores thrash.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TINY = Path(__file__).parent / "tiny.toml"
CIFAR10_NETWORK = {
    "sample_size": 32,
    "channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


# What was skipped -> how to have it tested.
REMEDIES = {
    "chromium": "install Debian's chromium, or Chrome: the report in a real browser",
    "playwright": "install playwright: the report in a real browser",
    "pdflatex": "install pdflatex: the LaTeX tables compile",
    "GPU": "run `pytest tests/gpu -s` on a machine with a CUDA GPU",
    "OFA_TEST_CIFAR10": "set OFA_TEST_CIFAR10 to a folder with CIFAR-10's train.npz and test.npz",
    "INCEPTION": "set the variable to a file of Inception's weights",
    "compiler": "install a C++ compiler: torch.compile on a CPU",
    "superuser": "run as another user than root: folders that may not be written",
}


QUICK = ("ofa", "rivals", "independent", "diffusion", "clock_records_config", "laws", "cells", "averages", "published", "energy")


def pytest_collection_modifyitems(items):
    """Marks the tests of the files that take seconds."""
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker(pytest.mark.quick)


def pytest_terminal_summary(terminalreporter):
    """Says what was not tested, and how to have it tested."""
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("not tested here")
    for reason, count in reasons.most_common():
        remedy = next((remedy for word, remedy in REMEDIES.items() if word in reason), "")
        terminalreporter.line(f"{count} tests: {reason}{f'; {remedy}' if remedy else ''}")


@pytest.fixture(scope="session")
def tiny() -> Config:
    """The tiny configuration."""
    return load_config(str(TINY))


@pytest.fixture
def base(tiny):
    """A tiny base with random weights, fresh for each test."""
    return build_base(tiny.network, seed=0).eval()


@pytest.fixture
def marker(tmp_path):
    """The file that a hostile file's code would make; nothing may have made it."""
    path = tmp_path / "code-was-run"
    yield path
    assert not path.exists()
