"""The command line on the virtual GPU and on the CPU: a handful of cells, whole; and one that is killed and goes on."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
METHODS = "floor,noise,base,ofa,diff_pruning"
SETTINGS = (
    *("importance.images=32", "pruning.threshold=0.9999", "classifier.steps=20"),
    *("evaluation.samples=24", "evaluation.latency_batches=[1]", "classifier.least_accuracy=0.05"),
)
KILLED_AT = 6


def command_line(module: str, folder: Path, methods: str, *leading: str) -> list[str]:
    """Returns a command that runs cells, by a module that takes the product's arguments."""
    folders = ["--results", str(folder / "results"), "--runs", str(folder / "runs")]
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    run = ["run", "--config", str(TINY), "--methods", methods, "--sizes", "0.5", *folders, *sets]
    return [sys.executable, "-m", module, *leading, *run]


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a test's process does."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def outcome(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Returns what a run left: its exit code, records, and the hashes of weights and images."""
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "results" / "tiny").glob("*.json")}
    kept = [path for path in (folder / "runs" / "tiny").rglob("*.safetensors") if "checkpoints" not in path.parts]
    kept += (folder / "results" / "tiny" / "samples").glob("*.png")
    return {
        "code": done.returncode,
        "said": done.stdout[-2000:] + done.stderr[-2000:],
        "records": {
            name: {key: record[key] for key in ("status", "quality", "size", "training")} | {"cost": record["cost"]["device"]}
            for name, record in records.items()
        },
        "sha256": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)},
    }


def whole(folder: Path) -> dict[str, Any]:
    """Runs the cells on the virtual GPU and on the CPU."""
    gpu, cpu = folder / "gpu", folder / "cpu"
    path = folder / "counts.json"
    on_gpu = outcome(gpu, run(command_line("support.virtual_gpu", gpu, METHODS, str(path))))
    counted = json.loads(path.read_text()) if path.exists() else {}
    return {"gpu": on_gpu | {"counts": counted}, "cpu": outcome(cpu, run(command_line("repro", cpu, METHODS)))}


def killed(folder: Path) -> dict[str, Any]:
    """Runs the joint cell on the virtual GPU, once whole and once killed and started again."""
    found = {}
    for name in ("whole", "stopped"):
        own, path = folder / name, str(folder / f"{name}.json")
        command = command_line("support.virtual_gpu", own, "ofa_joint", path)
        if name == "stopped":
            found["killed"] = run(command, VIRTUAL_GPU_KILLED_AT=f"ofa_joint-seed0 {KILLED_AT}").returncode == -signal.SIGKILL
            found["left"] = [path.name for path in (own / "runs" / "tiny").rglob("step-*.safetensors")]
        found[name] = outcome(own, run(command))
    return found
