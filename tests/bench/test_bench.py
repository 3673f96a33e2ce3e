"""The benchmark: what its rows say, and that the two things of a pair do the same work."""

import csv
from pathlib import Path

import pytest
import torch

from repro.bench import __main__ as command
from repro.bench import inference, machine, table, training
from repro.bench.setting import Setting
from repro.bench.timing import Row, Target, in_turn, ratio
from repro.config import load_config
from repro.diffusion.formulation import image_losses, predictor
from repro.ofa.importance import pipe_importance
from repro.ofa.pipes import pipes_of

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


@pytest.fixture
def setting():
    return Setting(config=load_config(TINY, ["evaluation.samples=8", "evaluation.batch_size=8"]), rounds=2, steps=1)


def test_two_things_are_timed_in_turn_and_the_first_round_does_not_count():
    calls = []

    def thing(name, seconds):
        def run():
            calls.append(name)
            return next(seconds)

        return run

    first, second = in_turn(thing("a", iter([9.0, 1.0, 2.0])), thing("b", iter([9.0, 3.0, 4.0])), rounds=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert (first, second) == ([1.0, 2.0], [3.0, 4.0])


def test_a_ratio_is_that_of_each_round_not_of_the_medians():
    row = ratio("x / y", [1.0, 8.0, 3.0], [1.0, 2.0, 1.0], target=Target(limit=3.0))
    assert (row.value, row.low, row.high, row.rounds) == (3.0, 2.0, 3.5, 3)
    assert row.parts == {"ms": [3000.0, 1000.0]}
    assert row.target.met(row.value)


@pytest.mark.parametrize(("target", "value", "met"), [(Target(limit=1), 1.01, False), (Target(limit=2, at_most=False), 1.99, False)])
def test_a_target_that_is_missed_says_no(target, value, met):
    row = Row(what="x", value=value, low=value, high=value, rounds=1, target=target)
    assert target.met(value) is met
    assert "| NO " in table.as_markdown([row])


def test_importance_image_by_image_is_the_importance_of_batches(setting):
    base = setting.base()
    pipes, source = pipes_of(base), setting.batches(4)
    batches = [source(0), source(1)]
    batched = pipe_importance(base, pipes, batches, lambda model, batch: image_losses(predictor(model), batch))
    alone = inference.image_by_image(base, pipes, batches)
    for name, scores in alone.items():
        torch.testing.assert_close(scores, batched[name], rtol=1e-4, atol=1e-7)


def test_memory_is_what_is_held_at_once():
    def step():
        kept = torch.zeros(1000, 256)
        for _ in range(3):
            torch.zeros(500, 256)
        del kept

    assert machine._peak_on_cpu(step) == 1500 * 256 * 4


@pytest.mark.slow
def test_a_smaller_size_names_what_its_layers_take(setting):
    row = list(training.smaller(setting))[-1]
    assert row.what == "step at P = 0.25 / step at P = 1"
    large, small = row.parts["by_layer_ms"]["convolution"]
    assert large > 0 and small > 0
    assert "convolution" in table._layers([row])


@pytest.mark.slow
def test_command_measures_and_writes_what_it_prints(tmp_path, capsys):
    arguments = ["--config", TINY, "--rounds", "1", "--steps", "1", "--out", str(tmp_path)]
    parts = "sharing,harness,usual,memory,sampling,fid,peak"
    assert command.main([*arguments, "--set", "evaluation.samples=8", "--set", "evaluation.sampler_steps=2", "--only", parts]) == 0
    printed = capsys.readouterr().out
    for whole in (
        "supernet step / standalone step, P = 0.25",
        "harness loop / bare torch loop",
        "diffusers-style loop / harness loop",
        "DDIMPipeline / harness's sampler",
    ):
        assert whole in printed
    (markdown,), (raw,) = tmp_path.glob("*.md"), tmp_path.glob("*.csv")
    assert printed.splitlines()[0] in markdown.read_text()
    rows = list(csv.DictReader(raw.open()))
    assert len(rows) == 4 + 1 + 1 + 1 + 1 + 1 + 4
    assert all(float(row["median"]) > 0 for row in rows)


def test_unknown_part_is_named(capsys):
    assert command.main(["--config", TINY, "--only", "speed"]) == 2
    assert "--only speed: no such part; there are sharing, harness" in capsys.readouterr().err


def cells_of(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ") and "|--" not in line
    ]


def test_the_page_shows_the_committed_measurements():
    shown = cells_of((ROOT / "docs" / "speed.md").read_text().split("<!-- bench -->")[1])
    committed = cells_of((ROOT / "results" / "bench" / "amd-epyc-2-cores.md").read_text().split("Where a step's time goes")[0])
    assert [row[1:] for row in shown] == [row[1:6] for row in committed]
    for row, (what, *_, note) in zip(shown, committed, strict=True):
        assert row[0] in {what, f"{what} ({note})"}
