"""An import changes nothing in the process: no environment variable, no setting of torch, no library that is not needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("repro", "baselines", "paper_figures")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py"
)
# The libraries that a network needs are imported first: what they change is not this package's doing.
COMPARE = """
import json, os, signal, sys, warnings
import repro.torchvision_ops as operators
operators.install()
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiTTransformer2DModel, UNet2DModel
import {libraries}

def state():
    settings = torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_device()
    backends = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    return dict(os.environ), str((settings, backends, torch.initial_seed(), torch.is_grad_enabled(), handlers, warnings.filters))

before, loaded = state(), set(sys.modules)
for name in {modules}:
    __import__(name)
print(json.dumps([state() == before, sorted(dict(state()[0].items() - before[0].items())), sorted(set(sys.modules) - loaded)]))
"""


def python(code, **variables):
    apart = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DS_ACCELERATOR")}
    environment = apart | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def changed_by(*modules, libraries="torch"):
    return json.loads(python(COMPARE.format(modules=modules, libraries=libraries)))


def test_no_module_of_the_packages_changes_the_process_when_it_is_imported():
    libraries = "deepspeed, jinja2, matplotlib.pyplot, onnxruntime, pandas, scipy.linalg, sklearn.datasets, torch_fidelity, torch_pruning"
    same, variables, loaded = changed_by(*MODULES, libraries=libraries)
    assert same and not variables
    assert set(MODULES) - set(loaded) <= {"repro", "repro.torchvision_ops"}


def test_the_module_of_the_networks_needs_torch_and_diffusers_alone_and_changes_nothing():
    same, variables, loaded = changed_by("repro.models.denoiser")
    assert same and not variables
    foreign = {name.partition(".")[0] for name in loaded} - {"repro", "diffusers", *sys.stdlib_module_names}
    assert not foreign


def test_accelerate_works_after_the_first_line_of_a_card():
    code = (
        "import repro.models.denoiser, torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\n"
        "model = accelerator.prepare(torch.nn.Linear(2, 2))\n"
        "accelerator.backward(model(torch.ones(1, 2)).sum())\n"
        "print(accelerator.num_processes, model.weight.grad.sum().item())"
    )
    assert python(code) == "1 4.0"


@pytest.mark.parametrize("given", [{}, {"LOCAL_RANK": "3", "CUBLAS_WORKSPACE_CONFIG": ":16:8", "DS_ACCELERATOR": "cpu"}])
def test_a_run_has_the_variables_that_its_libraries_read_and_keeps_those_of_a_launcher(given):
    code = (
        "import json, os\n"
        "from repro.config import Compute\n"
        "from repro.runtime import distributed, precision\n"
        "precision.set_arithmetic(Compute())\n"
        "distributed.engine_library()\n"
        "print(json.dumps({name: os.environ.get(name) for name in ('LOCAL_RANK', 'CUBLAS_WORKSPACE_CONFIG', 'DS_ACCELERATOR')}))"
    )
    expected = {"LOCAL_RANK": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "DS_ACCELERATOR": "cpu"}
    assert json.loads(python(code, CUDA_VISIBLE_DEVICES="", **given)) == expected | given
