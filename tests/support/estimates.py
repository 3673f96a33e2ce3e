"""An experiment whose cells are estimated, on a machine of known speed."""

from pathlib import Path

from repro.budget.throughput import Rate, Throughput
from repro.experiment.cells import Experiment, plan_cells
from repro.files.places import Places
from repro.grid import METHODS

TINY = Path(__file__).resolve().parents[1] / "tiny.toml"
NAMES = ["floor", "noise", "base", "untrained", "ofa", "diff_pruning", "random"]
HERE = Throughput(
    device="a device",
    on_gpu=False,
    ranks=1,
    training=Rate(fixed_sec=0.001, sec_per_pflop=100.0),
    sampling=Rate(fixed_sec=0.0, sec_per_pflop=50.0),
    features=Rate(fixed_sec=0.0, sec_per_pflop=200.0),
    batch=2,
    training_img_per_sec=10.0,
    sampling_img_per_sec=1.0,
    peak_memory_gib=None,
)


def experiment(config, tmp_path):
    folders = {"results": tmp_path / "results", "runs": tmp_path / "runs", "places": Places(cache=tmp_path / "cache")}
    return Experiment(config=config, methods=METHODS, source="", **folders)


def cells_of(config, names=NAMES, seeds=(0,)):
    return plan_cells(experiment(config, Path()), list(names), None, list(seeds))


def folders(tmp_path):
    return [word for name in ("results", "runs", "cache") for word in (f"--{name}", str(tmp_path / name))]
