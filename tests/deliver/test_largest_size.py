"""The largest size within a budget, and what training exactly that size would take."""

import json
import shlex
from pathlib import Path

import pytest
from support.commands import typed

from repro.cli import main
from repro.config import load_config
from repro.models.cost import count_macs, count_params, peak_bytes
from repro.models.denoiser import meta_base
from repro.ofa.allocation import make_plan
from repro.ofa.importance import equal_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

TINY = Path(__file__).resolve().parents[1] / "tiny.toml"
SHAPE = (1, 8, 8)


def largest(tmp_path, *arguments):
    places = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
    return typed(main, "sizes", "--config", TINY, *places, *arguments)


def planned(sizes, rule="gradual"):
    """Returns a base, its pipes and their plan of some sizes."""
    base = meta_base(load_config(TINY).denoiser)
    pipes, whole = pipes_of(base), count_params(base.parameters())
    plan = make_plan(pipes, equal_importance(pipes), tuple(sizes), params_base=whole, rule=rule, floor=0.25)
    return base, pipes, plan


def costs_of(size, rule="gradual"):
    subnet = Supernet(*planned([size], rule)).extract(size)
    memory = peak_bytes(subnet, SHAPE) / 1e6
    return {"params": count_params(subnet.parameters()), "macs": count_macs(subnet, SHAPE).total, "memory_mb": memory}


@pytest.mark.parametrize("limits", [{"params": 30_000}, {"macs": 700_000}, {"params": 35_000, "memory_mb": 0.17}])
def test_it_is_the_largest_of_all_thousandths_that_fits(tmp_path, limits):
    flags = [word for key, limit in limits.items() for word in (f"--max-{key.replace('_', '-')}", str(limit))]
    done = largest(tmp_path, *flags, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    size, rows = found["size"], {row["size"]: row for row in found["sizes"]}
    costs, more = costs_of(size), costs_of(round(size + 0.001, 3))
    assert 0.3 < size < 1 and all(costs[key] <= limit for key, limit in limits.items())
    assert any(more[key] > limit for key, limit in limits.items())  # and so does every larger one: what a size keeps, it keeps
    assert rows[size]["fits"] and not rows[size]["trained"]
    assert all(rows[size][key] == pytest.approx(costs[key]) for key in costs.keys() & rows[size].keys())
    assert found["largest_trained"] == max(trained for trained in (1.0, 0.75, 0.5, 0.25) if trained <= size)
    assert not any(row["fits"] for larger, row in rows.items() if larger > size)
    if limits.keys() == {"params"}:  # counted for every thousandth
        thousandths = [step / 1000 for step in range(1000, 299, -1)]
        params = planned(thousandths)[2].params
        assert size == max(one for one in thousandths if params[one] <= limits["params"])
    assert not (tmp_path / "results").exists()


def test_training_costs_what_its_images_and_macs_come_to_and_its_command_plans_that_size(tmp_path):
    found, longer = (
        json.loads(largest(tmp_path, "--max-params", "30k", "--json", "--set", f"baseline_training.steps={steps}").stdout)
        for steps in (4, 1004)
    )
    size, training = found["size"], found["training"]
    more = longer["training"]["diff_pruning"]["pflop"] - training["diff_pruning"]["pflop"]
    images = 1000 * load_config(TINY).baseline_training.batch_size
    assert more == pytest.approx(6 * costs_of(size, "uniform")["macs"] * images / 1e15)  # as an estimate takes those of pruned networks
    assert longer["training"]["ofa"]["pflop"] == training["ofa"]["pflop"]
    assert all(each["device_hours"] > 0 for each in training.values())
    for method, each in training.items():
        begun = each["command"].partition(" run ")[2]
        done = typed(main, "status", *shlex.split(begun), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{method}-{size}-seed0" in done.stdout


def test_a_trained_size_that_fits_best_is_said_and_nothing_else_is_trained(tmp_path):
    done = largest(tmp_path, "--max-params", "1M")
    assert done.returncode == 0, done.stderr
    assert "P = 1 is the largest size that fits" in done.stdout and "Training" not in done.stdout
    assert "--size 1 --out subnet" in done.stdout


def test_latency_is_measured_here(tmp_path):
    done = largest(tmp_path, "--max-latency-ms", "10000", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["sizes"]
    assert row["size"] == 1 and 0 < row["latency_ms"] < 10000
    impossible = largest(tmp_path, "--max-latency-ms", "0.0001")
    assert impossible.returncode == 2 and "--max-latency-ms: no size surely fits" in impossible.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-params", "1k"), "--max-params: no size surely fits; the smallest, P = 0.2"),
        (("--max-params", "0"), "--max-params 0: must be positive and finite"),
        (("--max-params", "inf"), "--max-params inf: must be positive and finite"),
        (("--max-params", "30k", "--sizes", "0.5"), "--sizes: goes without a budget"),
        (("--max-params", "30k", "--recorded"), "--max-...: goes without --recorded"),
    ],
)
def test_what_cannot_be_answered_is_refused(tmp_path, arguments, said):
    done = largest(tmp_path, *arguments)
    assert done.returncode == 2 and f"error: {said}" in done.stderr
