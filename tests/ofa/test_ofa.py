"""The method: pipes, importance, allocation, supernet, sampling law."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from repro.errors import ReproError
from repro.models.denoiser import build_base, set_dropout
from repro.ofa.allocation import Plan, floor_units, formula5, gradual, make_plan, ranking, uniform, unit_importance
from repro.ofa.importance import pipe_importance
from repro.ofa.pipes import Pipe, pipes_of
from repro.ofa.sampling_law import linear_law, named_law
from repro.ofa.supernet import Supernet

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1.0, 0.75, 0.5, 0.25)
PAPER_SIZES = tuple(0.25 + 0.025 * index for index in range(31))
RULES = ("gradual", "formula5", "uniform")

# Unit, width, groups and parameters of one channel, counted by hand from the tiny network. A conv unit from c_in to c channels holds, for
# each channel, 9 * c_in + 1 (conv1) + 32 + 1 (time projection) + 2 (norm2) + 9 * c (conv2); an attention 3 * (16 + 1) + 16.
TINY_PIPES = {
    "down_blocks.0.resnets.0": ("conv", "down_blocks.0", 8, 2, 9 * 8 + 36 + 9 * 8),
    "down_blocks.1.resnets.0": ("conv", "down_blocks.1", 16, 2, 9 * 8 + 36 + 9 * 16),
    "down_blocks.1.attentions.0": ("attention", "down_blocks.1", 16, 2, 3 * 17 + 16),
    "mid_block.resnets.0": ("conv", "mid_block", 16, 2, 9 * 16 + 36 + 9 * 16),
    "mid_block.attentions.0": ("attention", "mid_block", 16, 2, 3 * 17 + 16),
    "mid_block.resnets.1": ("conv", "mid_block", 16, 2, 9 * 16 + 36 + 9 * 16),
    "up_blocks.0.resnets.0": ("conv", "up_blocks.0", 16, 2, 9 * 32 + 36 + 9 * 16),
    "up_blocks.0.attentions.0": ("attention", "up_blocks.0", 16, 2, 3 * 17 + 16),
    "up_blocks.0.resnets.1": ("conv", "up_blocks.0", 16, 2, 9 * 24 + 36 + 9 * 16),
    "up_blocks.0.attentions.1": ("attention", "up_blocks.0", 16, 2, 3 * 17 + 16),
    "up_blocks.1.resnets.0": ("conv", "up_blocks.1", 8, 2, 9 * 24 + 36 + 9 * 8),
    "up_blocks.1.resnets.1": ("conv", "up_blocks.1", 8, 2, 9 * 16 + 36 + 9 * 8),
}


def slices_by_hand(kind, name):
    """Every tensor that a pipe's width enters, with the dimension, written down from the method's section 4."""
    if kind == "conv":
        rows, column = ("conv1", "time_emb_proj", "norm2"), "conv2"
    else:
        rows, column = ("to_q", "to_k", "to_v"), "to_out.0"
    return {(f"{name}.{layer}.{tensor}", 0) for layer in rows for tensor in ("weight", "bias")} | {(f"{name}.{column}.weight", 1)}


def shake(model):
    """Moves every weight away from its initial value, so that no norm is 1 and no bias 0."""
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def random_importance(pipes, seed=0):
    stream = torch.Generator().manual_seed(seed)
    scores = {}
    for pipe in pipes:
        score = torch.rand(pipe.width, generator=stream) ** 3
        # In an attention a score belongs to an offset inside the heads, the same for all of them.
        scores[pipe.name] = score[: pipe.units].repeat(pipe.groups) if pipe.kind == "attention" else score
    return scores


def plan_for(model, rule="gradual", sizes=SIZES):
    pipes = pipes_of(model)
    params_base = sum(parameter.numel() for parameter in model.parameters())
    return pipes, make_plan(pipes, random_importance(pipes), sizes, params_base=params_base, rule=rule, floor=0.25)


def supernet_of(model, rule="gradual"):
    pipes, plan = plan_for(model, rule)
    return Supernet(shake(model), pipes, plan).eval()


def inputs(count=3, seed=2):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=stream), torch.randint(0, 1000, (count,), generator=stream)


def simple_pipe(name, *, units, cost, groups=1, block="block"):
    """A pipe of made-up numbers, for allocation alone; `cost` is the parameters of one unit."""
    assert cost % groups == 0
    return Pipe(
        name=name,
        kind="conv",
        block=block,
        width=units * groups,
        groups=groups,
        producers=(),
        consumers=(),
        slices=(),
        params_per_channel=cost // groups,
    )


# --- pipes


def test_pipes_of_the_tiny_network_are_those_listed_by_hand(base):
    found = {pipe.name: (pipe.kind, pipe.block, pipe.width, pipe.groups, pipe.params_per_channel) for pipe in pipes_of(base)}
    assert found == TINY_PIPES


def test_a_pipe_cuts_the_tensors_that_its_width_enters_each_once(base):
    for pipe in pipes_of(base):
        assert len(pipe.slices) == len(set(pipe.slices))
        assert set(pipe.slices) == slices_by_hand(pipe.kind, pipe.name)
    cut = Counter(parameter for pipe in pipes_of(base) for parameter, _ in pipe.slices)
    assert set(cut.values()) == {1}


def test_parameters_of_the_pipes_and_the_fixed_ones_add_up_to_the_network(base):
    uncut = dict(base.named_parameters())
    for kind, name in ((values[0], name) for name, values in TINY_PIPES.items()):
        for parameter, _ in slices_by_hand(kind, name):
            del uncut[parameter]
    internal = sum(pipe.units * pipe.params_per_unit for pipe in pipes_of(base))
    assert internal == sum(width * cost for _, _, width, _, cost in TINY_PIPES.values())
    assert internal + sum(tensor.numel() for tensor in uncut.values()) == sum(parameter.numel() for parameter in base.parameters())


# --- importance


def loop_importance(model, pipes, images, timesteps, noise):
    """Formula 4 as it is written: one backward pass for each image, from the weights and their gradients."""
    totals = {pipe.name: torch.zeros(pipe.width, dtype=torch.float64) for pipe in pipes}
    for index in range(len(images)):
        model.zero_grad()
        one = slice(index, index + 1)
        (model(images[one], timesteps[one]).sample - noise[one]).square().mean().backward()
        for pipe in pipes:
            for layer in pipe.producers:
                weight = model.get_submodule(layer).weight
                totals[pipe.name] += (weight * weight.grad).double().flatten(1).sum(dim=1).abs()
            for layer in pipe.consumers:
                weight = model.get_submodule(layer).weight
                totals[pipe.name] += (weight * weight.grad).double().transpose(0, 1).flatten(1).sum(dim=1).abs()
    for pipe in pipes:
        if pipe.kind == "attention":
            offsets = [sum(totals[pipe.name][head * pipe.units + j] for head in range(pipe.groups)) for j in range(pipe.units)]
            totals[pipe.name] = torch.stack(offsets * pipe.groups)
    model.zero_grad()
    return {name: (total / len(images)).detach() for name, total in totals.items()}


def batched_importance(model, pipes, images, timesteps, noise, batch_size):
    cuts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]

    def losses(module, cut):
        return (module(images[cut], timesteps[cut]).sample - noise[cut]).square().flatten(1).mean(dim=1)

    return pipe_importance(model, pipes, cuts, losses)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batched_importance_is_that_of_the_loop_over_images_whatever_the_batch(tiny, batch_size):
    model = shake(build_base(tiny.network, seed=0))
    set_dropout(model, 0.5)  # shows whether the base is scored in evaluation mode
    pipes = pipes_of(model)
    images, timesteps = inputs(12)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    expected = loop_importance(model.eval(), pipes, images, timesteps, noise)
    found = batched_importance(model.train(), pipes, images, timesteps, noise, batch_size)
    assert set(found) == set(TINY_PIPES)
    for name, score in expected.items():
        assert score.min() > 0
        torch.testing.assert_close(found[name].double(), score, rtol=1e-5, atol=1e-6 * float(score.max()))


@pytest.mark.parametrize("training", [True, False])
def test_importance_leaves_the_model_as_it_was(base, training):
    base.train(training)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    images, timesteps = inputs(4)
    batched_importance(base, pipes_of(base), images, timesteps, torch.zeros_like(images), 4)
    assert base.training is training
    assert all(module.training is training for module in base.modules())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())


# --- allocation


def test_ranking_sorts_inside_each_group_and_gives_ties_to_the_lower_index():
    pipe = simple_pipe("a", units=3, cost=2, groups=2)
    importance = torch.tensor([3.0, 1.0, 2.0, 10.0, 30.0, 30.0])
    assert ranking(pipe, importance).tolist() == [[0, 2, 1], [4, 5, 3]]
    assert unit_importance(pipe, importance).tolist() == [33.0, 32.0, 11.0]


HAND_PIPES = (simple_pipe("a", units=4, cost=10), simple_pipe("b", units=4, cost=20))
HAND_IMPORTANCE = {"a": torch.tensor([1.0, 8.0, 2.0, 4.0]), "b": torch.tensor([12.0, 6.0, 10.0, 1.0])}
# Worth for each parameter, best first: a 0.8 0.4 0.2 0.1, b 0.6 0.5 0.3 0.05. From the floors (one unit each, 30 of 120 parameters) the
# units are handed out in the order b a b a a b, so 30, 50, 60, 80, 90, 100 and 120 parameters can be had.


@pytest.mark.parametrize(
    ("size", "units"),
    [
        (0.25, (1, 1)),
        (0.33, (1, 1)),  # 39.6: 9.6 from 30, 10.4 from 50
        (0.34, (1, 2)),  # 40.8: 10.8 from 30, 9.2 from 50
        (0.4, (1, 2)),
        (0.5, (2, 2)),
        (0.65, (2, 3)),
        (0.75, (3, 3)),
        (0.85, (4, 3)),
        (1.0, (4, 4)),
    ],
)
def test_gradual_hands_out_units_in_the_order_of_their_worth(size, units):
    assert gradual(HAND_PIPES, HAND_IMPORTANCE, size, floor=0.25) == dict(zip("ab", units, strict=True))


def test_a_plan_keeps_the_first_channels_of_the_ranking():
    plan = make_plan(HAND_PIPES, HAND_IMPORTANCE, (0.25, 0.5, 0.75), params_base=1000, rule="gradual", floor=0.25)
    assert plan.kept == {
        0.75: {"a": (1, 2, 3), "b": (0, 1, 2)},
        0.5: {"a": (1, 3), "b": (0, 2)},
        0.25: {"a": (1,), "b": (0,)},
    }
    assert plan.params == {0.75: 970, 0.5: 940, 0.25: 910}
    assert plan.params_internal == 120
    assert [plan.realised(size) for size in (0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("seed", range(5))
def test_gradual_meets_every_size_within_half_a_unit(seed):
    stream = torch.Generator().manual_seed(seed)
    pipes = []
    for index in range(12):
        units, groups, cost = (int(torch.randint(low, high, (1,), generator=stream)) for low, high in ((4, 9), (1, 5), (20, 400)))
        pipes.append(simple_pipe(f"pipe {index}", units=units, groups=groups, cost=cost * groups))
    importance = random_importance(pipes, seed)
    floors = {pipe.name: -(-pipe.units // 4) for pipe in pipes}
    cost = {pipe.name: pipe.params_per_channel * pipe.groups for pipe in pipes}
    internal = sum(cost[pipe.name] * pipe.units for pipe in pipes)
    # A unit's worth falls along its pipe, so handing out the best next unit is sorting them all.
    open_units = []
    for pipe in pipes:
        columns = importance[pipe.name].view(pipe.groups, pipe.units).sort(dim=1, descending=True).values.sum(dim=0)
        open_units += [(float(columns[unit] / cost[pipe.name]), cost[pipe.name]) for unit in range(floors[pipe.name], pipe.units)]
    reachable = [sum(cost[name] * units for name, units in floors.items())]
    for _, price in sorted(open_units, reverse=True):
        reachable.append(reachable[-1] + price)
    assert reachable[-1] == internal
    smallest = reachable[0] / internal
    sizes = [size for size in PAPER_SIZES if size >= smallest] + torch.linspace(smallest, 1, 100).tolist()
    for size in sizes:
        units = gradual(tuple(pipes), importance, size, floor=0.25)
        spent = sum(cost[name] * count for name, count in units.items())
        target = size * internal
        assert spent in reachable
        assert abs(spent - target) == pytest.approx(min(abs(params - target) for params in reachable), abs=1e-6 * internal)
        assert abs(spent - target) <= max(cost.values()) / 2 + 1e-6 * internal
        assert all(floors[pipe.name] <= units[pipe.name] <= pipe.units for pipe in pipes)


def test_the_paper_s_31_sizes_are_met_within_half_a_unit_by_the_tiny_network(base):
    _, plan = plan_for(base, sizes=PAPER_SIZES)
    internal = sum(width * cost for _, _, width, _, cost in TINY_PIPES.values())
    dearest_unit = max(groups * cost for _, _, _, groups, cost in TINY_PIPES.values())
    fixed = sum(parameter.numel() for parameter in base.parameters()) - internal
    assert len(plan.params) == 31
    for size, params in plan.params.items():
        assert abs(params - (fixed + size * internal)) <= dearest_unit / 2
        assert plan.realised(size) == pytest.approx((params - fixed) / internal)


@pytest.mark.parametrize(("units", "floor", "least"), [(8, 0.25, 2), (5, 0.25, 2), (4, 0.25, 1), (10, 0.3, 3), (2, 0.01, 1), (3, 1.0, 3)])
def test_the_floor_is_rounded_up_and_never_nothing(units, floor, least):
    assert floor_units(simple_pipe("a", units=units, cost=1), floor) == least


def test_the_floor_holds_however_unimportant_a_pipe_is():
    pipes = (simple_pipe("dull", units=8, cost=10), simple_pipe("keen", units=8, cost=10))
    importance = {"dull": torch.full((8,), 1e-9), "keen": torch.ones(8)}
    assert gradual(pipes, importance, 0.5, floor=0.25) == {"dull": 2, "keen": 6}
    assert gradual(pipes, importance, 0.5, floor=0.5) == {"dull": 4, "keen": 4}


def test_a_size_below_the_floors_is_an_error_that_names_the_smallest():
    # Floors of one and two units in (2, 8) of cost 30 and 10: 30 + 20 of 140 parameters.
    pipes = (simple_pipe("a", units=2, cost=30), simple_pipe("b", units=8, cost=10))
    importance = {"a": torch.ones(2), "b": torch.ones(8)}
    with pytest.raises(ReproError, match=r"size 0\.2: .*smallest size under allocation\.floor = 0\.25 is 0\.3571"):
        make_plan(pipes, importance, (1.0, 0.2), params_base=200, rule="gradual", floor=0.25)
    assert gradual(pipes, importance, 0.36, floor=0.25) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("size", "units"),
    [
        (1.0, (8, 7, 2, 4)),  # shares 14.4 (clipped to 8), 7.2, 2.4, 4
        (0.5, (7, 3, 2, 2)),  # shares 7.2, 3.6, 1.2 (raised to the floor, 2), 2
        (0.25, (3, 2, 2, 1)),  # shares 3.6, 1.8 and 0.6 (both raised to 2), 1
    ],
)
def test_formula5_clips_both_ways_and_rounds_down_inside_each_block(size, units):
    widths = {"a": 8, "b": 8, "c": 8, "alone": 4}
    pipes = tuple(simple_pipe(name, units=width, cost=10, block="two" if name == "alone" else "one") for name, width in widths.items())
    importance = {name: torch.full((width,), total / width) for (name, width), total in zip(widths.items(), (6, 3, 1, 500), strict=True)}
    assert formula5(pipes, importance, size, floor=0.25) == dict(zip(widths, units, strict=True))


@pytest.mark.parametrize(("size", "units"), [(1.0, (8, 3)), (0.5, (4, 2)), (0.3, (2, 1)), (0.3125, (3, 1)), (0.05, (1, 1))])
def test_uniform_keeps_the_same_fraction_of_every_pipe(size, units):
    pipes = (simple_pipe("a", units=8, cost=10), simple_pipe("b", units=3, cost=1))
    assert uniform(pipes, size) == dict(zip("ab", units, strict=True))


def test_an_unknown_rule_is_an_error_that_names_the_known():
    with pytest.raises(ReproError, match="unknown rule 'greedy'; use gradual, formula5 or uniform"):
        make_plan(HAND_PIPES, HAND_IMPORTANCE, (1.0,), params_base=120, rule="greedy", floor=0.25)


@pytest.mark.parametrize("rule", RULES)
def test_plans_are_nested_at_every_size(base, rule):
    _, plan = plan_for(base, rule, PAPER_SIZES)
    sizes = sorted(plan.kept)
    assert len(sizes) == 31
    for smaller, larger in pairwise(sizes):
        for name in TINY_PIPES:
            assert set(plan.kept[smaller][name]) <= set(plan.kept[larger][name])
    assert all(plan.kept[sizes[0]][name] != plan.kept[sizes[-1]][name] for name in TINY_PIPES)


@pytest.mark.parametrize("rule", RULES)
def test_kept_channels_fill_every_group_equally_and_stay_in_theirs(base, rule):
    _, plan = plan_for(base, rule, PAPER_SIZES)
    for kept in plan.kept.values():
        for name, (kind, _, width, groups, _) in TINY_PIPES.items():
            channels = kept[name]
            assert list(channels) == sorted(set(channels))
            assert set(channels) <= set(range(width))
            per_group, remainder = divmod(len(channels), groups)
            assert remainder == 0
            # The subnet's normalisation cuts its channels into `groups` runs of equal length.
            assert [position // per_group for position in range(len(channels))] == [channel // (width // groups) for channel in channels]
            if kind == "attention":
                offsets = [{channel % (width // groups) for channel in channels[head * per_group :][:per_group]} for head in range(groups)]
                assert all(head == offsets[0] for head in offsets)


def test_a_plan_survives_being_written_as_json(base):
    _, plan = plan_for(base, sizes=PAPER_SIZES)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert list(again.kept) == list(plan.kept)
    assert isinstance(again.kept[1.0]["mid_block.resnets.0"], tuple)


# --- supernet


class CountGathers(TorchDispatchMode):
    """Counts what takes rows or columns out of a tensor, at the level of the dispatcher."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten.index_select, torch.ops.aten.index, torch.ops.aten.gather)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["gradual", "uniform"])
def test_the_subnet_of_size_1_is_the_base_bit_for_bit(base, rule):
    supernet = supernet_of(base, rule)
    images, timesteps = inputs()
    with torch.no_grad():
        expected = base(images, timesteps).sample
        assert torch.equal(supernet(1.0, images, timesteps).sample, expected)
        assert torch.equal(supernet.extract(1.0)(images, timesteps).sample, expected)


def test_size_1_gathers_nothing(base):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    counts = {}
    for size in (1.0, 0.5):
        with torch.no_grad(), CountGathers() as gathers:
            supernet(size, images, timesteps)
        counts[size] = gathers.count
    # Seven tensors of each pipe are cut at half size, where every pipe of this plan has lost a channel.
    assert all(len(supernet.plan.kept[0.5][name]) < values[2] for name, values in TINY_PIPES.items())
    assert counts == {1.0: 0, 0.5: 7 * len(TINY_PIPES)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_grad", [True, False])
def test_the_extracted_subnet_is_the_subnet_in_the_supernet_bit_for_bit(base, rule, size, with_grad):
    supernet = supernet_of(base, rule)
    subnet = supernet.extract(size)
    images, timesteps = inputs()
    # Both modes: torch picks another kernel for a weight that asks for gradients.
    with torch.set_grad_enabled(with_grad):
        inside = supernet(size, images, timesteps).sample
        assert torch.isfinite(inside).all()
        assert torch.equal(subnet(images, timesteps).sample, inside)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_the_extracted_subnet_has_the_planned_parameters_and_widths(base, rule, size):
    supernet = supernet_of(base, rule)
    subnet = supernet.extract(size)
    assert sum(parameter.numel() for parameter in subnet.parameters()) == supernet.plan.params[size]
    for name, (kind, _, _, groups, _) in TINY_PIPES.items():
        unit, kept = subnet.get_submodule(name), len(supernet.plan.kept[size][name])
        if kind == "conv":
            assert (unit.conv1.out_channels, unit.norm2.num_channels, unit.conv2.in_channels) == (kept, kept, kept)
            assert unit.norm2.num_groups == groups
        else:
            assert (unit.to_q.out_features, unit.to_out[0].in_features, unit.heads) == (kept, kept, groups)


def test_the_extracted_weights_are_the_kept_ones_of_the_base(base):
    supernet = supernet_of(base)
    subnet = dict(supernet.extract(0.5).named_parameters())
    expected = dict(base.named_parameters())
    for name, values in TINY_PIPES.items():
        kept = list(supernet.plan.kept[0.5][name])
        for parameter, dimension in slices_by_hand(values[0], name):
            expected[parameter] = expected[parameter][kept] if dimension == 0 else expected[parameter][:, kept]
    assert list(subnet) == [name for name, _ in base.named_parameters()]
    assert all(torch.equal(subnet[name], tensor) for name, tensor in expected.items())
    assert all(parameter.requires_grad for parameter in subnet.values())


def test_sizes_of_one_supernet_compute_different_things(base):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    with torch.no_grad():
        outputs = [supernet(size, images, timesteps).sample for size in SIZES]
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in pairwise(outputs))


def test_an_extracted_subnet_owns_its_weights(base):
    supernet = supernet_of(base)
    for size in (1.0, 0.5):
        subnet = supernet.extract(size)
        before = [parameter.clone() for parameter in base.parameters()]
        with torch.no_grad():
            for parameter in subnet.parameters():
                parameter.zero_()
        assert all(torch.equal(now, then) for now, then in zip(base.parameters(), before, strict=True))


def test_skeletons_add_no_parameters(base):
    alone = list(base.parameters())
    names = [name for name, _ in base.named_parameters()]
    supernet = supernet_of(base)
    assert len(list(supernet.parameters())) == len(alone)
    assert all(mine is theirs for mine, theirs in zip(supernet.parameters(), alone, strict=True))
    assert [name for name, _ in supernet.named_parameters()] == [f"base.{name}" for name in names]
    assert list(supernet.state_dict()) == [f"base.{name}" for name in base.state_dict()]


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_scattered_into_the_shared_weights(base, size):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    subnet = supernet.extract(size)
    subnet(images, timesteps).sample.square().mean().backward()
    expected = {name: parameter.grad for name, parameter in subnet.named_parameters()}
    for name, values in TINY_PIPES.items():
        kept = list(supernet.plan.kept[size][name])
        for parameter, dimension in slices_by_hand(values[0], name):
            full = torch.zeros_like(base.get_parameter(parameter))
            if dimension == 0:
                full[kept] = expected[parameter]
            else:
                full[:, kept] = expected[parameter]
            expected[parameter] = full
    supernet(size, images, timesteps).sample.square().mean().backward()
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_a_skeleton_holds_no_weights_after_a_pass_not_even_after_one_that_fails(base):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    supernet(0.5, images, timesteps)
    with pytest.raises(RuntimeError):
        supernet(0.5, images[:, :, :3, :3].repeat(1, 3, 1, 1), timesteps)  # three channels
    assert all(parameter.is_meta for skeleton in supernet.skeletons for parameter in skeleton.parameters())


def test_one_backward_of_two_sizes_adds_their_gradients(base):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    alone = []
    for size in (0.75, 0.25):
        base.zero_grad()
        supernet(size, images, timesteps).sample.square().mean().backward()
        alone.append({name: parameter.grad.clone() for name, parameter in base.named_parameters()})
    base.zero_grad()
    sum(supernet(size, images, timesteps).sample.square().mean() for size in (0.75, 0.25)).backward()
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(parameter.grad, alone[0][name] + alone[1][name], rtol=1e-5, atol=1e-8)


def test_a_change_of_the_shared_weights_reaches_every_size(base):
    supernet = supernet_of(base)
    images, timesteps = inputs()
    with torch.no_grad():
        before = [supernet(size, images, timesteps).sample for size in SIZES]
        base.conv_out.bias += 1.0
        after = [supernet(size, images, timesteps).sample for size in SIZES]
    for now, then in zip(after, before, strict=True):
        torch.testing.assert_close(now, then + 1.0)


def test_training_mode_reaches_the_subnets(tiny):
    model = build_base(tiny.network, seed=0)
    set_dropout(model, 0.5)
    supernet = supernet_of(model)
    images, timesteps = inputs()

    def twice():
        with torch.no_grad():
            return [supernet(0.5, images, timesteps).sample for _ in range(2)]

    assert torch.equal(*twice())
    assert all(not module.training for module in supernet.extract(0.5).modules())
    supernet.train()
    assert not torch.equal(*twice())
    assert all(module.training for module in supernet.extract(0.5).modules())


def test_sizes_are_listed_largest_first(base):
    pipes, plan = plan_for(base, sizes=(0.5, 1.0, 0.25))
    assert Supernet(base, pipes, plan).sizes == (1.0, 0.5, 0.25)
    assert isinstance(Supernet(base, pipes, plan).extract(0.25), nn.Module)


# --- sampling law


def test_linear_law_by_hand():
    # Weights 1, 5/3, 7/3 and 3, whose sum is 8.
    assert linear_law(SIZES, 3) == pytest.approx((1 / 8, 5 / 24, 7 / 24, 3 / 8))
    assert linear_law((0.25, 1.0, 0.5), 5) == pytest.approx((15 / 29, 3 / 29, 11 / 29))  # weights 5, 1, 11/3
    assert linear_law(SIZES, 1) == pytest.approx((0.25,) * 4)
    assert linear_law((0.5,), 3) == (1.0,)


def draws(law, steps, *, m=3.0, sandwich_random=2, seed=0, sizes=SIZES):
    law = named_law(law, m=m, sandwich_random=sandwich_random)
    return [law.draw(sizes, seed=seed, step=step) for step in range(steps)]


@pytest.mark.parametrize(("law", "expected"), [("linear", (1 / 8, 5 / 24, 7 / 24, 3 / 8)), ("uniform", (0.25,) * 4)])
def test_sizes_are_drawn_as_often_as_the_law_says(law, expected):
    steps = 20_000
    drawn = draws(law, steps)
    assert all(len(sizes) == 1 for sizes in drawn)
    counts = Counter(size for (size,) in drawn)
    for size, probability in zip(SIZES, expected, strict=True):
        standard_error = (probability * (1 - probability) / steps) ** 0.5
        assert counts[size] / steps == pytest.approx(probability, abs=4 * standard_error)


@pytest.mark.parametrize("law", ["linear", "uniform", "weighted", "sandwich"])
def test_the_sizes_of_a_step_depend_on_seed_and_step_alone(law):
    forward = draws(law, 50, sizes=PAPER_SIZES)
    known = named_law(law, m=3.0, sandwich_random=2)
    backward = [known.draw(PAPER_SIZES, seed=0, step=step) for step in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != draws(law, 50, sizes=PAPER_SIZES, seed=1)
    assert len(set(forward)) > 1


def test_another_process_draws_the_same_sizes():
    code = f"from repro.ofa.sampling_law import Linear\nfor step in range(20):\n    print(*Linear(3.0).draw({SIZES}, seed=7, step=step))\n"
    environment = {"PYTHONHASHSEED": "12345", "PATH": "/usr/bin:/bin"}
    outcome = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert [(float(line),) for line in outcome.stdout.splitlines()] == draws("linear", 20, seed=7)


def test_a_sandwich_holds_the_largest_the_smallest_and_others_between():
    drawn = draws("sandwich", 200, sizes=PAPER_SIZES)
    for sizes in drawn:
        assert (sizes[0], sizes[-1]) == (max(PAPER_SIZES), min(PAPER_SIZES))
        assert len(set(sizes)) == len(sizes) == 4
        assert set(sizes) <= set(PAPER_SIZES)
    between = Counter(size for sizes in drawn for size in sizes[1:-1])
    assert set(between) == set(PAPER_SIZES) - {max(PAPER_SIZES), min(PAPER_SIZES)}


def test_a_sandwich_of_few_sizes_takes_what_there_is():
    assert draws("sandwich", 1, sizes=(1.0, 0.5), sandwich_random=2) == [(1.0, 0.5)]
    assert draws("sandwich", 1, sizes=(0.5,), sandwich_random=2) == [(0.5,)]
    assert draws("sandwich", 1, sandwich_random=0) == [(1.0, 0.25)]


def test_an_unknown_law_is_an_error_that_names_the_known():
    with pytest.raises(ReproError, match="unknown law 'sandwhich'; use linear, uniform, weighted or sandwich"):
        draws("sandwhich", 1)
