"""Interference between sizes: cosines against closed forms, what a size holds, and which group of weights did what."""

import math

import pytest
import torch

from repro.config import load_config
from repro.models.cost import count_params
from repro.models.denoiser import build_base
from repro.ofa.allocation import make_plan
from repro.ofa.importance import equal_importance
from repro.ofa.interference import ALL, gradient_cosines, groups_of, swapped_losses
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

SIZES = (1.0, 0.5, 0.25)


@pytest.fixture
def supernet(tiny):
    base = build_base(tiny.network, seed=0)
    pipes = pipes_of(base)
    plan = make_plan(pipes, equal_importance(pipes), SIZES, params_base=count_params(base.parameters()), rule="uniform", floor=0.25)
    return Supernet(base, pipes, plan)


def drawn(supernet, seed):
    """Returns a vector of the shared weights' shape, as a loss that is linear in them has it for its gradient."""
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.randn(parameter.shape, generator=stream) for name, parameter in supernet.base.named_parameters()}


def linear(supernet, size, vector):
    """A loss whose gradient is the vector on what the size holds, and 0 elsewhere."""
    held = supernet.held(size)
    return sum((parameter * vector[name] * held[name]).sum() for name, parameter in supernet.base.named_parameters())


def plus(vector, other, factor):
    return {name: tensor + factor * other[name] for name, tensor in vector.items()}


def flat(vector, held, layer=None):
    return torch.cat([tensor[held[name]] for name, tensor in vector.items() if layer in (None, name.rpartition(".")[0])]).double()


def test_a_size_holds_what_its_extracted_network_is_made_of_and_nothing_else_changes_what_it_computes(supernet):
    images, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    for size in SIZES:
        held = supernet.held(size)
        assert (
            sum(int(mask.sum()) for mask in held.values())
            == count_params(supernet.extract(size).parameters())
            == supernet.plan.params[size]
        )
    held, before = supernet.held(0.5), supernet(0.5, images, timesteps).sample
    with torch.no_grad():
        for name, parameter in supernet.base.named_parameters():
            parameter[~held[name]] = math.nan
    assert torch.equal(supernet(0.5, images, timesteps).sample, before)
    assert all(bool((supernet.held(0.25)[name] <= mask).all()) for name, mask in held.items())  # nested


def test_cosines_are_those_of_the_gradients_on_what_the_smaller_size_holds(supernet):
    vectors = {size: drawn(supernet, seed) for seed, size in enumerate(SIZES)}
    vectors[0.5] = plus(vectors[0.5], vectors[1.0], 0.7)
    norms, found = gradient_cosines(supernet, ([None], [None]), lambda size, _batch: linear(supernet, size, vectors[size]))
    assert all(norms[size] == pytest.approx(float(flat(vectors[size], supernet.held(size)).norm()), rel=1e-5) for size in SIZES)
    assert list(found) == [(0.5, 1.0), (0.25, 1.0), (0.25, 0.5)]
    for (smaller, larger), layers in found.items():
        held = supernet.held(smaller)
        assert layers.keys() == {ALL, *(name.rpartition(".")[0] for name in held)}
        for layer, cosine in layers.items():
            ours, theirs = (flat(vectors[size], held, None if layer == ALL else layer) for size in (smaller, larger))
            assert cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)), abs=1e-6)
    assert found[0.5, 1.0][ALL] == pytest.approx(0.7 / math.sqrt(1.49), abs=0.05)
    assert abs(found[0.25, 1.0][ALL]) < 0.1


def test_noise_that_both_sizes_share_is_no_agreement(supernet):
    truth = {1.0: drawn(supernet, 0)}
    truth |= {0.5: plus(truth[1.0], drawn(supernet, 1), 0.5), 0.25: plus(drawn(supernet, 2), truth[1.0], -1)}
    noise = [drawn(supernet, 10 + index) for index in range(8)]  # both sizes see the same: it is no agreement of theirs

    def loss(size, index):
        return linear(supernet, size, plus(truth[size], noise[index], 2.0))

    _, found = gradient_cosines(supernet, (range(0, 8, 2), range(1, 8, 2)), loss)
    held = supernet.held(0.5)
    exact = float(torch.nn.functional.cosine_similarity(flat(truth[0.5], held), flat(truth[1.0], held), dim=0))
    noisy = float(torch.nn.functional.cosine_similarity(*(flat(plus(truth[size], noise[0], 2.0), held) for size in (0.5, 1.0)), dim=0))
    assert exact == pytest.approx(1 / math.sqrt(1.25), abs=0.02)
    assert noisy > exact + 0.05  # a plain cosine takes the noise that both sizes share for an agreement
    assert found[0.5, 1.0][ALL] == pytest.approx(exact, abs=0.04)
    assert found[0.25, 1.0][ALL] == pytest.approx(-1 / math.sqrt(2), abs=0.06)


def test_a_gradient_that_is_noise_alone_has_no_cosine(supernet):
    noise = drawn(supernet, 3)
    signs = {0: 1.0, 1: -1.0}  # the halves contradict each other
    norms, found = gradient_cosines(supernet, ([0], [1]), lambda size, index: signs[index] * linear(supernet, size, noise))
    assert {*norms.values()} == {None}
    assert all(cosine is None for layers in found.values() for cosine in layers.values())


def test_every_parameter_has_the_group_of_what_its_layer_does(tiny):
    model = build_base(tiny.network, seed=0)
    groups = groups_of(model, pipes_of(model))
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert groups["conv_in.weight"] == groups["conv_out.bias"] == groups["down_blocks.1.resnets.0.conv_shortcut.weight"] == "stream"
    assert groups["down_blocks.0.resnets.0.conv1.weight"] == "first convolutions"
    assert groups["down_blocks.0.resnets.0.conv2.bias"] == "second convolutions"
    assert groups["time_embedding.linear_1.weight"] == groups["down_blocks.0.resnets.0.time_emb_proj.weight"] == "embedding"
    assert groups["mid_block.attentions.0.to_q.weight"] == groups["mid_block.attentions.0.to_out.0.weight"] == "attention"
    assert groups["mid_block.attentions.0.group_norm.weight"] == groups["conv_norm_out.bias"] == "norms"


@pytest.mark.parametrize("name", ["digits_edm", "digits_uvit", "digits_transformer"])
def test_parameters_of_every_family_have_a_group_and_a_cosine(name):
    base = build_base(load_config(name).denoiser, seed=0)
    pipes = pipes_of(base)
    groups = groups_of(base, pipes)
    assert groups.keys() == dict(base.named_parameters()).keys() and {"attention", "stream"} < {*groups.values()}
    plan = make_plan(pipes, equal_importance(pipes), SIZES, params_base=count_params(base.parameters()), rule="uniform", floor=0.25)
    net = Supernet(base, pipes, plan)
    vector = drawn(net, 0)
    _, found = gradient_cosines(net, ([None], [None]), lambda size, _batch: linear(net, size, vector))
    assert all(cosine == pytest.approx(1.0) for layers in found.values() for cosine in layers.values())


def test_swapped_losses_are_those_of_the_exchanged_weights_and_the_network_stays_as_it_was(tiny):
    model, earlier = build_base(tiny.network, seed=0), build_base(tiny.network, seed=1)
    groups = groups_of(model, pipes_of(model))
    before = {name: tensor.detach() + 0.1 for name, tensor in earlier.named_parameters()}
    after = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def of(weights, group=None):
        return sum(float(tensor.square().sum()) for name, tensor in weights.items() if group in (None, groups[name]))

    found = swapped_losses(model, before, groups, lambda: of(dict(model.named_parameters())))
    assert found["before"] == pytest.approx(of(before)) and found["after"] == pytest.approx(of(after))
    assert found["groups"].keys() == {*groups.values()}
    assert sum(group["params"] for group in found["groups"].values()) == count_params(model.parameters())
    for name, group in found["groups"].items():
        change = of(after, name) - of(before, name)
        assert group["given_back"] == pytest.approx(found["after"] - change, rel=1e-5)
        assert group["taken_over"] == pytest.approx(found["before"] + change, rel=1e-5)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.named_parameters())
