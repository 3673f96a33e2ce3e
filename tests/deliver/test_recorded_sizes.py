"""`sizes --recorded` says what the records say, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from repro.cli import main

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
HEAVY = ("torch", "numpy", "diffusers", "pandas")


def answer(capsys, *words):
    code = main(["sizes", "--recorded", "--results", str(RESULTS), *words])
    return code, capsys.readouterr()


def test_every_recorded_network_is_shown_with_its_counts_and_widths(capsys):
    code, said = answer(capsys, "--json", "--sizes", "0.5,0.25")
    assert code == 0, said.err
    rows = {(row["method"], row["size"], seed): row for row in json.loads(said.out)["recorded"] for seed in row["seeds"]}
    records = [json.loads(path.read_text()) for path in (RESULTS / "digits").glob("*-seed*.json")]
    sized = [record for record in records if record["cell"]["size"] in (0.5, 0.25) and not record.get("variant")]
    assert len(rows) == len(sized) > 20
    for record in sized:
        cell = record["cell"]
        row = rows[cell["method"], cell["size"], cell["seed"]]
        assert record["size"] == {key: row[key] for key in record["size"]}


def test_the_table_names_seeds_of_equal_counts_once_and_no_ablation(capsys):
    code, said = answer(capsys)
    assert code == 0, said.err
    rows = [line.split() for line in said.out.splitlines()]
    assert ["ofa", "1", "1.0000", "163,985", "3,842,048", "3,825,664", "3,877,136", "0,", "1,", "2,", "3,", "4"] in rows
    assert not any(row and row[0] in ("slimmable", "ofa_m1", "ofa_joint") for row in rows)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--sizes", "0.3"], ["results/digits: no network of size 0.3 has been recorded", "--results"]),
        (["--config", "cifar10"], ["results/cifar10: no such folder of records"]),
        (["--allocation", "uniform"], ["--allocation: goes without --recorded"]),
        (["--baselines"], ["--baselines: goes without --recorded"]),
        (["--network", "stable-diffusion-1.5"], ["--recorded: goes without --network"]),
    ],
)
def test_what_cannot_be_shown_is_one_line(words, parts, capsys):
    code, said = answer(capsys, *words)
    assert code == 2 and said.err.count("\n") == 1
    assert all(part in said.err for part in parts), said.err


def test_the_command_imports_nothing_heavy():
    code = f"import sys; from repro.cli import main; main(sys.argv[1:]); print([name for name in {HEAVY} if name in sys.modules])"
    words = ["sizes", "--recorded", "--results", str(RESULTS)]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
