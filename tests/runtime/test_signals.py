"""Signals that ask a run to end: at once, after what is deferred, and where a library keeps their error to itself."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from support.commands import typed
from support.ranks import network, run_of, settings

from repro.cli import main
from repro.errors import InterruptionError
from repro.experiment import run
from repro.runtime import distributed, signals
from repro.runtime.clock import Clock
from repro.training import checkpoint
from repro.training.loop import train

TINY = Path(__file__).parents[1] / "tiny.toml"


@pytest.fixture
def listening(monkeypatch):
    """This process handles signals as a run does; afterwards as before."""
    monkeypatch.setattr(signals._State, "asked", 0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals.listen()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("listening")
def test_a_signal_whose_error_was_kept_is_heeded_at_the_next_check():
    with contextlib.suppress(BaseException):  # as a destructor does, or a bare `except:`
        ask()
    with pytest.raises(InterruptionError, match="stopped by SIGTERM"):
        signals.check()
    with pytest.raises(InterruptionError), signals.deferred():
        pytest.fail("work went on")


@pytest.mark.usefixtures("listening")
def test_a_first_signal_is_deferred_and_a_second_one_is_not():
    with signals.deferred():
        ask()
        assert signals.asked() == signal.SIGTERM
        with pytest.raises(InterruptionError):
            ask()


def test_a_rank_that_was_asked_to_end_says_so_where_another_has_ended_first(tmp_path, monkeypatch):
    monkeypatch.setattr(signals._State, "asked", 0)

    def lost(*_):
        with signals.deferred():
            ask()
            raise RuntimeError("gloo: connection closed by peer")

    monkeypatch.setattr(run, "_make", lost)
    monkeypatch.setattr(distributed, "is_loss_of_a_rank", lambda error: "gloo" in str(error))
    places = ["--results", tmp_path / "results", "--runs", tmp_path / "runs"]
    done = typed(main, "run", "--config", TINY, "--methods", "base", "--yes", *places)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "stopped by SIGTERM; run the same command again to go on"


@pytest.mark.usefixtures("listening")
def test_ranks_leave_together_once_the_checkpoint_of_the_last_step_is_written(tiny, tmp_path, monkeypatch):
    done, save = [], checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *given, **more: (save(*given, **more), done.append("saved")))
    monkeypatch.setattr(distributed, "wait_for_all", lambda: done.append("waited"))

    def report(step, _steps, _loss):
        if step == 2:
            ask()

    with pytest.raises(InterruptionError):
        train(network(tiny, "base"), run_of(tiny, "base", folder=tmp_path), settings(0), Clock(), report)
    assert done == ["saved", "waited"]
