"""What the tests share: a tiny configuration and its base."""

import os
from pathlib import Path

import pytest
import torch
from untested import pytest_terminal_summary  # noqa: F401  (a hook)

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


QUICK = (
    "ofa",
    "rivals",
    "independent",
    "diffusion",
    "clock_records_config",
    "laws",
    "averages",
    "published",
    "energy",
    "busy",
    "cost",
)


def pytest_collection_modifyitems(items):
    """Marks the tests of the files that take seconds."""
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker(pytest.mark.quick)


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
