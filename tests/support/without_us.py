"""A process in which nothing of this package is installed, nor what diffusers does not need: torch and diffusers alone."""

import os
import subprocess
import sys

import torch

MISSING = ("repro", "baselines", "paper_figures", "deepspeed", "sklearn", "scipy", "torch_pruning", "torch_fidelity")
HIDE = f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n"  # an import of any of them fails
# For a torchvision of another build than torch; see repro/torchvision_ops.py.
DECLARE = """import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def without_us(code, *words, home):
    """Runs code and returns what it printed.

    Args:
        code: The text of the script.
        words: Its arguments.
        home: The folder that it runs in, which takes the copies of modules that diffusers makes, too.
    """
    before = HIDE + ("" if hasattr(torch.ops.torchvision, "roi_align") else DECLARE)
    caches = {"OMP_NUM_THREADS": "1", "HF_HOME": str(home / "home"), "HF_MODULES_CACHE": str(home / "modules")}
    command = [sys.executable, "-I", "-c", before + code, *words]
    done = subprocess.run(command, check=False, cwd=home, env=os.environ | caches, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
