"""A record of a stranger reaches no file but its own, gives a terminal no orders, and is text in every table and figure."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from support.hostile import CLEAR_SCREEN, bomb
from support.record_factory import make_record, make_records, write_records

from paper_figures.__main__ import main as figures
from paper_figures.evidence import Grid
from paper_figures.evidence_plots import ablations
from paper_figures.house_style import drawn
from paper_figures.markup import markdown
from paper_figures.tables import results_table
from repro.experiment.record_checks import checksum
from repro.experiment.records import read_record

pytestmark = pytest.mark.timeout(60)  # a pipe that is waited for fails the test


def changed(record, key, value):
    part, _, leaf = key.rpartition(".")
    record = json.loads(json.dumps(record))
    (record[part] if part else record)[leaf] = value
    return record


def a_record(**changes):
    samples = {"file": "samples/ofa-0.5-seed0.png", "count": 4, "height": 8, "width": 8}
    return make_record("ofa", 0.5) | {"samples": samples} | changes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples.file", "../../../../etc/passwd"),
        ("samples.file", "/etc/passwd"),
        ("samples.file", "samples/../samples/ofa-0.5-seed0.png"),
        ("samples.file", "samples/base-1-seed0.png"),
        ("samples.count", 10**9),
        ("samples.height", 0),
        ("samples.width", "8"),
        ("cell.name", "../ofa-0.5-seed0"),
        ("cell.name", "base-1-seed0"),
        ("cell.name", ".hidden"),
        ("cell.method", "a/../b"),
        ("cell.method", "\u043efa"),
        ("cell.size", "0.5"),
        ("cell.size", 10**6),
        ("cell.seed", True),
        ("experiment", "../digits"),
        ("experiment", "digits\n"),
        ("delivered_by", "ofa_joint-seed0"),
        ("delivered_by", ["../../x"]),
        ("quality.metric", "fid|x"),
        ("quality.values", []),
        ("quality.values", [0.0]),
        ("quality.values", [-1.0]),
        ("quality.values", [1e300]),
        ("quality.n_samples", 2**80),
        ("cost.ranks", 1.5),
        ("cost.device_name", "x" * 10**4),
        ("cost.device_hours", -1.0),
        ("cost.busy", "very"),
        ("cost.busy", {"marked": "yes"}),
        ("training", {"scoring_pflop": "1"}),
        ("latency", [{"batch": 1, "ms": "5", "device_name": "x"}]),
        ("latency", [{"batch": 1, "ms": 5.0, "device_name": "x", "ms_quartiles": "45"}]),
        ("latency", [{"batch": 1, "ms": 5.0, "device_name": "x", "ms_quartiles": [6.0, 7.0]}]),
        ("latency", [{"batch": 1, "ms": 5.0, "device_name": "x", "busy": 1}]),
        ("latency", 5),
        ("base", {"trained": {"device_hours": [], "device_name": "x", "train_pflop": 1.0}}),
        ("base", {"trained": "elsewhere"}),
        ("size.macs", {}),
        ("provenance.config", []),
        ("cell", []),
    ],
)
def test_a_hostile_record_is_one_line_that_names_it(key, value, tmp_path, capsys):
    folder = write_records(tmp_path / "digits", [make_record("base", 1.0)])
    path = folder / "ofa-0.5-seed0.json"
    path.write_text(json.dumps(changed(a_record(), key, value)))
    assert figures(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and "ofa-0.5-seed0.json: " in error.replace("../", "")
    assert not (folder / "tables").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version": NaN}',
        '{"schema_version": 1e999}',
        '{"schema_version": ' + "9" * 5000 + "}",
        '{"schema_version": ' + "9" * 30 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({"schema_version": "x" * 2**24}),
        json.dumps({"schema_version": "x" * 10**6}),
        '{"schema_version": "\\u001b[2J\\ud800"}',
    ],
)
def test_numbers_without_end_deep_nesting_and_long_texts_are_one_short_line(text, tmp_path, capsys):
    (tmp_path / "ofa-0.5-seed0.json").write_text(text)
    assert figures(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {tmp_path / 'ofa-0.5-seed0.json'}: ")
    assert len(error) < 3000 and "\x1b" not in error


def test_a_pipe_among_the_records_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "ofa-0.5-seed0.json")
    assert figures(["--results", str(tmp_path)]) == 2
    assert "ofa-0.5-seed0.json: not a readable record ([Errno 22] No regular file" in capsys.readouterr().err


def strip_of(folder, pixels):
    path = folder / "samples" / "ofa-0.5-seed0.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_a_strip_outside_of_its_folder_or_of_another_size_is_refused(tmp_path, capsys):
    folder = write_records(tmp_path / "digits", [make_record("base", 1.0), a_record()])
    path = strip_of(folder, np.zeros((8, 32), np.uint8))
    assert figures(["--results", str(tmp_path)]) == 0
    path.replace(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert figures(["--results", str(tmp_path)]) == 2
    assert f"error: {path}: a link to somewhere else; delete it" in capsys.readouterr().err
    path.unlink()
    bomb(path, 50_000, 50_000)
    assert figures(["--results", str(tmp_path)]) == 2
    assert f"error: {path}: not a readable image (Image size (2500000000 pixels) exceeds limit" in capsys.readouterr().err
    bomb(path, 5_000, 5_000)
    assert figures(["--results", str(tmp_path)]) == 2
    assert f"error: {path}: 5000 x 5000 pixels, but its record says 4 images of 8 x 8" in capsys.readouterr().err
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 8\n")
    assert figures(["--results", str(tmp_path)]) == 2
    assert f"error: {path}: not a readable image (cannot identify" in capsys.readouterr().err


def test_what_a_record_says_is_text_in_every_table_and_gives_a_terminal_no_orders(tmp_path, capsys):
    device = r"=$\frac{$ <script>x</script> [a](javascript:x) ![b](c) `d` | \input{e}"
    cost = make_record("ofa", 0.5)["cost"] | {"device_name": device + CLEAR_SCREEN}
    records = [record if record["cell"]["method"] == "random" else record | {"cost": cost} for record in make_records()]
    write_records(tmp_path / "digits", [*records, make_record("my", 0.5, status="failed", reason=f"{CLEAR_SCREEN}\r\n## x\u202e<b>")])
    assert figures(["--show", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    tables = {path.suffix: path.read_text() for path in (tmp_path / "digits/tables").glob("results.*")}
    assert not any(sign in text for text in (out, *tables.values()) for sign in ("\x1b", "\u202e", "\r"))
    for text in (out, tables[".md"]):
        assert r"\<script>x\</script> \[a\](javascript:x) !\[b\](c) \`d\` \| \\input{e}" in text
        assert "<b>" not in text.replace(r"\<b>", "")
    assert r"\textbackslash{}input\{e\}" in tables[".tex"] and r"\input{" not in re.sub("^%.*", "", tables[".tex"], flags=re.MULTILINE)
    assert not [cell for line in tables[".csv"].split("\n") for cell in line.split(",") if cell.strip('"').startswith("=")]
    assert (tmp_path / "digits/figures/overhead.png").is_file()  # drawn, though two dollar signs begin a formula
    assert drawn("a $b$") == r"a \$b\$"


def test_a_label_is_drawn_to_the_letter():
    formula = {"of": "ofa", "factor": "budget", "label": r"$\frac{$", "changes": {}}
    records = [make_record(method, size, seed) for method in ("ofa", "ofa_m1") for size in (1.0, 0.5) for seed in (0, 1)]
    records = [record | {"variant": formula} if record["cell"]["method"] == "ofa_m1" else record for record in records]
    figure = ablations(Grid(records))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"budget: \$\frac{\$"]
    figure.canvas.draw()


def test_a_cell_of_markdown_is_escaped():
    table = results_table(make_records())[["device"]].head(1).astype(str).assign(device="<img src=x>\\|")
    assert r"\<img src=x>\\\|" in markdown(table, ["`x`"], "[t](u)") and r"# \[t\](u)" in markdown(table, ["`x`"], "[t](u)")


def test_a_record_that_was_read_has_one_line_in_every_text(tmp_path):
    record = make_record("ofa", 0.5, status="failed", reason=f"a\nb{CLEAR_SCREEN}")
    shown = r"a b\x1b[2J"
    (tmp_path / "ofa-0.5-seed0.json").write_text(json.dumps(record | {"sha256": checksum(record | {"reason": shown})}))
    assert read_record(tmp_path / "ofa-0.5-seed0.json")["reason"] == shown
