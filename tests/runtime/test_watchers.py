"""What TensorBoard and Weights & Biases are shown of a run, read back from the files that they leave."""

import json
import struct
from pathlib import Path

import pytest
from support.commands import typed

from repro.cli import main
from repro.config import load_config
from repro.config.execution import WATCHERS as KNOWN
from repro.errors import InterruptionError, ReproError
from repro.runtime import watchers

TINY = Path(__file__).resolve().parents[1] / "tiny.toml"
CURVES = ("data.held_out=97", "curves.points=3", "curves.span=4", "curves.metric_points=2", "curves.samples=20", "curves.triples=64")
BLOCK = 2**15


def run(folder, *settings):
    sets = [word for setting in settings for word in ("--set", setting)]
    return typed(main, "run", "--config", TINY, "--methods", "diff_pruning", "--sizes", "0.5", *sets, cwd=folder)


def expected_of(folder):
    """Returns what the record of the pruned network says, by the names that watchers are given: [(images, value), ...]."""
    record = json.loads((folder / "results" / "local" / "tiny" / "diff_pruning-0.5-seed0.json").read_text())
    batch, points = record["training"]["batch_size"], record["curves"]["points"]
    return {
        "train/loss": [(step * batch, loss) for step, loss in record["training"]["curve"]],
        "curve/0.5/validation_loss": [(point["images"], point["sizes"]["0.5"]["validation_loss"]) for point in points],
        "curve/0.5/value": [(point["images"], point["sizes"]["0.5"]["value"]) for point in points[1:]],
        "quality/fid_classifier": [(record["training"]["images"], record["quality"]["mean"])],
    }


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that both watch, in a folder of its own."""
    for name in watchers.WATCHERS:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        done = run(folder, *CURVES, 'execution.watchers=["tensorboard", "wandb"]')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_tensorboard_has_what_the_record_has(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(watched / "runs" / "tiny" / "diff_pruning-0.5-seed0" / "tensorboard")).Reload()
    for name, values in expected_of(watched).items():
        assert [(event.step, event.value) for event in read.Scalars(name)] == [(images, pytest.approx(value)) for images, value in values]
    assert [event.value > 0 for event in read.Scalars("train/learning_rate")] == [True] * len(read.Scalars("train/loss"))
    assert {*read.Tags()["images"]} == {"samples", "curve/0.5/samples"}
    (strip,) = read.Images("samples")
    assert (strip.height, strip.width) == (8, 16 * 8)


@pytest.mark.slow
def test_weights_and_biases_has_what_the_record_has(watched):
    (folder,) = (watched / "runs" / "tiny" / "diff_pruning-0.5-seed0" / "wandb").glob("offline-run-*")
    history = [row for content in records_of(next(folder.glob("*.wandb"))) for row in rows_of(content)]
    for name, values in expected_of(watched).items():
        assert [(row["images"], row[name]) for row in history if name in row] == [
            (images, pytest.approx(value)) for images, value in values
        ]
    assert [row["samples/width"] for row in history if "samples/width" in row] == [16 * 8]
    assert len([*(folder / "files" / "media" / "images").rglob("*.png")]) == 3  # at two points, and of the network that was judged


@pytest.mark.slow
def test_a_watched_run_ends_in_the_same_numbers(watched, tmp_path):
    done = run(tmp_path, *CURVES)
    assert done.returncode == 0, done.stderr
    name = "local/tiny/diff_pruning-0.5-seed0.json"
    ours, theirs = (json.loads((folder / "results" / name).read_text()) for folder in (watched, tmp_path))
    for key in ("curve", "final_loss"):
        assert ours["training"][key] == theirs["training"][key]
    assert ours["quality"]["values"] == theirs["quality"]["values"]
    assert ours["made"] == theirs["made"]
    assert not [*(tmp_path / "runs").rglob("wandb"), *(tmp_path / "runs").rglob("tensorboard")]


@pytest.mark.quick
def test_a_watcher_that_is_unknown_or_not_installed_is_refused_before_anything_is_done(monkeypatch):
    with pytest.raises(ReproError, match=r"execution\.watchers: unknown value 'wandbb', use tensorboard, wandb; did you mean 'wandb'"):
        load_config(TINY, ['execution.watchers=["wandbb"]'])
    monkeypatch.setattr(watchers, "find_spec", lambda _name: None)
    with pytest.raises(ReproError, match=r"execution\.watchers: wandb is not installed; python -m pip install wandb"):
        watchers.check_watchers(["wandb"])
    watchers.check_watchers([])
    assert {*watchers.WATCHERS} == {*KNOWN}  # what a configuration may name is what there is


def records_of(path):
    """Reads the records of a .wandb file: a LevelDB log after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def rows_of(record):
    """Returns what a record logs, if it does."""
    if record.WhichOneof("record_type") == "history":
        yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def ending_in(monkeypatch, end):
    """Has the verb `run` end in some way, and nothing else."""
    monkeypatch.setattr("repro.cli.VERBS", {**main.__globals__["VERBS"], "run": (lambda _options: end(), "ends")})


def refused():
    raise ReproError("no such thing")


def interrupted():
    raise InterruptionError(15)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("end", "status", "code"),
    [(lambda: 0, "done", 0), (lambda: 1, "failed", 1), (refused, "refused", 2), (interrupted, "interrupted", 75)],
)
def test_notify_is_told_how_a_run_ended(tmp_path, monkeypatch, end, status, code):
    ending_in(monkeypatch, end)
    command = f'echo "$OFA_STATUS $OFA_EXIT_CODE" >> {tmp_path / "told"}'
    done = typed(main, "run", "--config", TINY, "--notify", command, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "told").read_text() == f"{status} {code}\n"


@pytest.mark.quick
def test_a_command_that_fails_changes_nothing_but_is_said(tmp_path, monkeypatch):
    ending_in(monkeypatch, lambda: 0)
    done = typed(main, "run", "--config", TINY, "--notify", "exit 3", cwd=tmp_path)
    assert done.returncode == 0
    assert "--notify: the command ended with code 3; the run itself: done" in done.stderr


@pytest.mark.quick
def test_what_nobody_foresaw_is_a_failure_and_the_first_rank_tells_it(tmp_path, monkeypatch):
    ending_in(monkeypatch, lambda: 1 / 0)
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ZeroDivisionError):
            typed(main, "run", "--config", TINY, "--notify", f"echo $OFA_STATUS > {tmp_path / rank}", cwd=tmp_path)
        assert (tmp_path / rank).exists() == told
    assert (tmp_path / "0").read_text() == "failed\n"


@pytest.mark.quick
def test_notify_goes_with_runs_that_end_here(tmp_path):
    nothing = typed(main, "run", "--config", TINY, "--dry-run", "--notify", "true", cwd=tmp_path)
    assert nothing.returncode == 2 and "--notify: goes without --dry-run" in nothing.stderr
    later = typed(main, "run", "--config", TINY, "--slurm", "jobs", "--notify", "true", cwd=tmp_path)
    remedy = later.stderr.partition("--set '")[2].partition("'")[0]
    assert later.returncode == 2 and load_config(TINY, [remedy]).cluster.options == ("--mail-type=END,FAIL",)
