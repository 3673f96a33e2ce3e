"""Parameters, MACs and latency, against hand counts."""

import copy
import dataclasses
import math
import time

import pytest
import torch
from diffusers.models.attention_processor import Attention
from support.networks import CIFAR10_NETWORK
from torch import nn

from repro.config import Network, load_config
from repro.models.cost import count_macs, count_macs_torch_pruning, count_params, measure_latency
from repro.models.denoiser import build_base
from repro.models.flop import train_pflop
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

pytestmark = pytest.mark.quick

CIFAR10_SHAPE = (3, 32, 32)
SIZES = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def cifar10():
    """The subnets of the CIFAR-10 network under uniform allocation, on the meta device."""
    with torch.device("meta"):
        base = build_base(Network(**CIFAR10_NETWORK), seed=0)
        pipes = pipes_of(base)
        importance = {pipe.name: torch.ones(pipe.width, device="cpu") for pipe in pipes}
        params_base = sum(parameter.numel() for parameter in base.parameters())
        plan = make_plan(pipes, importance, SIZES, params_base=params_base, rule="uniform", floor=0.25)
        supernet = Supernet(base, pipes, plan)
    return {size: supernet.extract(size) for size in SIZES}


def hand_count(model, image_shape, *, device):
    """Counts a forward pass on one image: (convolutions and linear layers, attention's matrix products)."""
    counts = {"layers": 0, "attention": 0}

    def of_layer(module, _inputs, output):
        per_value = math.prod(module.weight.shape[1:])  # of a convolution: inputs of the group x kernel height x kernel width
        counts["layers"] += output.numel() * per_value

    def of_attention(module, inputs, _output):
        height, width = inputs[0].shape[-2:]
        # q k^T and its product with v, each tokens x tokens x width over all heads.
        counts["attention"] += 2 * (height * width) ** 2 * module.to_q.weight.shape[0]

    hooked = copy.deepcopy(model)
    for module in hooked.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(of_layer)
        elif isinstance(module, Attention):
            module.register_forward_hook(of_attention)
    with torch.no_grad():
        hooked(torch.empty(1, *image_shape, device=device), torch.zeros(1, device=device))
    return counts["layers"], counts["attention"]


@pytest.mark.parametrize(("size", "millions"), [(0.25, 12.50), (0.5, 20.25), (0.75, 28.00), (1.0, 35.75)])
def test_parameters_of_the_cifar10_network(cifar10, size, millions):
    assert count_params(cifar10[size].parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("size", "giga"), [(0.25, 2.364), (0.5, 3.594), (0.75, 4.824), (1.0, 6.054)])
def test_macs_of_the_cifar10_network_s_layers(cifar10, size, giga):
    macs = count_macs(cifar10[size], CIFAR10_SHAPE)
    by_hand, _ = hand_count(cifar10[size], CIFAR10_SHAPE, device="meta")
    assert macs.conv_linear == by_hand
    assert macs.conv_linear / 1e9 == pytest.approx(giga, abs=0.0005)


@pytest.mark.parametrize(("size", "width"), [(1.0, 256), (0.5, 128)])
def test_macs_of_the_cifar10_network_s_attentions(cifar10, size, width):
    macs = count_macs(cifar10[size], CIFAR10_SHAPE)
    _, by_hand = hand_count(cifar10[size], CIFAR10_SHAPE, device="meta")
    # Two attentions on the way down and three on the way up at 16 x 16, one in the middle at 4 x 4.
    assert by_hand == 2 * width * (5 * 256**2 + 16**2)
    assert macs.total - macs.conv_linear == by_hand


def test_macs_of_the_whole_cifar10_network(cifar10):
    assert count_macs(cifar10[1.0], CIFAR10_SHAPE).total / 1e9 == pytest.approx(6.222, abs=0.001)


def test_macs_do_not_depend_on_where_the_weights_are(base):
    layers, attention = hand_count(base, (1, 8, 8), device="cpu")
    macs = count_macs(base, (1, 8, 8))
    assert (macs.conv_linear, macs.total) == (layers, layers + attention)
    assert next(base.parameters()).device.type == "cpu"


def test_torch_pruning_s_counter_is_within_a_percent_of_the_layers():
    # It counts normalisations too, which weigh more the narrower a network is.
    wide = dataclasses.replace(load_config("digits").network, block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=16)
    model = build_base(wide, seed=0)
    layers, _ = hand_count(model, (1, 8, 8), device="cpu")
    assert count_macs_torch_pruning(model, (1, 8, 8)) == pytest.approx(layers, rel=0.01)


def test_torch_pruning_s_counter_gives_the_published_macs_of_the_cifar10_network():
    model = build_base(Network(**CIFAR10_NETWORK), seed=0)
    assert count_macs_torch_pruning(model, CIFAR10_SHAPE) / 1e9 == pytest.approx(6.064, abs=0.0005)  # Diff-Pruning prints 6.1


def test_training_work_is_three_passes_of_two_flop_for_each_mac_and_image():
    assert train_pflop(6.222e9, 100_000 * 128) == pytest.approx(477.8496)  # 6 * 6.222e9 * 1.28e7 = 4.778496e17
    assert train_pflop(0, 1000) == 0


def test_latency_is_positive_and_grows_with_the_batch(base):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on busy cores hide what a batch costs
    try:
        one, many = (measure_latency(base, (1, 8, 8), batch_size, 0.2).ms for batch_size in (1, 256))
    finally:
        torch.set_num_threads(threads)
    assert 0 < one < many


class Slow(torch.nn.Module):
    """Takes as long as it is told, again and again."""

    def __init__(self, *seconds):
        super().__init__()
        self.weight, self.seconds, self.passes = nn.Parameter(torch.zeros(1)), seconds, 0

    def forward(self, images, timesteps):
        time.sleep(self.seconds[self.passes % len(self.seconds)])
        self.passes += 1


def test_latency_has_a_spread_and_its_warm_up_is_not_in_it():
    model = Slow(0.001, 0.001, 0.02, 0.02)
    found = measure_latency(model, (1, 8, 8), 1, 0.5)
    assert 5 <= len(found.times) == model.passes - 3
    low, high = found.quartiles
    assert 1 <= low < 19 < high and low <= found.ms <= high


def test_a_slow_network_is_timed_a_few_times_and_a_quick_one_not_for_ever():
    slow, quick = Slow(0.1), Slow(0.0)
    assert len(measure_latency(slow, (1, 8, 8), 1, 0.2).times) == 5 and slow.passes == 6
    assert len(measure_latency(quick, (1, 8, 8), 1).times) == 100


def test_a_thread_that_waited_for_its_core_says_so():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert measure_latency(Slow(0.01), (1, 8, 8), 1, 0.2).busy  # it computes for next to none of its time
    finally:
        torch.set_num_threads(threads)
