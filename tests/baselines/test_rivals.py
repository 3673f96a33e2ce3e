"""The rivals are as strong as Diff-Pruning makes them: which channels go first, against scores by hand and by plain loops.

Diff-Pruning (Fang et al., 2023) adds up | weight x gradient | over all that a channel is made of, the rows of the layers that make it, the
columns of those that take it, the scales of its norms, and ranks inside each normalisation group; every group gives up as many. Its code
leaves biases out. torch-pruning 1.6.1 by itself averages the scores over the groups and cuts the same places out of each.
"""

import copy

import pytest
import torch
from torch import nn

import repro  # noqa: F401  (before diffusers)
from baselines import criteria, pruning
from repro.config import Network
from repro.models.denoiser import build_base

GROUPS = 2
# What the rows of the first layer, the scale of the norm and the column of the last layer say of each of eight channels in two groups.
ROWS = (4.0, 0.25, 0.5, 1.0, 0.5, 3.0, 4.0, 0.5)
SCALES = (1.0, 0.5, 2.0, 0.0, 0.0, 1.0, 1.0, 0.5)
COLUMNS = (4.0, 0.25, 0.5, 1.0, 0.5, 4.0, 4.0, 1.0)
TOTALS = (9.0, 1.0, 3.0, 2.0, 1.0, 8.0, 9.0, 2.0)
KEPT = {3: {0, 2, 3, 5, 6, 7}, 2: {0, 2, 5, 6}, 1: {0, 6}}  # inside each group the highest


def pruned(model, target, criterion, example, channels="in_groups"):
    """What this project calls pruning to a size; whoever renames it mends this line."""
    return pruning.prune_to_params(model, target, getattr(criteria, criterion)(), example, channels=channels)


class Two(nn.Module):
    """Convolution, normalisation in two groups, convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 8, 1), nn.GroupNorm(GROUPS, 8), nn.Conv2d(8, 1, 1)

    def forward(self, images, _timesteps):
        return self.last(self.norm(self.first(images)))


def spread_over(value, count, sign):
    """Values that add up to a value in absolute terms, and to nothing."""
    return torch.tensor([value / count * sign * (-1) ** index for index in range(count)])


@pytest.fixture(params=["taylor", "magnitude"])
def by_hand(request, monkeypatch):
    """The small network whose channels have the scores above by a criterion, and by no other; biases name the channels."""
    model = Two()
    monkeypatch.setattr(pruning, "_left_alone", lambda pruned_model: [pruned_model.last])  # else only networks of diffusers are pruned
    with torch.no_grad():
        for channel, (row, scale, column) in enumerate(zip(ROWS, SCALES, COLUMNS, strict=True)):
            model.first.weight[channel, :, 0, 0] = spread_over(row, 2, (-1) ** channel)
            model.norm.weight[channel] = -scale
            model.last.weight[0, channel] = column
        model.first.bias.copy_(torch.arange(8.0))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.first.bias.grad[1] = 1000.0  # biases are left out
    if request.param == "taylor":  # the same products of other weights
        for parameter in (model.first.weight, model.norm.weight, model.last.weight):
            factors = 1 + torch.arange(parameter.numel()).view(parameter.shape) % 7
            parameter.grad = 1 / factors
            with torch.no_grad():
                parameter.mul_(factors)
    else:
        for parameter in model.parameters():
            parameter.grad = torch.rand(parameter.shape)
    return model, request.param


def kept_of(model, before):
    """The channels that a pruned layer kept, by its bias."""
    return {int((before == value).nonzero().item()) for value in model}


@pytest.mark.parametrize("units", [3, 2, 1])
def test_of_each_normalisation_group_the_lowest_go_and_of_each_as_many(by_hand, units):
    model, criterion = by_hand
    params = 6 * GROUPS * units + 1
    example = (torch.zeros(1, 2, 3, 3), torch.zeros(1))
    found = pruned(model, params, criterion, example)
    assert sum(parameter.numel() for parameter in found.parameters()) == params
    assert {int(value) for value in found.first.bias} == KEPT[units]


def test_the_scores_by_hand_tell_the_rule_from_those_that_it_is_mistaken_for():
    assert tuple(map(sum, zip(ROWS, SCALES, COLUMNS, strict=True))) == TOTALS
    inside = {units: _highest(TOTALS, units) for units in KEPT}
    without_norms = _highest([row + column for row, column in zip(ROWS, COLUMNS, strict=True)], 2)
    averages = [(TOTALS[offset] + TOTALS[offset + 4]) / 2 for offset in range(4)]
    assert inside == KEPT
    assert all(_highest([*averages, *averages], units) != KEPT[units] for units in KEPT)
    assert without_norms != KEPT[2]


def _highest(scores, units):
    groups = [range(4), range(4, 8)]
    return {channel for group in groups for channel in sorted(group, key=lambda channel: -scores[channel])[:units]}


# --- a network of ResNet units

NETWORK = Network(
    sample_size=8,
    channels=1,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attention_head_dim=8,
)
EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.zeros(1))


@pytest.fixture(scope="module")
def unet():
    """A network with random weights, norms and gradients."""
    model = build_base(NETWORK, seed=0).eval()
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
            parameter.grad = torch.randn(parameter.shape, generator=stream)
    return model


def score_of_channel(model, unit, channel, value):
    """Adds up, entry by entry, what all that a channel inside a ResNet unit is made of says of it."""
    total = 0.0
    tensors = dict(model.named_parameters())
    for layer, axis in (("conv1", 0), ("time_emb_proj", 0), ("norm2", 0), ("conv2", 1)):
        weight = tensors[f"{unit}.{layer}.weight"]
        weights, gradients = weight.detach().select(axis, channel).flatten().tolist(), weight.grad.select(axis, channel).flatten().tolist()
        for one, slope in zip(weights, gradients, strict=True):
            total += value(one, slope)
    return total


def kept_by_loops(model, unit, units, value):
    """The channels of a ResNet unit that stay: of each group of its norm the highest."""
    norm = model.get_submodule(f"{unit}.norm2")
    per_group, kept = norm.num_channels // norm.num_groups, set()
    for group in range(norm.num_groups):
        channels = range(group * per_group, (group + 1) * per_group)
        scores = {channel: score_of_channel(model, unit, channel, value) for channel in channels}
        kept |= set(sorted(channels, key=lambda channel, scores=scores: -scores[channel])[:units])
    return kept


def units_of(model):
    return [name for name, module in model.named_modules() if type(module).__name__ == "ResnetBlock2D"]


def choices(model, found, value):
    """For every ResNet unit that lost a channel: what stayed, and what stays by plain loops."""
    rows = []
    for unit in units_of(model):
        before, after = model.get_submodule(f"{unit}.conv1").bias.detach(), found.get_submodule(f"{unit}.conv1").bias.detach()
        groups = found.get_submodule(f"{unit}.norm2").num_groups
        assert groups == model.get_submodule(f"{unit}.norm2").num_groups and len(after) % groups == 0
        if len(after) < len(before):
            rows.append((kept_of(after, before), kept_by_loops(model, unit, len(after) // groups, value)))
    return rows


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.75, 0.25))])
@pytest.mark.parametrize(
    ("criterion", "value"),
    [("taylor", lambda weight, slope: abs(weight * slope)), ("magnitude", lambda weight, _slope: abs(weight))],
)
def test_the_channels_of_every_resnet_unit_are_those_of_plain_loops(unet, criterion, value, share):
    size = sum(parameter.numel() for parameter in unet.parameters())
    found = pruned(unet, round(share * size), criterion, EXAMPLE)
    rows = choices(unet, found, value)
    assert len(rows) >= len(units_of(unet)) - 1
    assert all(stayed == stays for stayed, stays in rows)


@pytest.mark.slow
def test_averaging_over_the_groups_or_leaving_norms_out_is_another_choice(unet):
    """So that the test above could fail."""
    size = sum(parameter.numel() for parameter in unet.parameters())

    def value(weight, slope):
        return abs(weight * slope)

    averaged = choices(unet, pruned(unet, size // 2, "taylor", EXAMPLE, channels="averaged"), value)
    assert sum(stayed != stays for stayed, stays in averaged) >= len(averaged) - 1
    loud = copy.deepcopy(unet)
    for mine, theirs in zip(loud.parameters(), unet.parameters(), strict=True):
        mine.grad = theirs.grad.clone()
    for name, parameter in loud.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.grad *= 1000
    assert all(stayed == stays for stayed, stays in choices(loud, pruned(loud, size // 2, "taylor", EXAMPLE), value))
    silent = choices(loud, pruned(loud, size // 2, "taylor_without_norms", EXAMPLE), value)
    assert any(stayed != stays for stayed, stays in silent)
