"""The clock, the records, writing files, signs of life and the configuration."""

import dataclasses
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import torch

from repro.config import SHIPPED, Compute, Config, load_config
from repro.config.sections import ABSENT
from repro.deliver.choose import choose
from repro.deliver.extract import extract_subnet
from repro.diffusion.formulations import FORMULATIONS
from repro.diffusion.samplers import SAMPLERS
from repro.errors import BusyError, ReproError, RunError
from repro.experiment.cells import Experiment, plan_cells
from repro.experiment.record_checks import checksum
from repro.experiment.records import read_record, read_records, record_path, write_record
from repro.files.locks import held, holder
from repro.files.writing import sha256_of_file, write_atomically
from repro.grid import METHODS
from repro.runtime import provenance
from repro.runtime.clock import PHASES, Clock, device_hours, training_overhead
from repro.runtime.heartbeat import read_heartbeat
from repro.runtime.precision import check_threads

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"


def seconds_of(**named):
    return dict.fromkeys(PHASES, 0.0) | named


def record_named(name="base-1-seed0", **changes):
    method, size, seed = re.fullmatch(r"(.*?)(?:-([\d.]+))?-seed(\d+)", name).groups()
    record = {
        "schema_version": 2,
        "experiment": "x",
        "made": {"sha256": "0" * 64, "inputs": {}},
        "cell": {"name": name, "method": method, "size": float(size) if size else None, "seed": int(seed)},
        "status": "done",
        "provenance": {"config_sha256": "c"},
    }
    return record | changes


# Clock


def test_phases_add_up_to_the_wall_time():
    begun = time.monotonic()
    clock = Clock()
    time.sleep(0.1)
    with clock.phase("train"):
        time.sleep(0.2)
        with clock.phase("checkpoint"):
            time.sleep(0.1)
        time.sleep(0.1)
    with clock.phase("evaluate"):
        time.sleep(0.15)
    seconds = clock.seconds()
    wall = time.monotonic() - begun
    assert set(seconds) == {"start", "prepare", "importance", "train", "checkpoint", "lost", "evaluate"}
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.02)
    assert sum(clock.seconds().values()) == pytest.approx(wall, rel=0.02)
    assert seconds["train"] >= 0.3  # what is nested is not counted twice
    assert seconds["train"] < 0.4
    assert seconds["checkpoint"] >= 0.1
    assert seconds["evaluate"] >= 0.15
    assert seconds["prepare"] >= 0.1
    assert seconds["importance"] == seconds["lost"] == 0


def test_phase_ends_when_its_block_raises():
    clock = Clock()
    with pytest.raises(ValueError, match="stop"), clock.phase("train"):
        raise ValueError("stop")
    trained = clock.seconds()["train"]
    time.sleep(0.05)
    assert clock.seconds()["train"] == trained
    assert clock.seconds()["prepare"] >= 0.05


def test_unknown_phase_is_a_broken_invariant():
    with pytest.raises(AssertionError, match="lunch"), Clock().phase("lunch"):
        pass


def test_what_lies_before_the_first_cell_is_the_phase_start_and_in_no_total():
    clock = Clock(time.monotonic() - 5)
    time.sleep(0.1)
    seconds = clock.seconds()
    assert seconds["start"] == pytest.approx(5, rel=0.02)
    assert 0.1 <= seconds["prepare"] < 1
    assert training_overhead(seconds) == pytest.approx(seconds["prepare"])


def test_the_start_of_a_life_that_was_lost_is_kept_as_start():
    clock = Clock(time.monotonic() - 5)
    clock.resume(seconds_of(start=4, train=10), seconds_of(start=7, train=12, evaluate=1))
    seconds = clock.seconds()
    assert (seconds["start"], seconds["train"], seconds["lost"], seconds["evaluate"]) == (pytest.approx(12, abs=0.1), 10, 2, 1)


@pytest.mark.parametrize(
    ("last_seen", "lost", "evaluate"),
    [
        ({}, 0, 3),
        (seconds_of(prepare=2, importance=1, train=10, checkpoint=1, evaluate=3), 0, 3),
        (seconds_of(prepare=2, importance=1, train=14, checkpoint=2, evaluate=3), 5, 3),
        (seconds_of(prepare=2, importance=1, train=14, checkpoint=2, lost=6, evaluate=8), 11, 8),
        (seconds_of(prepare=2, train=8, evaluate=1), 0, 3),  # older than the checkpoint: nothing was lost after it
    ],
)
def test_resume_adds_what_was_saved_and_counts_what_was_lost(last_seen, lost, evaluate):
    clock = Clock()
    clock.resume(seconds_of(prepare=2, importance=1, train=10, checkpoint=1, evaluate=3), last_seen)
    seconds = clock.seconds()
    assert seconds.pop("prepare") == pytest.approx(2, abs=0.1)
    assert seconds == {"start": 0, "importance": 1, "train": 10, "checkpoint": 1, "lost": lost, "evaluate": evaluate}


def test_a_run_that_goes_on_with_another_number_of_ranks_keeps_its_device_hours():
    saved, last_seen = seconds_of(train=80, evaluate=8), seconds_of(train=120, evaluate=16)
    clock = Clock(ranks=4)
    clock.resume(saved, last_seen)
    assert clock.seconds() == pytest.approx(seconds_of(train=20, lost=10, evaluate=4), abs=0.1)
    assert clock.device_seconds() == pytest.approx(seconds_of(train=80, lost=40, evaluate=16), abs=0.4)


def test_device_hours_count_every_rank():
    hours = device_hours(seconds_of(train=1800, evaluate=900), ranks=4)
    assert hours == seconds_of(train=2.0, evaluate=1.0)
    assert training_overhead(hours) == 2.0


def test_training_overhead_is_every_phase_but_start_and_evaluate():
    phases = dict(zip(("prepare", "importance", "train", "checkpoint", "lost", "evaluate", "start"), (1, 2, 4, 8, 16, 32, 64), strict=True))
    assert set(phases) == set(PHASES)
    assert training_overhead(phases) == 31


# Records


def test_record_survives_writing_and_reading(tmp_path):
    record = record_named(
        quality={"metric": "fid", "n_samples": 2, "mean": 1 / 3, "values": [2 / 3 - 2e-7, 2e-7]}, reason=None, text="Fréchet"
    )
    path = write_record(tmp_path, record)
    assert path == tmp_path / "base-1-seed0.json" == record_path(tmp_path, "base-1-seed0")
    assert read_record(path) == record | {"sha256": checksum(record)}
    assert [child.name for child in tmp_path.iterdir()] == ["base-1-seed0.json"]


def test_records_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("b-seed0", "a-seed0", "c-seed0"):
        write_record(tmp_path, record_named(name))
    assert [record["cell"]["name"] for record in read_records(tmp_path)] == ["a-seed0", "b-seed0", "c-seed0"]


@pytest.mark.parametrize("key", ["schema_version", "experiment", "cell", "status", "provenance"])
def test_record_that_lacks_a_key_is_refused_by_name(tmp_path, key):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({name: value for name, value in record_named().items() if name != key}))
    with pytest.raises(ReproError) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert f"'{key}'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b'{"schema_version": 1,', "not a readable record"),
        (b"", "not a readable record"),
        (b"\xff\xfe\x00", "not a readable record"),
        (b"[1, 2]", "no JSON object"),
        (json.dumps(record_named(schema_version=3)).encode(), "schema version 3"),
        (json.dumps(record_named(status="perhaps")).encode(), "'perhaps'"),
    ],
)
def test_unusable_record_is_refused_by_name_and_with_a_remedy(tmp_path, content, names):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ReproError) as caught:
        read_records(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert names in message
    assert "delete it" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_folder_without_records_is_refused_by_name(tmp_path):
    with pytest.raises(ReproError, match=re.escape(str(tmp_path / "none"))):
        read_records(tmp_path / "none")


def test_record_with_a_number_that_json_lacks_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, record_named(quality=float("nan")))
    assert list(tmp_path.iterdir()) == []


# Writing files


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def stop(temporary):
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, stop)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_file_is_written_under_another_name_until_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "file"

    def content(temporary):
        temporary.write_bytes(b"new")
        assert temporary.parent == path.parent
        assert not path.exists()

    write_atomically(path, content)
    assert path.read_bytes() == b"new"
    assert sha256_of_file(path) == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


FULL_DISK = """
import resource, sys
from pathlib import Path
import repro
from repro.errors import ReproError
folder = Path(sys.argv[1])
{prepare}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {act}
except ReproError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def on_a_full_disk(folder, act, prepare="", environment=None):
    """Runs a statement in a process that may write no file beyond 4,096 bytes, and returns what it says."""
    code = FULL_DISK.format(act=act, prepare=prepare)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout.strip()


def test_full_disk_keeps_the_old_file_and_is_a_failure_of_the_run(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    act = "from repro.files.writing import write_atomically; write_atomically(folder / 'file', bytes(100_000))"
    said = on_a_full_disk(tmp_path, act)
    assert said.startswith(f"RunError 1 {path}: no space left")
    assert "free some space" in said
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_full_disk_while_a_record_is_written_keeps_the_old_record(tmp_path):
    path = write_record(tmp_path, record_named())
    before = path.read_bytes()
    act = f"from repro.experiment.records import write_record; write_record(folder, {record_named(reason='x' * 50_000)!r})"
    assert on_a_full_disk(tmp_path, act).startswith(f"RunError 1 {path}: no space left")
    assert path.read_bytes() == before


@pytest.mark.slow
def test_full_disk_while_a_network_is_saved_is_a_failure_of_the_run(tmp_path):
    prepare = (
        "from repro.config import load_config\n"
        "from repro.models.denoiser import build_base, save_denoiser\n"
        "from repro.diffusion.ddpm import sampling_scheduler\n"
        f"config = load_config({str(TINY)!r})\n"
        "model, scheduler = build_base(config.network, seed=0), sampling_scheduler(config.diffusion, clip_sample=True)\n"
    )
    said = on_a_full_disk(tmp_path, "save_denoiser(model, scheduler, folder / 'model')", prepare, os.environ | {"OMP_NUM_THREADS": "1"})
    assert said.startswith(f"RunError 1 {tmp_path / 'model'}")
    assert "no space left" in said


def test_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(ReproError) as caught:
        write_record(tmp_path / "results", record_named())
    assert str(tmp_path / "results") in str(caught.value)
    assert not isinstance(caught.value, RunError)
    assert (tmp_path / "results").read_text() == "in the way"


def test_folder_where_a_file_should_be_is_refused(tmp_path):
    path = tmp_path / "base-1-seed0.json"
    path.mkdir()
    with pytest.raises(ReproError) as caught:
        write_record(tmp_path, record_named())
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, RunError)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folder_that_must_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ReproError, match="make the folder writable"):
            write_record(tmp_path / "deeper", record_named())
    finally:
        tmp_path.chmod(0o700)


def test_limit_of_this_process_is_untouched():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# Signs of life


@pytest.mark.parametrize("content", [None, "", "{half", "\x00"])
def test_missing_or_damaged_heartbeat_is_no_sign_of_life(tmp_path, content):
    if content is not None:
        (tmp_path / "heartbeat.json").write_text(content)
    assert read_heartbeat(tmp_path) == {}


def test_heartbeat_tells_its_age_even_where_the_clock_was_set_back(tmp_path):
    path = tmp_path / "heartbeat.json"
    path.write_text('{"stage": "training"}')
    for seconds, age in ((-90, 90), (90, 0)):
        os.utime(path, (time.time() + seconds,) * 2)
        assert read_heartbeat(tmp_path) == {"stage": "training", "age_sec": pytest.approx(age, abs=5)}


HOLD = """
import sys
from pathlib import Path
from repro.files.locks import held
with held(Path(sys.argv[1]), "cell"):
    print("held", flush=True)
    input()
"""


def test_a_lock_names_its_holder_and_is_lifted_by_the_holder_s_death(tmp_path):
    path = tmp_path / "runs" / ".cell.lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        assert holder(path)["pid"] == child.pid
        with pytest.raises(BusyError, match=f"cell: process {child.pid} on {socket.gethostname()}"), held(path, "cell"):
            pass
    finally:
        child.kill()
        child.communicate()
    assert path.exists()  # what is left of the dead one bars nobody
    assert holder(path) is None
    with held(path, "cell"):
        assert holder(path)["pid"] == os.getpid()
    assert holder(path) is None


# Configuration


def refused(*overrides, path=TINY):
    with pytest.raises(ReproError) as caught:
        load_config(str(path), list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_shipped_digits_loads():
    config = load_config("digits")
    assert config.name == "digits"
    assert config.network.block_out_channels == (16, 32)
    assert config.sizes.trained == (1.0, 0.75, 0.5, 0.25)
    assert config.evaluation.samples == 1797
    assert not config.trial


def test_unknown_configuration_is_named_beside_the_known_ones():
    with pytest.raises(ReproError, match=r"--config digit: .*digits"):
        load_config("digit")


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("evaluation.sample=5", "evaluation.sample", "evaluation.samples"),
        ("ofa_training.stepps=5", "ofa_training.stepps", "ofa_training.steps"),
        ("allocation.rules='x'", "allocation.rules", "allocation.rule"),
        ("evaluations.samples=5", "evaluations", "evaluation"),
    ],
)
def test_unknown_key_is_named_with_the_nearest(override, key, near):
    message = refused(override)
    assert f"'{key}'" in message
    assert f"did you mean '{near}'" in message
    assert str(TINY) in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("evaluation.samples='many'", "evaluation.samples"),
        ("evaluation.samples=4.5", "evaluation.samples"),
        ("evaluation.samples=true", "evaluation.samples"),
        ("evaluation.clip_sample=1", "evaluation.clip_sample"),
        ("base_training.learning_rate='fast'", "base_training.learning_rate"),
        ("sizes.trained=1.0", "sizes.trained"),
        ("sizes.trained=['all']", "sizes.trained"),
        ("network=5", "network"),
        ("name=5", "name"),
        ("trial=0", "trial"),
    ],
)
def test_value_of_the_wrong_kind_is_refused_by_key(override, key):
    assert f"{key}: must be" in refused(override)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.name", "faces"),
        ("network.down_block_types", '["DownBlock2D"]'),
        ("network.dropout", "1.0"),
        ("network.norm_num_groups", "3"),
        ("network.up_block_types", '["NoBlock2D", "UpBlock2D"]'),
        ("diffusion.num_train_timesteps", "0"),
        ("diffusion.beta_schedule", "nonsense"),
        ("base.source", "elsewhere"),
        ("sizes.trained", "[]"),
        ("sizes.trained", "[1.0, 0.5, 1.5]"),
        ("sizes.trained", "[1.0, 0.5, 0.0]"),
        ("sizes.trained", "[1.0, 0.5, 0.5]"),
        ("sizes.reported", "[1.0, 0.6]"),
        ("importance.images", "0"),
        ("importance.batch_size", "0"),
        ("allocation.rule", "fair"),
        ("allocation.floor", "0.0"),
        ("allocation.floor", "1.5"),
        ("sampling_law.law", "murphy"),
        ("sampling_law.m", "0.0"),
        ("sampling_law.sandwich_random", "-1"),
        ("base_training.steps", "0"),
        ("base_training.batch_size", "-4"),
        ("base_training.learning_rate", "0.0"),
        ("base_training.learning_rate", "nan"),
        ("base_training.learning_rate", "inf"),
        ("base_training.warmup_steps", "-1"),
        ("base_training.gradient_clipping", "-1.0"),
        ("ofa_training.ema_decay", "1.0"),
        ("ofa_training.dropout", "-0.1"),
        ("ofa_training.schedule", "linear"),
        ("baseline_training.zero_stage", "3"),
        ("baseline_training.checkpoint_every_steps", "0"),
        ("pruning.images", "0"),
        ("pruning.threshold", "1.0"),
        ("evaluation.metric", "fidd"),
        ("evaluation.samples", "1"),
        ("evaluation.sampling_seeds", "[]"),
        ("evaluation.batch_size", "0"),
        ("evaluation.sampler_steps", "0"),
        ("evaluation.sampler_steps", "1001"),
        ("evaluation.sampling_seeds", "[-1]"),
        ("evaluation.sampling_seeds", "[4294967296]"),
        ("evaluation.sampling_seeds", "[0, 1, 0]"),
        ("evaluation.latency_batches", "[1000000000000000000]"),
        ("evaluation.latency_batches", "[1, 1]"),
        ("evaluation.latency_batches", "[0]"),
        ("evaluation.samples", "10000000000"),
        ("evaluation.reference_images", "10000000000"),
        ("evaluation.reference_images", "-2"),
        ("evaluation.batch_size", "10000000000"),
        ("importance.images", "1000000000000000000"),
        ("importance.batch_size", "1000000000000000000"),
        ("sampling_law.sandwich_random", "1000000000000000000"),
        ("base_training.batch_size", "1000000000"),
        ("finetuning.warmup_steps", "1000000000000000000"),
        ("pruning.images", "1000000000000000000"),
        ("pruning.timesteps", "1001"),
        ("classifier.seed", "-1"),
        ("classifier.seed", "1000000000000000000"),
        ("classifier.warmup_steps", "1000000000000000000"),
        ("classifier.crop_padding", "1000000000000000000"),
        ("classifier.crop_padding", "8"),
        ("classifier.batch_size", "1000000000"),
        ("classifier.levels", "16"),
        ("execution.checkpoints_kept", "1000000000000000000"),
        ("execution.rank_timeout_sec", "1e300"),
        ("execution.checkpoint_minutes", "1e300"),
        ("execution.memory_gib", "1e300"),
        ("cluster.nodes", "1000000000000000000"),
        ("cluster.gpus_per_node", "1000000000000000000"),
        ("cluster.cpus_per_rank", "1000000000000000000"),
        ("cluster.memory_gb_per_node", "1000000000000000000"),
        ("cluster.hours", "1e300"),
        ("hours", "1e300"),
        ("evaluation.spacing", "cubic"),
        ("classifier.held_out", "1.0"),
        ("classifier.width", "0"),
        ("classifier.steps", "0"),
        ("classifier.least_accuracy", "1.5"),
    ],
)
def test_value_out_of_range_is_refused_by_key(key, value):
    assert f"{key}: " in refused(f"{key}={value}")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sample_size=15"], "sample_size: must be a multiple of 2, for 2 levels"),
        (
            [
                "sample_size=28",
                "block_out_channels=[8, 8, 8, 8]",
                f"down_block_types={['DownBlock2D'] * 4}",
                f"up_block_types={['UpBlock2D'] * 4}",
            ],
            "sample_size: must be a multiple of 8, for 4 levels (block_out_channels) halve it 3 times",
        ),
        (["sample_size=1"], "sample_size: must be a multiple of 2"),
        (["attention_head_dim=32"], "attention_head_dim: must divide the widths in block_out_channels that have attention, [16]"),
        (["attention_head_dim=3"], "attention_head_dim: must divide the widths"),
        (
            ["attention_head_dim=16", 'down_block_types=["AttnDownBlock2D", "DownBlock2D"]'],
            "attention_head_dim: must divide the widths in block_out_channels that have attention, [8, 16]",
        ),
        (["block_out_channels=[1, 16]", "norm_num_groups=1"], "freq_shift: must be 0 or 1, and less than half of the first width"),
        (["block_out_channels=[2, 16]", "norm_num_groups=1", "freq_shift=1"], "freq_shift: must be 0 or 1, and less than half"),
        (["freq_shift=-1"], "freq_shift: must be 0 or 1"),
        (["freq_shift=1000000000000000000"], "freq_shift: must be 0 or 1"),
        (["sample_size=2", "norm_num_groups=8"], "norm_num_groups: leaves a group a single value"),
    ],
)
def test_values_of_a_unet_that_are_right_one_by_one_and_wrong_together_are_refused_by_key(overrides, says):
    assert f"{TINY}: network.{says}" in refused(*(f"network.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["patch_size=3"], "patch_size: must divide sample_size, 8"),
        (["patch_size=16"], "patch_size: must divide sample_size, 8"),
        (["num_attention_heads=1", "attention_head_dim=6"], "attention_head_dim: times num_attention_heads must be a multiple of 4"),
        (["num_attention_heads=65536"], "attention_head_dim: times num_attention_heads must be at most 65,536"),
    ],
)
def test_values_of_a_transformer_that_are_wrong_together_are_refused_by_key(overrides, says):
    message = refused(*(f"transformer.{override}" for override in overrides), path=SHIPPED / "digits_transformer.toml")
    assert f"transformer.{says}" in message


def test_more_threads_than_a_machine_can_run_are_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ReproError, match=r"compute\.threads: 1024 threads are too many for 2 cores; take at most 32"):
        check_threads(Compute(threads=1024))
    check_threads(Compute(threads=32))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_library_takes_is_refused_by_its_flag(seed, tiny, tmp_path):
    experiment = Experiment(config=tiny, source="", results=tmp_path, runs=tmp_path, methods=METHODS)
    with pytest.raises(ReproError, match=r"^--seeds: must not be negative, and at most 4,294,967,295"):
        plan_cells(experiment, ["noise"], None, [0, seed])
    with pytest.raises(ReproError, match=r"^--seed: must not be negative"):
        choose(experiment, {"params": 1e9}, seed=seed)
    with pytest.raises(ReproError, match=r"^--seed: must not be negative"):
        extract_subnet(experiment, size=0.5, seed=seed, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a b", "", "a\\\\b"])
def test_name_that_could_leave_its_folder_is_refused(name):
    assert "name: " in refused(f'name="{name}"')


def test_missing_key_is_named(tmp_path):
    path = tmp_path / "less.toml"
    path.write_text(TINY.read_text().replace("sample_size = 8\n", ""))
    assert "'network.sample_size' is missing" in refused(path=path)
    path.write_text(TINY.read_text().replace('name = "tiny"\n', ""))
    assert "'name' is missing" in refused(path=path)


@pytest.mark.parametrize("content", [b"name = ", b"name = 'x'\nname = 'y'", b"\xff\xfe"])
def test_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert str(path) in refused(path=path)


def test_overrides_take_numbers_texts_with_and_without_quotes_and_lists():
    overrides = [
        *("evaluation.samples=41", "base_training.learning_rate=5", "sampling_law.m=2.5", "trial=false"),
        *('allocation.rule="uniform"', "sampling_law.law=sandwich", "evaluation.sampling_seeds=[3, 4]", "name=other"),
    ]
    config = load_config(str(TINY), overrides)
    assert config.evaluation.samples == 41
    assert config.base_training.learning_rate == 5.0
    assert isinstance(config.base_training.learning_rate, float)
    assert config.sampling_law.m == 2.5
    assert config.trial is False
    assert config.allocation.rule == "uniform"
    assert config.sampling_law.law == "sandwich"
    assert config.evaluation.sampling_seeds == (3, 4)
    assert config.name == "other"


def test_later_override_wins():
    assert load_config(str(TINY), ["evaluation.samples=41", "evaluation.samples=42"]).evaluation.samples == 42


@pytest.mark.parametrize("override", ["evaluation.samples", "nowhere.samples=5", "name.first=5", "evaluation.samples.more=5"])
def test_override_that_cannot_be_followed_is_refused(override):
    assert override.partition("=")[0].split(".")[0] in refused(override)


@pytest.mark.parametrize(
    "override",
    [
        *("name=other", "trial=false", "data.sha256='" + "0" * 64 + "'", "evaluation.samples=41", "evaluation.sampling_seeds=[1]"),
        *("allocation.floor=0.26", "importance.batch_size=16", "pruning.images=9", "compute.threads=1", "sampling_law.m=2.0"),
        *("base_training.steps=13", "ofa_training.steps=9", "network.freq_shift=1", "classifier.seed=1", "diffusion.beta_end=0.021"),
    ],
)
def test_hash_changes_with_any_value(override):
    assert load_config(str(TINY), [override]).sha256() != load_config(str(TINY)).sha256()


# A configuration whose hash changes disowns every record that was made under it: do that knowingly, and make the records anew.
SHIPPED_HASHES = {
    "celeba64_uvit": "218eb801c7869b38e3422b79759b1de93c96b4b11c34bd67d83cf29475605801",
    "cifar10": "6f028906ee0221d484455cee7304d5d5aba6209b0c128329b146ef0123a8e598",
    "cifar10_edm": "8349f19b4b9008941e7a21a405f1387ba62a524cb91c20df3dcdc43881fb63e0",
    "cifar10_short": "88320cee9e9938463b29b030a45dcfa411d575a853bcdb2e49d3cac5fc1ce5d3",
    "cifar10_small": "14f93704cd859996bb06d13ee0fdc8cc994f4abc87eb1c3c9049a8bda7d1fccc",
    "cifar10_smoke": "6072dd7a41ac82730a8bd846895e938b3ca6e5307b9508c8a1e33333ee83d044",
    "digits": "45de6595a2b57edacfd004c3b5042567e893c788de524701efe0d461857215a5",
    "digits_curves": "c7507966546d6bc4c9e87ede55a62a847d3ccf46a704127aa0562feab45895c7",
    "digits_edm": "3aed71856514312d98323cc11c681a710f679ce9688ce931d3ac041f88865942",
    "digits_edm_cond": "ffce2760cd72c3537131002a1ff5b95703026c6e347a78921e6653a04a9b0992",
    "digits_interference": "67e62fda74c4f8cd1f6e9aa668acafcb83ecfb82b309cf5ac336a881bac0f9d3",
    "digits_transformer": "03a417095d31e74f83bc9abc56d10e031ef9e022628a96c91e63ee486d5d644f",
    "digits_uvit": "f2d266214c30f10495a710546b29b5673957d8accceb3bc49335dd62a9daee06",
    "ffhq64_edm": "1793a7c2fa25750826c77d711d420d1c96ba16aa04e0d3db90e576a279595d47",
    "imagenet64_edm": "4ee282e5c0464f89927ca8ea862d09818cb008d8ae5ff527353552bd6f75eac2",
}


def test_hashes_of_the_shipped_configurations_are_those_that_their_records_were_made_under():
    assert {path.stem: load_config(path.stem).sha256() for path in SHIPPED.glob("*.toml")} == SHIPPED_HASHES


def added_keys():
    """Every key that came later: how it is written, with the value that means what its absence meant, and another one."""
    trainings = ("base_training", "ofa_training", "baseline_training", "finetuning")
    values = {"loss_reduction": ("mean", "sum"), "timesteps": ("independent", "antithetic"), "loss_weighting": ("uniform", "min_snr")}
    values |= {"augment_probability": (0.0, 0.12), "warmup_images": (0, 1000), "ema_half_life_images": (0, 1000), "ema_ramp": (0.0, 0.05)}
    values |= {"betas": ([0.9, 0.999], [0.99, 0.99]), "weight_decay": (0.0, 0.03), "cooldown": (0.0, 0.2)}
    known = {f"{section}.{key}": pair for section in trainings for key, pair in values.items()}
    known |= {"pruning.channels": ("in_groups", "averaged"), "pruning.timesteps": (0, 17)}
    known |= {"classifier.sha256": ("", "a" * 64), "base.sha256": ([], ["a" * 64]), "evaluation.sampler": ("ddim", "heun")}
    known |= {"data.crop": ([], [0, 0, 8, 8]), "data.holds": ("", "ffhq"), "data.held_out": (0, 7), "data.downsampling": (1, 2)}
    known |= {"diffusion.formulation": ("ddpm", "edm"), "data.space": ("pixels", "own"), "data.condition": ("none", "class_labels")}
    known |= {
        "evaluation.churn": (0.0, 40.0),
        "evaluation.churn_range": ([0.0, 1000.0], [0.05, 50.0]),
        "evaluation.churn_noise": (1.0, 1.003),
    }
    known |= {"evaluation.also": ([], ["fid768"])}
    known |= {"allocation.resampling_units": ("pruned", "whole")}
    return known | {"data.condition_dropout": (0.0, 0.25), "evaluation.guidance": (1.0, 2.0)}


def needed(key):
    """What else must be set for a key to have another value."""
    section, _, leaf = key.partition(".")
    alone = {
        "guidance": "data.condition_dropout=0.1",
        "cooldown": f"{section}.schedule=constant",
        "warmup_images": f"{section}.warmup_steps=0",
        "also": "evaluation.metric=fid_classifier",
    }
    if leaf in alone:
        return [alone[leaf]]
    if leaf in ("crop", "holds"):
        return ["data.name=folder", "data.folder=somewhere", "data.downsampling=1"]
    if leaf == "ema_half_life_images":
        return [f"{section}.ema_decay=0.9999", f"{section}.ema_ramp=0"]
    if leaf == "ema_ramp":
        return [f"{section}.ema_decay=0.9999", f"{section}.ema_half_life_images=1000"]
    return [f"{section}.horizontal_flip=false", "song_unet.augment_dim=9"] if leaf == "augment_probability" else []


SONGS = {path.stem for path in SHIPPED.glob("*.toml") if "[song_unet]" in path.read_text()}
CURVED = {path.stem for path in SHIPPED.glob("*.toml") if "[curves]" in path.read_text()}  # whose rates may not fall
UNFIT = {*((name, f"{section}.cooldown") for name in CURVED for section in ("ofa_training", "baseline_training"))}
UNFIT |= {(path.stem, "data.downsampling") for path in SHIPPED.glob("*.toml") if 'name = "folder"' in path.read_text()}
CASES = [(path.stem, key) for path in SHIPPED.glob("*.toml") for key in added_keys() if path.stem in SONGS or "augment" not in key]
CASES = [case for case in CASES if case not in UNFIT]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_key_that_came_later_leaves_the_hash_alone_at_its_default_alone(name, key):
    default, other = (json.dumps(value) for value in added_keys()[key])
    needs = ["base.source=train", "base.weights=ema"]  # a shipped base needs its hashes, and one from elsewhere is DDPM's
    at_default, at_other = (load_config(name, [*needs, *needed(key), f"{key}={value}"], {}) for value in (default, other))
    section, _, leaf = key.partition(".")
    assert leaf not in at_default.as_dict()[section]
    assert at_default.sha256() != at_other.sha256()
    assert json.dumps(at_other.as_dict()[section][leaf]) == other
    without = {part: dict(values) if isinstance(values, dict) else values for part, values in at_other.as_dict().items()}
    del without[section][leaf]
    assert without == at_default.as_dict()  # nothing else differs


def test_the_keys_that_came_later_are_these_and_no_others():
    hints = typing.get_type_hints(Config)
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    found = {f"{name}.{item.name}" for name, hint in sections.items() for item in dataclasses.fields(hint) if item.metadata.get(ABSENT)}
    assert found == {*added_keys(), *OF_FILES}


OF_FILES = ("base.file", "base.formulation")  # which go with a base from elsewhere alone


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.toml")])
def test_keys_of_a_base_s_file_are_left_out_where_it_has_none(name):
    trained = load_config(name, ["base.source=train", "base.weights=ema"])
    given = ["base.source=path", "base.sha256=[]", "base.file=weights.pt"]
    formulation = trained.diffusion.formulation
    hashes = {load_config(name, more).sha256() for more in (given, [*given, f"base.formulation={formulation}"])}
    assert not {"file", "formulation"} & trained.as_dict()["base"].keys() and len(hashes | {trained.sha256()}) == 3


def test_hash_does_not_change_with_the_order_of_keys_or_how_a_default_is_written(tmp_path):
    path = tmp_path / "turned.toml"
    head, *sections = re.split(r"^(?=\[)", TINY.read_text(), flags=re.MULTILINE)
    turned = ["\n".join([lines[0], *reversed(lines[1:])]) for lines in (section.strip().splitlines() for section in reversed(sections))]
    path.write_text("\n".join([head, *turned]))
    assert load_config(str(path)).sha256() == load_config(str(TINY)).sha256()
    assert load_config(str(TINY), ["sampling_law.m=3"]).sha256() == load_config(str(TINY)).sha256()
    assert re.fullmatch(r"[0-9a-f]{64}", load_config(str(TINY)).sha256())


def test_configuration_cannot_be_changed_once_made():
    with pytest.raises(AttributeError):
        load_config(str(TINY)).evaluation.samples = 5


# The shipped configurations of CIFAR-10


def test_the_cifar10_configuration_holds_the_published_settings():
    config = load_config("cifar10")
    assert sorted(config.sizes.trained) == [round(0.25 + 0.025 * index, 3) for index in range(31)]
    assert sorted(config.sizes.reported) == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    joint, alone = config.ofa_training, config.baseline_training
    assert (joint.steps, joint.batch_size, joint.learning_rate) == (200_000, 512, 1e-3)
    assert joint.ema_decay == pytest.approx(0.5 ** (512 / 500_000), abs=1e-5)  # a half-life of 0.5 Mimg
    assert (alone.steps, alone.batch_size, alone.learning_rate, alone.dropout, alone.ema_decay) == (100_000, 128, 2e-4, 0.1, 0.9999)
    assert alone.gradient_clipping == 1.0 and alone.horizontal_flip
    assert (config.pruning.images, config.pruning.threshold) == (128, 0.05)
    judged = config.evaluation
    assert (judged.metric, judged.samples, judged.reference_images) == ("fid", 50_000, 0)
    assert (judged.sampler_steps, judged.spacing, judged.clip_sample) == (100, "quadratic", False)
    assert (config.importance.images, config.sampling_law.law, config.sampling_law.m) == (1024, "linear", 3.0)


@pytest.mark.parametrize(
    ("name", "mimg", "base", "joint", "finetuning", "half_life_mimg", "augmented", "nfe"),
    [  # (batch, rate, dropout) of the base's training; (steps, batch, rate) of the joint run and of the fine-tuning
        ("cifar10_edm", 200, (512, 1e-3, 0.13), (200_000, 512, 1e-3), (20_000, 512, 2e-4), 0.5, 0.12, 35),
        ("ffhq64_edm", 200, (256, 2e-4, 0.05), (400_000, 256, 2e-4), (40_000, 256, 2e-4), 0.5, 0.15, 79),
        ("imagenet64_edm", 2500, (4096, 1e-4, 0.1), (25_000, 4096, 1e-4), (2500, 4096, 1e-4), 50, 0.0, 511),
        ("celeba64_uvit", 64, (128, 2e-4, 0.0), (200_000, 512, 1e-4), (40_000, 256, 1e-4), None, 0.0, 50),
    ],
)
def test_the_families_configurations_hold_the_published_settings(name, mimg, base, joint, finetuning, half_life_mimg, augmented, nfe):
    config, of_edm = load_config(name), name != "celeba64_uvit"
    assert sorted(config.sizes.trained) == [round(0.25 + 0.025 * index, 3) for index in range(31)]
    alone = config.base_training
    assert alone.steps * alone.batch_size == pytest.approx(1e6 * mimg, rel=1e-5)
    assert (alone.batch_size, alone.learning_rate, alone.dropout, alone.gradient_clipping) == (*base, 0)
    for settings, expected in ((config.ofa_training, joint), (config.baseline_training, joint), (config.finetuning, finetuning)):
        assert (settings.steps, settings.batch_size, settings.learning_rate) == expected
    for settings in (alone, config.ofa_training, config.baseline_training, config.finetuning):
        assert settings.horizontal_flip == (name == "celeba64_uvit")
        assert settings.augment_probability == augmented
        assert settings.ema_half_life_images == 1e6 * (half_life_mimg or 0)
        assert settings.ema_ramp == (0.05 if settings is alone and of_edm else 0)  # a network that comes from another has no such ramp
        optimiser = (settings.betas, settings.weight_decay, settings.ema_decay)
        assert optimiser == (((0.9, 0.999) if of_edm else (0.99, 0.99)), 0.0 if of_edm else 0.03, 0.9999)
        if of_edm and settings is not config.finetuning:
            assert settings.warmup_images == 10e6
    judged, formulation = config.evaluation, FORMULATIONS[config.diffusion.formulation](config.diffusion)
    assert (judged.metric, judged.samples, judged.sampler) == ("fid", 50_000, "heun" if of_edm else "dpmsolver")
    assert SAMPLERS[judged.sampler].nfe(judged, formulation) == nfe
    churn = (judged.churn, judged.churn_range, judged.churn_noise)
    assert churn == ((40.0, (0.05, 50.0), 1.003) if name == "imagenet64_edm" else (0.0, (0.0, 1000.0), 1.0))


def test_the_short_configuration_has_the_same_network_and_law():
    short, whole = load_config("cifar10_short"), load_config("cifar10")
    for section in ("network", "diffusion", "importance", "allocation", "sampling_law", "pruning", "classifier", "compute", "data"):
        assert getattr(short, section) == getattr(whole, section), section
    assert short.hours == 1.0 and whole.hours == 0.0
    assert short.evaluation.samples == 10_000 and len(short.sizes.trained) == 4


@pytest.mark.parametrize("build", [None, "2.14.1+cu130"])
def test_a_record_names_the_build_of_torch(monkeypatch, build):
    if build:  # its distribution is called 2.14.1
        monkeypatch.setattr(torch, "__version__", build)
    assert provenance.software()["packages"]["torch"] == (build or torch.__version__)
