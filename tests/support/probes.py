"""Probes of the product on the virtual GPU, each a process of its own that leaves what it found as JSON.

    PYTHONPATH=.:tests python -m support.probes NAME FOLDER [PART ...]

writes FOLDER/NAME.json. A probe is its own reference where its name ends in `_cpu`: the same work, with no virtual GPU.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

NHWC = ("linear", "open", "accumulation", "distillation", "zero1", "base", "diff_pruning")
NHWC += ("resumed", "resumed_zero1", "classifier", "throughput")


def parts(*names: str) -> dict[str, Any]:
    """Runs every part of a run on the virtual GPU, with weights laid out as on the CPU."""
    from support import virtual_gpu

    virtual_gpu.install()
    return _parts(names, channels_last=False)


def parts_cpu(*names: str) -> dict[str, Any]:
    """Runs every part on the CPU."""
    return _parts(names, channels_last=False)


def nhwc(*names: str) -> dict[str, Any]:
    """Runs some parts on the virtual GPU, with weights in NHWC."""
    from support import virtual_gpu

    virtual_gpu.install()
    return _parts(names or NHWC, channels_last=True)


def _parts(names: tuple[str, ...], *, channels_last: bool) -> dict[str, Any]:
    from support import parts as all_parts

    return all_parts.run(channels_last=channels_last, names=list(names) or None)


def device() -> dict[str, Any]:
    """Tries the virtual device itself."""
    from support import device_cases, virtual_gpu

    return device_cases.run(virtual_gpu.install())


def grid() -> dict[str, Any]:
    """Runs the command line on the virtual GPU and on the CPU."""
    from support import grid as cells

    with tempfile.TemporaryDirectory() as folder:
        return cells.whole(Path(folder))


def killed() -> dict[str, Any]:
    """Runs the joint cell on the virtual GPU, whole and killed."""
    from support import grid as cells

    with tempfile.TemporaryDirectory() as folder:
        return cells.killed(Path(folder))


PROBES = {probe.__name__: probe for probe in (device, parts, parts_cpu, nhwc, grid, killed)}


def main(name: str, folder: Path, *rest: str) -> None:
    """Runs a probe and writes what it found."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    (folder / f"{name}.json").write_text(json.dumps(PROBES[name](*rest), indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
