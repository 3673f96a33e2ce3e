"""What is read is what was written: a sample of the damage campaign (`nox -s damage` is the whole), and what it does not reach."""

import dataclasses
import errno
import fcntl
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import jsonschema
import pytest
import torch
from damage.__main__ import _cloned, false_alarms
from damage.kinds import WEIGHTS, all_trials
from damage.lab import make_run, tried, typed, words
from support.record_factory import rewrite

from repro.__main__ import main
from repro.config import load_config
from repro.data.images import digits
from repro.errors import ReproError
from repro.experiment.artefacts import Manifest, read_manifest
from repro.experiment.cells import Cell, Experiment
from repro.experiment.record_schema import json_schema
from repro.experiment.records import SUMS, read_record, write_record
from repro.experiment.run import check_size
from repro.files.locks import held, holder, one_at_a_time
from repro.files.writing import sha256_of_json
from repro.grid import METHODS, known_records
from repro.metrics import classifier
from repro.models.denoiser import build_base
from repro.runtime import provenance
from repro.training.checkpoint import Progress, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
EVERY = 12  # of the trials of a kind, one in so many is tried here

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two seeds on a folder of real images."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder)
    return folder


# The campaign, in small (findings E1 to E6, E8)


@pytest.mark.slow
def test_a_sample_of_the_damages_is_noticed_and_none_ends_in_a_traceback(finished, tmp_path):
    trials = all_trials(finished)
    assert len(trials) >= 300
    chosen = [trial for trial in trials if zlib.crc32(trial.name.encode()) % EVERY == 0]
    assert {trial.kind for trial in chosen} >= {"record", "data", "cell: made.json", "cell: diffusion_pytorch_model.safetensors"}
    verdicts = [tried(trial, finished, tmp_path / str(index)) for index, trial in enumerate(chosen)]
    assert [verdict for verdict in verdicts if verdict.traceback or not verdict.noticed] == []


@pytest.mark.slow
@pytest.mark.parametrize("moved", [shutil.copytree, pytest.param(_cloned, marks=pytest.mark.slow)])
def test_a_run_without_damage_is_accepted_elsewhere_and_after_a_clone(finished, tmp_path, moved):
    assert false_alarms(finished, tmp_path / "elsewhere", moved) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "lost", "hint"),
    [
        pytest.param("base-1-seed0", ("ofa_joint-seed0", "ofa-0.5-seed0"), "runs/tiny/base-1-seed0", marks=pytest.mark.slow),
        ("ofa_joint-seed0", ("ofa-0.5-seed0",), "runs/tiny/ofa_joint-seed0"),
        pytest.param("ofa-0.5-seed0", (), "runs/tiny/ofa-0.5-seed0", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_bit_is_named_and_the_remedy_leads_back_to_the_same_numbers(finished, tmp_path, monkeypatch, cell, lost, hint):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    weights = Path("runs/tiny", cell, WEIGHTS)
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    Path("results/tiny/ofa-0.5-seed0.json").unlink()
    for name in lost:
        Path("results/tiny", f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(Path("runs/tiny", name))
    code, said = typed(main, words("run"))
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and line.startswith(f"error: {weights}: damaged, its SHA-256 is ")
    assert line.endswith(f"delete the folder {hint} and run the command again, which makes that cell anew")
    shutil.rmtree(hint)
    code, said = typed(main, words("run"))
    assert code == 0, said
    ours, theirs = (json.loads((place / "results/tiny/ofa-0.5-seed0.json").read_text()) for place in (folder, finished))
    assert ours["quality"] == theirs["quality"] and ours["base"] == theirs["base"]


@pytest.mark.slow
def test_a_cell_that_is_made_is_judged_again_without_those_that_it_needed(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    shutil.rmtree("runs/tiny/ofa_joint-seed0")
    Path("results/tiny/ofa-0.5-seed0.json").unlink()
    code, said = typed(main, words("run"))
    assert code == 0, said
    ours, theirs = (json.loads((place / "results/tiny/ofa-0.5-seed0.json").read_text()) for place in (folder, finished))
    assert ours["quality"] == theirs["quality"] and ours["made"] == theirs["made"]


@pytest.mark.slow
def test_a_base_that_was_made_again_with_other_bytes_is_not_taken_for_the_old_one(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    for name in ("runs/tiny/base-1-seed0", "runs/tiny/base-1-seed1"):
        shutil.move(name, name.replace("base", "old"))
    for path in (Path("results/tiny/ofa-0.5-seed0.json"), Path("results/tiny/base-1-seed0.json"), Path("results/tiny/base-1-seed1.json")):
        path.unlink()
    altered = lambda *_arguments, **_named: build_base(load_config(str(TINY)).network, seed=99)  # noqa: E731
    monkeypatch.setattr("repro.methods.products.build_base", altered)
    code, said = typed(main, words("run"))
    assert code == 2 and "ofa_joint-seed0: made from another base-1-seed0 than the one that lies beside it" in said


# What the campaign does not reach


def experiment_of(folder):
    config = load_config(str(TINY))
    return Experiment(config=config, methods=METHODS, results=folder / "results" / "tiny", runs=folder / "runs" / "tiny", source="")


def test_a_network_has_the_size_that_it_is_called(tmp_path):
    experiment, cell = experiment_of(tmp_path), Cell(method="ofa", size=0.5, seed=0)
    whole = build_base(experiment.config.denoiser, seed=0)
    params = sum(parameter.numel() for parameter in whole.parameters())
    made = Manifest(identity="x", files={}, inputs={}, environment={}, params=params, realised=1.0)
    with pytest.raises(ReproError, match=rf"ofa-0.5-seed0: its network has {params:,} parameters, which is P = 1.000"):
        check_size(experiment, cell, whole, made)
    check_size(experiment, Cell(method="base", size=1.0, seed=0), whole, made)


def test_a_classifier_is_measured_on_the_images_at_hand(monkeypatch):
    settings, images = load_config("digits").classifier, digits()
    found = classifier.classifier_for(images, settings, Path("unused"), lambda *_: None)
    assert classifier._MEASURED[(found.sha256, images.sha256, settings)] == pytest.approx(found.held_out_accuracy, abs=0.003)
    inverted = type(images)(name="digits", pixels=255 - images.pixels, labels=images.labels, sha256="0" * 64)
    with pytest.raises(ReproError, match=r"labels .* of the images of digits right that it was not trained on, its file says 99\.2%"):
        classifier.classifier_for(inverted, settings, Path("unused"), lambda *_: None)


@pytest.mark.slow
def test_the_manifest_names_every_file_and_everything_that_it_was_made_from(finished):
    experiment = experiment_of(finished)
    made = json.loads((experiment.runs / "ofa_joint-seed0" / "made.json").read_text())
    assert set(made["files"]) >= {"plan.json", WEIGHTS, "model/unet/config.json", "model/scheduler/scheduler_config.json"}
    assert set(made["inputs"]) == {"images", "labels", "base-1-seed0"}
    assert made["environment"]["packages"]["torch"] == torch.__version__ and made["environment"]["threads_per_rank"] == 1
    with pytest.raises(ReproError, match="made by another configuration"):  # its data are a folder's
        read_manifest(experiment, Cell(method="ofa_joint", size=None, seed=0))


# Resuming (E7)


def checkpoint_of(folder, cell="base-1-seed0", run="x", inputs=None, **environment):
    known = provenance.environment(1) | environment
    progress = Progress(run=run, inputs=inputs or {}, step=4, device_seconds={}, curve=[], pending=[], environment=known)
    save_checkpoint(folder / "runs" / "tiny" / cell / "checkpoints", {"a": torch.ones(1)}, progress, kept=2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"packages": provenance.software()["packages"] | {"torch": "2.11.0"}},
            r"begun with torch 2\.11\.0, and this is .*; install that again",
        ),
        ({"threads_per_rank": 7}, r"begun with 7 threads, and this has 1; set OMP_NUM_THREADS=7"),
    ],
)
def test_a_run_does_not_go_on_under_other_versions_or_threads(tmp_path, changed, said):
    checkpoint_of(tmp_path, **changed)
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    code, printed = typed(main, ["run", "--config", str(TINY), "--methods", "base", *places])
    assert code == 2 and re.search(f"error: .*base-1-seed0: {said}", printed), printed


def test_what_else_changed_is_said_and_recorded(tmp_path):
    then = provenance.environment(1) | {"git_commit": "0" * 40, "ranks": 2}
    found = provenance.changes(then, 1, tmp_path)
    assert found == [f"git_commit was {'0' * 40}, is {provenance.software()['git_commit']}", "ranks was 2, is 1"]
    assert provenance.changes(provenance.environment(1), 1, tmp_path) == [] == provenance.changes({}, 1, tmp_path)


@pytest.mark.slow
def test_a_records_command_names_threads_and_places(finished):
    record = read_record(finished / "results" / "tiny" / "ofa-0.5-seed0.json")
    command = record["provenance"]["command"]
    assert command.startswith("OMP_NUM_THREADS=1 python -m repro run ")
    assert "--results results --cache cache --methods ofa --sizes 0.5 --seeds 0" in command
    assert "changed" not in record["provenance"]


# Locks (E9)


def test_a_lock_covers_the_record_as_well_as_the_weights(tmp_path):
    one, other = experiment_of(tmp_path), experiment_of(tmp_path)
    other = dataclasses.replace(other, runs=tmp_path / "other" / "tiny", _loaded={})
    cell = Cell(method="base", size=1.0, seed=0)
    with held(one.locks(cell)[0], cell.name):
        holding = [holder(path) for path in other.locks(cell)]
    assert holding[0] and holding[1] is None


def test_two_folders_of_runs_do_not_write_one_record_at_the_same_time(tmp_path):
    experiment, cell = experiment_of(tmp_path), Cell(method="base", size=1.0, seed=0)
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "other")]
    with held(experiment.locks(cell)[0], cell.name):
        code, printed = typed(main, ["run", "--config", str(TINY), "--methods", "base", *places])
    assert code == 75 and "base-1-seed0: process " in printed and "is working on it" in printed


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOLCK, errno.EBADF])
def test_a_lock_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, number):
    def failing(*_arguments):
        raise OSError(number, "what the system says")

    monkeypatch.setattr(fcntl, "flock", failing)
    for lock in (lambda: held(tmp_path / "lock", "x"), lambda: one_at_a_time(tmp_path / "file")):
        with pytest.raises(ReproError, match=r"its file system cannot lock it \(what the system says\); mount it with flock"), lock():
            pass


# Records (E8): the schema, and what a record says of itself


def test_the_published_schema_is_the_one_that_is_used_and_takes_every_committed_record():
    text = (ROOT / "docs" / "record.schema.json").read_text()
    assert text == json_schema(), "write it anew: repro.experiment.record_schema.json_schema()"
    validator = jsonschema.Draft202012Validator(json.loads(text))
    records = sorted((ROOT / "results").glob("*/*.json"))
    assert len(records) > 100
    for path in records:
        validator.validate(json.loads(path.read_text()))


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


def second(*, mean, values=(1.0,)):
    """What a further metric finds."""
    return {"metric": "fid768", "mean": mean, "values": list(values)}


CONTRADICTIONS = {
    "mean": (lambda r: r["quality"].update(mean=r["quality"]["mean"] * 1.001), "has a quality.mean of"),
    "values": (lambda r: r["quality"].update(values=[9.0, 1e300]), "malformed"),
    "negative": (lambda r: r["quality"].update(mean=-1.0, values=[-1.0, -1.0]), "malformed"),
    "hours": (lambda r: r["cost"].update(device_hours=1.0), "device-hours, and its phases have"),
    "phases": (lambda r: r["cost"]["phases_device_hours"].update(train=9.0), "device-hours, and its phases have"),
    "GPU-hours": (lambda r: r["cost"].update(gpu_hours=1.0), "GPU-hours on the device cpu"),
    "method": (lambda r: r["cell"].update(method="random"), "method, size and seed make random-0.5-seed0"),
    "size": (lambda r: r["cell"].update(size=0.25), "method, size and seed make ofa-0.25-seed0"),
    "seed": (lambda r: r["cell"].update(seed=3), "method, size and seed make ofa-0.5-seed3"),
    "realised": (lambda r: r["size"].update(realised=0.99), "is of size 0.5, and its network amounts to 0.99"),
    "configuration": (lambda r: r["provenance"]["config"]["sizes"].update(trained=[1.0]), "has a configuration of hash"),
    "hash": (lambda r: r["provenance"].update(config_sha256="0" * 64), "has a configuration of hash"),
    "trial": (lambda r: r.update(trial=True), "says trial True, and its configuration False"),
    "experiment": (lambda r: r.update(experiment="other"), "says name other, and its configuration tiny"),
    "metric": (lambda r: r["quality"].update(metric="fid"), "has the metric fid, and its configuration fid_classifier"),
    "reason": (lambda r: r.update(reason="because"), "is done, and has a reason for its failure"),
    "failed": (lambda r: r.update(status="failed"), "has failed without a reason"),
    "time": (lambda r: r["provenance"].update(ended_utc="2000-01-01T00:00:00Z"), "before it started"),
    "strip": (lambda r: r["samples"].update(file="samples/ofa-1-seed0.png"), "names the samples"),
    "seeds": (lambda r: r["quality"].update(sampling_seeds=[0, 1, 2]), "its configuration asks for [0]"),
    "number of values": (lambda r: r["quality"].update(values=2 * r["quality"]["values"]), "has 2 values of quality for 1 sampling seeds"),
    "second opinion": (
        lambda r: r["quality"].update(also=[second(mean=1.0)]),
        "has the further metrics ['fid768'], and its configuration []",
    ),
    "its mean": (lambda r: r["quality"].update(also=[second(mean=2.0)]), "has a quality.also (fid768).mean of 2"),
    "its values": (lambda r: r["quality"].update(also=[second(mean=1.0, values=[1.0, 1.0])]), "has 2 values of quality.also (fid768)"),
    "samples": (lambda r: r["quality"].update(n_samples=50_000), "has the n_samples 50000, and its configuration asks for 24"),
    "made": (lambda r: r.update(made=None), "is done and says nothing of what was 'made'"),
    "start": (lambda r: r.update(starts_from=None), "descends from a base, and starts from nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused_by_every_reader(finished, tmp_path, name):
    change, said = CONTRADICTIONS[name]
    record = json.loads((finished / "results" / "tiny" / "ofa-0.5-seed0.json").read_text())
    change(record)
    path = write_record(tmp_path, record)  # with a checksum of what it says now, so that it does not speak first
    with pytest.raises(ReproError, match=re.escape(str(path))) as refused:
        read_record(path)
    assert said in str(refused.value)


@pytest.mark.slow
def test_training_is_the_work_that_its_network_and_its_images_make(finished, tmp_path):
    shutil.copytree(finished / "results", tmp_path / "results")
    path = tmp_path / "results" / "tiny" / "diff_pruning-0.5-seed0.json"
    record = json.loads(path.read_text())
    rewrite(path, training=record["training"] | {"train_pflop": 2 * record["training"]["train_pflop"]})
    with pytest.raises(ReproError, match=r"diff_pruning-0\.5-seed0\.json: the record has .* PFLOP of training, and its MACs and"):
        known_records(path.parent)


# Records of one folder, and what lies beside them


def _other_base(record):
    record["base"]["sha256"] = "1" * 64


def _other_joint(record):
    record["made"]["inputs"]["ofa_joint-seed0"] = "1" * 64


def _other_bytes(record):
    record["made"]["sha256"] = "1" * 64


def _other_configuration(record):
    record["provenance"]["config"]["ofa_training"]["learning_rate"] = 0.005
    record["provenance"]["config_sha256"] = sha256_of_json(record["provenance"]["config"])


TOGETHER = {
    "configuration": ("ofa-0.5-seed1", _other_configuration, "the record was made under another configuration than ofa-0.5-seed0.json"),
    "base": (
        "ofa-0.5-seed0",
        _other_base,
        "ofa-0.5-seed0.json: the record descends from the base 1111111111111111..., and base-1-seed0.json",
    ),
    "input": (
        "ofa-0.5-seed0",
        _other_joint,
        "ofa-0.5-seed0.json: the record was made from the ofa_joint-seed0 of 1111111111111111..., and",
    ),
    "joint": ("ofa_joint-seed0", _other_bytes, "the record was made from the ofa_joint-seed0 of "),
    "params": ("ofa-0.5-seed0", lambda r: r["size"].update(params=r["size"]["params"] + 50), "params, which does not fit "),
    "whole": ("base-1-seed1", lambda r: r["size"].update(params=1 + r["size"]["params"]), "params at size 1, and base-1-seed0.json has "),
    "macs": ("ofa-0.5-seed0", lambda r: r["size"].update(macs=r["size"]["macs"] + 1), "macs, and ofa-0.5-seed0.json of the same widths "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_records_that_contradict_each_other_make_no_table(finished, tmp_path, name):
    from paper_figures.__main__ import main as figures

    cell, change, said = TOGETHER[name]
    shutil.copytree(finished / "results", tmp_path / "results")
    place = tmp_path / "results" / "tiny"
    if name == "macs":  # two seeds seldom keep the same channels of a network as small as this one
        widths = json.loads((place / "ofa-0.5-seed0.json").read_text())["size"]
        rewrite(place / "ofa-0.5-seed1.json", size=widths)
    record = json.loads((place / f"{cell}.json").read_text())
    change(record)
    write_record(place, record)
    code, printed = typed(figures, ["overhead", "--results", str(tmp_path / "results")])
    assert code == 2 and said in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "status", "extract"])
@pytest.mark.parametrize("cell", ["ofa-0.5-seed0", "ofa_joint-seed0", "base-1-seed0"])
def test_a_record_of_another_network_than_lies_there_is_refused(finished, tmp_path, monkeypatch, verb, cell):
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    made = Path("runs/tiny", cell, "made.json")
    said = json.loads(made.read_text())
    said.pop("sha256")
    said["files"] |= {"plan.json": "1" * 64}
    made.write_text(json.dumps(said | {"sha256": sha256_of_json(said)}))
    line = words(verb)[:-4] if verb == "extract" else words(verb)
    code, printed = typed(main, [*line, *(["--size", "0.5", "--out", "taken"] if verb == "extract" else [])])
    assert code == 2 and not Path("taken").exists(), printed
    # An extraction reads the files of the joint run, and so is told first that one of them, or of what it was made from, is another.
    said = f"the record is of another {cell} than the one that lies in runs/tiny/{cell}; restore that one"
    assert said in printed or (verb == "extract" and "error: runs/tiny/ofa_joint-seed0" in printed), printed


def test_a_run_does_not_go_on_from_other_images_or_another_base(tmp_path):
    experiment, cell = experiment_of(tmp_path), Cell(method="base", size=1.0, seed=0)
    checkpoint_of(tmp_path, run=experiment.identity(cell), inputs={"images": "1" * 64, "labels": "1" * 64})
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    code, printed = typed(main, ["run", "--config", str(TINY), "--methods", "base", *places])
    assert code == 2 and "the run began from other images than lies there now; restore what it began from, or delete " in printed, printed
    shutil.rmtree(experiment.folder(cell) / "checkpoints")  # the remedy
    (experiment.results / "base-1-seed0.json").unlink()
    assert typed(main, ["run", "--config", str(TINY), "--methods", "base", *places])[0] == 0


@pytest.mark.slow
def test_a_checkpoint_of_a_joint_run_knows_the_base_that_it_began_from(finished, tmp_path, monkeypatch):
    """A base replaced between two lives of the joint run is refused: its record would name the new one for weights of the old one."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for name in ("ofa_joint-seed0", "ofa-1-seed0", "ofa-0.5-seed0"):
        Path("results/tiny", f"{name}.json").unlink()
        shutil.rmtree(Path("runs/tiny", name))
    identity = json.loads((finished / "runs/tiny/ofa_joint-seed0/made.json").read_text())["identity"]
    inputs = json.loads((finished / "runs/tiny/ofa_joint-seed0/made.json").read_text())["inputs"]
    checkpoint_of(Path(), "ofa_joint-seed0", run=identity, inputs=inputs | {"base-1-seed0": "1" * 64})
    code, printed = typed(main, words("run"))
    assert code == 2 and "the run began from other base-1-seed0 than lies there now" in printed, printed


# Records of before


@pytest.fixture
def published(tmp_path):
    """The committed records of version 1, in a folder of their own."""
    place = tmp_path / "digits"
    place.mkdir()
    for path in [*(ROOT / "results" / "digits").glob("*.json"), ROOT / "results" / "digits" / SUMS]:
        shutil.copy(path, place)
    return place


def test_committed_records_are_what_was_published():
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=ROOT / "results" / "digits", check=False, capture_output=True)
    assert done.returncode == 0, done.stdout
    listed = {line.split()[1] for line in (ROOT / "results" / "digits" / SUMS).read_text().splitlines()}
    assert listed == {path.name for path in (ROOT / "results" / "digits").glob("*.json")}


def test_an_edited_record_of_before_is_refused(published):
    path = published / "ofa-0.5-seed0.json"
    record = json.loads(path.read_text())
    record["quality"]["values"] = [value / 2 for value in record["quality"]["values"]]
    record["quality"]["mean"] /= 2
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    with pytest.raises(ReproError, match=r"ofa-0\.5-seed0\.json: .*SHA256SUMS lists \w{16}\.\.\. for it, and it is "):
        known_records(published)
    write_record(published, record | {"schema_version": 2, "made": {"sha256": "1" * 64, "inputs": {}}})  # nor one of today in its place
    with pytest.raises(ReproError, match=r"ofa-0\.5-seed0\.json: .*SHA256SUMS lists "):
        known_records(published)


def test_a_missing_record_of_before_is_noticed(published):
    (published / "diff_pruning-0.5-seed3.json").unlink()
    with pytest.raises(ReproError, match=r"diff_pruning-0\.5-seed3\.json: missing, and .*SHA256SUMS lists it"):
        known_records(published)


@pytest.mark.slow
def test_a_record_of_today_does_not_pass_for_one_of_before(finished, tmp_path):
    record = json.loads((finished / "results" / "tiny" / "ofa-0.5-seed0.json").read_text())
    path = tmp_path / "ofa-0.5-seed0.json"
    path.write_text(json.dumps(without(record, "sha256") | {"schema_version": 1}))
    with pytest.raises(ReproError, match=r"a record of version 1 has no checksum of its own, and .*SHA256SUMS does not list it"):
        read_record(path)


@pytest.mark.parametrize("content", ["x", "0" * 64, "\xff"])
def test_a_list_of_checksums_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / SUMS).write_bytes(content.encode("latin-1"))
    with pytest.raises(ReproError, match="SHA256SUMS: "):
        known_records(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delivered_by": []}, "says that it is delivered by nothing, and ofa-0.5-seed0 is by ['ofa_joint-seed0']"),
        ({"variant": {"of": "ofa", "factor": "x", "label": "y", "changes": {}}}, "says that it varies ofa, and ofa varies None"),
        ({"quality": None}, "is done and has no quality, and ofa is judged"),
    ],
)
@pytest.mark.parametrize("reader", ["run", "status", "figures", "choose"])
def test_a_record_that_contradicts_its_method_is_refused_by_every_reader(finished, tmp_path, monkeypatch, change, said, reader):
    from paper_figures.__main__ import main as figures

    shutil.copytree(finished / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    record = json.loads((tmp_path / "results" / "tiny" / "ofa-0.5-seed0.json").read_text())
    write_record(tmp_path / "results" / "tiny", without(record, "sha256") | change)
    if reader == "figures":
        code, printed = typed(figures, ["overhead", "--results", "results"])
    elif reader == "choose":
        code, printed = typed(main, ["choose", *words("run")[1:-4], "--max-params", "1M"])
    else:
        code, printed = typed(main, words(reader))
    assert code == 2 and f"ofa-0.5-seed0.json: the record {said}" in printed, printed


@pytest.mark.slow
def test_the_samples_of_another_cell_are_not_shown(finished, tmp_path, monkeypatch):
    from paper_figures.__main__ import main as figures

    shutil.copytree(finished / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "results" / "tiny" / "samples"
    shutil.copy(place / "ofa-1-seed0.png", place / "ofa-0.5-seed0.png")
    code, printed = typed(figures, ["report", "--results", "results"])
    assert code == 2 and "samples/ofa-0.5-seed0.png: not the samples of its record" in printed
