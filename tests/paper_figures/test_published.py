"""Published figures: the shipped file, its reader, and where they may stand beside an experiment."""

import csv
import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.record_factory import make_cifar10_record, make_cifar10_records, make_records, quality, write_records

from paper_figures.__main__ import main
from paper_figures.latex import long_table
from paper_figures.markup import markdown, printable
from paper_figures.plots import fid_vs_macs, fid_vs_params
from paper_figures.published import load_published
from paper_figures.published_selection import literature_beside
from paper_figures.tables import results_table, with_published, write_tables
from repro.config import load_config
from repro.config.known_sets import KNOWN_SETS
from repro.errors import ReproError
from repro.experiment.records import read_records
from repro.files.shipped_files import PUBLISHED as SHIPPED

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
# What stands beside CIFAR-10 by 50,000 samples of 100 quadratic DDIM steps: Diff-Pruning's table and DDIM's figure.
BESIDE = [4.19, 5.49, 5.44, 5.29, 5.56, 5.48, 5.62, 9.88, 5.68, 5.39, 4.16]


@pytest.fixture(scope="module")
def shipped():
    return load_published(SHIPPED)


def figures(entries):
    return [entry.fid for entry in entries]


def about(literature, cite):
    return [note for note in literature.footnotes if note.startswith(f"Published by {cite}")]


# The shipped file


def test_shipped_file_holds_diff_prunings_tables(shipped):
    rows = [entry for entry in shipped if entry.source.cite == "Fang et al., 2023"]
    cifar10 = {(entry.label, entry.params, entry.macs, entry.train_steps): entry.fid for entry in rows if entry.protocol.data == "cifar10"}
    pruned = (19_800_000, 3_400_000_000)
    assert cifar10 == {
        ("DDPM", 35_700_000, 6_100_000_000, 800_000): 4.19,
        ("Diff-Pruning, T = 0.00", *pruned, 100_000): 5.49,
        ("Diff-Pruning, T = 0.02", *pruned, 100_000): 5.44,
        ("Diff-Pruning, T = 0.05", *pruned, 100_000): 5.29,
        ("Taylor", *pruned, 100_000): 5.56,
        ("Magnitude", *pruned, 100_000): 5.48,
        ("Random", *pruned, 100_000): 5.62,
        ("Scratch, 100 k steps", *pruned, 100_000): 9.88,
        ("Scratch, 500 k steps", *pruned, 500_000): 5.68,
        ("Scratch, 800 k steps", *pruned, 800_000): 5.39,
    }
    celeba = {(entry.label, entry.params, entry.macs): entry.fid for entry in rows if entry.protocol.data == "celeba"}
    pruned = (43_700_000, 13_300_000_000)
    assert celeba == {
        ("DDPM", 78_700_000, 23_900_000_000): 6.48,
        ("Diff-Pruning", *pruned): 6.24,
        ("Taylor", *pruned): 6.64,
        ("Magnitude", *pruned): 7.08,
        ("Random", *pruned): 6.70,
        ("Scratch", *pruned): 7.08,
    }
    assert all(entry.macs_counter == "torch-pruning" and entry.train_batch_size in (128, None) for entry in rows)


def test_shipped_file_holds_the_papers_index_and_the_unpruned_networks(shipped):
    others = {(entry.source.cite, entry.protocol.data, entry.fid) for entry in shipped if entry.source.cite != "Fang et al., 2023"}
    assert others == {
        ("Ho et al., 2020", "cifar10", 3.17),
        ("Song et al., 2021", "cifar10", 4.67),
        ("Song et al., 2021", "cifar10", 4.16),
        ("Karras et al., 2022", "cifar10", 1.97),
        ("Karras et al., 2022", "cifar10", 1.79),
        ("Karras et al., 2022", "ffhq", 2.39),
        ("Karras et al., 2022", "imagenet", 1.36),
        ("Bao et al., 2023", "celeba", 2.87),
        ("Jiang et al., 2026", "cifar10", 2.29),
        ("Jiang et al., 2026", "cifar10", 3.87),
        ("Jiang et al., 2026", "celeba", 2.32),
        ("Jiang et al., 2026", "ffhq", 2.61),
        ("Jiang et al., 2026", "imagenet", 3.65),
    }
    assert all("size unknown" in entry.note and entry.params is None for entry in shipped if entry.source.cite == "Jiang et al., 2026")


# The reader

GOOD = """
[sources.someone]
cite = "Someone, 2020"
title = "A title"
url = "https://example.org"
[references.train]
data = "cifar10"
split = "train"
images = 50_000
[protocols.usual]
data = "cifar10"
metric = "fid"
reference = "train"
eta = 0
[[entries]]
method = "ofa"
label = "OFA"
source = "someone"
where = "Table 1"
protocol = "usual"
fid = 3
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("fid = 3\n", "fid = 'three'\n", "entry 1 (OFA): fid: must be of type float, not 'three'"),
        ("fid = 3\n", "fid = -3\n", "entry 1 (OFA): fid: must be positive and finite"),
        ("fid = 3\n", "fid = nan\n", "entry 1 (OFA): fid: must be positive and finite"),
        ("fid = 3\n", "", "entry 1 (OFA): the key 'fid' is missing"),
        ("fid = 3\n", "fid = 3\nparms = 4\n", "entry 1 (OFA): unknown key 'parms'; did you mean 'params'?"),
        ("fid = 3\n", "fid = 3\nparams = true\n", "entry 1 (OFA): params: must be of type int, not True"),
        ("fid = 3\n", "fid = 3\nmacs = 4\n", "entry 1 (OFA): macs_counter: goes with macs"),
        ("fid = 3\n", "fid = 3\nbase_weights = 'emma'\n", "entry 1 (OFA): base_weights: unknown value 'emma'"),
        ('protocol = "usual"', 'protocol = "unusual"', "entry 1 (OFA): protocol: unknown value 'unusual', use usual"),
        ('source = "someone"', 'source = ["someone"]', "entry 1 (OFA): source: unknown value"),
        ('metric = "fid"', 'metric = "FID"', "protocols.usual: metric: unknown value 'FID'"),
        ('reference = "train"', 'reference = "test"', "protocols.usual: reference: unknown value 'test'"),
        ("eta = 0\n", "eta = 'none'\n", "protocols.usual: eta: must be of type float"),
        ("images = 50_000", "images = 1", "references.train: images: must be at least 2"),
        ("https://example.org", "example.org", "sources.someone: url: must begin with https://"),
        ("[[entries]]", "[[entrys]]", "the file: unknown key 'entrys'; did you mean 'entries'?"),
        ("[[entries]]", "[entries]", "entries: must be a list, each begun by [[entries]]"),
        ("[sources.someone]", "[sources]", "sources.cite: must be a table of keys"),
        ("[[entries]]", "[[entries]", "not a readable TOML file"),
    ],
)
def test_a_mistake_is_one_line_with_file_entry_and_key(tmp_path, old, new, complaint):
    path = tmp_path / "published.toml"
    path.write_text(GOOD)
    (entry,) = load_published(path)
    assert (entry.fid, entry.protocol.eta, entry.protocol.reference.images, entry.params) == (3.0, 0.0, 50_000, None)
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ReproError) as caught:
        load_published(path)
    assert str(caught.value).startswith(f"{path}: {complaint}") and "\n" not in str(caught.value)


# Which figures may stand beside an experiment


def test_the_same_protocol_is_shown_and_the_others_are_footnotes(shipped):
    literature = literature_beside(make_cifar10_records(), shipped)
    assert figures(literature.entries) == BESIDE
    (ddpm,), (ddim,) = about(literature, "Ho et al., 2020"), about(literature, "Song et al., 2021")
    assert ddpm.endswith("DDPM 3.17: sampler ddpm (here ddim); NFE 1,000 (here 100)")
    assert ddim.endswith("DDPM 4.67: NFE 50 (here 100)")
    unconditional, conditional = about(literature, "Karras et al., 2022")
    assert "EDM (VP) 1.97: sampler heun" in unconditional and "1.79: class-conditional yes (here no); sampler heun" in conditional
    (ofa,) = about(literature, "Jiang et al., 2026")
    assert "OFA 2.29, OFA 3.87: samples unknown (here 50,000); reference set unknown (here cifar10 train" in ofa
    assert len(literature.footnotes) == 6  # and how to read "(published)"
    assert not any(foreign in " ".join(literature.footnotes) for foreign in ("2.32", "2.61", "3.65", "6.24"))  # other data sets


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"n_samples": 10_000}, "samples 50,000 (here 10,000)"),
        ({"name": "heun"}, "sampler ddim (here heun)"),
        ({"steps": 50}, "NFE 100 (here 50)"),
        ({"spacing": "uniform"}, "spacing quadratic (here uniform)"),
        ({"eta": 1.0}, "eta 0 (here 1)"),
        (
            {"reference": {"name": "cifar10", "n": 10_000, "sha256": "a7" * 32}},
            "reference set cifar10 train, 50,000 images (here cifar10 train, 10,000 images)",
        ),
        ({"reference": None}, "reference set cifar10 train, 50,000 images (here unknown)"),
    ],
)
def test_each_difference_of_protocol_hides_a_figure_and_is_named(shipped, changes, difference):
    literature = literature_beside(make_cifar10_records(**changes), shipped)
    assert not {4.19, 5.29, 9.88} & set(figures(literature.entries))
    (line,) = about(literature, "Fang et al., 2023")
    assert "DDPM 4.19, Diff-Pruning, T = 0.00 5.49" in line and difference in line
    assert line.count("(here") == 1


@pytest.mark.parametrize(("condition", "shown", "hidden"), [("none", 1.97, 1.79), ("class_labels", 1.79, 1.97)])
def test_edm_s_figures_stand_beside_the_same_protocol(shipped, condition, shown, hidden):
    """18 steps of Heun are 35 evaluations, whatever the section of the network is called."""
    records = make_cifar10_records(name="heun", steps=18)
    for record in records:
        if record["quality"]["sampler"]:
            record["quality"]["sampler"] = {"name": "heun", "steps": 18, "nfe": 35, "precision": "float32"}
        config = record["provenance"]["config"]
        config["song_unet"] = config.pop("network")
        config["data"]["condition"] = condition
    literature = literature_beside(records, shipped)
    assert shown in figures(literature.entries) and hidden not in figures(literature.entries)
    (line,) = about(literature, "Karras et al., 2022")
    assert f"class-conditional {'yes (here no)' if condition == 'none' else 'no (here yes)'}" in line


def records_of(name, sampler):
    """Records such as a shipped configuration's, whose images came from a folder."""
    config = load_config(name)
    records = make_cifar10_records()
    for record in records:
        record["provenance"]["config"] = config.as_dict()
        quality = record["quality"]
        if quality["sampler"]:
            quality["sampler"] = sampler
        quality["n_samples"] = config.evaluation.samples
        quality["reference"] = {"name": config.data.known_as, "n": KNOWN_SETS[config.data.holds].training, "sha256": "a7" * 32}
    return records


@pytest.mark.parametrize(
    ("name", "sampler", "shown", "hidden"),
    [
        ("ffhq64_edm", {"name": "heun", "steps": 40, "nfe": 79}, ["EDM (VP) 2.39"], {"OFA 2.61: samples unknown (here 50,000)"}),
        ("ffhq64_edm", {"name": "heun", "steps": 18, "nfe": 35}, [], {"EDM (VP) 2.39: NFE 79 (here 35)"}),
        ("imagenet64_edm", {"name": "heun", "steps": 256, "nfe": 511, "churn": 40}, ["EDM (ADM), class-conditional 1.36"], {"OFA 3.65"}),
        ("imagenet64_edm", {"name": "heun", "steps": 256, "nfe": 511}, [], {"EDM (ADM), class-conditional 1.36: churn 40 (here 0)"}),
        (
            "celeba64_uvit",
            {"name": "heun", "steps": 25, "nfe": 49},
            [],
            {
                "U-ViT-S/4 2.87: reference set unknown (here celeba train, 162,770 images); sampler euler_maruyama (here heun); NFE 1,000",
                "2.32",
            },
        ),
    ],
)
def test_the_64_x_64_figures_stand_beside_the_same_protocol(shipped, name, sampler, shown, hidden):
    literature = literature_beside(records_of(name, sampler), shipped)
    assert [f"{entry.label} {entry.fid:g}" for entry in literature.entries] == shown
    assert all(
        item.note.endswith("the images here are taken for the same by their number; the least of three FIDs") for item in literature.shown
    )
    footnotes = "\n".join(literature.footnotes)
    assert all(line in footnotes for line in hidden), footnotes
    assert (f"heun, NFE {sampler['nfe']}, churn {sampler.get('churn', 0)})" in footnotes) == bool(shown)


def test_a_copy_that_is_not_the_official_set_hides_a_figure(shipped):
    records = make_cifar10_records()
    for record in records:
        record["provenance"]["config"]["data"] = {"name": "cifar10", "sha256": "ab" * 32}
    (line,) = about(literature_beside(records, shipped), "Fang et al., 2023")
    assert line.endswith("reference set cifar10 train, 50,000 images (here cifar10 train, 50,000 images, a copy with sha256 abababab)")


def test_images_that_were_made_smaller_are_another_data_set(shipped):
    records = make_cifar10_records()
    assert figures(literature_beside(records, shipped).entries) == BESIDE
    for record in records:
        record["provenance"]["config"]["data"]["downsampling"] = 2
    literature = literature_beside(records, shipped)
    assert not literature.entries and not literature.footnotes


def test_another_resolution_hides_a_figure(shipped):
    records = make_cifar10_records()
    for record in records:
        record["provenance"]["config"]["network"]["sample_size"] = 64
    (line,) = about(literature_beside(records, shipped), "Fang et al., 2023")
    assert line.endswith("resolution 32 (here 64)")


def test_what_an_entry_does_not_say_counts_as_different(shipped):
    entry = next(entry for entry in shipped if entry.fid == 5.29)
    for key in ("resolution", "n_samples", "reference", "sampler", "nfe", "spacing", "eta"):
        vague = dataclasses.replace(entry, protocol=dataclasses.replace(entry.protocol, **{key: None}))
        literature = literature_beside(make_cifar10_records(), [vague])
        assert not literature.shown and "unknown (here" in literature.footnotes[0], key


@pytest.mark.parametrize(
    "records",
    [
        make_cifar10_records(metric="fid768"),
        make_cifar10_records(metric="fid_classifier"),
        make_records(),
        [record | {"trial": True} for record in make_cifar10_records()],
        [record | {"status": "failed", "reason": "disk full", "quality": None} for record in make_cifar10_records()],
        [make_cifar10_record("floor", None)],
        [],
    ],
)
def test_nothing_is_said_beside_other_metrics_trials_failures_or_real_images(shipped, records):
    literature = literature_beside(records, shipped)
    assert (literature.shown, literature.footnotes) == ((), ())
    table = results_table(records)
    assert with_published(table, literature.shown) is table


def test_another_data_set_has_nothing_beside_it(shipped):
    records = make_cifar10_records()
    for record in records:
        record["provenance"]["config"]["data"]["name"] = "folder"
    assert literature_beside(records, shipped).footnotes == ()


def test_a_base_of_other_weights_is_a_footnote_of_the_row(shipped):
    def notes(weights):
        return {item.entry.fid: item.note for item in literature_beside(make_cifar10_records(weights=weights), shipped).shown}

    raw, unknown, ema = notes("raw"), notes("unknown"), notes("ema")
    assert list(raw) == list(unknown) == list(ema) == BESIDE
    assert "base: EMA weights, here raw" in raw[5.29] and "base: EMA weights, here unknown" in unknown[5.29]
    assert "base:" not in raw[9.88] and not any("base:" in note for note in ema.values())  # scratch started from no base
    old = make_cifar10_records()
    for record in old:
        del record["base"]
    assert figures(literature_beside(old, shipped).entries) == BESIDE


def test_other_clipping_and_tools_are_footnotes_of_the_row(shipped):
    (item,) = (item for item in literature_beside(make_cifar10_records(clip_sample=True), shipped).shown if item.entry.fid == 5.29)
    assert item.note == (
        "Fang et al., 2023, Table 1, https://arxiv.org/abs/2305.10924; trained 100,000 steps x 128; MACs by torch-pruning; "
        "predicted images clipped while sampling: no, here yes; FID by pytorch-fid, here by torch-fidelity 0.4.0; "
        "the authors' code scores (weight x gradient)^2 of convolutions and |weight x gradient| of norms, the paper's text "
        "|weight x gradient|; it clips the gradient of the loss summed over pixels and draws antithetic timesteps"
    )


def test_a_spoilt_protocol_names_the_record(shipped):
    record = make_cifar10_record("ofa", 0.5, n_samples="many")
    with pytest.raises(ReproError, match=r"cifar10/ofa-0\.5-seed0\.json: the record is malformed"):
        literature_beside([record], shipped)


# Tables


def test_rows_stand_below_ours_and_state_what_was_published(shipped, tmp_path):
    records = make_cifar10_records()
    paths = write_tables(tmp_path, records, literature_beside(records, shipped))
    table = pd.read_csv(paths[0])
    ours, theirs = table[~table["published"]], table[table["published"]]
    assert list(table["published"]) == [False] * len(ours) + [True] * len(BESIDE) and list(theirs["fid"]) == BESIDE
    row = theirs[theirs["method"] == "Diff-Pruning, T = 0.05 (published)"].iloc[0]
    assert (row["params"], row["macs_torch_pruning"], row["fid"], row["n_samples"]) == (19_800_000, 3_400_000_000, 5.29, 50_000)
    assert row["note"].startswith("Fang et al., 2023, Table 1") and "trained 100,000 steps x 128" in row["note"]
    blank = [
        "size",
        "realised_size",
        "macs",
        "device",
        "device_hours",
        "train_pflop",
        "fid_std_error",
        "spread_over",
        "n_values",
        "n_seeds",
    ]
    assert theirs[blank].isna().all(axis=None)
    assert set(theirs["method"]) & set(ours["method"]) == set()
    alone = write_tables(tmp_path / "alone", records)
    pd.testing.assert_frame_equal(pd.read_csv(alone[0]), ours.drop(columns="published"), check_dtype=False)
    assert list(pd.read_csv(alone[0]).columns) == list(table.columns.drop("published"))


def test_published_counts_keep_their_digits_and_every_note_is_printed(shipped):
    records = make_cifar10_records(weights="raw")
    literature = literature_beside(records, shipped)
    shown, notes = printable(with_published(results_table(records), literature.shown))
    text = markdown(shown, [*notes, *literature.footnotes], "Results")
    line = next(line for line in text.split("\n") if line.startswith("| Diff-Pruning, T = 0.05 (published)"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    mark = re.fullmatch(r"Diff-Pruning, T = 0\.05 \(published\) \((\w)\)", cells[0])[1]
    assert cells[1:] == ["", "", "19.8", "", "3.4", "", "", "5.29"]
    note = next(line for line in text.split("\n") if line.startswith(f"- ({mark}) "))
    assert "https://arxiv.org/abs/2305.10924" in note and "base: EMA weights, here raw" in note
    assert "- In every row of ours: " in text and "| Base " in text and " 35.75 |" in text
    assert "- Published by Ho et al., 2020, not shown: DDPM 3.17" in text
    source = long_table(shown, [*notes, *literature.footnotes], "Results", name="results", experiment="cifar10")
    assert "?" not in source and r"Diff-Pruning, T = 0.05 (published)" in source


# Figures


def points(figure):
    """The published points of the figure's axes, as (axes number, x, y)."""
    return [
        (number, *line.get_xydata()[0])
        for number, axes in enumerate(figure.subfigs[0].axes)
        for line in axes.lines
        if line.get_markerfacecolor() == "none"
    ]


def test_points_are_hollow_grey_unjoined_and_stand_at_torch_prunings_count(shipped):
    records = make_cifar10_records()
    entries = literature_beside(records, shipped).entries
    table = results_table(records)
    macs, params = fid_vs_macs(table, entries), fid_vs_params(table, entries)
    assert points(macs) == [(0, 6.1, 4.19), *((0, 3.4, fid) for fid in BESIDE[1:-1])]
    assert points(params) == [(0, 35.7, 4.19), *((0, 19.8, fid) for fid in BESIDE[1:-1]), (0, 35.7, 4.16)]
    for figure in (macs, params):
        lines = [line for line in figure.subfigs[0].axes[0].lines if line.get_markerfacecolor() == "none"]
        assert all(line.get_linestyle() == "None" and line.get_color() == "#555555" and len(line.get_xdata()) == 1 for line in lines)
        ours, theirs = figure.subfigs[0].legends
        assert not any("published" in text.get_text() for text in ours.get_texts())
        labels = [text.get_text() for text in theirs.get_texts()]
        assert "Diff-Pruning (published): 5.49, 5.44, 5.29" in labels and "Taylor (published): 5.56" in labels
        assert all("(published)" in label for label in labels)
    assert "torch-pruning's count" in macs.subfigs[0].legends[1].get_title().get_text()
    assert points(fid_vs_macs(table)) == [] and len(fid_vs_macs(table).subfigs[0].legends) == 1


def test_points_stand_with_the_trained_networks_and_with_their_own_metric_and_count(shipped):
    records = make_cifar10_records() + [make_cifar10_record("untrained", size) for size in (0.75, 0.5)]
    entries = literature_beside(records, shipped).entries
    assert {point[0] for point in points(fid_vs_macs(results_table(records), entries))} == {1}
    other = [make_cifar10_record("ofa", 0.5), make_cifar10_record("ofa", 0.5, 1, n_samples=10_000)]
    figure = fid_vs_macs(results_table(other), literature_beside(other, shipped).entries)
    hollow = [sum(line.get_markerfacecolor() == "none" for line in part.axes[0].lines) for part in figure.subfigs]
    assert hollow == [0, len(BESIDE) - 1]  # 10,000 samples, then 50,000; DDIM's figure has no MACs
    assert all(math.isfinite(y) for part in figure.subfigs for line in part.axes[0].lines for y in line.get_ydata())


# The command line


def methods_in(folder):
    with (folder / "tables/results.csv").open() as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_the_file_beside_the_experiments_is_found_and_can_be_hidden(tmp_path, capsys):
    folders = [write_records(tmp_path / "results" / name, make_cifar10_records()) for name in ("cifar10", "local/cifar10")]
    results = tmp_path / "results"
    assert main(["tables", "--results", str(results)]) == 0
    assert all("Random (published)" in methods_in(folder) for folder in folders)  # there is no file yet: the package's
    (results / "published.toml").write_text(SHIPPED.read_text().replace('label = "Random"', 'label = "Chance"'))
    for argument in (results, results / "local", *folders):
        for folder in folders:
            shutil.rmtree(folder / "tables", ignore_errors=True)
        assert main(["tables", "--results", str(argument)]) == 0
        made = [folder for folder in folders if (folder / "tables").exists()]
        assert made and all("Chance (published)" in methods_in(folder) for folder in made), argument
    assert main(["tables", "--results", str(results), "--no-published"]) == 0
    assert not any("published" in method for folder in folders for method in methods_in(folder))
    capsys.readouterr()
    assert main(["tables", "--show", "--experiment", "cifar10", "--results", str(results)]) == 0
    assert "| Chance (published) " in capsys.readouterr().out


def test_a_named_file_is_used_and_a_missing_one_is_one_line(tmp_path, capsys):
    folder = write_records(tmp_path / "cifar10", make_cifar10_records())
    other = tmp_path / "other.toml"
    other.write_text(SHIPPED.read_text().replace('label = "Random"', 'label = "Chance"'))
    assert main(["all", "--results", str(tmp_path), "--published", str(other)]) == 0
    assert "Chance (published)" in methods_in(folder)
    capsys.readouterr()
    assert main(["tables", "--results", str(tmp_path), "--published", str(tmp_path / "none.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none.toml: not a readable TOML file" in error
    with pytest.raises(SystemExit) as caught:
        main(["tables", "--results", str(tmp_path), "--published", str(other), "--no-published"])
    assert caught.value.code == 2


@pytest.mark.slow
def test_figures_beside_published_ones_are_byte_identical(tmp_path):
    for place in ("one", "two"):
        write_records(tmp_path / place / "cifar10", make_cifar10_records())
    command = [sys.executable, "-m", "paper_figures", "--published", str(SHIPPED), "--results"]
    for place, seed in (("one", "1"), ("two", "7")):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([*command, tmp_path / place], check=True, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_the_published_run_on_digits_is_as_it_was(shipped, tmp_path):
    records = read_records(ROOT / "results" / "digits")
    for path in write_tables(tmp_path, records, literature_beside(records, shipped)):
        assert path.read_bytes() == (ROOT / "results/digits/tables" / path.name).read_bytes()


def test_published_values_are_no_measured_ones(shipped):
    """A record of another metric in the same experiment shares neither column nor row with the literature."""
    records = [*make_cifar10_records(), make_cifar10_record("random", 1.0) | {"quality": quality([9.0])}]
    table = with_published(results_table(records), literature_beside(records, shipped).shown)
    assert table.loc[table["published"], "fid_classifier"].isna().all() and table.loc[table["published"], "fid"].notna().all()
