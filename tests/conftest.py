"""What the tests share: a tiny configuration and its base."""

import os
from pathlib import Path

import pytest
import torch
from support import trained as trained_once
from support.untested import pytest_terminal_summary  # noqa: F401  (a hook)

import repro  # noqa: F401  (before diffusers)
from repro.config import Config, load_config
from repro.models.denoiser import build_base

# Two processes of two threads each on two cores thrash.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TINY = Path(__file__).parent / "tiny.toml"


# The files that take longest, from the longest down: two workers that take a file at a time then end at about the same time.
LONGEST = ("training", "choose", "end_to_end", "damage", "variants", "api")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too, which guard what rarely changes")


def pytest_configure(config):
    """Tests that are asked for by file or name, or as slow ones, are run, slow or not."""
    if hasattr(config, "workerinput"):
        config.option.all = config.workerinput["all"]
        return
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    config.option.all |= named or bool(config.option.keyword) or "slow" in config.option.markexpr


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tells a worker of xdist whether slow tests are asked for."""
    node.workerinput["all"] = node.config.option.all


def pytest_collection_modifyitems(config, items):
    """Leaves the slow tests out where nobody asks for them, and has the files that take longest begun first."""
    if not config.option.all:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session")
def tiny() -> Config:
    """The tiny configuration."""
    return load_config(str(TINY))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> trained_once.Trained:
    """The finished tiny experiment, which all tests share: to be read, or copied with `copied`."""
    return trained_once.trained(tmp_path_factory)


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
