"""The verdicts: intervals, the rule, claims and ablations from records whose truth is known, and what the user sees."""

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats
from support.record_factory import SIZES, busy, make_record, make_scores, quality, variant_of, write_records

from paper_figures import claims, evidence, evidence_plots, evidence_tables
from paper_figures.__main__ import main
from paper_figures.evidence import Grid, Interval, interval, percent, verdict
from paper_figures.overhead_text import overhead_text
from paper_figures.tables import results_table
from repro.errors import ReproError
from repro.experiment.records import SUMS, read_records

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ("digits", "digits_curves", "digits_edm", "digits_edm_cond", "digits_uvit")
SEEDS = (0, 1, 2)
TRUE = {1.0: 3.0, 0.75: 3.5, 0.5: 5.0, 0.25: 9.0}  # of the default; every method's is a factor on it
JITTER = {0: 1.00, 1: 1.08, 2: 0.93}  # of a seed, the same for all methods
OWN = {0: 0.004, 1: -0.003, 2: -0.001}  # of a cell


def record_of(method, size, seed, factor):
    variant = variant_of(method)
    once = method.startswith(("ofa", "slimmable"))
    values = [TRUE[size] * JITTER[seed] * factor * math.exp(OWN[seed] + step) for step in (-0.02, 0.02)]
    return make_record(method, size, seed) | {
        "variant": variant,
        "quality": quality(values),
        "size": {"realised": size + 0.004, "params": int(1e6 * size), "macs": int(1e7 * size), "macs_torch_pruning": int(1e7 * size)},
        "training": {"train_pflop": 0.004 * size} if not once or method == "ofa_finetuned" else None,
    }


def records_of(factors, seeds=SEEDS):
    """Returns the records of methods whose quality is a factor, or a function of the size, times that of the default."""
    records = [make_record("floor", None), make_record("noise", None)]
    for method, factor in factors.items():
        for seed in seeds:
            records += [record_of(method, size, seed, factor(size) if callable(factor) else factor) for size in SIZES]
            if method.startswith(("ofa", "slimmable")) and method != "ofa_finetuned":
                joint = make_record("ofa_joint", None, seed)
                variant = records[-1]["variant"]
                records.append(
                    joint
                    | {"cell": joint["cell"] | {"name": f"{method}_joint-seed{seed}", "method": f"{method}_joint"}, "variant": variant}
                )
    return records


WHOLE = {
    "ofa": 1.0,
    "diff_pruning": 0.7,
    "slimmable": 1.4,
    "ofa_open": 1.2,
    "ofa_uniform": 0.9,
    "ofa_random": lambda size: 1.0 + (size - 0.5) / 4,
    "ofa_m1": lambda size: 0.9 if size == 1 else 1.3 if size == 0.25 else 1.0,
    "ofa_m5": lambda size: 1.1 if size == 1 else 0.95,
    "ofa_long": 0.65,
    "diff_pruning_short": 1.1,
    "ofa_finetuned": 0.95,
}


def at_equal_compute(records):
    """Has the long joint run spend the work of four independent runs, and the short independent runs that of one joint run."""
    for record in records:
        if record["cell"]["method"] == "ofa_long_joint":
            record["training"]["train_pflop"] = 0.004 * sum(SIZES)
        elif record["cell"]["method"] == "diff_pruning_short":
            record["training"]["train_pflop"] = 0.0034 * record["cell"]["size"] / sum(SIZES)
    return records


def verdicts(factors, seeds=SEEDS):
    table = claims.claims_table(Grid(at_equal_compute(records_of(factors, seeds))))
    return dict(zip(table["key"], table["verdict"], strict=True))


# Intervals


def test_an_interval_is_students_t():
    values = [0.1, 0.4, 0.35, 0.2]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert (found.std_error, found.n_seeds) == (pytest.approx(stats.sem(values)), 4)
    assert interval([0.1]) is None and interval([]) is None


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 0.3, size=(4000, 3))
    held = sum(found.low <= 1.0 <= found.high for found in map(interval, draws.tolist()))
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("low", "high", "boundary", "side", "expected"),
    [
        (-3.0, -1.0, 0.0, "below", "supported"),
        (-3.0, 1.0, 0.0, "below", "undecided"),
        (1.0, 3.0, 0.0, "below", "contradicted"),
        (2.5, 3.0, 2.0, "above", "supported"),
        (1.0, 1.9, 2.0, "above", "contradicted"),
        (5.0, 9.0, 10.0, "below", "supported"),
        (0.0, 1.0, 0.0, "below", "undecided"),
    ],
)
def test_a_verdict_follows_from_where_the_whole_interval_lies(low, high, boundary, side, expected):
    found = Interval(mean=(low + high) / 2, low=low, high=high, std_error=0.1, n_seeds=3)
    assert verdict(found, boundary, side) == expected


def test_fewer_than_three_seeds_decide_nothing():
    found = Interval(mean=-3.0, low=-3.1, high=-2.9, std_error=0.01, n_seeds=2)
    assert verdict(found, 0.0, "below") == verdict(None, 0.0, "below") == "undecided"


# What is compared


def test_differences_are_paired_over_seeds_and_no_size_outweighs_another():
    grid = Grid(records_of({"ofa": 1.0, "ofa_open": lambda size: 2.0 if size == 0.25 else 1.0}))
    # Seeds differ by up to 16 %, but a pair shares its seed: what is left is exact.
    assert grid.log_ratios("ofa", "ofa_open") == pytest.approx([-math.log(2) / 4] * 3)
    assert percent(math.log(1.1)) == pytest.approx(10)


def test_imbalance_is_how_differently_the_smallest_and_the_largest_fare():
    grid = Grid(records_of({"ofa": lambda size: 1.5 if size == 0.25 else 1.2 if size == 1 else 1.0, "diff_pruning": 0.5}))
    assert list(grid.imbalances("ofa").values()) == pytest.approx([math.log(1.5 / 1.2)] * 3)


def test_costs_pay_the_joint_run_once_and_every_size_alone():
    grid = Grid(records_of({"ofa": 1.0, "diff_pruning": 0.7, "ofa_finetuned": 0.9}))
    joint = make_record("ofa_joint", None)
    extraction = make_record("ofa", 1.0)["cost"]["device_hours"]
    costs = grid.costs("ofa", SIZES, "device_hours")
    assert costs == pytest.approx(dict.fromkeys(SEEDS, joint["cost"]["device_hours"] + 4 * extraction))
    assert grid.costs("diff_pruning", SIZES, "train_pflop") == pytest.approx(dict.fromkeys(SEEDS, 0.004 * sum(SIZES)))
    both = joint["training"]["train_pflop"] + 0.004 * sum(SIZES)
    assert grid.costs("ofa_finetuned", SIZES, "train_pflop") == pytest.approx(dict.fromkeys(SEEDS, both))
    assert grid.costs("ofa", (*SIZES, 0.9), "train_pflop") == {}


def on_scale(records, method, **changes):
    """Judges the cells of a method at seed 2 on another scale."""
    for record in records:
        if (record["cell"]["method"], record["cell"]["seed"]) == (method, 2):
            record["quality"] = record["quality"] | changes
    return records


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_samples": 500}, "samples 1,797 or 500"),
        ({"metric": "fid"}, "metric fid_classifier or fid"),
        ({"tool": "another 1.0"}, "tool torch-fidelity 0.4.0 or another 1.0"),
        ({"extractor": {"name": "classifier", "sha256": "b2" * 32}}, "extractor unknown or classifier b2b2b2b2"),
        ({"reference": {"name": "digits", "n": 900, "sha256": "c3" * 32}}, "reference unknown or digits c3c3c3c3"),
    ],
)
def test_qualities_on_other_scales_are_refused_with_a_remedy(changes, said):
    grid = Grid(on_scale(records_of({"ofa": 1.0, "ofa_open": 1.2, "ofa_random": 1.1}), "ofa_open", **changes))
    assert (grid.metric, grid.n_samples) == ("fid_classifier", 1797)
    for refused in (
        lambda: grid.log_ratios("ofa", "ofa_open"),
        lambda: claims.claims_table(grid),
        lambda: evidence_tables.ablations_table(grid),
    ):
        with pytest.raises(ReproError, match="run the cells of one kind again") as error:
            refused()
        assert said in str(error.value) and "ofa_open" in str(error.value)
    assert len(grid.log_ratios("ofa", "ofa_random")) == 3  # which are on one scale


def test_samplers_of_other_settings_are_refused():
    records = records_of({"ofa": 1.0, "ofa_open": 1.2})
    for record in records:
        if record["quality"]:
            record["quality"]["sampler"] = {"name": "ddim", "steps": 10 if record["cell"]["method"] == "ofa" else 100}
    with pytest.raises(ReproError, match=r"sampler ddim \(steps 10\) or ddim \(steps 100\)"):
        Grid(records).log_ratios("ofa", "ofa_open")


def on_machine(record, threads):
    return record | {"cost": record["cost"] | {"threads_per_rank": threads}}


def test_hours_of_several_machines_are_refused_and_work_is_not():
    records = [on_machine(record, 8 if record["cell"]["seed"] == 1 else 2) for record in records_of({"ofa": 1.0, "diff_pruning": 0.7})]
    grid = Grid(records)
    with pytest.raises(ReproError, match=r"the machines of the device-hours of ofa.* differ in threads 2 or 8"):
        grid.costs("ofa", SIZES, "device_hours")
    assert len(grid.costs("ofa", SIZES, "train_pflop")) == 3
    apart = [on_machine(record, 8 if "diff" in record["cell"]["method"] else 2) for record in records_of({"ofa": 1.0, "diff_pruning": 0.7})]
    with pytest.raises(ReproError, match="device-hours of ofa and diff_pruning differ in threads 2 or 8"):
        claims.claims_table(Grid(apart))
    apart_too = [on_machine(record, 8 if record["cell"]["seed"] == 1 else 2) for record in records_of({"ofa": 1.0, "ofa_open": 1.2})]
    table = evidence_tables.ablations_table(Grid(apart_too))
    assert table["device_hours"].isna().all() and table["train_pflop"].notna().all() and table["note"].str.contains("threads 2 or 8").all()


def test_the_command_that_refuses_says_so_in_one_line_and_draws_the_rest(tmp_path, capsys):
    folder = tmp_path / "digits"
    write_records(folder, on_scale(records_of({"ofa": 1.0, "ofa_open": 1.2, "diff_pruning": 0.7}), "ofa_open", n_samples=500))
    assert main(["--results", str(folder)]) == 2
    found = capsys.readouterr()
    assert found.err.count("\n") == 1 and "samples 1,797 or 500" in found.err
    assert (folder / "tables/results.csv").exists() and (folder / "figures/fid_vs_macs.png").exists()
    assert "the figure ablations: left out, the qualities of" in found.out and not (folder / "tables/claims.csv").exists()


def test_noise_is_pooled_over_cells():
    within, between = Grid(records_of(WHOLE)).noise()
    assert within == pytest.approx(0.02 * math.sqrt(2))
    assert between == pytest.approx(np.std([math.log(JITTER[seed]) + OWN[seed] for seed in SEEDS], ddof=1), rel=0.01)


# Claims


def test_verdicts_of_a_known_truth():
    found = verdicts(WHOLE)
    assert found == {
        "a1": "supported",  # the open set is 20 % worse
        "b1": "contradicted",  # uniform is 10 % better
        "b2": found["b2"],
        "c": "supported",  # m = 1 favours the largest
        "d1": found["d1"],
        "d2": found["d2"],
        "d3": "contradicted",  # 43 % worse, 10 allowed
        "d4": "supported",
        "d5": "supported",
        **dict.fromkeys(("a2", "a3", "a4", "d6", "d7"), "no records"),
    }


def test_a_difference_within_its_noise_is_undecided():
    noisy = records_of({"ofa": 1.0, "ofa_open": 1.0})
    for record in noisy:
        if record["cell"]["method"] == "ofa_open":
            shift = {0: 1.3, 1: 0.9, 2: 1.05}[record["cell"]["seed"]]
            record["quality"] = quality([value * shift for value in record["quality"]["values"]])
    row = claims.claims_table(Grid(noisy)).set_index("key").loc["a1"]
    assert row["low"] < 0 < row["high"] and row["verdict"] == "undecided"


def test_far_less_means_at_most_half():
    table = claims.claims_table(Grid(records_of({"ofa": 1.0, "diff_pruning": 0.7}))).set_index("key")
    records = {record["cell"]["name"]: record for record in records_of({"ofa": 1.0, "diff_pruning": 0.7})}
    alone = sum(records[f"diff_pruning-{size:g}-seed0"]["training"]["train_pflop"] for size in SIZES)
    once = records["ofa_joint-seed0"]["training"]["train_pflop"]
    assert table.loc["d2", "estimate"] == pytest.approx(alone / once)
    assert table.loc["d2", "verdict"] == ("supported" if alone / once > 2 else "contradicted")


# With and without size 1, scoring, and equal compute


def test_costs_and_qualities_are_stated_without_size_1_too():
    worse = {"ofa": lambda size: 3.0 if size == 1 else 1.5, "diff_pruning": 1.0}
    table = claims.claims_table(Grid(records_of(worse))).set_index("key")
    assert table.loc["d3", "estimate"] == pytest.approx(100 * ((3.0 * 1.5**3) ** 0.25 - 1))
    assert table.loc["d3", "estimate_without_1"] == pytest.approx(50)
    joint = 0.0034
    assert table.loc["d2", "estimate"] == pytest.approx(0.004 * 2.5 / joint)
    assert table.loc["d2", "estimate_without_1"] == pytest.approx(0.004 * 1.5 / joint)
    assert (table.loc["d2", "verdict"], table.loc["d2", "verdict_without_1"]) == ("supported", "contradicted")
    assert pd.isna(table.loc["c", "estimate_without_1"])
    shown, notes = evidence_tables.printable_claims(Grid(records_of(worse)))
    row = shown.set_index("").loc["d2"]
    assert row["Without size 1"].startswith("1.76 x (") and row["Verdict"] == "supported (without size 1: contradicted)"
    assert any("size 1 is free to who prunes" in note for note in notes)


def test_without_size_1_among_the_sizes_nothing_is_said_of_it():
    records = [record for record in records_of({"ofa": 1.0, "diff_pruning": 0.7}) if record["cell"]["size"] != 1]
    shown, _ = evidence_tables.printable_claims(Grid(records))
    assert set(shown["Without size 1"]) == {""} and not shown["Verdict"].str.contains("without size 1").any()


def test_ablations_are_stated_without_size_1_too():
    grid = Grid(records_of({"ofa": 1.0, "ofa_open": lambda size: 2.0 if size == 1 else 1.5}))
    row = evidence_tables.ablations_table(grid).set_index("method").loc["ofa_open"]
    assert row["difference_without_1_pct"] == pytest.approx(50) and row["difference_pct"] > 50
    shown, _ = evidence_tables.printable_ablations(grid)
    assert "+50.0 % (" in set(shown["Without size 1"].str[:9])


def test_a_scoring_pass_is_paid_once_for_all_sizes_of_a_seed():
    plain = records_of({"ofa": 1.0, "diff_pruning": 0.7})
    before = Grid(plain).costs("diff_pruning", SIZES, "train_pflop")
    grid = Grid(make_scores(plain, "diff_pruning", pflop=0.5, hours=0.25))
    assert grid.costs("diff_pruning", SIZES, "train_pflop") == pytest.approx({seed: cost + 0.5 for seed, cost in before.items()})
    d2 = next(claim for claim in claims.CLAIMS if claim.key == "d2")
    assert {cell.method for cell in d2.cells(grid)} == {
        "ofa",
        "ofa_joint",
        "diff_pruning",
        "diff_pruning_scores",
    }
    assert "diff_pruning_scores" not in grid.of


def test_equal_compute_is_stated_as_recorded_and_unequal_compute_in_the_verdict():
    factors = {"ofa": 1.0, "diff_pruning_short": 1.1}
    shown, _ = evidence_tables.printable_claims(Grid(records_of(factors)))
    row = shown.set_index("").loc["d5"]
    assert "equal total compute (PFLOP as recorded, without scoring, 0.34 : 1, 0.57 : 1 without size 1)" in row["Measured"]
    assert row["Verdict"] == "undecided (compute is not equal: -66 %)"
    equal = records_of(factors)
    for record in equal:
        if record["cell"]["method"] == "diff_pruning_short":
            record["training"] = {"train_pflop": 0.0034 / 4.1, "scoring_pflop": 0.0001}
    row = evidence_tables.printable_claims(Grid(equal))[0].set_index("").loc["d5"]
    assert "(PFLOP as recorded 1.02 : 1, " in row["Measured"]
    assert row["Verdict"] == "supported (without size 1: undecided)"  # there the short runs spent less than the joint one


def test_hours_of_a_busy_machine_are_marked_in_claims_and_ablations():
    records = records_of(WHOLE)
    records = [busy(record) if record["cell"]["name"] == "ofa_joint-seed1" else record for record in records]
    shown, notes = evidence_tables.printable_claims(Grid(records))
    assert [key for key, text in zip(shown[""], shown["Estimate"], strict=True) if text.endswith("†")] == ["d1"]
    assert any(note.startswith("†") for note in notes)
    verdicts = dict(zip(shown[""], shown["Verdict"], strict=True))  # hours that may favour a side by chance decide nothing
    assert verdicts["d1"] == "undecided (other work ran on the machine)" and verdicts["d2"].startswith("supported")
    table, _ = evidence_tables.printable_ablations(Grid(records))
    assert table.loc[0, "Device-hours"].endswith("†") and not table.loc[2, "Device-hours"].endswith("†")
    figure = evidence_plots.quality_vs_cost(Grid(records))
    assert [axes.get_xlabel().endswith("(busy machine)") for axes in figure.axes] == [True, False]


def test_the_bases_are_counted():
    records = [record | {"starts_from": "base-1-seed0"} for record in records_of(WHOLE)]
    assert any("One base;" in note for note in evidence_tables.printable_claims(Grid(records))[1])
    assert any("3 bases, one for each seed;" in note for note in evidence_tables.printable_claims(Grid(records_of(WHOLE)))[1])


def test_new_variants_need_no_list():
    new = {
        "diff_pruning_averaged": ("diff_pruning", "channels", "averaged over normalisation groups, norms unscored"),
        "ofa_tilted": ("ofa", "loss weighting", "tilted"),
    }
    records = records_of(WHOLE)
    for method, (of, factor, label) in new.items():
        made = [record_of(of, size, seed, 1.3) for seed in SEEDS for size in SIZES]
        for record in made:
            record["cell"] = record["cell"] | {"method": method, "name": record["cell"]["name"].replace(of, method, 1)}
            record["variant"] = {"of": of, "factor": factor, "label": label, "changes": {}}
        records += made
    grid = Grid(records)
    table = evidence_tables.ablations_table(grid).set_index("method")
    assert table.loc["diff_pruning_averaged", "factor"] == "channels" and table.loc["diff_pruning_averaged", "difference_pct"] > 0
    labels = [label.get_text() for axes in evidence_plots.ablations(grid).axes for label in axes.get_yticklabels()]
    assert "channels: averaged over normalisation groups, norms unscored" in labels
    assert "tilted" in [container.get_label() for container in evidence_plots.balance(grid).axes[0].containers]


def test_quality_against_cost_shows_it_without_size_1_too():
    axes = evidence_plots.quality_vs_cost(Grid(records_of(WHOLE)), ("train_pflop",)).axes[0]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert len(hollow) >= 3 and "without size 1" in axes.get_legend_handles_labels()[1]


def test_a_claim_without_records_says_so_and_is_no_verdict():
    found = verdicts({"ofa": 1.0, "ofa_open": 1.2})
    assert found.pop("a1") == "supported"
    assert set(found.values()) == {"no records"}


def test_two_seeds_give_an_estimate_and_no_verdict():
    table = claims.claims_table(Grid(records_of(WHOLE, seeds=(0, 1)))).set_index("key")
    assert set(table["verdict"]) == {"undecided", "no records"}
    assert table.loc["a1", "estimate"] == pytest.approx(100 * (1 / 1.2 - 1))


def test_the_rule_of_the_readme_is_the_one_that_is_applied():
    text = (ROOT / "results" / "README.md").read_text()
    rows = dict(re.findall(r"^\| ([a-d][0-9, d]*)(?:, a control)?: .* \| ([^|]+) \|$", text, flags=re.MULTILINE))
    stated = {key: holds for keys, holds in rows.items() for key in keys.split(", ")}
    assert stated.keys() == {claim.key for claim in claims.CLAIMS}
    for claim in claims.CLAIMS:
        side, number = stated[claim.key].split()[:2]
        assert (side, float(number)) == (claim.side, claim.boundary), claim.key


# Tables and figures


def test_ablations_stand_below_their_default_with_every_size(tmp_path):
    table = evidence_tables.ablations_table(Grid(records_of(WHOLE)))
    assert list(table["of"].drop_duplicates()) == ["ofa", "diff_pruning"]
    assert table.iloc[0]["method"] == "ofa" and pd.isna(table.iloc[0]["difference_pct"])
    row = table.set_index("method").loc["ofa_uniform"]
    assert row["difference_pct"] == pytest.approx(-10)
    assert row["fid_classifier 0.25"] == pytest.approx(9.0 * 0.9, rel=0.02)
    assert row["largest_size_error"] == pytest.approx(0.004)
    assert row["n_seeds"] == 3


def test_ablations_are_not_rows_of_the_results_but_a_rival_is():
    methods = set(results_table(records_of(WHOLE))["method"])
    assert methods == {"ofa", "slimmable", "diff_pruning", "floor", "noise"}


@pytest.mark.parametrize("draw", [evidence_plots.ablations, evidence_plots.balance, evidence_plots.quality_vs_cost])
def test_figures_are_drawn_from_the_grid(draw):
    assert isinstance(draw(Grid(records_of(WHOLE))), Figure)


def test_balance_shows_quality_over_that_of_the_size_trained_alone():
    figure = evidence_plots.balance(Grid(records_of(WHOLE)))
    lines = {container.get_label(): container.lines[0].get_ydata() for container in figure.axes[0].containers}
    assert lines["linear, m = 3 (the paper's)"] == pytest.approx([1 / 0.7] * 4)
    assert lines["linear, m = 1"] == pytest.approx([1.3 / 0.7, 1 / 0.7, 1 / 0.7, 0.9 / 0.7])


def test_a_grid_without_ablations_has_no_claims(tmp_path, capsys):
    folder = tmp_path / "digits"
    write_records(folder, records_of({"ofa": 1.0, "diff_pruning": 0.7}))
    assert main(["claims", "--results", str(folder)]) == 0
    assert "claims and ablations: left out, no records of any ablation; run `nox -s evidence`" in capsys.readouterr().out
    assert not (folder / "tables").exists()


def test_several_experiments_stand_side_by_side_and_one_alone_does_not(tmp_path, capsys):
    better, worse = {"ofa": 1.0, "ofa_open": 1.3, "diff_pruning": 1.0}, {"ofa": 1.0, "ofa_open": 0.8, "diff_pruning": 0.5}
    for name, factors in {"digits": better, "faces": worse, "floors": {}}.items():
        records = [record | {"experiment": name} for record in records_of(factors)]
        write_records(tmp_path / name, records)
    assert main(["claims", "--results", str(tmp_path)]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.partition("Verdicts side by side")[2].splitlines()
    ]
    rows = {row[0]: row for row in rows if len(row) == 4}
    assert rows[""] == ["", "Claim", "digits", "faces"]
    assert re.fullmatch(r"-23\.1 % \(.*\) supported", rows["a1"][2]) and re.fullmatch(r"\+25\.0 % \(.*\) contradicted", rows["a1"][3])
    assert rows["d3"][3].startswith("+100.0 %") and rows["d3"][3].endswith("contradicted")
    assert rows.keys() == {"", "---", "a1", "d1", "d2", "d3"}  # those that any of the experiments decides
    assert main(["claims", "--results", str(tmp_path), "--experiment", "digits"]) == 0
    assert "side by side" not in capsys.readouterr().out


def with_opinion(record, metric, factor):
    """A record whose samples another metric judged, too."""
    if record["quality"]:
        values = [factor * value for value in record["quality"]["values"]]
        other = {"metric": metric, "tool": "a script", "extractor": {"name": metric}, "mean": statistics.fmean(values), "values": values}
        record["quality"]["also"] = [other]
    return record


def test_a_further_metric_has_columns_and_verdicts_of_its_own(tmp_path, capsys):
    factors = {"ofa": 1.0, "ofa_open": 1.3, "diff_pruning": 1.0}
    records = [with_opinion(record, "second", 3.0 if record["cell"]["method"] == "ofa" else 1.0) for record in records_of(factors)]
    write_records(tmp_path / "digits", records)
    assert main(["claims", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out.partition("Verdicts side by side")[2]
    (a1,) = (line for line in out.splitlines() if line.startswith("| a1"))
    *_, first, second = (cell.strip() for cell in a1.strip("|").split("|"))
    assert re.search(r"\| digits +\| digits, second +\|", out)
    assert first.startswith("-23.1 %") and second.startswith("+130.8 %") and second.endswith("contradicted")
    table = results_table(records)
    assert list(table.columns[table.columns.get_loc("fid_classifier") :][:4]) == [
        *("fid_classifier", "fid_classifier_std_error", "second", "second_std_error")
    ]
    ofa = table[table["method"] == "ofa"]
    assert ofa["second"].to_list() == pytest.approx((3 * ofa["fid_classifier"]).to_list())
    assert ofa["second_std_error"].to_list() == pytest.approx((3 * ofa["fid_classifier_std_error"]).to_list())


def test_what_two_extractors_found_is_never_averaged():
    records = [with_opinion(record, "second", 2.0) for record in records_of({"ofa": 1.0, "ofa_open": 1.0, "diff_pruning": 1.0})]
    whole = len(results_table(records))
    first = next(record for record in records if record["cell"]["method"] == "ofa" and record["quality"])
    first["quality"]["also"][0]["extractor"]["name"] = "another"
    assert len(results_table(records)) == whole + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment with every ablation that the tests know."""
    made = tmp_path_factory.mktemp("claims") / "digits"
    return write_records(made, records_of(WHOLE))


def test_the_command_prints_the_verdicts_and_writes_the_same_bytes_twice(folder, capsys):
    assert main(["claims", "--results", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| a1 +\| +Restricting the candidates speeds up optimisation +\|.*\| +supported \|", out)
    assert "Floor (real against real): fid_classifier" in out and "Noise of one value of fid_classifier" in out
    files = [folder / "tables" / f"{name}.{suffix}" for name in ("claims", "ablations") for suffix in ("csv", "md", "tex")]
    files += [folder / "figures" / f"{name}.{suffix}" for name in ("ablations", "balance", "quality_vs_cost") for suffix in ("pdf", "png")]
    before = [path.read_bytes() for path in files]
    assert main(["claims", "--results", str(folder)]) == 0
    assert [path.read_bytes() for path in files] == before


def test_the_csv_holds_what_the_table_shows(folder):
    main(["claims", "--results", str(folder)])
    table = pd.read_csv(folder / "tables" / "claims.csv").set_index("key")
    shown = (folder / "tables" / "claims.md").read_text()
    assert f"{table.loc['a1', 'estimate']:+.1f} %" in shown
    assert f"{table.loc['d1', 'low']:.2f} x .. {table.loc['d1', 'high']:.2f} x" in shown


def test_the_overhead_shows_both_fair_comparisons(folder, capsys):
    assert main(["overhead", "--results", str(folder)]) == 0
    out = capsys.readouterr().out
    for words in ("equal images per run", "that of all independent runs", "that of one joint run", "OFA, trained longer"):
        assert words in out


# The committed records


def test_the_committed_evidence_is_redrawn_in_seconds_and_is_as_committed(tmp_path):
    records = ROOT / "results" / "digits"
    copy = tmp_path / "digits"
    copy.mkdir()
    for path in (*records.glob("*.json"), records / SUMS):
        shutil.copy(path, copy)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "paper_figures", "claims", "--results", str(copy)], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 30
    for name in ("claims", "ablations"):
        for suffix in ("csv", "md", "tex"):
            assert (copy / "tables" / f"{name}.{suffix}").read_bytes() == (records / "tables" / f"{name}.{suffix}").read_bytes()


def test_every_claim_is_decided_or_not_by_three_seeds_of_committed_records():
    table = pd.read_csv(ROOT / "results" / "digits" / "tables" / "claims.csv")
    table = table[table["verdict"] != claims.NO_RECORDS]
    assert (table["n_seeds"] >= evidence.LEAST_SEEDS).all() and len(table) == 9
    assert set(table["verdict"]) <= {"supported", "contradicted", "undecided"}
    assert table["low"].notna().all() and table["high"].notna().all()


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_records_are_of_one_device_and_of_clean_commits(name):
    records = read_records(ROOT / "results" / name)
    assert len({(record["cost"]["device_name"], record["cost"]["threads_per_rank"]) for record in records}) == 1
    assert not any(record["provenance"]["git_dirty"] for record in records)
    assert json.dumps(records).count('"failed"') == 0


def test_the_page_of_results_shows_the_verdicts_side_by_side():
    read = [read_records(ROOT / "results" / name) for name in COMMITTED]
    table = evidence_tables.side_by_side_text(read).partition("\n\n")[2].strip()
    assert f"<!-- side by side -->\n{table}\n\n" in (ROOT / "results" / "README.md").read_text()


@pytest.mark.parametrize("name", ["results", "claims"])
def test_the_page_of_results_shows_the_committed_table(name):
    page = (ROOT / "results" / "README.md").read_text()
    table = (ROOT / "results" / "digits" / "tables" / f"{name}.md").read_text().partition("\n\n")[2].strip()
    assert f"<!-- {name} -->\n{table}\n\n" in page


def test_the_readme_shows_rows_of_the_committed_table_and_its_overhead():
    (block,) = re.findall(r"^```text\n(\| Method.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    shown, notes, overhead = block.strip().split("\n\n")
    committed = (ROOT / "results" / "digits" / "tables" / "results.md").read_text()
    rows, (head, *picked) = ([line.strip("| ") for line in text.splitlines() if line.startswith("| ")] for text in (committed, shown))
    names, *rows = ([cell.strip() for cell in row.split("|")] for row in rows)
    columns = [names.index(cell.strip()) for cell in head.split("|")]
    table = [[row[column] for column in columns] for row in rows if len(row) == len(names)]
    assert len(picked) == 8
    assert all([cell.strip() for cell in row.split("|")] in table for row in picked)
    assert all(f"- {note}" in committed for note in notes.splitlines())
    assert overhead in overhead_text(read_records(ROOT / "results" / "digits"))


def test_networks_of_other_bases_at_a_seed_are_not_compared():
    records = records_of({"ofa": 1.0, "diff_pruning": 0.7})
    for record in records:
        if record["cell"]["size"] is not None:
            record["base"] = {"sha256": ("a" if record["cell"]["method"] == "ofa" or record["cell"]["seed"] < 2 else "b") * 64}
    with pytest.raises(ReproError, match="at seed 2 the networks of ofa and diff_pruning differ in base aaaaaaaa or bbbbbbbb"):
        Grid(records).log_ratios("ofa", "diff_pruning")
    for record in records:
        if record.get("base"):
            record["base"]["sha256"] = "a" * 64
    assert len(Grid(records).log_ratios("ofa", "diff_pruning")) == 3
