"""Disks that are full, read-only or lie; clocks that jump."""

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.lab import CELLS, Experiment, Outcome, assert_same, kill, until, wait

BASE, JOINT, _, SMALL = CELLS
DISK_MB = 16
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "head": lambda content, stream: _flipped(content, stream.randrange(0, 64)),
    "middle": lambda content, stream: _flipped(content, stream.randrange(len(content) // 3, 2 * len(content) // 3)),
    "tail": lambda content, stream: _flipped(content, len(content) - 1 - stream.randrange(64)),
    "cut": lambda content, stream: content[: stream.randrange(1, len(content))],
    "empty": lambda _content, _stream: b"",
}
# Moves the wall clock of a process by the seconds that stand in a file.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_OFFSET_FILE"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (!code && id == CLOCK_REALTIME) now->tv_sec += offset();
    return code;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


def torn_checkpoints(folder: Path, undisturbed: Experiment, seed: int) -> Outcome:
    """The newest checkpoint damaged: it is said, and the run goes on from the one before."""
    outcome, stream = Outcome("a torn checkpoint: head, middle, tail, cut, empty"), random.Random(seed)
    for name, damage in DAMAGES.items():
        with outcome.trial(name):
            run = Experiment(folder / name)
            process = run.start()
            assert until(lambda run=run: len(run.checkpoints(JOINT)) > 1, process)
            kill(process)
            newest = run.checkpoints(JOINT)[-1]
            newest.write_bytes(damage(newest.read_bytes(), stream))
            said = run.run()
            assert str(newest) in said and "it is removed" in said
            assert_same(run, undisturbed)
    return outcome


def full_disk(folder: Path, undisturbed: Experiment) -> Outcome:
    """No space left, in training, while sampling and at the record: one line, and the same end once there is space."""
    mounted = _can_mount(folder)
    outcome = Outcome(f"a full disk ({f'tmpfs of {DISK_MB} MB' if mounted else 'a limit on the size of a file'})")
    for cell, stage in ((BASE, "training"), (JOINT, "training"), (SMALL, "sampling")):
        with (
            outcome.trial(f"{cell}, {stage}"),
            _small_disk(folder / f"{cell}-{stage}") if mounted else _folder(folder / f"{cell}-{stage}") as place,
        ):
            run = Experiment(place)
            run.output = folder / f"{cell}-{stage}.txt"
            process = run.start()
            assert until(lambda run=run, cell=cell, stage=stage: run.stage(cell) == stage, process)
            if mounted:
                _fill(place / "ballast")
            else:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, 64))
            code = wait(process)
            said = run.said()
            assert code in (1, 2) and "no space left" in said and "Traceback" not in said, f"code {code}: {said[-500:]}"
            (place / "ballast").unlink(missing_ok=True)
            run.run()
            assert_same(run, undisturbed)
    return outcome


def read_only_results(folder: Path, undisturbed: Experiment) -> Outcome:
    """A results folder that cannot be written, from the start and in the middle of training: nothing is lost."""
    outcome = Outcome("a read-only results folder")
    if not _can_mount(folder):
        outcome.fault += " (by permissions)"
    with outcome.trial("from the start"), _read_only_folder(folder / "start" / "results") as switch:
        run = Experiment(folder / "start")
        switch(True)
        begun = time.monotonic()
        said = run.run(expected=2)
        assert "results" in said and "cannot be written" in said
        assert time.monotonic() - begun < 30 and not (run.runs / BASE / "made.json").exists(), "it trained first"
    with outcome.trial("in training"), _read_only_folder(folder / "middle" / "results") as switch:
        run = Experiment(folder / "middle")
        process = run.start()
        assert until(lambda: run.stage(BASE) == "training", process)
        switch(True)
        assert wait(process) == 2
        assert "cannot be written" in run.said() and "Traceback" not in run.said()
        made = (run.runs / BASE / "made.json").stat().st_mtime_ns
        switch(False)
        run.run()
        assert (run.runs / BASE / "made.json").stat().st_mtime_ns == made, "it was trained again"
        assert_same(run, undisturbed)
    return outcome


def clock_jumps(folder: Path, undisturbed: Experiment) -> Outcome:
    """The wall clock jumps by a day, ahead and back, while a run goes on: cost and results do not follow it."""
    outcome = Outcome("a clock that jumps a day, ahead and back")
    shim = folder / "shim.so"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shim.c").write_text(SHIM)
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), str(folder / "shim.c"), "-ldl"], check=False, capture_output=True)
    if built.returncode:
        outcome.fault += " (not tried: no C compiler)"
        return outcome
    for name, jump in (("ahead", 86400), ("back", -86400)):
        with outcome.trial(name):
            run, offset = Experiment(folder / name), folder / f"{name}.txt"
            offset.write_text("0")
            begun = time.monotonic()
            process = run.start(LD_PRELOAD=str(shim), CLOCK_OFFSET_FILE=str(offset))
            assert until(lambda run=run: run.stage(BASE) == "training", process)
            offset.write_text(str(jump))
            assert until(lambda run=run: run.stage(JOINT) == "training", process)
            offset.write_text("0")
            assert wait(process) == 0, run.said()[-500:]
            elapsed = time.monotonic() - begun
            assert_same(run, undisturbed)
            spent = sum(3600 * sum(run.record(cell)["cost"]["phases_device_hours"].values()) for cell in run.records())
            assert spent < elapsed, f"{spent:.0f} s in the records of {elapsed:.0f} s"
            day = run.record(BASE)["provenance"]["ended_utc"][:10]
            assert day != undisturbed.record(BASE)["provenance"]["ended_utc"][:10], "the clock did not jump"
    return outcome


def _flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def _fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    place.mkdir(parents=True)
    yield place


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def _read_only_folder(place: Path) -> Iterator[Callable[[bool], None]]:
    """Yields what makes a folder read-only and writable again: a mount where that is allowed, permissions otherwise."""
    place.mkdir(parents=True)
    mounted = _can_mount(place.parent)
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)

    def switch(read_only: bool) -> None:
        if mounted:
            subprocess.run(["mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(place)], check=True)
            return
        for each in (place, *place.rglob("*")):
            if each.is_dir():
                each.chmod(0o555 if read_only else 0o755)

    try:
        yield switch
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def _can_mount(folder: Path) -> bool:
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    probe = folder / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(probe)], check=False, capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["umount", str(probe)], check=True)
    probe.rmdir()
    return tried.returncode == 0
