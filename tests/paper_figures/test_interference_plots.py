"""The figures of interference: what they show is what the records hold, and a record without it has none of them."""

import pytest
from support.record_factory import make_record, make_records

from paper_figures.captions import interference as caption
from paper_figures.drawings import drawings_of
from paper_figures.house_style import COLUMN, PAGE, house_style
from paper_figures.interference_plots import interference, measured, swaps

LAYERS = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.to_q",
    "up_blocks.1.resnets.0.conv2",
)
PAIRS = ("0.5,1", "0.25,1", "0.25,0.5")


def held(seed):
    def cosines(step):
        return {pair: {"all": 0.5 - 0.1 * step - 0.2 * seed} | dict.fromkeys(LAYERS, 0.1 * step) for pair in PAIRS}

    points = [{"step": step, "images": 128 * step, "norms": {"1": 0.1}, "cosines": cosines(step)} for step in (0, 2, 4)]
    points[1]["cosines"]["0.5,1"]["all"] = None
    points[-1]["cosines"]["0.25,1"]["conv_in"] = 3.0
    groups = {
        "norms": {"params": 100, "given_back": 1.06, "taken_over": 1.01},
        "stream": {"params": 300, "given_back": 1.2 + seed / 10, "taken_over": 1.5},
    }
    return {"batches": 8, "batch_size": 128, "points": points, "swaps": {"before": 1.0, "after": 1.1, "groups": groups}}


def with_interference(seed):
    return make_record("ofa_joint", None, seed=seed) | {"curves": {"points": [], "interference": held(seed)}}


@pytest.fixture
def runs():
    return measured([with_interference(1), with_interference(0), make_record("ofa_joint", None, seed=2), make_record("ofa", 0.5)])


def test_runs_are_those_of_the_joint_trainings_that_were_measured(runs):
    assert runs == [held(0), held(1)]
    assert not measured(make_records())
    assert {"interference", "swaps"}.isdisjoint(drawings_of(None, make_records()))


def test_lines_and_points_are_the_means_over_seeds(runs):
    with house_style():
        along, by_layer = interference(runs, PAGE).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in along.lines}
    assert lines["0.25 and 1"] == ([0, 1, 2], pytest.approx([0.4, 0.2, 0.0]))
    assert lines["0.5 and 1"] == ([0, 2], pytest.approx([0.4, 0.0]))  # what the noise hides is left out
    assert [label.get_text() for label in along.get_xticklabels()] == ["base", "256", "512"]
    points = {line.get_label(): list(line.get_ydata()) for line in by_layer.lines}
    assert points["base"] == pytest.approx([0.0] * 5)
    assert points["end"] == pytest.approx([1.15, 0.4, 0.4, 0.4, 0.4])  # what noise carried far past 1 lies at the edge
    assert "sizes 0.25 and 1" in by_layer.get_title()
    assert [label.get_text() for label in by_layer.get_xticklabels()] == ["in, out", "time", "down 0", "mid", "up 1"]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_bars_are_losses_against_the_base(runs, width):
    with house_style():
        (axes,) = swaps(runs, width).axes
    widths = [bar.get_width() for bars in axes.containers if hasattr(bars, "patches") for bar in bars.patches]
    assert widths == pytest.approx([6, 25, 1, 50])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["norms, 25%", "stream, 75%"]
    assert any(line.get_xdata()[0] == pytest.approx(10) for line in axes.lines)


def test_the_caption_says_on_how_much_it_rests(runs):
    said = caption(runs)
    assert "8 batches of 128" in said and "2 seeds" in said
