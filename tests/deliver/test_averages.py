"""One quantity is computed once: `choose` and the tables agree on means and costs."""

import math
from types import SimpleNamespace

import pytest
from support.record_factory import DEVICE, make_record, quality

from paper_figures.tables import results_table
from repro.deliver import choice_text
from repro.deliver.averages import cost_of, mean_of_seeds
from repro.deliver.candidates import Candidate, Quality, rivals
from repro.experiment.records import write_record
from repro.grid import known_records

pytestmark = pytest.mark.quick

SEEDS = range(5)


def rival(seed, **cost):
    """A rival of seed `seed`, whose scores are shared by its sizes; every seed took another time and is another network as good."""
    record = make_record("diff_pruning", 0.5, seed, delivered_by=[f"diff_pruning_scores-seed{seed}"])
    record["quality"] = quality([8.0 + seed, 8.5 + 2 * seed])
    record["cost"] |= {"device_hours": 0.0281 - 0.001 * seed} | cost
    record["cost"]["phases_device_hours"] = {"train": record["cost"]["device_hours"]}
    other = make_record("diff_pruning", 0.25, seed, delivered_by=[f"diff_pruning_scores-seed{seed}"])
    other["quality"] = quality([1e6, 1e6])  # too bad for anybody's rival
    passed = {"images": 100, "train_pflop": 0.001, "scoring_pflop": 0.001}
    scores = make_record("diff_pruning_scores", None, seed, quality=None, training=passed)
    scores["cost"] |= {"device_hours": 0.004 + 0.0001 * seed, "phases_device_hours": {"importance": 0.004 + 0.0001 * seed}}
    return [record, other, scores]


@pytest.fixture
def records():
    return [record for seed in SEEDS for record in rival(seed)]


def group_of(records):
    by_name = {record["cell"]["name"]: record for record in records}
    return [record for record in records if (record["cell"]["method"], record["cell"]["size"]) == ("diff_pruning", 0.5)], by_name


def chosen_of(folder, records):
    for record in records:
        write_record(folder, record)
    evaluation = SimpleNamespace(metric="fid_classifier", samples=1797)
    experiment = SimpleNamespace(results=folder, config=SimpleNamespace(evaluation=evaluation))
    costs = {"params": 1e9, "macs": 1e12}
    return experiment, Candidate(size=0.5, costs=costs, quality=Quality(mean=99.0, std_error=None, seeds=1))


def test_choose_and_the_table_give_a_rival_the_same_hours_and_quality(records, tmp_path):
    experiment, chosen = chosen_of(tmp_path, records)
    found = next(
        rival for rival in rivals(experiment, known_records(tmp_path), ("diff_pruning",), chosen, {"params": 1e9}) if rival.size == 0.5
    )
    table = results_table(records)
    (row,) = table[(table["method"] == "diff_pruning") & (table["size"] == 0.5)].to_dict("records")
    assert found.cost.device_hours == pytest.approx(row["device_hours"], rel=1e-12)
    assert found.cost.device_hours == pytest.approx(0.0281 - 0.002 + 0.0042 / 2)  # the mean over five seeds, half of the scoring included
    assert found.quality.mean == pytest.approx(row["fid_classifier"], rel=1e-12)
    assert found.quality.std_error == pytest.approx(row["fid_classifier_std_error"], rel=1e-12)
    assert found.quality.seeds == row["n_seeds"] == 5
    choice = SimpleNamespace(chosen=chosen, budget={"params": 1e9}, records=known_records(tmp_path))
    (line,) = choice_text._rivals(experiment, choice)
    assert f"(5 seeds); 0.0282 device-hours on {DEVICE} each. ofa's sizes" in line


def test_a_quality_is_the_tables_quality():
    for per_seed in ([[1.0, 3.0], [4.0, 4.5], [0.3, 0.1]], [[1.0, 3.0, 7.0]], [[2.5]]):
        records = [make_record("random", 0.5, seed, quality=quality(values)) for seed, values in enumerate(per_seed)]
        (row,) = results_table(records).to_dict("records")
        found = mean_of_seeds(per_seed)
        assert (found.mean, found.spread_over) == (pytest.approx(row["fid_classifier"], rel=1e-12), row["spread_over"])
        assert (found.std_error or math.nan) == pytest.approx(row["fid_classifier_std_error"], rel=1e-12, nan_ok=True)


def test_a_joint_run_is_paid_once_for_a_size():
    records = [make_record("ofa", 0.5), make_record("ofa_joint", None)]
    (row,) = results_table(records).to_dict("records")
    assert cost_of(records[:1], {"ofa_joint-seed0": records[1]}).device_hours == pytest.approx(row["device_hours"], rel=1e-12)


def test_hours_of_which_a_part_is_not_known_are_not_known(records):
    group, by_name = group_of(records)
    del by_name["diff_pruning_scores-seed3"]
    assert cost_of(group, by_name).note == "diff_pruning_scores-seed3 has no record"
    group, by_name = group_of([*rival(0), *rival(1, device_name="another")])
    assert cost_of(group, by_name).note == f"device-hours on {DEVICE} and another do not add up"
    group, by_name = group_of([*rival(0), *rival(1, device_hours=None)])
    assert cost_of(group, by_name).note == "device-hours were not recorded"
    group, by_name = group_of([*rival(0), *rival(1, busy={"marked": True})])
    assert cost_of(group, by_name).busy and not cost_of(group[:1], by_name).busy
