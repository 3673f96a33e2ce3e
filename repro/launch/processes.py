"""Starts a run in several processes: ranks on this machine, ranks on the hosts of a hostfile, parallel cells.

Unlike torchrun, `--ranks` passes on the exit code and the one-line error of the rank that failed.
"""

import os
import random
import re
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
from repro.program import Program
from repro.runtime.signals import PARENT

GRACE_SEC = 60.0  # to write a checkpoint
POLL_SEC = 0.1


def run_ranks(program: Program, arguments: Sequence[str], ranks: int) -> int:
    """Runs a command as ranks of one run on this machine, and returns the exit code: that of the first rank that failed.

    Args:
        program: The program, which each rank starts.
        arguments: What comes after it.
        ranks: How many; on a machine with GPUs each has its own.

    Raises:
        ReproError: There are fewer GPUs than ranks.
    """
    _check_gpus(f"--ranks {ranks}", ranks)
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
        ReproError: The file is missing or names no host, what reaches the hosts is not installed, or this machine alone is to run it and
            cannot.
    """
    hosts = read_hosts(hostfile)
    if len(hosts) == 1:
        _check_alone(hostfile, *hosts.popitem())
    elif not shutil.which("pdsh"):
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


def read_hosts(hostfile: Path) -> dict[str, int]:
    """Returns the hosts of a file with their ranks, in its order.

    Raises:
        ReproError: It cannot be read, or a line is not `HOST slots=N`.
    """
    try:
        lines = [line.partition("#")[0].split() for line in hostfile.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ReproError(
            f"--hostfile {hostfile}: cannot be read ({error}); name a file with a line `HOST slots=N` for each host"
        ) from error
    told = [line for line in lines if line]
    hosts = {line[0]: int(found[1]) for line in told if len(line) == 2 and (found := re.fullmatch(r"slots=([1-9]\d{0,4})", line[1]))}
    if not told or len(hosts) < len(told):
        raise ReproError(f"--hostfile {hostfile}: write a line `HOST slots=N` for each host, and one alone")
    return hosts


def _check_alone(hostfile: Path, host: str, slots: int) -> None:
    """Makes sure that the only host of a file is this machine, where DeepSpeed's launcher starts it unasked, and has its GPUs."""
    from repro.runtime import gpu

    if not _is_here(host):
        raise ReproError(
            f"--hostfile {hostfile}: {host} is not this machine, where the launcher would start a single host's ranks; run the command "
            f"there, with --ranks {slots}"
        )
    _check_gpus(f"--hostfile {hostfile}", slots)
    given, taken = gpu.names()[:slots], tuple(map(str, range(slots)))
    if given and given != taken:
        raise ReproError(
            f"--hostfile {hostfile}: the launcher takes GPUs {taken[0]} to {taken[-1]}, not those of "
            f"{gpu.VARIABLE}={','.join(given)}; start with --ranks {slots}, or unset it"
        )


def _check_gpus(asked: str, ranks: int) -> None:
    """Makes sure that each rank on this machine has a GPU of its own, where there are any."""
    from repro.runtime import gpu

    seen, variable = gpu.count(), gpu.VARIABLE
    if 0 < seen < ranks:
        raise ReproError(
            f"{asked}: {ranks} ranks need {ranks} GPUs, and {seen} can be seen here; ask for {seen} at most, or look at {variable}"
        )


def _is_here(host: str) -> bool:
    """Says whether a host name is this machine's: its address can be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return host == socket.gethostname()
    return True


def start(command: Sequence[str], variables: Mapping[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Starts a child process in a session of its own; a signal from the terminal reaches it through this one only.

    Args:
        command: The command.
        variables: Environment variables on top of those of this process.
        output: The file of its stdout and stderr; None leaves them on the terminal.
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
            process.send_signal(signal.SIGCONT)  # a stopped process handles no SIGTERM
        deadline = time.monotonic() + GRACE_SEC
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def threads_for(processes: int) -> str:
    """Returns OMP_NUM_THREADS for each of so many processes: an even share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))


def exit_code(returned: int) -> int:
    """Returns this command's exit code for a process's return code; a killed one may be run again."""
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
