"""Tables, figures and the cost comparison, from records made up for the purpose."""

import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.commands import typed
from support.record_factory import DEVICE, SIZES, busy, cell_name, make_record, make_records, make_scores, quality, write_records

from paper_figures.__main__ import main
from paper_figures.cells import MissingRecordsError
from paper_figures.house_style import house_style, save_figure
from paper_figures.latex import long_table
from paper_figures.markup import markdown, printable
from paper_figures.methods import LOOKS, look_of
from paper_figures.overhead import Versus, comparisons
from paper_figures.overhead_plot import overhead
from paper_figures.overhead_terms import overhead_terms
from paper_figures.overhead_text import overhead_text
from paper_figures.plots import fid_vs_macs
from paper_figures.sample_grid import samples
from paper_figures.tables import results_table, write_tables
from repro.errors import ReproError

ROOT = Path(__file__).resolve().parents[2]


def only(table, method, size=None):
    rows = table[(table["method"] == method) & (table["size"].isna() if size is None else table["size"] == size)]
    assert len(rows) == 1
    return rows.iloc[0]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "paper_figures", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def on_device(record, name, ranks=1):
    return record | {"cost": record["cost"] | {"device_name": name, "ranks": ranks}}


def with_hours(record, hours):
    phases = {"prepare": 0.0, "train": hours, "evaluate": 9.0}
    return record | {"cost": record["cost"] | {"phases_device_hours": phases, "device_hours": hours}}


def failed(record, reason):
    return record | {"status": "failed", "reason": reason, "made": None, "quality": None, "size": None, "training": None}


# Tables


def test_csv_holds_the_records_numbers(tmp_path):
    records = make_records()
    assert main(["tables", "--results", str(write_records(tmp_path / "digits", records))]) == 0
    with (tmp_path / "digits/tables/results.csv").open() as file:
        rows = {(row["method"], row["size"]): row for row in csv.DictReader(file)}
    expected = [record for record in records if record["cell"]["method"] != "ofa_joint"]
    assert len(rows) == len(expected)
    for record in expected:
        cell, size = record["cell"], record["size"]
        row = rows[cell["method"], "" if cell["size"] is None else str(cell["size"])]
        for column in ("params", "macs", "macs_torch_pruning"):
            assert row[column] == ("" if size is None else str(size[column]))
        assert float(row["fid_classifier"]) == pytest.approx(record["quality"]["mean"], rel=1e-12)
        assert (row["n_samples"], row["n_values"], row["n_seeds"]) == ("1797", "2", "1")
        assert row["device"] == DEVICE


def test_rows_come_in_the_fixed_order():
    names = ("base", "ofa", "diff_pruning", "magnitude", "random", "scratch", "untrained", "untrained_random")
    records = [
        make_record(name, 0.5 if name != "base" else 1.0)
        for name in ("zeta", "alpha", *reversed(names), "noise", "floor")
        if name not in ("noise", "floor", "base")
    ]
    records += [make_record("base", 1.0), make_record("noise", None), make_record("floor", None), make_record("ofa", 0.75)]
    table = results_table(records)
    assert list(table["method"]) == ["base", "ofa", "ofa", *names[2:], "floor", "noise", "alpha", "zeta"]
    assert list(table.loc[table["method"] == "ofa", "size"]) == [0.75, 0.5]


def test_mean_over_seeds_is_a_mean_of_means_and_its_error_is_over_seeds():
    cells = [make_record("random", 0.5, seed, quality=quality(values)) for seed, values in enumerate([[1.0, 3.0], [4.0], [9.0]])]
    row = only(results_table(cells), "random", 0.5)
    assert row["fid_classifier"] == pytest.approx(5.0)  # (2 + 4 + 9) / 3; the values' own mean is 4.25, the minimum 1
    assert row["fid_classifier_std_error"] == pytest.approx(math.sqrt(13.0 / 3.0))  # variance (9 + 1 + 16) / 2 = 13
    assert (row["spread_over"], row["n_values"], row["n_seeds"]) == ("seeds", 4, 3)


def test_one_seed_has_the_error_of_its_sampling_seeds_and_one_value_has_none():
    table = results_table([make_record("random", 0.5, quality=quality([9.0, 11.0])), make_record("random", 0.25, quality=quality([7.0]))])
    two, one = only(table, "random", 0.5), only(table, "random", 0.25)
    assert two["fid_classifier_std_error"] == pytest.approx(1.0) and two["spread_over"] == "sampling seeds"
    assert math.isnan(one["fid_classifier_std_error"]) and one["spread_over"] == ""


def test_costs_are_own_and_delivering_cells_averaged_over_seeds():
    records = []
    for seed, joint in enumerate([2.0, 4.0]):
        records += [with_hours(make_record("ofa_joint", None, seed), joint), with_hours(make_record("ofa", 0.5, seed), 0.25)]
        records += [with_hours(make_record("base", 1.0, seed), 100.0)]
    row = only(results_table(records), "ofa", 0.5)
    assert row["device_hours"] == pytest.approx(3.25)
    assert row["train_pflop"] == pytest.approx(records[0]["training"]["train_pflop"])


def test_cost_is_blank_where_the_joint_run_is_missing_or_ran_elsewhere():
    alone = only(results_table([make_record("ofa", 0.5)]), "ofa", 0.5)
    mixed = only(results_table([make_record("ofa", 0.5), on_device(make_record("ofa_joint", None), "H200")]), "ofa", 0.5)
    assert math.isnan(alone["device_hours"]) and "ofa_joint-seed0 has no record" in alone["note"]
    assert math.isnan(mixed["device_hours"]) and "H200" in mixed["note"]


def test_failed_cells_are_gaps_with_a_reason_never_zeros():
    records = [failed(make_record("random", 0.5), "loss became NaN at step 12"), make_record("random", 0.25)]
    table = results_table(records)
    row = only(table, "random", 0.5)
    assert "loss became NaN at step 12" in row["note"]
    assert row.drop(["method", "size", "device", "busy_machine", "spread_over", "scale", "note"]).isna().all()
    assert (table["method"] == "diff_pruning").sum() == 0


def test_a_failed_seed_leaves_the_others_and_a_note():
    row = only(results_table([make_record("random", 0.5), failed(make_record("random", 0.5, 1), "disk full")]), "random", 0.5)
    assert row["n_seeds"] == 1 and "seed 1 failed: disk full" in row["note"]


@pytest.mark.parametrize(
    "other",
    [
        on_device(make_record("random", 0.5, 1), "H200"),
        on_device(make_record("random", 0.5, 1), DEVICE, ranks=2),
        make_record("random", 0.5, 1, quality=quality([5.0], n_samples=500)),
    ],
)
def test_devices_ranks_and_sample_counts_are_not_merged(other):
    assert len(results_table([make_record("random", 0.5), other])) == 2
    assert len(results_table([make_record("random", 0.5), make_record("random", 0.5, 1)])) == 1


def test_metrics_never_share_a_column():
    table = results_table([make_record("random", 0.5), make_record("base", 1.0, quality=quality([3.0], metric="fid", n_samples=50_000))])
    assert only(table, "base", 1.0)["fid"] == 3.0 and math.isnan(only(table, "base", 1.0)["fid_classifier"])
    assert math.isnan(only(table, "random", 0.5)["fid"])


def test_trial_records_are_hidden_everywhere(tmp_path, capsys):
    records = [record | {"trial": True} for record in make_records()]
    assert results_table(records).empty
    assert main(["all", "--results", str(write_records(tmp_path / "digits", records))]) == 0
    assert "only trial records" in capsys.readouterr().out
    assert not (tmp_path / "digits/tables").exists() and not (tmp_path / "digits/figures").exists()


# Markup


@pytest.fixture
def awkward():
    records = [*make_records(), failed(make_record("my_own_method", 0.5), r"50% & {x}_y ~ ^ # $ \ <a|b>" + "\nline two")]
    return printable(results_table(records))


def test_markdown_is_scaled_and_rectangular(awkward):
    text = markdown(*awkward, "Results")
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "Params (M)" in lines[0] and "MACs (M)" in lines[0]
    base = next(line for line in lines if line.startswith("| Base"))
    assert " 0.7013 " in base and " 9.877 " in base and "7.70 ± 0.10" in base
    assert "shared by all of its sizes" in text


# The cost comparison


def hand_made(sizes=(1.0, 0.5, 0.25), cost=1.0, joint=1.5):
    """OFA costs `joint` plus 0.25 a size; each independent size costs `cost`."""
    records = [with_hours(make_record("base", 1.0), 50.0), with_hours(make_record("ofa_joint", None), joint)]
    records += [with_hours(make_record("ofa", size), 0.25) for size in (1.0, 0.5, 0.25)]
    return records + [with_hours(make_record("diff_pruning", size), cost) for size in sizes]


def test_ratio_and_break_even_by_hand():
    terms, notes = overhead_terms(hand_made())
    (pair,) = comparisons(terms)
    every, without = pair.versus("device_hours"), pair.versus("device_hours", with_base_size=False)
    assert (every.ofa, every.independent, every.break_even, notes) == (2.25, 3.0, 3, [])
    assert every.ratio == pytest.approx(3.0 / 2.25)
    assert (without.ofa, without.independent, without.n_sizes, without.break_even) == (2.0, 2.0, 2, 3)
    pflop = pair.versus("train_pflop")
    assert pflop.ofa == pytest.approx(0.0034) and pflop.independent == pytest.approx(0.003 * 1.75)


@pytest.mark.parametrize(
    ("ofa", "independent", "sizes", "expected"), [(4.0, 4.0, 4, 5), (3.9, 4.0, 4, 4), (0.5, 4.0, 4, 1), (100.0, 4.0, 4, 101)]
)
def test_break_even_is_the_least_number_that_costs_more(ofa, independent, sizes, expected):
    assert Versus(ofa=ofa, independent=independent, n_sizes=sizes).break_even == expected


def test_joint_terms_are_its_phases_and_leave_out_evaluation():
    terms, _ = overhead_terms(make_records(seeds=(0, 1)))
    joint = {term.term: term for term in terms if term.term.startswith("ofa_joint")}
    assert set(joint) == {f"ofa_joint {phase}" for phase in ("prepare", "importance", "train", "checkpoint", "lost")}
    assert sum(term.device_hours for term in joint.values()) == pytest.approx(0.046)
    assert not any(term.approach.startswith(("untrained", "floor", "noise")) for term in terms)


def test_only_common_sizes_are_compared_and_named():
    records = hand_made(sizes=(0.5, 0.125))
    records += [with_hours(make_record("ofa", 0.125) | {"trial": True}, 7.0)]
    (pair,) = comparisons(overhead_terms(records)[0])
    assert pair.sizes == (0.5,) and pair.left_out == (0.125, 0.25, 1.0)
    assert pair.versus("device_hours").ofa == 1.75
    assert "sizes 0.125, 0.25, 1)" in overhead_text(records)


def test_different_devices_are_not_compared():
    records = [on_device(record, "H200") if record["cell"]["method"] == "diff_pruning" else record for record in hand_made()]
    text = overhead_text(records)
    assert "H200" in text and "never compared" in text and len(text.strip().split("\n")) == 1
    joint_elsewhere = [on_device(record, "H200") if record["cell"]["size"] is None else record for record in hand_made()]
    assert "do not add up" in overhead_text(joint_elsewhere)


def test_text_and_csv_say_the_same(tmp_path, capsys):
    folder = write_records(tmp_path / "digits", hand_made())
    assert main(["overhead", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"Diff-Pruning / OFA +1\.33", text) and re.search(r"from this many sizes on +3 ", text)
    assert main(["all", "--results", str(tmp_path)]) == 0
    terms = pd.read_csv(folder / "tables/overhead.csv")
    totals = terms.groupby("approach")["device_hours"].sum()
    assert (totals["ofa"], totals["diff_pruning"], totals["base"]) == (2.25, 3.0, 50.0)


# What must not be pooled

EXTRACTOR = {"name": "classifier", "sha256": "a1" * 32, "held_out_accuracy": 0.99}
SAMPLER = {"name": "ddim", "steps": 10, "spacing": "quadratic", "eta": 0.0, "clip_sample": True, "precision": "float32"}
REFERENCE = {"name": "digits", "n": 1797, "sha256": "c3" * 32}


def on_scale(record, **changes):
    told = {"extractor": EXTRACTOR, "sampler": SAMPLER, "reference": REFERENCE}
    return record | {"quality": record["quality"] | told | changes} if record["quality"] else record


def with_packages(record, **versions):
    return record | {"provenance": record["provenance"] | {"packages": {"torch": "2.13.0", "deepspeed": "0.19.8"} | versions}}


OTHER_SCALES = [
    ({"tool": "another 1.0"}, "tool another 1.0 (most rows: torch-fidelity 0.4.0)"),
    ({"extractor": EXTRACTOR | {"sha256": "b2" * 32}}, "extractor classifier b2b2b2b2 (most rows: classifier a1a1a1a1)"),
    ({"reference": REFERENCE | {"sha256": "d4" * 32}}, "reference digits d4d4d4d4 (most rows: digits c3c3c3c3)"),
    ({"reference": REFERENCE | {"name": "other"}}, "reference other c3c3c3c3 (most rows: digits c3c3c3c3)"),
    ({"reference": REFERENCE | {"n": 900}, "n_samples": 900}, "n = 900, not 1,797: a distance of fewer images reads higher"),
    ({"sampler": SAMPLER | {"steps": 100}}, "sampler ddim"),
    ({"extractor": None}, "extractor unknown"),
]


@pytest.mark.parametrize(("changes", "said"), OTHER_SCALES)
def test_qualities_on_other_scales_are_two_rows_and_a_footnote(changes, said):
    records = [on_scale(make_record("random", 0.5, seed)) for seed in (0, 1)] + [on_scale(make_record("random", 0.5, 2), **changes)]
    table = results_table(records)
    assert list(table["n_seeds"]) == [1, 2] or list(table["n_seeds"]) == [2, 1]
    (note,) = [row.note for row in table.itertuples() if row.n_seeds == 1]
    assert said in note and [row.note for row in table.itertuples() if row.n_seeds == 2] == [""]
    assert any(said in line for line in printable(table)[1])


def test_the_accuracy_of_an_extractor_is_no_scale_of_its_own():
    other = on_scale(make_record("random", 0.5, 1), extractor=EXTRACTOR | {"held_out_accuracy": 0.98})
    assert len(results_table([on_scale(make_record("random", 0.5)), other])) == 1


def test_a_floor_of_fewer_images_keeps_its_row_and_says_how_many():
    half = {"n_samples": 898, "sampler": None, "reference": REFERENCE | {"n": 898}}
    records = [*map(on_scale, make_records(methods=("base", "ofa")))][:-2]
    floors = [on_scale(make_record("floor", None, seed), **half) for seed in (0, 1)]
    row = only(results_table([*records, *floors, on_scale(make_record("noise", None), sampler=None)]), "floor")
    assert row["n_seeds"] == 2 and row["note"] == "n = 898, not 1,797: a distance of fewer images reads higher"
    assert only(results_table([*records, on_scale(make_record("noise", None), sampler=None)]), "noise")["note"] == ""


OTHER_MACHINES = [
    (lambda record: record | {"cost": record["cost"] | {"threads_per_rank": 1}}, "1 thread", "threads 1 (most rows: 2)"),
    (lambda record: with_packages(record, torch="2.14.1"), "torch 2.14.1", "torch 2.14.1 (most rows: 2.13.0)"),
    (lambda record: with_packages(record, deepspeed="0.20"), "deepspeed 0.20", "deepspeed 0.20 (most rows: 0.19.8)"),
    (lambda record: on_device(record, DEVICE, ranks=2), "2 ranks", "ranks 2 (most rows: 1)"),
    (lambda record: on_device(record, "H200"), "H200", "device H200 (most rows: AMD EPYC (2 cores))"),
]


@pytest.mark.parametrize(("elsewhere", "named", "said"), OTHER_MACHINES)
def test_hours_of_other_machines_are_two_rows_and_a_footnote(elsewhere, named, said):
    records = [with_packages(make_record("random", 0.5, seed)) for seed in (0, 1, 2)]
    table = results_table([*records[:2], elsewhere(records[2])])
    (row,) = [row for row in table.itertuples() if row.n_seeds == 1]
    assert len(table) == 2 and named in row.device and said in row.note
    assert len(results_table(records)) == 1


def test_images_that_no_network_drew_are_pooled_whatever_the_machine():
    records = [make_record("floor", None), on_device(make_record("floor", None, 1), "H200")]
    assert list(results_table(records)["n_seeds"]) == [2]


def test_a_subnet_and_its_joint_run_of_another_version_do_not_add_up():
    records = [with_packages(make_record("ofa", 0.5)), with_packages(make_record("ofa_joint", None), torch="2.14.1")]
    row = only(results_table(records), "ofa", 0.5)
    assert math.isnan(row["device_hours"]) and "torch 2.14.1" in row["note"] and "do not add up" in row["note"]
    assert "do not add up" in overhead_text([*map(with_packages, hand_made()[2:]), records[1]])


def test_figures_keep_scales_and_machines_apart():
    records = [on_scale(record, **({"sampler": None} if record["cell"]["size"] is None else {})) for record in make_records()]
    other = [on_scale(make_record("ofa", size, 1), extractor=EXTRACTOR | {"sha256": "b2" * 32}) for size in SIZES]
    figure = fid_vs_macs(results_table([*records, *other]))
    labels = [part.get_supylabel() for part in figure.subfigs]
    assert len(labels) == 2 and "classifier a1a1a1a1" in labels[0] and "classifier b2b2b2b2" in labels[1]
    assert [line for line in figure.subfigs[0].axes[0].lines if line.get_linestyle() == "--"]  # the floor, which has no sampler
    threads = [record | {"cost": record["cost"] | {"threads_per_rank": 8}} for record in make_records(seeds=(1,), methods=("ofa",))[:-2]]
    (part,) = fid_vs_macs(results_table([*make_records(methods=("ofa",)), *threads])).subfigs
    assert [text.get_text() for text in part.legends[0].get_texts()][:2] == [f"OFA, {DEVICE}, {n} threads" for n in (2, 8)]


def test_overhead_refuses_to_compare_scales_in_one_line(tmp_path, capsys):
    records = [on_scale(record) for record in make_records(methods=("ofa", "diff_pruning"))]
    records = [
        on_scale(record, extractor=EXTRACTOR | {"sha256": "b2" * 32}) if record["cell"]["method"] == "diff_pruning" else record
        for record in records
    ]
    write_records(tmp_path / "digits", records)
    assert main(["overhead", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "extractor classifier a1a1a1a1 or classifier b2b2b2b2" in error and "run the cells" in error


def test_overhead_compares_within_each_machine_alone():
    there = [record | {"cost": record["cost"] | {"threads_per_rank": 8}} for record in make_records(seeds=(1,))]
    terms, _ = overhead_terms([*make_records(), *there])
    assert [pair.device for pair in comparisons(terms)] == [f"{DEVICE}, 2 threads"] * 2 + [f"{DEVICE}, 8 threads"] * 2
    assert {term.n_seeds for term in terms} == {1}


# Scoring passes, bases that came trained, and busy machines


def scored():
    """Diff-Pruning of three sizes at a cost of 1 hour each, and 0.3 hours of scoring for all of them."""
    return make_scores(hand_made(), "diff_pruning", pflop=0.0006, hours=0.3)


def test_a_scoring_pass_is_paid_once_and_shared_evenly_by_the_sizes():
    (pair,) = comparisons(overhead_terms(scored())[0])
    hours, pflop = pair.versus("device_hours"), pair.versus("train_pflop")
    assert hours.independent == pytest.approx(3.3) and hours.mean_per_size == pytest.approx(1.1)
    assert pflop.independent == pytest.approx(0.003 * 1.75 + 0.0006)
    assert pair.versus("device_hours", with_base_size=False).independent == pytest.approx(2.3)
    assert pair.hours_up_to() == pytest.approx([0.0, 1.15, 2.3, 3.3])  # of which size 1 needs no scores
    rows = results_table(scored())
    assert list(rows.loc[rows["method"] == "diff_pruning", "device_hours"]) == pytest.approx([1.0, 1.15, 1.15])
    assert not rows["method"].str.endswith("_scores").any() and "an even share" in only(rows, "diff_pruning", 0.5)["note"]


def test_the_breakdown_shows_scoring_and_leaves_out_what_is_not_charged():
    records = scored()
    for record in records:
        if record["cell"]["method"] == "ofa_joint":
            record["training"]["scoring_pflop"] = 0.0004
            record["cost"]["phases_device_hours"] |= {"start": 7.0, "warm_up": 0.125}
    terms = {term.term: term for term in overhead_terms(records)[0] if term.size is None}
    assert terms["diff_pruning_scores importance"].device_hours == pytest.approx(0.3)
    assert terms["diff_pruning_scores importance"].train_pflop == pytest.approx(0.0006)
    assert terms["ofa_joint importance"].train_pflop == pytest.approx(0.0004)
    assert terms["ofa_joint train"].train_pflop == pytest.approx(0.0034 - 0.0004)
    assert terms["ofa_joint warm_up"].device_hours == 0.125 and not [name for name in terms if "start" in name or "evaluate" in name]
    assert re.search(r"diff_pruning_scores importance +0\.30000 +0\.00060", overhead_text(records))


def test_a_method_without_its_scoring_pass_is_left_out_with_a_note():
    records = [record for record in scored() if record["cell"]["method"] != "diff_pruning_scores"]
    assert f"Diff-Pruning is left out on {DEVICE}: diff_pruning_scores-seed0 has no record" in overhead_text(records)
    row = only(results_table(records), "diff_pruning", 0.5)
    assert math.isnan(row["device_hours"]) and "diff_pruning_scores-seed0 has no record" in row["note"]


def shipped_base(seed, device="H100"):
    trained = {"device_hours": 2.0 + seed, "device_name": device, "train_pflop": 5.0, "phases_device_hours": {"train": 2.0 + seed}}
    base = {"source": "shipped", "weights": "ema", "sha256": f"{seed}", "trained": trained}
    return make_record("base", 1.0, seed, base=base, training=None)


def test_a_base_that_came_trained_costs_what_its_training_did():
    row = only(results_table([shipped_base(seed) for seed in (0, 1)]), "base", 1.0)
    assert (row["device_hours"], row["train_pflop"], row["n_seeds"]) == (2.5, 5.0, 2)
    assert row["note"] == "trained once, on H100: the cost of that training, outside the comparison"
    assert re.search(r"size 1 \(trained once, on H100\) +2\.00000", overhead_text([*hand_made()[1:], shipped_base(0)]))
    assert len(results_table([shipped_base(0), shipped_base(1, "H200")])) == 2


def test_hours_of_a_busy_machine_are_marked():
    records = [busy(record) if record["cell"]["method"] == "ofa_joint" else record for record in hand_made()]
    table = results_table(records)
    assert list(table.loc[table["busy_machine"] == "yes", "method"]) == ["ofa"] * 3
    shown, notes = printable(table)
    assert [text.endswith("†") for text in shown["Device-hours"]] == [method == "ofa" for method in table["method"]]
    assert any(note.startswith("†") for note in notes) and r"$\dagger$" in long_table(shown, notes, "T", name="t", experiment="digits")
    text = overhead_text(records)
    for words in ("ofa_joint train (busy machine)", "total (busy machine)", "Diff-Pruning / OFA (busy machine)"):
        assert words in text
    assert "busy" not in overhead_text(hand_made()) and "†" not in "".join(printable(results_table(hand_made()))[0]["Device-hours"])
    (part,) = overhead(records).subfigs
    assert "†" in "".join(text.get_text() for text in part.legends[0].get_texts())


# With and without size 1


def test_the_overhead_states_cost_and_quality_with_size_1_and_without():
    text = overhead_text(hand_made())
    assert "Quality for the cost, sizes 0.25, 0.5, 1" in text and "Quality for the cost, without size 1" in text
    whole, without = text.split("Quality for the cost")[1:]
    assert re.search(r"OFA +2\.25000", whole) and re.search(r"OFA +2\.00000", without)
    assert re.search(r"Diff-Pruning +3\.00000", whole) and re.search(r"Diff-Pruning +2\.00000", without)
    (part,) = overhead(hand_made()).subfigs
    assert "OFA cheaper from 3 sizes (3 without size 1)" in "".join(text.get_text() for text in part.legends[0].get_texts())


@pytest.mark.parametrize(
    ("method", "label"),
    [("diff_pruning_averaged", "Diff-Pruning, averaged"), ("ofa_new_law", "OFA, new law"), ("my_own_method", "my_own_method")],
)
def test_an_unknown_method_is_named_after_the_one_it_varies(method, label):
    assert look_of(method).label == label


# Figures


def digests(folder):
    files = [path for part in ("tables", "figures") for path in sorted((folder / part).iterdir())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_everything_is_byte_identical_from_the_same_records(tmp_path):
    records = make_records(seeds=(0, 1), methods=("base", "ofa", "random", "untrained"))
    for place in ("one", "two"):
        write_records(tmp_path / place / "digits", records, strips=True)
    assert main(["--results", str(tmp_path / "one")]) == 0
    assert run("--results", tmp_path / "two", PYTHONHASHSEED="7").returncode == 0  # another process, other hashes
    one, two = digests(tmp_path / "one/digits"), digests(tmp_path / "two/digits")
    figures = {f"{name}.{suffix}" for name in ("fid_vs_macs", "fid_vs_params", "overhead", "samples") for suffix in ("pdf", "png")}
    assert set(one) == figures | {
        "captions.md",
        "results.csv",
        "results.md",
        "results.tex",
        "overhead.csv",
        "table_main.tex",
        "table_overhead.tex",
    }
    assert one == two
    changed = [record | {"quality": quality([12.0])} if record["cell"]["method"] == "ofa" else record for record in records]
    write_tables(tmp_path / "one/digits", changed)
    with house_style():
        save_figure(fid_vs_macs(results_table(changed)), tmp_path / "one/digits", "fid_vs_macs")
    differing = {name for name, digest in digests(tmp_path / "one/digits").items() if digest != two[name]}
    assert differing == {"results.csv", "results.md", "results.tex", "fid_vs_macs.pdf", "fid_vs_macs.png"}


def test_no_heavy_import():
    code = "import sys, paper_figures.__main__; print([m for m in ('torch', 'diffusers', 'deepspeed', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_axes_follow_the_range_and_failed_cells_break_the_line():
    near = [record for record in make_records(methods=("base", "ofa")) if record["cell"]["size"] != 0.5]
    far = [*make_records(), failed(make_record("magnitude", 0.5), "NaN"), make_record("magnitude", 0.75), make_record("magnitude", 0.25)]
    (alone,) = fid_vs_macs(results_table([*near, failed(make_record("ofa", 0.5), "NaN")])).subfigs[0].axes
    assert alone.get_yscale() == "linear"
    line = next(line for line in alone.lines if line.get_color() == LOOKS["ofa"].colour and len(line.get_xdata()) == len(SIZES))
    assert [math.isnan(value) for value in line.get_ydata()] == [False, False, True, False]
    both = fid_vs_macs(results_table(far)).subfigs[0].axes
    assert [axes.get_yscale() for axes in both] == ["log", "linear"]


def test_break_even_is_marked_where_the_text_says():
    (axes,) = overhead(hand_made()).axes
    rings = [line for line in axes.lines if line.get_fillstyle() == "none" and len(line.get_xdata())]
    assert [(list(ring.get_xdata()), list(ring.get_ydata())) for ring in rings] == [([3], [3.0])]
    assert [text.get_text() for text in axes.texts] == ["break-even\nat 3"]


def test_a_method_looks_the_same_whoever_else_is_there():
    looks = list(LOOKS.values())
    assert len({look.colour for look in looks[:8]}) == 8 and len({look.marker for look in looks[:8]}) == 8
    assert look_of("taylor") == look_of("taylor") and look_of("taylor").colour not in {look.colour for look in looks}


def test_samples_show_ten_images_a_row_pixel_for_pixel(tmp_path):
    records = [make_record("base", 1.0), make_record("ofa", 0.5)]
    folder = write_records(tmp_path / "digits", records, strips=True)
    stored = [json.loads((folder / f"{cell_name(*cell, 0)}.json").read_text()) for cell in (("base", 1.0), ("ofa", 0.5))]
    (axes,) = samples(folder, stored).axes
    (image,) = axes.images
    assert image.get_array().shape == (8 + 3 + 8, 10 * 9 - 1, 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Base", "OFA, P = 0.5"]
    stored[0]["samples"]["width"] = 9
    with pytest.raises(ReproError, match=r"base-1-seed0\.png: 128 x 8 pixels"):
        samples(folder, stored)
    (folder / "samples/base-1-seed0.png").write_bytes(b"no image")
    with pytest.raises(ReproError, match="not a readable image"):
        samples(folder, stored)
    with pytest.raises(MissingRecordsError):
        samples(tmp_path, stored)


# The command line


def test_missing_ingredients_are_left_out_with_a_remedy(tmp_path, capsys):
    folder = write_records(tmp_path / "digits", [make_record("base", 1.0), make_record("ofa_joint", None), make_record("ofa", 0.5)])
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "overhead: left out, no baseline records; run `nox -s baselines`" in out
    assert "no floor record" in out and "no sample strips" in out
    assert {path.stem for path in (folder / "figures").iterdir()} == {"captions", "fid_vs_macs", "fid_vs_params"}


@pytest.mark.parametrize(
    "records", [[make_record("ofa_joint", None)], [failed(make_record("ofa", 0.5), "NaN")], [make_record("floor", None)]]
)
def test_a_lone_record_never_crashes(tmp_path, records):
    write_records(tmp_path / "digits", records)
    assert [main([verb, "--show", "--results", str(tmp_path)]) for verb in ("all", "tables", "overhead")] == [0, 0, 0]


def test_corrupt_record_is_one_line_and_exit_code_2(tmp_path):
    folder = write_records(tmp_path / "digits", [make_record("base", 1.0)])
    (folder / "ofa-0.5-seed0.json").write_text("{ half a rec")
    done = typed(main, "tables", "--results", tmp_path)
    assert done.returncode == 2 and done.stdout.strip() == str(folder)
    assert done.stderr.count("\n") == 1 and "ofa-0.5-seed0.json" in done.stderr and "Traceback" not in done.stderr


def test_record_without_a_key_names_file_and_key():
    record = make_record("base", 1.0)
    del record["quality"]["values"]
    with pytest.raises(ReproError, match=r"digits/base-1-seed0\.json: the record lacks the key 'values'"):
        results_table([record])


def test_experiments_are_found_in_results_and_local(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "local/cifar10"):
        write_records(tmp_path / "results" / name, [make_record("base", 1.0)])
    (tmp_path / "results/empty").mkdir()
    assert main(["tables"]) == 0
    assert [line for line in capsys.readouterr().out.split("\n") if line and not line.startswith(" ")] == [
        "results/digits",
        "results/local/cifar10",
    ]
    assert main(["tables", "--experiment", "cifar10", "--show"]) == 0
    assert "| Base " in capsys.readouterr().out
    assert main(["tables", "--experiment", "nope"]) == 2
    assert "there are cifar10, digits" in capsys.readouterr().err
    assert main(["tables", "--results", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
