"""A time that was taken on a busy machine is marked."""

import json
import math
import os
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from repro.experiment import outcome
from repro.runtime import busy
from repro.runtime.busy import BusyMeter, Tally, is_busy
from repro.runtime.clock import Clock
from repro.runtime.progress import HEARTBEAT, CellProgress

pytestmark = pytest.mark.quick


class Machine:
    """A clock, the CPU time and the load average of a machine on which `wanting` processes want a core."""

    def __init__(self, monkeypatch, load=0.0):
        self.now, self.cpu, self.load = 100.0, 7.0, load
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu)
        monkeypatch.setattr(os, "getloadavg", lambda: (self.load, 0.0, 0.0))
        monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def run(self, seconds, *, wanting, share=1.0, clock=None):
        """Lets time pass as the kernel counts it: every five seconds the load takes in a part of what wants a core."""
        for _ in range(round(seconds / 5)):
            self.now += 5
            self.cpu += 5 * share
            self.load = self.load * math.exp(-5 / 60) + wanting * (1 - math.exp(-5 / 60))
            if clock:
                clock.seconds()


def found(clock):
    clock.seconds()
    return outcome._busy(clock, done=False)


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("before", [0.0, 1.0, 6.0])
@pytest.mark.parametrize(("wanting", "marked"), [(1.0, False), (2.0, False), (3.0, True), (6.0, True)])
def test_what_wants_a_core_is_told_whatever_the_minute_before_was_like(monkeypatch, one_thread, before, wanting, marked):
    machine = Machine(monkeypatch, load=before)
    clock = Clock()
    machine.run(60, wanting=wanting, clock=clock)
    told = found(clock)
    assert told["load_average"] == pytest.approx(wanting, rel=0.06, abs=0.2)
    assert (told["cores"], told["marked"]) == (2, marked)


def test_one_thread_whose_core_was_taken_is_marked(monkeypatch, one_thread):
    for share, marked in ((0.98, False), (0.75, True)):
        machine = Machine(monkeypatch, load=1.0)
        clock = Clock()
        machine.run(60, wanting=1.0, share=share)
        assert found(clock)["cpu_share"] == pytest.approx(share)
        assert found(clock)["marked"] is marked
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # two wait for each other
    assert found(clock)["marked"] is False


def test_only_what_is_charged_counts(monkeypatch, one_thread):
    machine = Machine(monkeypatch)
    clock = Clock(machine.now - 30)
    machine.run(60, wanting=1.0, clock=clock)
    with clock.phase("evaluate"):
        machine.run(600, wanting=8.0, share=0.2, clock=clock)
    told = found(clock)
    assert told["load_average"] == pytest.approx(1.0, rel=0.1) and told["cpu_share"] == pytest.approx(1.0) and not told["marked"]


def test_a_machine_without_a_load_average_is_not_marked_by_it(monkeypatch, one_thread):
    Machine(monkeypatch)
    monkeypatch.delattr(os, "getloadavg")
    clock = Clock()
    assert found(clock) == {"load_average": None, "cores": 2, "cpu_share": None, "marked": False}
    assert not is_busy(None, None, cores=1)


def test_a_resumed_cell_keeps_what_its_earlier_lives_saw(monkeypatch, one_thread, tmp_path):
    machine = Machine(monkeypatch)
    clock = Clock()
    report = CellProgress("", clock, tmp_path, "this cell")
    machine.run(60, wanting=4.0, share=0.5)
    report.stage("training")
    beat = json.loads((tmp_path / HEARTBEAT).read_text())
    assert beat["busy"] == asdict(clock.busy.tally) and beat["busy"]["seconds"] == 60
    second = Clock()
    CellProgress("", second, tmp_path, "this cell")
    machine.run(20, wanting=1.0)
    assert found(second)["cpu_share"] == pytest.approx((30 + 20) / 80)
    assert found(second)["load_average"] > 2.5 and found(second)["marked"]
    other = Clock()
    CellProgress("", other, tmp_path, "another cell")
    assert other.busy.tally == Tally()


def test_the_busiest_rank_is_the_one_that_is_told(monkeypatch, one_thread):
    machine = Machine(monkeypatch)
    clock = Clock()
    machine.run(60, wanting=1.0, clock=clock)
    other = {"load_average": 9.0, "cores": 4, "cpu_share": 0.3, "marked": True}
    monkeypatch.setattr(outcome, "distributed", SimpleNamespace(gather=lambda value: [value, other], ranks=lambda: 2))
    assert outcome._busy(clock, done=True) == other
    assert outcome._busy(clock, done=False)["marked"] is False  # where it failed, nobody waits for another


def test_the_system_s_own_figures_are_read():
    meter = BusyMeter()
    begun = time.process_time()
    while time.process_time() < begun + 0.05:
        pass
    meter.note(0.06, charged=True)
    assert 0.05 <= meter.tally.cpu_seconds < 5
    assert (meter.tally.load() is None) == (busy.load_average() is None)
