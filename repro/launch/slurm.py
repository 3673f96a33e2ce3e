"""Writes a Slurm job array with one index per cell, and the script that submits it (`--slurm`)."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from repro.budget.batches import check_batches
from repro.budget.hours import is_unset
from repro.config.execution import Cluster
from repro.errors import INTERRUPTED, ReproError
from repro.experiment.cells import Cell, Experiment
from repro.files.writing import write_atomically

SCRIPT = "cells.sbatch"
SUBMIT = "submit.sh"
NOTICE_SEC = 120  # before the time limit, to write a checkpoint
LEAST_SEC = 2 * NOTICE_SEC  # of a time limit; Slurm counts whole minutes, and its notice must find the ranks running
FIRST_PORT, PORTS = 20_000, 10_000  # below those that systems hand out themselves

SCRIPT_TEXT = """\
#!/usr/bin/env bash
# A job array: each index is a cell. {submit} submits it; `{program} run --slurm` wrote both.
{directives}

set -e
{setup}
set -uo pipefail

shared=({shared})
case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *)
    echo "{script}: index $SLURM_ARRAY_TASK_ID has no cell; there are 1 to {count}" >&2
    exit 2
    ;;
esac

ranks={ranks}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$(({first_port} + SLURM_JOB_ID % {ports})) # every index has a SLURM_JOB_ID of its own
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS={cpus}

# Near the time limit Slurm tells this shell, and it tells the ranks, which write a checkpoint and end with {again}. SIGTERM comes here only
# when the job is ended, by scancel for one; this shell outlives it, to pass on what the ranks make of it.
noticed=no
ended=no
trap 'noticed=yes; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
trap 'ended=yes' TERM

# A rank takes the GPU of its LOCAL_RANK among those that it sees. All see all of their node, as NCCL likes it; where an option binds one to
# each task, a rank takes that.
rank='export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"; exec "$@"'
srun --ntasks="$ranks" --cpus-per-task={cpus} --kill-on-bad-exit=1 bash -c "$rank" rank "${{shared[@]}}" "${{cell[@]}}" --yes &
step=$!
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true # a signal ends the wait, not the step
done
code=0
wait "$step" || code=$?

# srun ends all ranks when one fails, and returns the highest code: {again} of several may hide that failure, and would bring back for ever
# a cell that cannot be made. After the notice alone it is taken at its word, and so is a rank that srun ended while it wound down.
again=no
if [[ $noticed == yes ]]; then
  case "$code" in {again} | 137 | 143) again=yes ;; esac
elif [[ $code == {again} && $ranks == 1 && $ended == no ]]; then
  again=yes
fi
if [[ $again == yes ]]; then
  echo "{script}: index $SLURM_ARRAY_TASK_ID goes back to the queue and will go on from its checkpoint"
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""

SUBMIT_TEXT = """\
#!/usr/bin/env bash
# Submits {script}: one array for each set of cells that others need, so that a cell waits for those that it needs and for no other.
set -euo pipefail

folder=$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)

submit() {{
  local job
  job=$(sbatch --parsable --kill-on-invalid-dep=yes "$@" "$folder/{script}")
  echo "${{job%%;*}}" # the name of the cluster may follow
}}

{submissions}
"""


def write_slurm(experiment: Experiment, cells: list[Cell], folder: Path, arguments: Sequence[str]) -> Path:
    """Writes `cells.sbatch`, a job array with one index for each cell, and `submit.sh`; submits nothing and returns the latter's path.

    Args:
        experiment: The configuration, whose section `cluster` says what a cell gets, and its methods.
        cells: What is yet to be made, each after those it needs; what is not among them is done.
        folder: Where the scripts and the logs of the jobs go.
        arguments: The words of the command that all cells share, such as `--config cifar10`; paths are those of the current folder.

    Raises:
        ReproError: The steps that fit `hours` are not set, a batch cannot be shared by the ranks of a cell, the time limit is too short,
            the folder cannot be written, or sbatch takes no such path.
    """
    assert cells, "nothing to write a job array for"
    if is_unset(experiment):  # the first cells would each measure their own machine, and go on with different steps
        raise ReproError(
            f"hours = {experiment.config.hours:g}: the training steps for a machine of the cluster are not set yet; there, run the command "
            "with --methods floor in place of --slurm first, or set hours=0"
        )
    check_batches(experiment, cells, _ranks(experiment.config.cluster))
    hours, folder = experiment.config.cluster.hours, folder.resolve()
    if hours * 3600 < LEAST_SEC:
        least = math.ceil(LEAST_SEC / 36) / 100
        raise ReproError(f"cluster.hours: {hours:g} leaves no time between the start and the notice of the end; make it {least:g} or more")
    _check_path(folder, "name another one with --slurm")
    _check_path(Path.cwd(), "run the command from another folder")
    script, submit = folder / SCRIPT, folder / SUBMIT
    write_atomically(script, _script(experiment, cells, folder, arguments).encode())
    text = SUBMIT_TEXT.format(script=SCRIPT, submissions="\n\n".join(_submissions(experiment, cells)))

    def fill(path: Path) -> None:
        path.write_text(text)
        path.chmod(0o755)

    write_atomically(submit, fill)
    return submit


def resources(cluster: Cluster) -> str:
    """Returns a line that says what each cell asks for, and how to ask for more or less."""
    nodes, gpus, ranks = cluster.nodes, cluster.gpus_per_node, _ranks(cluster)
    asks = f"each cell asks for {nodes} node{'s' * (nodes > 1)} x " + (
        f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cluster.cpus_per_rank} cores, and no GPU"
    )
    if ranks > 1:
        return f"{asks}: {ranks} ranks share each of its batches"
    if gpus:
        return (
            f"{asks}: a node of 8 runs up to eight independent cells at a time; "
            "--set cluster.gpus_per_node=8 gives each cell eight, which share its batches"
        )
    return f"{asks}; --set cluster.gpus_per_node=1 gives it one"


def _check_path(path: Path, remedy: str) -> None:
    if set(str(path)) & {"\\", "\n"}:
        raise ReproError(f"{path}: sbatch takes no path with a backslash or a line break; {remedy}")


def _script(experiment: Experiment, cells: list[Cell], folder: Path, arguments: Sequence[str]) -> str:
    cluster = experiment.config.cluster
    return SCRIPT_TEXT.format(
        script=SCRIPT,
        submit=SUBMIT,
        program=experiment.program.typed,
        directives="\n".join(f"#SBATCH {option}" for option in _options(experiment.config.name, cluster, folder)),
        setup="\n".join(cluster.setup) or _this_python(),
        shared=shlex.join(["python", *experiment.program.words, "run", *arguments]),
        cases="\n".join(_case(index, cell) for index, cell in enumerate(cells, 1)),
        count=len(cells),
        first_port=FIRST_PORT,
        ports=PORTS,
        cpus=cluster.cpus_per_rank,
        ranks=_ranks(cluster),
        again=INTERRUPTED,
    )


def _options(name: str, cluster: Cluster, folder: Path) -> list[str]:
    """Returns the options of sbatch: every resource that is asked for, then what the script relies on."""
    logs = str(folder).replace("%", "%%")
    asked = {
        f"--job-name=ofa-{name}": True,
        f"--nodes={cluster.nodes}": True,
        f"--ntasks-per-node={_ranks_per_node(cluster)}": True,
        f"--gpus-per-node={cluster.gpus_per_node}": cluster.gpus_per_node > 0,
        f"--cpus-per-task={cluster.cpus_per_rank}": True,
        f"--mem={cluster.memory_gb_per_node}G": cluster.memory_gb_per_node > 0,
        f"--time={_time(cluster.hours)}": True,
        f"--partition={cluster.partition}": bool(cluster.partition),
        f"--account={cluster.account}": bool(cluster.account),
    }
    return [
        *(option for option, wanted in asked.items() if wanted),
        *cluster.options,
        "--requeue",
        "--open-mode=append",
        f"--output={_quoted(f'{logs}/%x-%A_%a.log')}",
        f"--signal=B:USR1@{NOTICE_SEC}",
        f"--chdir={_quoted(str(Path.cwd()))}",
    ]


def _ranks(cluster: Cluster) -> int:
    return cluster.nodes * _ranks_per_node(cluster)


def _ranks_per_node(cluster: Cluster) -> int:
    return max(1, cluster.gpus_per_node)


def _time(hours: float) -> str:
    """Returns a time limit as D-HH:MM:SS."""
    minutes, seconds = divmod(math.ceil(hours * 3600), 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:{seconds:02}"


def _quoted(text: str) -> str:
    """Quotes a value as sbatch reads it, which is not the shell: nothing is expanded, and a backslash counts in either kind of quotes."""
    return '"' + text.replace('"', '\\"') + '"'


def _this_python() -> str:
    folder = shlex.quote(str(Path(sys.executable).absolute().parent))
    return f'# cluster.setup is empty: the Python that wrote this file.\nexport PATH={folder}:"$PATH"'


def _case(index: int, cell: Cell) -> str:
    return f"  {index}) cell=({shlex.join(cell.words())}) ;; # {cell.name}"


def _submissions(experiment: Experiment, cells: list[Cell]) -> list[str]:
    """Returns the calls of sbatch, one for each set of needed cells; whatever a cell needs comes in an earlier one."""
    index_of = {cell: index for index, cell in enumerate(cells, 1)}
    groups: dict[tuple[int, ...], list[int]] = {}
    for cell, index in index_of.items():
        needed = experiment.needs(cell)
        groups.setdefault(tuple(sorted(index_of[other] for other in needed if other in index_of)), []).append(index)
    job_of: dict[int, str] = {}
    calls = []
    for number, (needs, members) in enumerate(groups.items(), 1):
        job, indexes = f"job{number}", _compact(members)
        waits, after = "", "now"
        if needs:
            waits = f' --dependency="afterok:{":".join(f"${{{job_of[index]}}}_{index}" for index in needs)}"'
            after = f"after {', '.join(cells[index - 1].name for index in needs)}"
        job_of |= dict.fromkeys(members, job)
        calls.append(
            f'{job}=$(submit --array={indexes}{waits})\necho "${job}: {len(members)} cell{"s" * (len(members) > 1)} ({indexes}), {after}"'
        )
    return calls


def _compact(indexes: list[int]) -> str:
    """Returns ascending indexes as sbatch takes them, such as 1-3,7."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
