"""Heartbeats of the ranks: one that is silent is named, and the others stop instead of waiting for it for ever.

A rank whose process is stopped, whose machine is gone or whose network is cut looks alike to the others: their next collective does not
return. So a thread of every rank writes its heartbeat into the rendezvous store and reads the others'. Ages are measured by the reader's
own monotonic clock; no two clocks are compared.
"""

import json
import os
import socket
import sys
import threading
import time
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from repro.errors import INTERRUPTED

SIGNS_PER_TIMEOUT = 10
_watches: list["Watch"] = []


class Watch(threading.Thread):
    """The thread of one rank.

    Args:
        store: The rendezvous store, for the heartbeats; the thread has a connection of its own.
        rank: This process.
        ranks: How many there are.
        timeout_sec: How long another may be silent.
    """

    def __init__(self, store: Any, rank: int, ranks: int, timeout_sec: float) -> None:
        super().__init__(name="signs of life", daemon=True)
        self._store = PrefixStore("signs", store.clone())
        self._rank = rank
        self._others = [other for other in range(ranks) if other != rank]
        self._timeout_sec = timeout_sec
        self._ended = threading.Event()
        self._guardian = threading.Thread(target=self._guard, name="guard of the signs", daemon=True)
        self.at = "starting"
        self._last_round = time.monotonic()
        self._where = dict.fromkeys(self._others, "")

    def run(self) -> None:
        """Writes heartbeats and reads those of the others until the run ends."""
        self._guardian.start()
        seen = dict.fromkeys(self._others, (-1, time.monotonic()))
        count, pause = 0, self._timeout_sec / SIGNS_PER_TIMEOUT
        while True:
            count += 1
            try:
                self._leave(count)
                signs = self._read(seen)
            except RuntimeError:  # the store is gone, with the rank that keeps it, the first
                if not self._ended.wait(self._timeout_sec):
                    self._give_up(0 if self._rank else self._others[0])
                return
            now = self._last_round = time.monotonic()
            for other, sign in signs.items():
                self._where[other] = f"{sign['where']}, at {sign['at']}"
                if sign["count"] != seen[other][0]:
                    seen[other] = (sign["count"], now)
            for other, (last, since) in seen.items():
                if last != 0 and now - since > self._timeout_sec:
                    self._give_up(other)
            if self._ended.wait(pause):
                return

    def _guard(self) -> None:
        """Notices that the store itself, which the first rank serves, does not answer."""
        while not self._ended.wait(self._timeout_sec / SIGNS_PER_TIMEOUT):
            if time.monotonic() - self._last_round > self._timeout_sec:
                self._give_up(0 if self._rank else self._others[0])

    def sign_off(self) -> None:
        """Ends the watch and tells the others, so that they do not wait for this rank."""
        if self._ended.is_set():
            return
        self.end()
        try:
            self._leave(0)
        except RuntimeError:
            return  # nobody is left to read it

    def end(self) -> None:
        """Ends the watch; to the others this rank falls silent."""
        self._ended.set()
        for thread in (self, self._guardian):
            if thread.is_alive():
                thread.join(timeout=1)

    def _leave(self, count: int) -> None:
        sign = {"count": count, "where": f"process {os.getpid()} on {socket.gethostname()}", "at": self.at}
        self._store.set(str(self._rank), json.dumps(sign))

    def _read(self, seen: dict[int, tuple[int, float]]) -> dict[int, Any]:
        """Returns the heartbeats of the ranks that have written one; a rank may start late."""
        came = [other for other in self._others if seen[other][0] > 0 or self._store.check([str(other)])]
        return {other: json.loads(sign) for other, sign in zip(came, self._store.multi_get([str(o) for o in came]), strict=True)}

    def _give_up(self, other: int) -> None:
        """Ends this process, whose main thread waits in a collective that cannot be cancelled."""
        if self._ended.is_set():
            return
        where = f" ({self._where[other]})" if self._where.get(other) else ""
        print(
            f"\nerror: rank {other}{where} has given no sign of life for {self._timeout_sec:g} s; rank {self._rank} stops; run the same "
            "command again to go on from the last checkpoint (execution.rank_timeout_sec is how long it waits)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(INTERRUPTED)


def begin(store: Any, rank: int, ranks: int, timeout_sec: float) -> None:
    """Starts the watch of this process."""
    _watches[:] = [Watch(store, rank, ranks, timeout_sec)]
    _watches[0].start()


def note(place: str) -> None:
    """Says where the main thread is, for the others to read."""
    for each in _watches:
        each.at = place


def sign_off() -> None:
    """Ends the watch of this process and tells the other ranks."""
    for each in _watches:
        each.sign_off()


def end() -> None:
    """Ends the watch of this process."""
    for each in _watches:
        each.end()
    _watches.clear()
