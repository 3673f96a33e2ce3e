"""A sampling law of one's own is honoured wherever the configuration's is: draws, loss weights, checks, estimates, ratios of compute."""

import json
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from repro.budget.preflight import preflight
from repro.budget.work import stages
from repro.config import changed
from repro.diffusion.formulation import NoisyBatch
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, plan_cells
from repro.experiment.run import run_cells
from repro.experiment.stage import costs_of
from repro.grid import METHODS, trained_once
from repro.methods.train_once import _chain, check_shares, load_supernet
from repro.methods.variants import compute_ratio
from repro.models.cost import count_macs
from repro.ofa.allocation import make_plan
from repro.ofa.importance import equal_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.sampling_law import Law, Linear, Sandwich, check_law
from repro.ofa.supernet import Supernet

pytestmark = pytest.mark.quick

SIZES = (1.0, 0.75, 0.5, 0.25)


class Smallest(Law):
    """Trains the smallest size alone, and doubles its loss."""

    def shares(self, sizes):
        return {size: float(size == min(sizes)) for size in sizes}

    def weight(self, size, sizes):
        return 2.0


class Three(Law):
    """Trains the same three sizes at every step."""

    def shares(self, sizes):
        return {size: 1 / 3 if size in sizes[:3] else 0.0 for size in sizes}

    def draw(self, sizes, *, seed, step):
        return sizes[:3]


def experiment_of(config, law, folder):
    methods = METHODS | {method.name: method for method in trained_once("own", "under a law of one's own", law=law)}
    return Experiment(config=config, methods=methods, results=folder / "results", runs=folder / "runs", source="--config tiny")


JOINT = Cell(method="own_joint", size=None, seed=0)


# The contract


def test_a_law_that_says_its_shares_alone_draws_one_size_by_them():
    class Steep(Law):
        def shares(self, sizes):
            return {size: 1 / size / sum(1 / other for other in sizes) for size in sizes}

    law, steps = Steep(), 20_000
    check_law(law, SIZES)
    assert law.subnets(SIZES) == 1 and {law.weight(size, SIZES) for size in SIZES} == {1.0}
    counts = Counter(size for step in range(steps) for size in law.draw(SIZES, seed=0, step=step))
    for size, share in law.shares(SIZES).items():
        assert counts[size] / steps == pytest.approx(share, abs=0.015)
    assert law.draw(SIZES, seed=1, step=3) == law.draw(SIZES, seed=1, step=3)


def test_configured_laws_say_how_many_subnets_a_step_trains():
    assert [law.subnets(SIZES) for law in (Linear(3.0), Sandwich(0), Sandwich(2), Sandwich(9))] == [1, 2, 4, 4]
    assert Sandwich(2).subnets((0.5,)) == 1


@pytest.mark.parametrize(
    ("law", "told"),
    [
        (lambda sizes, *, seed, step: sizes[:1], "law function: is no sampling law; derive a class from repro.api.Law"),
        (SimpleNamespace(**dict.fromkeys(("draw", "shares", "subnets"), dict)), "is no sampling law"),
        (type("Half", (Three,), {"shares": lambda _self, sizes: dict.fromkeys(sizes, 0.1)})(), "law Half: its shares must name every"),
        (type("Other", (Three,), {"draw": lambda _self, sizes, seed, step: (0.3,)})(), r"law Other: step 0 draws \(0.3,\)"),
        (type("Odd", (Three,), {"draw": lambda _self, sizes, seed, step: sizes[: 1 + step % 2]})(), "law Odd: step 1 draws .* must draw 1"),
    ],
)
def test_a_law_that_breaks_the_contract_is_refused_in_one_line(law, told):
    with pytest.raises(ReproError, match=told):
        check_law(law, SIZES)


# Where it is honoured


def test_loss_weights_and_draws_are_those_of_the_law(tiny, tmp_path):
    base = experiment_of(tiny, Smallest(), tmp_path)
    with torch.device("meta"):
        from repro.models.denoiser import build_base

        network = build_base(tiny.network, seed=0)
    pipes = pipes_of(network)
    params = sum(weight.numel() for weight in network.parameters())
    plan = make_plan(pipes, equal_importance(pipes), SIZES, params_base=params, rule="uniform", floor=0.1)
    (draw,) = _chain(base, Supernet(network, pipes, plan), 0, base.law_of(JOINT)).draws(5)
    assert (draw.subnet, draw.weight) == (0.25, 2.0)


def test_three_draws_of_a_batch_of_128_are_refused_before_anything_starts(tiny, tmp_path):
    config = changed(tiny, {"ofa_training.batch_size": 128})
    experiment = experiment_of(config, Three(), tmp_path)
    told = (
        r"ofa_training.batch_size: the 3 subnets of a three step cannot share 128 images among 1 rank\(s\) evenly; make it a multiple of 3"
    )
    with pytest.raises(ReproError, match=told):
        preflight(experiment, plan_cells(experiment, ["own"], None, [0]), yes=True)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ReproError, match=told):
        check_shares(config, Three())
    check_shares(changed(tiny, {"ofa_training.batch_size": 126}), Three())


def test_a_batch_is_never_shared_unevenly():
    batch = NoisyBatch(noisy=torch.zeros(128, 1), target=torch.zeros(128, 1), timesteps=torch.zeros(128))
    with pytest.raises(AssertionError, match="128 images cannot be shared by 3 subnets"):
        batch.shares(3)


def test_the_estimate_takes_the_shares_of_the_law(tiny, tmp_path):
    experiment = experiment_of(tiny, Smallest(), tmp_path)
    found = {stage.name: stage.pflop for stage in stages(experiment, plan_cells(experiment, ["own", "ofa"], None, [0]))}
    macs, images = costs_of(experiment.config, tiny.allocation.rule).macs, tiny.ofa_training.steps * tiny.ofa_training.batch_size
    assert found["own_joint: training"] == pytest.approx(6 * macs[0.25] * images / 1e15)
    assert found["own_joint: training"] < found["ofa_joint: training"]


def test_the_ratio_of_compute_takes_the_shares_of_the_law(tiny):
    configured, own = compute_ratio(tiny), compute_ratio(tiny, Smallest())
    assert own > configured == compute_ratio(tiny, Linear(tiny.sampling_law.m))


@pytest.mark.slow
def test_a_joint_run_under_a_law_of_ones_own_trains_what_the_law_draws(tiny, tmp_path):
    experiment = experiment_of(tiny, Smallest(), tmp_path)
    run_cells(experiment, plan_cells(experiment, ["own"], [0.5], [0])[:2], started=time.monotonic())
    record = json.loads((tmp_path / "results" / "own_joint-seed0.json").read_text())
    supernet = load_supernet(experiment, JOINT)
    whole, smallest = (count_macs(supernet.extract(size), (1, 8, 8)).total for size in (1.0, 0.25))
    images = tiny.ofa_training.steps * tiny.ofa_training.batch_size
    training = record["training"]
    assert training["scoring_pflop"] == pytest.approx(4 * whole * tiny.importance.images / 1e15)  # forward and one backward pass
    assert training["train_pflop"] - training["scoring_pflop"] == pytest.approx(6 * smallest * images / 1e15)
