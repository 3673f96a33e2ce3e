"""What many GPUs would take, on paper: the formulas against closed forms, and against what real ranks send."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from support.commands import as_ranks, typed

from repro.budget.scale import LAUNCH_SEC, MEMORY_BYTES_PER_SEC, Step, kernels_of, link_bytes_per_sec, saved_bytes, sent_bytes
from repro.cli import main
from repro.models.cost import count_macs
from repro.models.flop import train_pflop

ROOT = Path(__file__).resolve().parents[2]
COUNTED = """
import json, sys
from collections import Counter
import torch
from torch.utils._pytree import tree_leaves
sent = Counter()
def counted(name):
    call = getattr(torch.distributed, name)
    def watched(*given, **named):
        tensors = [each for each in tree_leaves((given, named)) if isinstance(each, torch.Tensor)]
        sent[name] += max(each.numel() * each.element_size() for each in tensors)
        return call(*given, **named)
    setattr(torch.distributed, name, watched)
for name in ("all_reduce", "all_gather_into_tensor", "all_gather", "reduce_scatter_tensor", "broadcast", "reduce"):
    counted(name)
from repro.config import Training
from repro.runtime import distributed
from repro.runtime.clock import Clock
from repro.training.loop import Run, train
distributed.start(60)
def after(steps, stage):
    sent.clear()
    model = torch.nn.Linear(500, 1000, bias=False)
    run = Run(identity="x", seed=0, batches=lambda step: torch.ones(1, 500), loss=lambda engine, batch, step: engine(batch).square().mean())
    settings = Training(steps=steps, batch_size=distributed.ranks(), learning_rate=1e-3, zero_stage=stage, gradient_clipping=0)
    train(model, run, settings, Clock(None, distributed.ranks(), lambda: None), lambda *_: None)
    return Counter(sent)
found = {}
for stage in (0, 1, 2):
    few, many = after(3, stage), after(13, stage)
    found[stage] = {name: (many[name] - few[name]) / 10 for name in many}
if distributed.rank() == 0:
    print("found", json.dumps(found))
distributed.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_ranks_send_is_what_the_formula_says(ranks):
    done = as_ranks(COUNTED, ranks)
    assert all(process.returncode == 0 for process, *_ in done), done[0][2][-2000:]
    found = json.loads(re.search(r"found (.*)", done[0][1])[1])
    gradient_bytes = 4 * 500 * 1000
    for stage, calls in found.items():
        # A ring's all-reduce has each rank send 2 (n - 1) / n of a payload, its all-gather (n - 1) / n.
        share = (ranks - 1) / ranks
        ring = share * (2 * calls.get("all_reduce", 0) + sum(calls.get(name, 0) for name in ("all_gather_into_tensor", "all_gather")))
        assert ring == pytest.approx(sent_bytes(gradient_bytes, ranks, int(stage)), rel=0.01)
        assert not calls.get("broadcast") and not calls.get("reduce") and not calls.get("reduce_scatter_tensor")


@pytest.mark.quick
def test_the_closed_forms_of_a_ring_and_of_zero():
    assert sent_bytes(100, 1) == 0 and sent_bytes(100, 2) == 100 and sent_bytes(100, 4) == 150 and sent_bytes(100, 4, zero_stage=1) == 225
    assert saved_bytes(1000, 1, 2) == 0 and saved_bytes(1000, 8, 0) == 0
    assert saved_bytes(1000, 8, 1) == 8000 * 7 / 8 and saved_bytes(1000, 8, 2) == 12000 * 7 / 8
    assert link_bytes_per_sec(8) > link_bytes_per_sec(9)


@pytest.mark.quick
def test_a_step_is_its_work_or_its_launches_and_its_communication():
    step = Step(batch_size=64, flop=1e9, gradient_bytes=9e8, kernels=100, flop_per_sec=1e13)
    assert step.sec(1) == pytest.approx(64 * 1e9 / 1e13)
    assert step.sec(8) == pytest.approx(8 * 1e9 / 1e13 + 2 * 7 / 8 * 9e8 / 450e9)
    assert step.sec(64) == pytest.approx(100 * LAUNCH_SEC + 2 * 63 / 64 * 9e8 / 50e9)  # an image each: its work is 0.1 ms


@pytest.mark.quick
def test_a_roofline_is_the_larger_of_work_and_traffic_of_each_operator():
    class Product(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(width, width, device="meta"))

        def forward(self, images, _timesteps):
            return type("Output", (), {"sample": images.flatten(1) @ self.weight})

    small, large = (kernels_of(Product(width), 8, (1, 1, width), "bfloat16", backward=False) for width in (16, 2**15))
    assert small.count == large.count == 1
    assert small.roofline_sec == pytest.approx(2 * (8 * 16 + 16 * 16 + 8 * 16) / MEMORY_BYTES_PER_SEC)
    assert large.roofline_sec == pytest.approx(2 * (2 * 8 * 2**15 + 2**30) / MEMORY_BYTES_PER_SEC)  # of 8 images its weights are the load
    many = kernels_of(Product(2**12), 2**14, (1, 1, 2**12), "bfloat16", backward=False)
    assert many.roofline_sec == pytest.approx(2 * 2**14 * 2**24 / 989e12)


@pytest.mark.quick
def test_a_network_s_roofline_is_no_less_than_its_work_at_the_peak():
    with torch.device("meta"):
        network = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32), norm_num_groups=4,
                              down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    forward, both = (kernels_of(network, 4, (1, 8, 8), "float32", backward=backward) for backward in (False, True))
    assert forward.count < both.count and forward.roofline_sec < both.roofline_sec
    assert both.roofline_sec > train_pflop(count_macs(network, (1, 8, 8)).total, 4) * 1e15 / 67e12


def test_the_table_scales_and_the_command_says_what_cannot_be_shared(tmp_path):
    done = typed(main, "estimate", "--config", "cifar10", "--gpus", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.split("\n\n")[0].splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "8", "64"]
    rates = [float(row[-5].replace(",", "")) for row in rows]
    assert all(after > before for before, after in pairwise(rates)) and rates[-1] < 64 * rates[0]
    refused = typed(main, "estimate", "--config", "cifar10", "--gpus", "3", cwd=tmp_path)
    assert refused.returncode == 2 and "--gpus 3: ofa_training.batch_size, 512, cannot be shared by so many" in refused.stderr
    none = typed(main, "estimate", "--gpus", "0", cwd=tmp_path)
    assert none.returncode == 2 and "--gpus 0: must be at least 1" in none.stderr


@pytest.mark.parametrize("name", ["cifar10_edm", "imagenet64_edm"])
def test_the_page_shows_what_the_command_prints(name, tmp_path):
    done = typed(main, "estimate", "--config", name, "--gpus", "64", cwd=tmp_path)
    table = done.stdout.split("\n\n")[0]
    assert table in (ROOT / "docs" / "scale.md").read_text()
