"""The command line, as a user runs it."""

import itertools
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.blocks import heed_interrupts
from support.commands import typed
from tqdm import tqdm

from repro.cli import main
from repro.deliver.sizes import _published_near
from repro.experiment.records import write_record
from repro.runtime import progress

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
METHODS = (
    *("floor", "noise", "base", "untrained", "untrained_random", "ofa_joint", "ofa"),
    *("diff_pruning_scores", "diff_pruning", "magnitude", "random", "scratch"),
)
BASE_PARAMS = 44969


def repro(*arguments, config=TINY):
    return typed(main, *arguments, *(["--config", config] if config else []))


def process(*arguments, config=TINY):
    """Does as `repro` does in a process of its own."""
    command = [sys.executable, "-m", "repro", *map(str, arguments), *(["--config", str(config)] if config else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]
    return done


def folders(tmp_path):
    return "--results", tmp_path / "results", "--runs", tmp_path / "runs"


def refusal(done):
    """Returns the one line on stderr of a command that was refused."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def noise_record(tmp_path):
    return tmp_path / "results" / "tiny" / "noise-seed0.json"


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """The record of one finished cell."""
    folder = tmp_path_factory.mktemp("noise")
    done = repro("run", "--methods", "noise", *folders(folder))
    assert done.returncode == 0, done.stderr
    return noise_record(folder).read_text()


# Terminal or pipe


def watched(folder, *, on_a_terminal):
    """What `status --watch` writes until it has been interrupted."""
    reader, writer = pty.openpty() if on_a_terminal else os.pipe()
    command = [sys.executable, "-m", "repro", "status", "--watch", "--config", str(TINY), *map(str, folders(folder))]
    about = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, **about) as process:
        os.close(writer)
        seen = b""
        while b"missing   (" not in seen:
            seen += os.read(reader, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    os.close(reader)
    return seen.decode()


def test_what_only_a_terminal_obeys_is_written_to_a_terminal_alone(tmp_path):
    assert watched(tmp_path, on_a_terminal=True).startswith("\x1b[2J\x1b[H")
    assert "\x1b" not in watched(tmp_path, on_a_terminal=False)


def test_a_bar_is_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_LINE_SEC", 0.0)
    bar = tqdm(total=4, desc="[1/1] base-1-seed0 training", **progress.bar_style())
    for _ in range(4):
        bar.update(1)
        bar.set_postfix_str("loss 0.5", refresh=False)
    bar.close()
    written = capsys.readouterr().err
    assert "\r" not in written and "\x1b" not in written
    assert any(
        line.startswith("[1/1] base-1-seed0 training: 50 %, 2 of 4, ") and line.endswith("loss 0.5") for line in written.splitlines()
    )


# Help


def test_help_teaches_and_is_quick():
    begun = time.monotonic()
    done = process("--help", config=None)
    assert time.monotonic() - begun < 2
    assert done.returncode == 0
    for verb in ("run", "status", "sizes", "extract"):
        assert f"\n    {verb} " in done.stdout
        assert f"python -m repro {verb}" in done.stdout
    assert "examples:" in done.stdout
    assert "exit codes: 0 done" in done.stdout


@pytest.mark.parametrize("verb", ["run", "status", "sizes", "extract"])
def test_help_of_a_verb_names_its_flags_and_defaults(verb):
    done = repro(verb, "--help", config=None)
    assert done.returncode == 0
    for words in ("--config", "--set SECTION.KEY=VALUE", "--results", "--runs", "digits"):
        assert words in done.stdout


def test_help_imports_no_torch():
    code = (
        "import sys, repro.cli\n"
        "try:\n    repro.cli.main(['--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "False False"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--config", "digit"], ["--config digit", "digits"]),
        (["--config", "nowhere.toml"], ["nowhere.toml", "digits"]),
        (["--config", TINY, "--set", "evaluation.sample=5"], ["'evaluation.sample'", "'evaluation.samples'"]),
        (["--config", TINY, "--set", "evaluation.samples"], ["--set evaluation.samples", "section.key=value"]),
        (["--config", TINY, "--methods", "ofaa"], ["--methods ofaa", "'ofa'", "diff_pruning"]),
        (["--config", TINY, "--sizes", "0.3"], ["--sizes 0.3", "1, 0.5"]),
        (["--config", TINY, "--sizes", "0"], ["--sizes 0", "(0, 1]"]),
        (["--config", TINY, "--sizes", "1.5"], ["--sizes 1.5", "(0, 1]"]),
        (["--config", TINY, "--sizes", "nan"], ["--sizes nan", "(0, 1]"]),
        (["--config", TINY, "--seeds", "-1"], ["--seeds", "must not be negative"]),
        (["--config", TINY, "--ranks", "1000000"], ["--ranks", "at most 1,024"]),
        (["--config", TINY, "--parallel-cells", "1000000"], ["--parallel-cells", "at most 1,024"]),
    ],
)
def test_mistake_is_one_line_that_names_it_and_the_remedy(tmp_path, arguments, names):
    line = refusal(repro("run", *arguments, *folders(tmp_path), config=None))
    for name in names:
        assert name in line
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(("flag", "value"), [("--sizes", "half"), ("--seeds", "0.5")])
def test_malformed_number_is_named_without_the_names_of_functions(tmp_path, flag, value):
    done = repro("run", flag, value, *folders(tmp_path))
    assert done.returncode == 2
    assert value in done.stderr
    assert "_floats" not in done.stderr
    assert "_integers" not in done.stderr


def test_unknown_verb_is_refused():
    done = process("rn", config=None)
    assert done.returncode == 2
    assert "'rn'" in done.stderr
    assert "status" in done.stderr


# Sizes


@pytest.mark.parametrize("rule", ["gradual", "formula5", "uniform"])
def test_sizes_prints_json_that_ascends_to_the_base(tmp_path, rule):
    done = repro("sizes", "--json", "--allocation", rule, *folders(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["allocation"] == rule
    rows = sorted(report["sizes"], key=lambda row: row["size"])
    assert [row["size"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [row["reported"] for row in rows] == [False, True, False, True]
    assert rows[-1]["params"] == BASE_PARAMS
    assert rows[-1]["realised"] == 1
    for smaller, larger in itertools.pairwise(rows):
        assert smaller["params"] < larger["params"]
        assert smaller["macs"] < larger["macs"]
        assert all(smaller["widths"][pipe] <= larger["widths"][pipe] for pipe in larger["widths"])
    for row in rows:
        assert row["macs_conv_linear"] < row["macs"]
        assert abs(row["realised"] - row["size"]) < 0.05
    assert not (tmp_path / "results").exists()


def test_sizes_prints_a_table_that_marks_the_reported(tmp_path):
    done = repro("sizes", *folders(tmp_path))
    assert done.returncode == 0
    (whole,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["1*"]]
    assert f"{BASE_PARAMS:,}" in whole
    assert any(line.split()[:1] == ["0.75"] for line in done.stdout.splitlines())


def test_sizes_shows_what_independent_pruning_realises(tmp_path):
    done = repro("sizes", "--baselines", "--sizes", "0.5", "--json", *folders(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [row["size"] for row in content["sizes"]] == [0.5]
    (row,) = content["baselines"]
    assert row["params"] == pytest.approx(row["target_params"], rel=0.02)
    assert row["macs_conv_linear"] < row["macs"] < content["sizes"][0]["macs"]  # the residual stream is pruned too
    assert row["published"] == []
    assert "Independent pruning to the same parameter size" in repro("sizes", "--baselines", *folders(tmp_path)).stdout


def test_published_networks_of_about_the_same_size_stand_beside():
    near = {"params": 19_800_000, "macs": 3_400_000_000, "macs_counter": "torch-pruning", "source": "Fang et al., 2023"}
    assert _published_near("cifar10", 20_271_790) == [near]
    assert _published_near("cifar10", 25_000_000) == []
    assert _published_near("digits", 20_271_790) == []


def test_a_size_that_is_not_trained_is_not_shown(tmp_path):
    line = refusal(repro("sizes", "--sizes", "0.3", *folders(tmp_path)))
    said, _, remedy = line.rpartition(", or add it: ")
    assert said == "error: --sizes 0.3: not a trained size (1, 0.75, 0.5, 0.25); name one of these"
    done = repro("sizes", "--sizes", "0.3", *shlex.split(remedy), *folders(tmp_path))
    assert done.returncode == 0 and any(row.split()[:1] == ["0.3"] for row in done.stdout.splitlines())
    unreachable = refusal(repro("sizes", "--sizes", "0.05", *folders(tmp_path)))
    assert "size 0.05: the plan cannot reach it" in unreachable and "--set" not in unreachable


def test_a_size_that_is_not_reported_is_added_by_the_command_that_is_told(tmp_path):
    for size, keys in (("0.25", 1), ("0.3", 2)):  # trained already, and not
        line = refusal(repro("status", "--methods", "ofa", "--sizes", size, *folders(tmp_path)))
        remedy = shlex.split(line.rpartition(", or add it: ")[2])
        assert remedy.count("--set") == keys
        done = repro("status", "--methods", "ofa", "--sizes", size, *remedy, *folders(tmp_path))
        assert done.returncode == 0 and f"ofa-{size}-seed0" in done.stdout


def test_extracting_before_training_names_the_whole_command(tmp_path):
    line = refusal(repro("extract", "--size", "0.5", "--seed", "3", "--out", tmp_path / "out", *folders(tmp_path)))
    command = line.partition("run `")[2].partition("`")[0]
    assert f"--runs {tmp_path / 'runs'}" in command and command.endswith("--methods ofa_joint --seeds 3")


def test_size_that_the_plan_cannot_reach_is_refused_with_the_smallest_that_it_can(tmp_path):
    line = refusal(repro("sizes", "--set", "sizes.trained=[1.0, 0.5, 0.05]", *folders(tmp_path)))
    assert "size 0.05" in line
    smallest = float(line.rpartition(" is ")[2])
    assert 0.2 < smallest < 0.3  # every pipe at a quarter, rounded up to its unit
    done = repro("sizes", "--json", "--set", f"sizes.trained=[1.0, 0.5, {smallest}]", *folders(tmp_path))
    assert done.returncode == 0, done.stderr


# Status


def test_status_before_anything_is_all_missing_and_makes_nothing(tmp_path):
    done = repro("status", *folders(tmp_path))
    assert done.returncode == 0
    *rows, counts = done.stdout.splitlines()
    # floor, noise, base, ofa_joint, diff_pruning_scores; untrained twice at 0.5; ofa and four baselines at 1 and 0.5
    assert len(rows) == 7 + 3 * 2 + 2 * 1  # magnitude and random have no cell at size 1
    assert all(row.split()[1] == "missing" for row in rows)
    assert {row.split()[0].partition("-")[0] for row in rows} == set(METHODS)
    assert counts.startswith("0 done, 0 running, 0 interrupted, 0 failed, 15 missing")
    assert list(tmp_path.iterdir()) == []


def test_status_after_counts_what_is_done_failed_and_interrupted(tmp_path, noise):
    noise_record(tmp_path).parent.mkdir(parents=True)
    noise_record(tmp_path).write_text(noise)
    failed = json.loads(noise) | {"status": "failed", "reason": "the moon was full"}
    failed["cell"] = {"name": "floor-seed0", "method": "floor", "size": None, "seed": 0}
    write_record(noise_record(tmp_path).parent, failed | {"quality": None, "samples": None, "made": None})
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    beat = {"pid": child.pid, "host": os.uname().nodename, "stage": "training", "done": 7, "total": 12, "seconds": {}}
    (tmp_path / "runs" / "tiny" / "base-1-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "base-1-seed0" / "heartbeat.json").write_text(json.dumps(beat))
    done = repro("status", *folders(tmp_path))
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[:-1]}
    assert rows["noise-seed0"].split()[0] == "done"
    assert f"fid_classifier {json.loads(noise)['quality']['mean']:.2f}" in rows["noise-seed0"]
    assert rows["floor-seed0"].startswith("failed")
    assert "the moon was full" in rows["floor-seed0"]
    assert rows["base-1-seed0"].startswith("interrupted")
    assert "training 7/12" in rows["base-1-seed0"]
    assert done.stdout.splitlines()[-1].startswith("1 done, 0 running, 1 interrupted, 1 failed, 12 missing")
    told = json.loads(repro("status", "--json", *folders(tmp_path)).stdout)
    assert told["counts"] == {"done": 1, "running": 0, "interrupted": 1, "failed": 1, "missing": 12}
    assert told["results"] == str(noise_record(tmp_path).parent)
    assert {cell["cell"]: cell["state"] for cell in told["cells"]} == {name: row.split()[0] for name, row in rows.items()}
    assert all(rows[cell["cell"]].split() == [cell["state"], *cell["remark"].split()] for cell in told["cells"])


def test_a_dry_run_names_the_cells_in_their_order_and_their_cost_and_makes_nothing(tmp_path):
    done = repro("run", "--dry-run", "--methods", "noise,ofa", "--sizes", "0.5", *folders(tmp_path))
    assert done.returncode == 0, done.stderr
    cells = [line.split() for line in done.stdout.partition("\n\n")[0].splitlines()]
    assert [name for _, name, *_ in cells] == ["noise-seed0", "base-1-seed0", "ofa_joint-seed0", "ofa-0.5-seed0"]
    assert [number for number, *_ in cells] == ["1", "2", "3", "4"] and {row[2] for row in cells} == {"missing"}
    assert "PFLOP" in done.stdout and "disk GB" in done.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("run", "--method", "noise"), ("run", "--size", "0.5"), ("status", "--wat")])
def test_a_flag_that_is_cut_short_is_refused(tmp_path, words):
    done = repro(*words, *folders(tmp_path))
    assert done.returncode == 2 and f"unrecognized arguments: {words[1]}" in done.stderr


# What is in the way


@pytest.mark.parametrize("flag", ["--results", "--runs"])
def test_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, flag):
    (tmp_path / "file").write_text("in the way")
    other = {"--results": "--runs", "--runs": "--results"}[flag]
    line = refusal(repro("run", "--methods", "noise", flag, tmp_path / "file", other, tmp_path / "other"))
    assert str(tmp_path / "file") in line
    assert "name another" in line
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("verb", ["run", "status"])
def test_record_of_another_configuration_is_refused_and_kept(tmp_path, noise, verb):
    path = noise_record(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(noise)
    line = refusal(repro(verb, "--methods", "noise", "--set", "evaluation.samples=44", *folders(tmp_path)))
    assert str(path) in line
    assert "evaluation.samples was 40, is 44" in line
    assert "delete it" in line
    assert path.read_text() == noise


@pytest.mark.parametrize("verb", ["run", "status"])
def test_corrupt_record_is_refused_and_kept(tmp_path, noise, verb):
    path = noise_record(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(noise[: len(noise) // 2])
    line = refusal(repro(verb, "--methods", "noise", *folders(tmp_path)))
    assert str(path) in line
    assert "delete it" in line
    assert path.read_text() == noise[: len(noise) // 2]


@pytest.mark.slow
def test_failed_cell_has_a_record_and_is_run_again(tmp_path, noise):
    blocked = tmp_path / "runs" / "tiny" / "noise-seed0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    failed = process("run", "--methods", "noise", *folders(tmp_path))
    assert failed.returncode == 2
    assert str(blocked) in failed.stderr
    record = json.loads(noise_record(tmp_path).read_text())
    assert record["status"] == "failed"
    assert str(blocked) in record["reason"]
    assert record["quality"] is None
    blocked.unlink()
    assert repro("run", "--methods", "noise", *folders(tmp_path)).returncode == 0
    again = json.loads(noise_record(tmp_path).read_text())
    assert again["status"] == "done"
    assert again["quality"] == json.loads(noise)["quality"]


# Several ranks


@pytest.mark.slow
def test_a_rank_that_comes_late_does_what_the_first_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "repro", "run", "--methods", "noise", "--config", str(TINY), *map(str, folders(tmp_path))]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in ("0", "1"):
            environment = os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
            time.sleep(0 if processes[1:] else 10)  # by then the first one is far ahead
        for process in processes:
            _, said = process.communicate(timeout=100)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert json.loads(noise_record(tmp_path).read_text())["cost"]["ranks"] == 2
