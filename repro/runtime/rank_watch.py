"""Heartbeats of the ranks: one that is silent is named, and the others stop instead of waiting for it for ever.

A rank whose process is stopped, whose machine is gone or whose network is cut looks alike to the others: their next collective does not
return. So a thread of every rank writes its heartbeat into the rendezvous store and reads the others'. Ages are measured by the reader's
own monotonic clock; no two clocks are compared. A rank that ends before the run does says so: where no connection to it breaks, such as
while groups of ranks are made, the others would wait for it until it counts as silent.
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
ENDED = "ended"  # the key of the rank that ends before the run does
ENDED_CHECK_SEC = 1.0
GRACE_SEC = 10.0  # for a rank to end by itself after another
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
                self._write(str(self._rank), count=count)
                self._judge(self._read(seen), seen)
                if self._until_next(pause):
                    return
            except RuntimeError:  # the store is gone, with the rank that keeps it, the first
                if not self._ended.wait(self._timeout_sec):
                    self._give_up(0 if self._rank else self._others[0])
                return

    def _judge(self, signs: dict[int, Any], seen: dict[int, tuple[int, float]]) -> None:
        """Notes the heartbeats of the other ranks and when each last changed, and gives up where one is silent."""
        now = self._last_round = time.monotonic()
        for other, sign in signs.items():
            self._where[other] = f"{sign['where']}, at {sign['at']}"
            if sign["count"] != seen[other][0]:
                seen[other] = (sign["count"], now)
        for other, (last, since) in seen.items():
            if last != 0 and now - since > self._timeout_sec:
                self._give_up(other)

    def _until_next(self, pause: float) -> bool:
        """Waits for the next round, and returns whether the watch has ended; another rank that has ended ends this one."""
        deadline = time.monotonic() + pause
        while (left := deadline - time.monotonic()) > 0:
            if self._ended.wait(min(left, ENDED_CHECK_SEC)):
                return True
            if self._store.check([ENDED]):
                sign = json.loads(self._store.get(ENDED))
                if not self._ended.wait(GRACE_SEC):
                    self._stop_process(f"rank {sign['rank']} ({sign['where']}) has ended: {sign['reason']}; rank {self._rank} ends, too")
                return True
        return False

    def _guard(self) -> None:
        """Notices that the store itself, which the first rank serves, does not answer."""
        while not self._ended.wait(self._timeout_sec / SIGNS_PER_TIMEOUT):
            if time.monotonic() - self._last_round > self._timeout_sec:
                self._give_up(0 if self._rank else self._others[0])

    def end(self, reason: str) -> None:
        """Ends the watch and tells the others, so that they do not wait for this rank; with a reason they end, too."""
        self._ended.set()
        for thread in (self, self._guardian):
            if thread.is_alive():
                thread.join(timeout=1)
        try:
            if reason:
                self._write(ENDED, rank=self._rank, reason=reason)
            else:
                self._write(str(self._rank), count=0)
        except RuntimeError:
            return  # nobody is left to read it

    def _write(self, key: str, **sign: Any) -> None:
        sign |= {"where": f"process {os.getpid()} on {socket.gethostname()}", "at": self.at}
        self._store.set(key, json.dumps(sign))  # waits for no answer

    def _read(self, seen: dict[int, tuple[int, float]]) -> dict[int, Any]:
        """Returns the heartbeats of the ranks that have written one; a rank may start late."""
        came = [other for other in self._others if seen[other][0] > 0 or self._store.check([str(other)])]
        return {other: json.loads(sign) for other, sign in zip(came, self._store.multi_get([str(o) for o in came]), strict=True)}

    def _give_up(self, other: int) -> None:
        if self._ended.is_set():
            return
        where = f" ({self._where[other]})" if self._where.get(other) else ""
        self._stop_process(
            f"rank {other}{where} has given no sign of life for {self._timeout_sec:g} s (execution.rank_timeout_sec); "
            f"rank {self._rank} stops"
        )

    def _stop_process(self, why: str) -> None:
        """Ends this process, whose main thread waits in a collective that cannot be cancelled."""
        print(f"\nerror: {why}; run the same command again to go on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)


def begin(store: Any, rank: int, ranks: int, timeout_sec: float) -> None:
    """Starts the watch of this process."""
    _watches[:] = [Watch(store, rank, ranks, timeout_sec)]
    _watches[0].start()


def note(place: str) -> None:
    """Says where the main thread is, for the others to read."""
    for each in _watches:
        each.at = place


def end(reason: str = "") -> None:
    """Ends the watch of this process and tells the other ranks that it is done, or for which reason it ends before the run does."""
    for each in _watches:
        each.end(reason)
    _watches.clear()
