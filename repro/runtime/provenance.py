"""Provenance of a number: commit, versions, hardware, environment."""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

from repro.errors import ReproError
from repro.runtime import distributed

PACKAGES = ("torch", "torchvision", "diffusers", "deepspeed", "torch-fidelity", "torch-pruning", "safetensors", "scikit-learn", "numpy")
DISTRIBUTION = "ofa-diffusion"  # whose version a record states where no commit is known
CHECKOUT = Path(__file__).resolve().parents[2]


def software() -> dict[str, Any]:
    """Returns the versions that a number depends on, and the commit of this program when it was first asked for."""
    commit, dirty = _commit()
    packages = {name: _version(name) for name in (*PACKAGES, *(() if commit else (DISTRIBUTION,)))}
    return {"git_commit": commit, "git_dirty": dirty, "packages": packages, "python": platform.python_version()}


@functools.cache
def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit of this program and whether it was changed: that of its checkout, or of the repository that pip took it from."""
    if _git("rev-parse", "--show-toplevel") != str(CHECKOUT):  # an environment may lie in the checkout of another program
        commit = _installed_commit()
        return commit, False if commit else None
    commit = _git("rev-parse", "HEAD")
    # Records and what is drawn from them do not change what the program computes.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return commit, bool(changes) if commit else None


def _installed_commit() -> str | None:
    """Returns the commit that pip noted down (PEP 610); None where it installed from a file or a folder."""
    try:
        noted = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    commit = noted.get("vcs_info", {}).get("commit_id")
    return str(commit) if commit else None


def environment(ranks: int) -> dict[str, Any]:
    """Returns the environment that a record states once, so that a change between the lives of its run must be told.

    Args:
        ranks: How many processes share the work.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {**software(), "device": device, "device_name": device_name(), "threads_per_rank": torch.get_num_threads(), "ranks": ranks}


def changes(then: Mapping[str, Any], ranks: int, where: Path) -> list[str]:
    """Returns the changes of the environment since a run began, each as a text for its record.

    Args:
        then: The environment of the earlier life; empty where it is not known.
        ranks: How many processes share the work now.
        where: What was begun, for the message.

    Raises:
        ReproError: Packages have other versions, or a CPU has other threads: the result would be that of neither.
    """
    now = environment(ranks)
    if not then:
        return []
    for name, version_then in then["packages"].items():
        if now["packages"].get(name) != version_then:
            raise ReproError(
                f"{where}: begun with {name} {version_then}, and this is {now['packages'].get(name)}; install that again, or delete the "
                "folder and run the command again, which makes it anew"
            )
    if then["device"] == now["device"] == "cpu" and then["threads_per_rank"] != now["threads_per_rank"]:
        raise ReproError(
            f"{where}: begun with {then['threads_per_rank']} threads, and this has {now['threads_per_rank']}; "
            f"set OMP_NUM_THREADS={then['threads_per_rank']}, or delete the folder and run the command again, which makes it anew"
        )
    told = ("git_commit", "git_dirty", "python", "device_name", "ranks")
    return [f"{key} was {then[key]}, is {now[key]}" for key in told if then[key] != now[key]]


def device_name() -> str:
    """Names the hardware: this rank's GPU, or the processor and how many of its cores this process may use."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(distributed.device()))
    return f"{_processor()} ({len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores)"


def now_utc() -> str:
    """Returns the time, to the second, in ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def reset_peak_memory() -> None:
    """Makes `peak_memory_gib` count from here on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.init()  # where nothing was computed yet, a device that is named has no statistics to reset
        torch.cuda.reset_peak_memory_stats(distributed.device())
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_gib() -> float | None:
    """Returns the peak memory since `reset_peak_memory`, of this rank's GPU or of its process; None where it is not known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(distributed.device()) / 2**30
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    except (OSError, StopIteration):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    """Returns a package's version; of torch with its build, such as 2.13.0+cpu, which the distribution's leaves out."""
    if package == "torch":
        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
