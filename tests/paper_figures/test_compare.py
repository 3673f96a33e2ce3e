"""Two folders of records side by side: what differs between them, what their numbers come to, and what is refused."""

import math
import re

import numpy as np
import pytest
from scipy import stats
from support.record_factory import hash_of, make_records, write_records

from paper_figures.__main__ import main


def changed(records, method, factor):
    """The records, the qualities of a method multiplied."""
    for record in records:
        if record["cell"]["method"] == method and record["quality"]:
            record["quality"]["values"] = [value * factor for value in record["quality"]["values"]]
            record["quality"]["mean"] *= factor
    return records


def compared(capsys, *words):
    """What the command prints, and its last table: first two columns -> the others."""
    assert main(["compare", *map(str, words)]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.partition("B against A")[2].splitlines()]
    return out, {tuple(row[:2]): row[2:] for row in rows if len(row) == 8 and row[1][0].isdigit()}


@pytest.fixture
def folders(tmp_path):
    one = write_records(tmp_path / "one" / "digits", make_records(seeds=(0, 1, 2)))
    other = write_records(tmp_path / "other" / "digits", changed(make_records(seeds=(0, 1, 2)), "ofa", 0.8))
    return one, other


def test_equal_folders_are_equal_to_the_last_digit(folders, capsys):
    one, _ = folders
    out, rows = compared(capsys, one, one)
    assert "In one way: settings, versions, devices and extractors agree." in out
    assert {row[2] for row in rows.values()} == {"+0.0 % (+0.0 .. +0.0)"} and len(rows) > 8
    assert {ratio.rstrip("†") for row in rows.values() for ratio in row[3:5]} <= {"1.00 x", ""}
    same = re.search(r"(\d+) of (\d+) cells have the same values to the last digit", out)
    assert same[1] == same[2]


def test_a_difference_is_paired_over_seeds_with_the_interval_of_scipy(tmp_path, capsys):
    factors = (0.7, 0.8, 0.95)
    one = write_records(tmp_path / "one" / "digits", make_records(seeds=(0, 1, 2)))
    made = [record for seed, factor in enumerate(factors) for record in changed(make_records(seeds=(seed,)), "ofa", factor)]
    other = write_records(tmp_path / "other" / "digits", list({record["cell"]["name"]: record for record in made}.values()))
    _, rows = compared(capsys, one, other)
    logs = np.log(factors)
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    shown = [f"{100 * (math.exp(value) - 1):+.1f}" for value in (logs.mean(), low, high)]
    for size in ("1", "0.75", "0.5", "0.25"):
        assert rows["OFA", size][2] == f"{shown[0]} % ({shown[1]} .. {shown[2]})"
        assert rows["Diff-Pruning", size][2] == "+0.0 % (+0.0 .. +0.0)"
    assert rows["OFA", "0.5"][3:] == ["1.00 x", "1.00 x", "3"]


def test_what_differs_in_how_they_were_made_is_named(tmp_path, capsys):
    one, other = make_records(seeds=(0, 1)), make_records(seeds=(0, 1))
    for record, steps in (*((record, 400) for record in one), *((record, 800) for record in other)):
        record["provenance"]["config"] = {"ofa_training": {"steps": steps, "batch_size": 128}}
        record["provenance"]["config_sha256"] = hash_of(record["provenance"]["config"])
    for record in other:
        record["cost"]["threads_per_rank"] = 1
    out, _ = compared(capsys, write_records(tmp_path / "one", one), write_records(tmp_path / "other", other))
    heads = out.partition("What they came to")[0]
    assert re.search(r"\| ofa_training\.steps +\| 400 +\| 800 +\|", heads) and re.search(r"\| threads +\| 2 +\| 1 +\|", heads)
    assert "batch_size" not in heads


def test_qualities_of_two_extractors_are_not_compared(folders, tmp_path, capsys):
    one, _ = folders
    records = make_records(seeds=(0, 1, 2))
    for record in records:
        if record["quality"]:
            record["quality"]["extractor"] = {"name": "classifier", "sha256": "f" * 64}
    out, rows = compared(capsys, one, write_records(tmp_path / "another" / "digits", records))
    assert all(row[2] == "" for row in rows.values())
    assert "Qualities on several scales are not compared: extractor" in out and re.search(r"\| extractor +\|", out)


def test_a_method_of_one_s_own_stands_against_one_of_these(folders, capsys):
    one, other = folders
    out, rows = compared(capsys, one, other, "--pair", "diff_pruning=ofa")
    assert set(rows) == {("OFA against Diff-Pruning", size) for size in ("1", "0.75", "0.5", "0.25")}
    assert "Only in A: base, ofa" in out and "Only in B: base, diff_pruning" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compare", "{one}"], "compare: takes two folders, not 1"),
        (["tables", "{one}"], "goes with `python -m paper_figures compare A B`"),
        (["tables", "--pair", "a=b"], "--pair: goes with `python -m paper_figures compare A B`"),
        (["compare", "{one}", "{one}", "--pair", "ofa=mine"], "--pair ofa=mine: {one} has no mine; it has base, "),
        (["compare", "{one}", "{both}"], "holds several experiments (digits, faces); name one of them: --experiment digits"),
        (["compare", "{one}", "nowhere"], "nowhere: no experiment with records in it"),
    ],
)
def test_a_mistake_is_one_line(folders, tmp_path, capsys, words, line):
    one, _ = folders
    for name in ("digits", "faces"):
        write_records(tmp_path / "both" / name, make_records())
    named = {"one": one, "both": tmp_path / "both"}
    assert main([word.format(**named) for word in words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and line.format(**named) in said


def test_a_pair_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "b", "--pair", "ofa"])
    assert ended.value.code == 2 and "must be A=B, a method of each folder" in capsys.readouterr().err
