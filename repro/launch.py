"""Starting a run in several processes: ranks on this machine, ranks on the hosts of a file, cells side by side.

torchrun starts ranks as well; `--ranks` differs in that the exit code and the one line that says what went wrong come through.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from repro.errors import INTERRUPTED, ReproError
from repro.harness.interruption import PARENT
from repro.program import Program

GRACE_SEC = 60.0  # to write a checkpoint
POLL_SEC = 0.1


def run_ranks(program: Program, arguments: Sequence[str], ranks: int) -> int:
    """Runs a command as ranks of one run on this machine, and returns the exit code: that of the first rank that failed.

    Args:
        program: The program, which each rank starts.
        arguments: What comes after it.
        ranks: How many; on a machine with GPUs each has its own.
    """
    port = _free_port()
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads_for(ranks)}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.txt" for rank in range(ranks)]
        processes: list[subprocess.Popen[bytes]] = []
        with ended_with_this(processes):
            for rank, log in enumerate(logs):
                with log.open("wb") as output:
                    variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    processes.append(start([sys.executable, *program.words, *arguments], variables, None if rank == 0 else output))
            code = _first_failure(processes)
        if code:
            _explain(processes.index(code), code.returncode, logs[processes.index(code)])
    return exit_code(code.returncode) if code else 0


def run_hosts(program: Program, arguments: Sequence[str], hostfile: Path) -> int:
    """Runs a command as ranks on the hosts of a file, through DeepSpeed's launcher, and returns its exit code.

    Args:
        program: The program, which each rank starts.
        arguments: What comes after it.
        hostfile: A line `HOST slots=N` for each; the hosts share this folder, this environment and the file system.

    Raises:
        ReproError: The file is missing or names no host, or what reaches the hosts is not installed.
    """
    try:
        lines = [line.partition("#")[0].split() for line in hostfile.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ReproError(
            f"--hostfile {hostfile}: cannot be read ({error}); name a file with a line `HOST slots=N` for each host"
        ) from error
    hosts = [line for line in lines if line]
    if not hosts or any(len(line) != 2 or not line[1].removeprefix("slots=").isdigit() for line in hosts):
        raise ReproError(f"--hostfile {hostfile}: write a line `HOST slots=N` for each host")
    if len(hosts) > 1 and not shutil.which("pdsh"):
        raise ReproError(
            f"--hostfile {hostfile}: DeepSpeed reaches other hosts through pdsh, which is not installed; or start with torchrun"
        )
    where = [f"--{name.lower()}={os.environ[name]}" for name in ("MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), *where, "--no_local_rank"]
    processes: list[subprocess.Popen[bytes]] = []
    with ended_with_this(processes):
        command = [*launcher, *program.for_launcher(), *arguments]
        processes.append(start(command, {PARENT: ""}, None))  # its ranks are no children of this process
        return exit_code(processes[0].wait())


def start(command: Sequence[str], variables: Mapping[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Starts a process that this one is answerable for; a signal from the terminal reaches it through this one only.

    Args:
        command: The command.
        variables: Environment variables on top of those of this process.
        output: Where what it prints goes; None leaves it on the terminal.
    """
    environment = {**os.environ, PARENT: str(os.getpid()), **variables}
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


@contextmanager
def ended_with_this(processes: "list[subprocess.Popen[bytes]]") -> Iterator[None]:
    """Ends processes when the block ends, however it ends: first with SIGTERM, so that they write their checkpoints."""
    try:
        yield
    finally:
        living = [process for process in processes if process.poll() is None]
        for process in living:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that is stopped could not hear it
        deadline = time.monotonic() + GRACE_SEC
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def threads_for(processes: int) -> str:
    """Returns the threads of each of some processes on this machine; more would wait for each other."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))


def exit_code(returned: int) -> int:
    """Returns this command's exit code for what a process returned; one that was killed may simply be run again."""
    return returned if returned >= 0 else INTERRUPTED


def _free_port() -> int:
    """Returns a port that nobody listens on.

    Below those that Linux gives to outgoing connections: one of these could be taken, by a waiting rank itself even, before the first
    rank listens.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _first_failure(processes: "list[subprocess.Popen[bytes]]") -> "subprocess.Popen[bytes] | None":
    """Waits until all processes have ended well, or one has not; returns that one."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [process for process, code in zip(processes, codes, strict=True) if code]
        if failed or all(code == 0 for code in codes):
            return failed[0] if failed else None
        time.sleep(POLL_SEC)


def _explain(rank: int, returned: int, log: Path) -> None:
    """Says why a rank ended; what the first had to say stands on the terminal already."""
    if returned < 0:
        name = signal.Signals(-returned).name
        print(f"error: rank {rank} was killed ({name}); run the same command again to go on from the last checkpoint", file=sys.stderr)
        return
    if rank > 0:
        print(f"error: rank {rank} ended with code {returned}:\n{last_words(log)}", file=sys.stderr)


def last_words(log: Path) -> str:
    """Returns the line of a log that says what went wrong, or its end."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    return told[-1] if told else "\n".join(lines[-20:])
