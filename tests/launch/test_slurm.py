"""The job array that `--slurm` writes, run through a Slurm of a hundred lines."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repro.cli import main
from repro.config import load_config
from repro.errors import ReproError
from repro.experiment.cells import Cell, Experiment, Method, plan_cells
from repro.experiment.records import read_record
from repro.files.writing import sha256_of_file
from repro.grid import METHODS
from repro.launch.slurm import _compact, _time, write_slurm

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "tiny.toml"
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
ON_CPU = ("cluster.gpus_per_node=0", "cluster.cpus_per_rank=1")
HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` %x #1'

pytestmark = pytest.mark.slow  # a scheduler, and several processes each

# Runs the indexes of an array at once, one after the other. What slurmctld would do is written to a journal.
FAKE_SLURM = """
import os, re, shlex, signal, subprocess, sys, time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
SIGNALS = {"notice": signal.SIGUSR1, "cancel": signal.SIGTERM}


def tell(line):
    with (STATE / "journal").open("a") as journal:
        journal.write(line + "\\n")


def as_options(words):
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def sbatch(*words):
    script = Path(words[-1]).read_text()
    directives = [word for line in script.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    options = as_options([*directives, *words[:-1]])
    assert "parsable" in options and options["kill-on-invalid-dep"] == "yes" and options["signal"] == "B:USR1@120"
    job = 100 * (len(list(STATE.glob("script*"))) + 1) + 1000 * (os.getpid() % 7)
    spooled = STATE / f"script{job}"
    spooled.write_text(script)
    needed = options.get("dependency", "afterok").split(":")
    assert needed[0] == "afterok"
    invalid = [task for task in needed[1:] if (STATE / task).read_text() != "0"]
    for part in options["array"].split(","):
        first, _, last = part.partition("-")
        for index in range(int(first), int(last or first) + 1):
            code = "cancelled" if invalid else run(spooled, job, index, options)
            (STATE / f"{job}_{index}").write_text(str(code))
            tell(f"end {index} {code}")
    print(f"{job};cluster")


def run(script, job, index, options):
    places = {"%": "%", "x": options["job-name"], "A": job, "a": index}
    log = re.sub("%([%xAa])", lambda found: str(places[found[1]]), options["output"])
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    names = {"ARRAY_TASK_ID": index, "ARRAY_JOB_ID": job, "JOB_ID": job + index, "JOB_NODELIST": "node[1-2]", "NTASKS": tasks}
    names |= {"NTASKS_PER_NODE": options["ntasks-per-node"]}
    for life in range(3):
        tell(f"start {index}")
        environment = os.environ | {f"SLURM_{name}": str(value) for name, value in names.items()}
        with open(log, "ab") as output:
            shell = subprocess.Popen(["bash", script], cwd=options["chdir"], env=environment, stdout=output, stderr=output)
            while shell.poll() is None:
                for name, number in SIGNALS.items():
                    if (STATE / name).exists():
                        (STATE / name).unlink()
                        shell.send_signal(number)
                        _ = scancel("--signal=TERM", str(job + index)) if name == "cancel" else None
                time.sleep(0.05)
        if not (STATE / "requeue").exists():
            return shell.returncode
        assert (STATE / "requeue").read_text() == f"{job}_{index}"
        (STATE / "requeue").unlink()
        tell(f"requeue {index}")
    raise AssertionError("requeued for ever")


def srun(*words):
    count = next(number for number, word in enumerate(words) if not word.startswith("--"))
    options, per_node = as_options(words[:count]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    assert options["ntasks"] == os.environ["SLURM_NTASKS"] and options["kill-on-bad-exit"] == "1"
    ranks = []
    for rank in range(int(options["ntasks"])):
        environment = os.environ | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)}
        ranks.append(subprocess.Popen(words[count:], env=environment))
    (STATE / "ranks").write_text(" ".join(str(rank.pid) for rank in ranks))
    while not any(rank.poll() for rank in ranks) and None in [rank.poll() for rank in ranks]:
        time.sleep(0.05)
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            rank.terminate()
    codes = [rank.wait() for rank in ranks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))


def scontrol(verb, *words):
    if verb == "requeue":
        (STATE / "requeue").write_text(*words)
    else:
        assert (verb, *words) == ("show", "hostnames", "node[1-2]")
        print("127.0.0.1\\nelsewhere")


def scancel(option, _job):
    assert option == "--signal=TERM"
    for rank in (STATE / "ranks").read_text().split():
        os.kill(int(rank), signal.SIGTERM)


globals()[Path(sys.argv[0]).name](*sys.argv[1:])
"""

# Stands for `python -m repro run`: tells how it was called, then does what a test adds, which may look at `words`, `rank` and `life`.
FAKE_PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

STATE, words, rank = Path(os.environ["FAKE_SLURM"]), sys.argv[1:], int(os.environ["RANK"])
life = (STATE / "journal").read_text().count(f"start {os.environ['SLURM_ARRAY_TASK_ID']}\\n")
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
call = {"words": words, "folder": os.getcwd(), **{name: os.environ[name] for name in names}}
with (STATE / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")


def ready(mark=None):
    # Goes on once all ranks listen to SIGTERM; the mark tells Slurm so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (STATE / f"ready{rank}").touch()
    while len(list(STATE.glob("ready*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if mark and rank == 0:
        (STATE / mark).touch()


"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The folder of a Slurm that is found first on the PATH; the current folder is an empty one."""
    for name in ("sbatch", "srun", "scontrol", "scancel"):
        program(tmp_path / "slurm" / name, FAKE_SLURM)
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def write(folder, *overrides, methods="base", sizes=None, arguments=("--config", "tiny"), done=()):
    """Writes the scripts for the cells of a request that are not done; returns the names of these."""
    config = load_config(str(TINY), list(overrides))
    cells = [cell for cell in plan_cells(experiment_of(config, METHODS), methods.split(","), sizes, [0]) if cell.name not in done]
    write_cells(config, METHODS, cells, folder, arguments)
    return [cell.name for cell in cells]


def experiment_of(config, methods):
    return Experiment(config=config, results=Path("results"), runs=Path("runs"), source="", methods=methods)


def write_cells(config, methods, cells, folder, arguments=("--config", "tiny")):
    assert write_slurm(experiment_of(config, methods), cells, folder, arguments) == folder.resolve() / "submit.sh"


def acts(folder, text):
    """Returns the overrides that put a program in the place of Python."""
    program(folder / "python", FAKE_PROGRAM + text)
    line = f'export PATH={shlex.quote(str(folder))}:"$PATH"'
    return (*ON_CPU, f"cluster.setup={json.dumps([line])}")


def submit(folder):
    done = subprocess.run([folder / "submit.sh"], check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(path):
    return path.read_text().splitlines()


def log_of(folder, index):
    (log,) = folder.glob(f"ofa-tiny-*_{index}.log")
    return log.read_text()


# What is written


@pytest.mark.parametrize(
    ("overrides", "resources"),
    [
        (
            "nodes=2 gpus_per_node=8 cpus_per_rank=12 memory_gb_per_node=900 hours=36.51 partition=long account=physics "
            'options=["--constraint=h100","--exclusive"]',
            "nodes=2 ntasks-per-node=8 gpus-per-node=8 cpus-per-task=12 mem=900G time=1-12:30:36 partition=long account=physics "
            "constraint=h100 exclusive",
        ),
        ("gpus_per_node=0 hours=0.25", "nodes=1 ntasks-per-node=1 cpus-per-task=8 time=0-00:15:00"),
    ],
)
def test_every_resource_is_named_and_nothing_that_is_not_set(tmp_path, monkeypatch, overrides, resources):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "jobs", *(f"cluster.{override}" for override in overrides.split()))
    own = ["requeue", "open-mode=append", f'output="{tmp_path}/jobs/%x-%A_%a.log"', "signal=B:USR1@120", f'chdir="{tmp_path}"']
    found = [line for line in lines(tmp_path / "jobs" / "cells.sbatch") if line.startswith("#SBATCH ")]
    assert found == [f"#SBATCH --{option}" for option in ["job-name=ofa-tiny", *resources.split(), *own]]


@pytest.mark.parametrize("overrides", [(), ("cluster.nodes=4", "cluster.gpus_per_node=4", 'cluster.setup=["source .venv/bin/activate"]')])
def test_scripts_are_sound_bash_and_submit_can_be_called(tmp_path, overrides):
    write(tmp_path, *overrides, methods="floor,noise,base,ofa,diff_pruning,random")
    assert os.access(tmp_path / "submit.sh", os.X_OK)
    for name in ("cells.sbatch", "submit.sh"):
        subprocess.run(["bash", "-n", tmp_path / name], check=True)
        if shutil.which("shellcheck"):
            done = subprocess.run(["shellcheck", "--severity=warning", tmp_path / name], check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_scripts_of_an_earlier_call_are_replaced_and_nothing_else_is_touched(tmp_path):
    write(tmp_path, methods="floor,noise")
    (tmp_path / "ofa-tiny-1_1.log").write_text("kept")
    write(tmp_path, methods="noise")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.sbatch", "ofa-tiny-1_1.log", "submit.sh"]
    assert "floor" not in (tmp_path / "cells.sbatch").read_text()


def test_base_that_is_not_reported_is_asked_for_without_its_size(tmp_path):
    write(tmp_path, "sizes.reported=[0.5]", methods="ofa")
    cells = [line.strip() for line in lines(tmp_path / "cells.sbatch") if " cell=(" in line]
    assert cells[0] == "1) cell=(--methods base --seeds 0) ;; # base-1-seed0"
    assert cells[2] == "3) cell=(--methods ofa --sizes 0.5 --seeds 0) ;; # ofa-0.5-seed0"


def test_python_that_wrote_the_script_runs_it_unless_setup_names_another(tmp_path):
    line = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    write(tmp_path)
    assert line in lines(tmp_path / "cells.sbatch")
    write(tmp_path, 'cluster.setup=["module load python", "source .venv/bin/activate"]')
    written = lines(tmp_path / "cells.sbatch")
    assert line not in written
    assert written[written.index("set -e") + 1 :][:2] == ["module load python", "source .venv/bin/activate"]


@pytest.mark.parametrize(("indexes", "text"), [([4], "4"), ([1, 2, 3, 7], "1-3,7"), ([1, 3, 4, 6], "1,3-4,6")])
def test_indexes_are_written_short(indexes, text):
    assert _compact(indexes) == text


@pytest.mark.parametrize(("hours", "text"), [(24, "1-00:00:00"), (0.1, "0-00:06:00"), (100.5, "4-04:30:00"), (23.99999, "1-00:00:00")])
def test_time_limit_is_written_with_days(hours, text):
    assert _time(hours) == text


def test_what_sbatch_cannot_take_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ReproError, match=r"back.slash: .*; name another one with --slurm"):
        write(tmp_path / "back\\slash")
    with pytest.raises(ReproError, match=r"cluster\.hours: 0\.05 .*; make it 0\.07 or more"):
        write(tmp_path, "cluster.hours=0.05")
    assert list(tmp_path.iterdir()) == []


def test_hours_without_their_steps_are_refused_before_the_cells_each_measure_their_own(tmp_path):
    with pytest.raises(ReproError, match=r"hours = 2: the training steps .* are not set yet; .* --methods floor"):
        write(tmp_path, "hours=2")
    assert list(tmp_path.iterdir()) == []


def test_batch_that_the_ranks_of_a_cell_cannot_share_is_refused(tmp_path):
    with pytest.raises(ReproError, match=r"finetuning\.batch_size: 20 images cannot be shared by 16 ranks; make it a multiple of 16"):
        write(tmp_path, "cluster.nodes=2", "cluster.gpus_per_node=8", "finetuning.batch_size=20", methods="ofa_finetuned")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "",
            "each cell asks for 1 node x 1 GPU: a node of 8 runs up to eight independent cells at a time; "
            "--set cluster.gpus_per_node=8 gives each cell eight, which share its batches",
        ),
        ("gpus_per_node=8", "each cell asks for 1 node x 8 GPUs: 8 ranks share each of its batches"),
        ("nodes=2 gpus_per_node=8", "each cell asks for 2 nodes x 8 GPUs: 16 ranks share each of its batches"),
        ("gpus_per_node=0", "each cell asks for 1 node x 8 cores, and no GPU; --set cluster.gpus_per_node=1 gives it one"),
        ("nodes=2 gpus_per_node=0 cpus_per_rank=4", "each cell asks for 2 nodes x 4 cores, and no GPU: 2 ranks share each of its batches"),
    ],
)
def test_what_each_cell_asks_for_is_told_and_how_to_ask_for_more(tmp_path, capsys, overrides, line):
    chosen = [word for override in overrides.split() for word in ("--set", f"cluster.{override}")]
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--slurm", str(tmp_path / "jobs")]
    assert main(["run", "--config", str(TINY), "--methods", "base", *folders, *chosen]) == 0
    assert capsys.readouterr().out.splitlines() == [line, f"1 cells; submit them with {tmp_path / 'jobs' / 'submit.sh'}"]


# How it runs


def test_hostile_words_execute_nothing_and_arrive_whole(tmp_path, state, monkeypatch):
    here, jobs = tmp_path / HOSTILE, tmp_path / HOSTILE / f"jobs {HOSTILE}"
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = ["--config", "tiny", "--runs", f"the runs {HOSTILE}", "--set", 'name="$HOME"']
    write(jobs, *acts(tmp_path / f"bin {HOSTILE}", ""), 'cluster.options=["--comment=\\"$(touch pwned)\\""]', arguments=arguments)
    submit(jobs)
    (call,) = map(json.loads, lines(state / "calls"))
    assert call["words"] == ["-m", "repro", "run", *arguments, "--methods", "base", "--seeds", "0", "--yes"]
    assert call["folder"] == str(here)
    assert sorted(path.name.partition("-")[0] for path in jobs.iterdir()) == ["cells.sbatch", "ofa", "submit.sh"]
    assert not list(tmp_path.rglob("pwned"))


def test_ranks_are_numbered_over_the_nodes_and_meet_at_the_first(tmp_path, state):
    gpus = ("cluster.nodes=2", "cluster.gpus_per_node=2", "cluster.cpus_per_rank=3")
    write(tmp_path / "jobs", *acts(tmp_path / "bin", ""), *gpus)
    submit(tmp_path / "jobs")
    calls = sorted(map(json.loads, lines(state / "calls")), key=lambda call: call["RANK"])
    assert [(call["RANK"], call["LOCAL_RANK"]) for call in calls] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert {(call["WORLD_SIZE"], call["MASTER_ADDR"], call["OMP_NUM_THREADS"]) for call in calls} == {("4", "127.0.0.1", "3")}
    (port,) = {int(call["MASTER_PORT"]) for call in calls}
    assert 20_000 <= port < 30_000


def test_index_without_a_cell_is_refused(tmp_path, state):
    write(tmp_path, *ON_CPU)
    variables = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash", tmp_path / "cells.sbatch"], check=False, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cells.sbatch: index 2 has no cell; there are 1 to 1\n"
    assert not (state / "journal").exists()


def test_setup_that_fails_ends_the_job(tmp_path, state):
    write(tmp_path / "jobs", *ON_CPU, 'cluster.setup=["source nowhere/activate"]')
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "end 1 1"]


def test_code_75_is_requeued_and_what_needs_the_cell_waits_for_its_second_life(tmp_path, state):
    cells = write(tmp_path / "jobs", *acts(tmp_path / "bin", "sys.exit(75 if 'base' in words and life == 1 else 0)"), methods="untrained")
    assert cells == ["base-1-seed0", "untrained-0.5-seed0"]
    said = submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "requeue 1", "start 1", "end 1 0", "start 2", "end 2 0"]
    assert "goes back to the queue" in log_of(tmp_path / "jobs", 1)
    assert re.fullmatch(r"\d+: 1 cell \(1\), now\n\d+: 1 cell \(2\), after base-1-seed0\n", said)


def test_code_1_is_passed_on_and_holds_back_only_what_needs_the_cell(tmp_path, state):
    overrides = acts(tmp_path / "bin", "sys.exit('ofa_joint' in words)")
    cells = write(tmp_path / "jobs", *overrides, methods="ofa,diff_pruning", sizes=[0.5], done=["base-1-seed0"])
    assert cells == ["ofa_joint-seed0", "ofa-0.5-seed0", "diff_pruning_scores-seed0", "diff_pruning-0.5-seed0"]
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "end 1 1", "start 3", "end 3 0", "end 2 cancelled", "start 4", "end 4 0"]


def test_cell_waits_for_all_that_it_needs_and_for_nothing_else(tmp_path, state):
    needs = {"a": "", "b": "", "after_a": "a", "after_both": "ba", "after_these": ("after_a", "b")}
    cells = {name: Cell(method=name, size=None, seed=0) for name in needs}
    methods = {
        name: Method(
            name=name, summary="", sizes=lambda _config: (None,), make=None, needs=lambda _config, cell: map(cells.get, needs[cell.method])
        )
        for name in needs
    }
    overrides = acts(tmp_path / "bin", "sys.exit('b' in words)")
    write_cells(load_config(str(TINY), list(overrides)), methods, list(cells.values()), tmp_path / "jobs")
    said = submit(tmp_path / "jobs")
    assert [line for line in lines(state / "journal") if line.startswith("end")] == [
        *("end 1 0", "end 2 1", "end 3 0", "end 4 cancelled", "end 5 cancelled")
    ]
    assert re.sub(r"\d+:", "job:", said).splitlines()[2:] == [
        "job: 1 cell (4), after a-seed0, b-seed0",
        "job: 1 cell (5), after b-seed0, after_a-seed0",
    ]


def test_after_the_notice_all_ranks_are_told_and_the_job_is_requeued(tmp_path, state):
    overrides = acts(tmp_path / "bin", "if life == 1:\n    ready('notice')\n    time.sleep(20)")
    write(tmp_path / "jobs", *overrides, "cluster.nodes=2")
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "requeue 1", "start 1", "end 1 0"]


def test_job_that_is_cancelled_is_not_requeued(tmp_path, state):
    write(tmp_path / "jobs", *acts(tmp_path / "bin", "ready('cancel')\ntime.sleep(20)"))
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "end 1 75"]


def test_rank_that_fails_is_not_requeued_by_the_others(tmp_path, state):
    overrides = acts(tmp_path / "bin", "ready()\nif rank == 1:\n    sys.exit(1)\ntime.sleep(20)")
    write(tmp_path / "jobs", *overrides, "cluster.nodes=2")
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "end 1 75"]


# With the program itself


def arguments_for(folder):
    return ["--config", str(TINY), "--results", str(folder / "results"), "--runs", str(folder / "runs")]


def test_cells_of_an_array_are_those_of_a_plain_run(tmp_path, state):
    names = write(tmp_path / "jobs", *ON_CPU, methods="ofa,diff_pruning", sizes=[0.5], arguments=arguments_for(tmp_path))
    assert names == ["base-1-seed0", "ofa_joint-seed0", "ofa-0.5-seed0", "diff_pruning_scores-seed0", "diff_pruning-0.5-seed0"]
    submit(tmp_path / "jobs")
    assert [line for line in lines(state / "journal") if line.startswith("end")] == [f"end {index} 0" for index in (1, 2, 4, 3, 5)]
    for index, name in enumerate(names, 1):
        assert re.findall(r"^\[1/1\] (\S+): ", log_of(tmp_path / "jobs", index), re.MULTILINE) == [name]

    plain = tmp_path / "plain"
    command = [sys.executable, "-m", "repro", "run", *arguments_for(plain), "--methods", "ofa,diff_pruning", "--sizes", "0.5"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120)
    for name in names:
        array, alone = (read_record(folder / "results" / "tiny" / f"{name}.json") for folder in (tmp_path, plain))
        assert array["status"] == "done"
        assert (array["quality"] or {}).get("mean") == (alone["quality"] or {}).get("mean")
    for name in ("base-1-seed0", "ofa-0.5-seed0"):
        array, alone = (sha256_of_file(folder / "runs" / "tiny" / name / WEIGHTS) for folder in (tmp_path, plain))
        assert array == alone


def test_cell_on_two_nodes_is_made_by_two_ranks(tmp_path, state):
    write(tmp_path / "jobs", *ON_CPU, "cluster.nodes=2", arguments=arguments_for(tmp_path))
    submit(tmp_path / "jobs")
    assert lines(state / "journal") == ["start 1", "end 1 0"], log_of(tmp_path / "jobs", 1)
    record = read_record(tmp_path / "results" / "tiny" / "base-1-seed0.json")
    assert record["status"] == "done"
    assert record["cost"]["ranks"] == 2
