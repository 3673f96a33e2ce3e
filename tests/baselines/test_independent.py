"""Numbers against other people's tools, and against formulas written anew without the code under test."""

from fractions import Fraction
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.resnet import ResnetBlock2D
from scipy import linalg
from support.networks import CIFAR10_NETWORK
from torch import nn

from repro.config import Diffusion, Evaluation, Network, load_config
from repro.diffusion.ddim import ddim, sampling_timesteps
from repro.diffusion.ddpm import DDPM, noise_schedule
from repro.diffusion.sampler import about_sampler
from repro.diffusion.samplers import SAMPLERS
from repro.metrics.fid import frechet_distance
from repro.models.cost import count_macs
from repro.models.denoiser import build_base
from repro.ofa.allocation import make_plan
from repro.ofa.importance import pipe_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

pytestmark = pytest.mark.quick

# --- the Frechet distance


def pytorch_fid(one, other):
    """As pytorch-fid has it: | m1 - m2 |^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)."""
    means, covariances = [np.mean(each, axis=0) for each in (one, other)], [np.cov(each, rowvar=False) for each in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize(("count", "reference", "features"), [(400, 300, 12), (900, 1000, 64), (2000, 700, 3)])
def test_the_frechet_distance_is_that_of_pytorch_fid(count, reference, features):
    stream = np.random.default_rng(features)
    mix = stream.normal(size=(features, features))
    one = (stream.normal(size=(count, features)) @ mix + stream.normal(size=features)).astype(np.float32)
    other = (stream.normal(size=(reference, features)) * np.arange(1, features + 1)).astype(np.float32)
    expected = pytorch_fid(one.astype(np.float64), other.astype(np.float64))
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-6)


# --- multiply-accumulates


def narrowed():
    """The digits' network at half of its size, which no other counter has seen."""
    base = build_base(load_config("digits").network, seed=0)
    pipes = pipes_of(base)
    importance = {pipe.name: torch.rand(pipe.width, generator=torch.Generator().manual_seed(0)) for pipe in pipes}
    params = sum(parameter.numel() for parameter in base.parameters())
    plan = make_plan(pipes, importance, (1.0, 0.5), params_base=params, rule="uniform", floor=0.25)
    return Supernet(base, pipes, plan).extract(0.5)


NETWORKS = {
    "digits": (lambda: build_base(load_config("digits").network, seed=0), (1, 8, 8)),
    "narrowed": (narrowed, (1, 8, 8)),
    "cifar10": (lambda: build_base(Network(**CIFAR10_NETWORK), seed=0), (3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_macs_are_those_of_deepspeed_s_profiler(name):
    make, shape = NETWORKS[name]
    model = make().eval()
    profiler = import_module("deepspeed.profiling.flops_profiler.profiler").FlopsProfiler(model)
    profiler.start_profile()
    with torch.no_grad():
        model(torch.zeros(1, *shape), torch.zeros(1))
    theirs = sum(module.__macs__ for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    profiler.end_profile()
    assert theirs == count_macs(model, shape).conv_linear > 0


# --- the sampler


@pytest.mark.parametrize(("steps", "spacing"), [(10, "quadratic"), (100, "quadratic"), (7, "uniform")])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_every_ddim_step_is_that_of_diffusers_between_the_same_timesteps(steps, spacing, clip_sample):
    schedule = noise_schedule(Diffusion())
    theirs = DDIMScheduler.from_config(schedule.config, clip_sample=clip_sample, set_alpha_to_one=True)
    timesteps = sampling_timesteps(1000, steps, spacing)
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))

    def predict(images, times):
        return torch.tanh(torch.einsum("oc,bchw->bohw", weight, images) + times.view(-1, 1, 1, 1) / 1000)

    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    images = noise
    for time, earlier in pairwise([*reversed(timesteps), -1]):
        theirs.num_inference_steps = Fraction(1000, time - earlier)  # 1000 // this is the gap, which its own spacings keep constant
        images = theirs.step(predict(images, torch.full((2,), time)), time, images, eta=0.0).prev_sample
    found = ddim(predict, noise, schedule, timesteps, clip_sample=clip_sample)
    torch.testing.assert_close(found, images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["quadratic", "uniform"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 100, 250, 1000])
def test_no_timestep_is_visited_twice(spacing, steps):
    timesteps = sampling_timesteps(1000, steps, spacing)
    assert len(set(timesteps)) == len(timesteps) <= steps
    assert timesteps == sorted(timesteps)
    by_numpy = {int(root**2) for root in np.linspace(0, np.sqrt(800), steps)} if spacing == "quadratic" else set(timesteps)
    assert set(timesteps) == by_numpy


@pytest.mark.parametrize(("steps", "nfe"), [(100, 96), (10, 10)])
def test_a_record_says_how_many_steps_were_asked_for_and_how_many_were_done(steps, nfe):
    sampler = about_sampler(SAMPLERS["ddim"], Evaluation(sampler_steps=steps, spacing="quadratic"), DDPM(Diffusion()))
    assert (sampler["steps"], sampler["nfe"]) == (steps, nfe)
    asked = []

    def predict(images, times):
        asked.append(int(times[0]))
        return images

    timesteps = sampling_timesteps(1000, steps, "quadratic")
    ddim(predict, torch.zeros(1, 1, 2, 2), noise_schedule(Diffusion()), timesteps, clip_sample=True)
    assert len(asked) == len(set(asked)) == nfe


# --- Formula 4


def silu(values):
    return values / (1 + np.exp(-values))


def group_norm(values, groups, scale, shift, epsilon):
    parts = values.reshape(groups, -1)
    normal = (parts - parts.mean(axis=1, keepdims=True)) / np.sqrt(parts.var(axis=1, keepdims=True) + epsilon)
    return normal.reshape(values.shape) * scale[:, None, None] + shift[:, None, None]


def convolution(values, weight, bias):
    """3 x 3, padded with noughts; one image [C, H, W]."""
    _, height, width = values.shape
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)))
    total = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for row in range(3):
        for column in range(3):
            total += np.einsum("oc,chw->ohw", weight[:, :, row, column], padded[:, row : row + height, column : column + width])
    return total


def resnet_loss(tensors, image, time, target, groups, epsilon):
    """The squared error of one image behind one ResNet unit."""
    hidden = group_norm(image, groups, tensors["norm1.weight"], tensors["norm1.bias"], epsilon)
    hidden = convolution(silu(hidden), tensors["conv1.weight"], tensors["conv1.bias"])
    hidden = hidden + (tensors["time_emb_proj.weight"] @ silu(time) + tensors["time_emb_proj.bias"])[:, None, None]
    hidden = group_norm(hidden, groups, tensors["norm2.weight"], tensors["norm2.bias"], epsilon)
    hidden = convolution(silu(hidden), tensors["conv2.weight"], tensors["conv2.bias"])
    return float(np.mean((image + hidden - target) ** 2))


def formula4(tensors, images, times, targets, groups, epsilon, *, step=1e-4):
    """Of every channel (1/N) sum_n | sum_j w_ij dL_n/dw_ij |, at both ends.

    The inner sum is the slope of the loss as the channel's weights grow by a factor: d/da L_n((1 + a) w_i) at a = 0.
    """
    scores = np.zeros(len(tensors["conv1.weight"]))
    for channel in range(len(scores)):
        for layer, where in (("conv1.weight", np.s_[channel]), ("conv2.weight", np.s_[:, channel])):
            for image, time, target in zip(images, times, targets, strict=True):
                losses = []
                for factor in (1 + step, 1 - step):
                    weight = tensors[layer].copy()
                    weight[where] *= factor
                    losses.append(resnet_loss(tensors | {layer: weight}, image, time, target, groups, epsilon))
                scores[channel] += abs(losses[0] - losses[1]) / (2 * step) / len(images)
    return scores


class OneUnit(nn.Module):
    """A network of one ResNet unit."""

    def __init__(self):
        super().__init__()
        self.unit = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=6, groups=2, dropout=0.0)

    def forward(self, images, times):
        return self.unit(images, times)


def test_formula_4_is_the_slope_of_the_loss_in_each_channel_s_weights_by_numpy_alone():
    model = OneUnit().double().eval()
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    images, targets = torch.randn(2, 3, 8, 5, 5, generator=stream, dtype=torch.float64)
    times = torch.randn(3, 6, generator=stream, dtype=torch.float64)

    def losses(network, cut):
        return (network(images[cut], times[cut]) - targets[cut]).square().flatten(1).mean(dim=1)

    (pipe,) = pipes_of(model)
    found = pipe_importance(model, (pipe,), [slice(0, 2), slice(2, 3)], losses)[pipe.name]
    tensors = {name.removeprefix("unit."): parameter.detach().numpy() for name, parameter in model.named_parameters()}
    expected = formula4(tensors, images.numpy(), times.numpy(), targets.numpy(), groups=2, epsilon=model.unit.norm1.eps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)
