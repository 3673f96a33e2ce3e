"""Writes trained bases and classifiers as files that the package ships: `python -m repro.cli.shipping --config NAME --seeds 0,1,2`.

It takes the bases of finished cells (`base.source = "train"`) and the experiment's classifier, writes them into `repro/shipped/` and prints
the lines for the configuration.
"""

import argparse
import sys
from pathlib import Path

from repro.cli.ending import ended
from repro.config import load_config
from repro.errors import ReproError
from repro.experiment.cells import Experiment, base_cell
from repro.experiment.run import load_model
from repro.experiment.shipped import ship, ship_file
from repro.files.shipped_files import SHIPPED
from repro.grid import METHODS
from repro.metrics.classifier import classifier_for


def main() -> int:
    """Ships what the arguments name and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m repro.cli.shipping", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path("results/local"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0])
    options = parser.parse_args()
    return ended(lambda: _ship(options))


def _ship(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    experiment = Experiment(
        config=config, results=options.results / config.name, runs=options.runs / config.name, source="", methods=METHODS
    )
    print("[base]\nsha256 = [")
    for seed in options.seeds:
        print(f'  "{_ship_base(experiment, seed)}", # seed {seed}')
    print("]")
    if config.classifier.sha256:  # it takes one that is shipped already
        return 0
    extractor = classifier_for(experiment.images, config.classifier, experiment.runs, lambda _step, _steps, _loss: None)
    _, sha256 = ship_file(SHIPPED, f"{config.name}-classifier", extractor.path)
    print(f'[classifier]\nsha256 = "{sha256}" # {extractor.held_out_accuracy:.1%} of the held-out images right')
    return 0


def _ship_base(experiment: Experiment, seed: int) -> str:
    """Ships the base of a seed and returns its hash."""
    cell = base_cell(experiment.config, seed)
    record = experiment.record(cell)
    if record is None or record["status"] != "done":
        raise ReproError(f"{cell.name}: no finished record in {experiment.results}; run it first with --set base.source=train")
    cost, provenance = record["cost"], record["provenance"]
    trained = {key: cost[key] for key in ("device_hours", "phases_device_hours", "device_name", "ranks", "threads_per_rank")}
    trained |= {"train_pflop": record["training"]["train_pflop"], "seed": seed}
    trained |= {key: provenance[key] for key in ("git_commit", "config_sha256", "packages", "command")}
    _, sha256 = ship(
        SHIPPED,
        f"{experiment.config.name}-base-seed{seed}",
        load_model(experiment, cell),
        {"training": record["training"], "trained": trained, "formulation": experiment.config.diffusion.formulation},
    )
    return sha256


if __name__ == "__main__":
    sys.exit(main())
