"""Independent pruning: to a size, by each criterion, from each recipe."""

import copy
import dataclasses
import itertools
import re

import pytest
import torch
from support.networks import CIFAR10_NETWORK
from torch import nn

from baselines import criteria
from baselines.names import RECIPES
from baselines.pruning import prune_to_params
from baselines.recipes import Task, scoring_gradients, starting_network
from repro.config import Diffusion, Network, Pruning, load_config
from repro.data.images import digits
from repro.diffusion.ddpm import DDPM, sampling_scheduler
from repro.errors import ReproError
from repro.models.cost import count_macs, count_macs_torch_pruning
from repro.models.denoiser import build_base, load_denoiser, save_denoiser, set_dropout
from repro.runtime.seeds import generator

EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.zeros(1))


@pytest.fixture(scope="module")
def network():
    """A network like that of the digits, with random weights and the gradients of one loss."""
    wide = dataclasses.replace(load_config("digits").network, block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=16)
    model = build_base(wide, seed=0).eval()
    stream = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 4, 1, 8, 8, generator=stream)
    (model(images, torch.tensor([1, 10, 100, 500])).sample - noise).square().mean().backward()
    return model


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def score_named(name):
    return criteria.random(0) if name == "random" else getattr(criteria, name)()


def outputs(model):
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return model(torch.randn(3, 1, 8, 8, generator=stream), torch.tensor([0, 10, 900])).sample


def weights_equal(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


# --- pruning to a size


def each_once(scores, shares):
    """Every score and every share once; the other pairs are slow tests."""
    pairs = list(itertools.product(range(len(scores)), range(len(shares))))
    return [pytest.param(scores[i], shares[j], marks=[pytest.mark.slow] * (i != j), id=f"{shares[j]}-{scores[i]}") for i, j in pairs]


@pytest.mark.parametrize(("score", "share"), each_once(("random", "magnitude", "taylor"), (0.75, 0.5, 0.25)))
def test_a_parameter_size_is_met_and_the_network_runs_and_is_kept(network, tmp_path, score, share):
    before = copy.deepcopy(network.state_dict())
    target = round(share * size_of(network))
    pruned = prune_to_params(network, target, score_named(score), EXAMPLE)
    assert size_of(pruned) == pytest.approx(target, rel=0.03)
    # The residual stream is pruned too, but not what comes out at the end.
    assert pruned.conv_in.weight.shape[0] < network.conv_in.weight.shape[0]
    assert pruned.conv_out.weight.shape[0] == network.conv_out.weight.shape[0] == 1
    assert all(parameter.grad is None for parameter in pruned.parameters())
    # The base stays as it was, gradients included.
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is not None for parameter in network.parameters())
    found = outputs(pruned)
    assert found.shape == (3, 1, 8, 8)
    assert torch.isfinite(found).all()
    save_denoiser(pruned, sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "pruned")
    loaded = load_denoiser(tmp_path / "pruned").eval()
    assert weights_equal(loaded, pruned)
    assert torch.equal(outputs(loaded), found)


def test_every_normalisation_still_divides_into_its_groups(network):
    pruned = prune_to_params(network, round(0.5 * size_of(network)), criteria.magnitude(), EXAMPLE)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == network.get_submodule(name).num_groups == 8
            assert module.weight.numel() == module.num_channels
            assert module.num_channels % 8 == 0


def test_the_full_size_changes_nothing(network):
    same = prune_to_params(network, size_of(network), criteria.magnitude(), EXAMPLE)
    assert same is not network
    assert weights_equal(same, network)
    assert torch.equal(outputs(same), outputs(network))


def test_more_than_the_full_size_is_refused(network):
    with pytest.raises(ReproError, match=f"the base has {size_of(network)}; ask for a smaller size"):
        prune_to_params(network, size_of(network) + 1, criteria.magnitude(), EXAMPLE)


def test_the_least_size_leaves_a_network_that_runs_and_below_it_none_is_promised(network):
    with pytest.raises(ReproError, match="are left when all that may be pruned is; ask for a larger size") as refused:
        prune_to_params(network, 1, criteria.magnitude(), EXAMPLE)
    least = int(re.search(r"([\d,]+) are left", str(refused.value))[1].replace(",", ""))
    pruned = prune_to_params(network, least, criteria.magnitude(), EXAMPLE)
    assert size_of(pruned) == least < 0.1 * size_of(network)
    assert torch.isfinite(outputs(pruned)).all()


# --- criteria


@pytest.mark.parametrize("channel", [21, *(pytest.param(edge, marks=pytest.mark.slow) for edge in (0, 31))])
def test_magnitude_keeps_a_channel_that_was_made_huge(network, channel):
    huge = copy.deepcopy(network)
    conv = huge.down_blocks[0].resnets[0].conv1
    with torch.no_grad():
        conv.weight[channel] = 77.0
    pruned = prune_to_params(huge, round(0.3 * size_of(network)), criteria.magnitude(), EXAMPLE)
    kept = pruned.down_blocks[0].resnets[0].conv1.weight
    assert len(kept) < len(conv.weight)
    assert [bool((row == 77.0).all()) for row in kept].count(True) == 1


def test_taylor_prefers_channels_whose_gradient_is_large(network):
    steep = copy.deepcopy(network)
    for mine, theirs in zip(steep.parameters(), network.parameters(), strict=True):
        mine.grad = theirs.grad.clone()
    conv = steep.down_blocks[0].resnets[0].conv1
    with torch.no_grad():
        conv.weight[21] = conv.weight[21].abs() + 1e-4  # marked, and its products with the gradient all of one sign
        conv.weight.grad[21] = 1e6
        mark = conv.weight[21, :, 1, 1].clone()
    pruned = prune_to_params(steep, round(0.3 * size_of(network)), criteria.taylor(), EXAMPLE)
    kept = pruned.down_blocks[0].resnets[0].conv1.weight[:, :, 1, 1]
    assert len(kept) < len(conv.weight)
    assert any(torch.isin(row, mark).all() for row in kept)


def test_random_depends_on_its_seed_alone(network):
    target = round(0.5 * size_of(network))
    torch.manual_seed(1)
    one = prune_to_params(network, target, criteria.random(3), EXAMPLE)
    torch.manual_seed(2)
    again = prune_to_params(network, target, criteria.random(3), EXAMPLE)
    other = prune_to_params(network, target, criteria.random(4), EXAMPLE)
    assert weights_equal(one, again)
    assert shapes(one) == shapes(other)
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)


class Constant(nn.Module):
    """One weight of 1, to make losses of any value with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("threshold", "used", "gradient"),
    [
        (0.0, 6, 1 + 4 + 3 + 0.9 + 0.5 + 5),
        (0.2, 4, 1 + 4 + 3 + 0.9),  # 0.5 is the first below 0.2 * 4; the 5 after it is never reached
        (0.125, 6, 14.4),  # 0.5 = 0.125 * 4 is not below
        (0.8, 2, 1 + 4),  # 3 is below 3.2
    ],
)
def test_gradients_are_summed_until_the_loss_falls_below_the_threshold(threshold, used, gradient):
    model, asked = Constant(), []
    sequence = (1.0, 4.0, 3.0, 0.9, 0.5, 5.0)
    model.weight.grad = torch.full((1,), 1000.0)  # of something earlier

    def losses(timestep):
        asked.append(timestep)
        return sequence[timestep] * model.weight.sum()

    assert criteria.accumulate_gradients(model, losses, train_timesteps=6, threshold=threshold) == used
    assert model.weight.grad.item() == pytest.approx(gradient)
    assert asked == list(range(min(used + 1, 6)))


# --- recipes


SETTINGS = Pruning(images=8, threshold=0.9)


def formulation():
    return DDPM(Diffusion(num_train_timesteps=20))


def task(network, share, *, seed=0, scored=False):
    """What a recipe needs; `scored` takes Diff-Pruning's gradients of the network beforehand."""
    return Task(
        base=network,
        params=round(share * size_of(network)),
        images=digits(),
        formulation=formulation(),
        levels=20,
        settings=SETTINGS,
        seed=seed,
        gradients=scoring_gradients(task(network, 1.0, seed=seed))[0] if scored else {},
    )


def clone(network):
    """A recipe clears the base's gradients, so each gets its own."""
    return copy.deepcopy(network)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "scratch"])
def test_a_recipe_at_full_size_starts_from_a_copy_of_the_base(network, recipe):
    model = starting_network(recipe, task(network, 1.0))
    assert weights_equal(model, network)
    assert model is not network
    assert model.conv_in.weight.data_ptr() != network.conv_in.weight.data_ptr()


@pytest.mark.parametrize("recipe", ["diff_pruning", "scratch"])
def test_a_recipe_meets_the_size_and_repeats_itself(network, recipe):
    base = clone(network)
    one, again = (starting_network(recipe, task(base, 0.5, scored=recipe == "diff_pruning")) for _ in range(2))
    assert size_of(one) == pytest.approx(0.5 * size_of(network), rel=0.03)
    assert weights_equal(one, again)
    assert weights_equal(base, network)
    assert torch.isfinite(outputs(one)).all()


def test_scratch_has_the_shapes_of_magnitude_pruning_and_weights_of_its_own(network):
    base = clone(network)
    magnitude, scratch, other_seed = (
        starting_network(recipe, task(base, 0.5, seed=seed)) for recipe, seed in (("magnitude", 0), ("scratch", 0), ("scratch", 1))
    )
    assert shapes(scratch) == shapes(magnitude) == shapes(other_seed)
    for name, module in scratch.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for other in (magnitude, other_seed):
                alike = torch.isclose(module.weight, other.get_submodule(name).weight, rtol=1e-4, atol=0)
                assert alike.double().mean() < 0.05, name
    # Fresh weights of a layer are uniform within 1 / sqrt(inputs).
    limit = scratch.conv_in.weight[0].numel() ** -0.5
    assert scratch.conv_in.weight.abs().max() <= limit


@pytest.mark.parametrize("family", ["digits", "digits_edm_cond", "digits_uvit", "digits_transformer"])
@pytest.mark.parametrize("size", [1.0, 0.5])
def test_scratch_begins_as_networks_of_its_kind_do_and_keeps_nothing(family, size):
    """Also at full size, where nothing is pruned: a copy of the base would be Diff-Pruning's run under another name."""
    settings = load_config(family).denoiser
    base, fresh, stream = (
        build_base(settings, seed=0),
        dict(build_base(settings, seed=9).named_parameters()),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream))  # what it has learned
    model = starting_network("scratch", task(base, size))
    learned = dict(base.named_parameters())
    assert size_of(model) == pytest.approx(size * size_of(base), rel=0.05)
    for name, parameter in model.named_parameters():
        if size == 1:
            assert not torch.equal(parameter, learned[name]), name
        begins = fresh[name]
        if begins.unique().tolist() in ([0.0], [1.0]):
            assert parameter.unique().tolist() == begins.unique().tolist(), name
        elif parameter.numel() > 500 and size == 1:
            assert parameter.std().item() == pytest.approx(begins.std().item(), rel=0.15), name


def test_scratch_of_a_network_that_does_not_say_how_it_begins_is_refused(network):
    class Scaled(type(network)):
        """Has a parameter of its own, which no layer holds."""

    odd = clone(network)
    odd.__class__ = Scaled
    odd.scale = nn.Parameter(torch.randn(1))
    with pytest.raises(ReproError, match=r"scratch: scale of Scaled would keep what the base has learned; .* a method `initialise`"):
        starting_network("scratch", task(odd, 1.0))
    Scaled.initialise = lambda self: nn.init.normal_(self.scale)
    assert not torch.equal(starting_network("scratch", task(odd, 1.0)).scale, odd.scale)


def test_diff_pruning_scores_by_the_gradients_of_its_seed_s_images(network):
    base = clone(network)
    one, other_seed = (starting_network("diff_pruning", task(base, 0.5, seed=seed, scored=True)) for seed in (0, 1))
    magnitude = starting_network("magnitude", task(base, 0.5))
    assert shapes(one) == shapes(other_seed) == shapes(magnitude)
    assert not weights_equal(one, magnitude)
    assert not weights_equal(one, other_seed)


def loop_gradients(network, seed):
    """Diff-Pruning's gradients as its paper has them: t = 0, 1, ... of one batch and one noise, while the loss is 0.9 of the largest."""
    model, pixels, noises = copy.deepcopy(network).eval(), digits().pixels, formulation().schedule
    stream = generator(torch.device("cpu"), "diff-pruning", seed)
    chosen = torch.randperm(len(pixels), generator=stream)[:8]
    clean = pixels[chosen].float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=stream)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    largest = 0.0
    for timestep in range(20):
        alpha_bar = float(noises.alphas_cumprod[timestep])
        noisy = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
        loss = (model(noisy, torch.full((8,), timestep)).sample - noise).square().mean()
        largest = max(largest, loss.item())
        if loss.item() < 0.9 * largest:
            return total, timestep
        for name, gradient in zip(total, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total[name] += gradient
    return total, 20


@pytest.mark.parametrize("seed", [0, 1])
def test_the_one_gradient_pass_is_that_of_a_plain_loop_and_leaves_the_base_as_it_was(network, seed):
    base = clone(network)
    set_dropout(base.train(), 0.5)  # shows whether the base is scored in evaluation mode
    found, timesteps = scoring_gradients(task(base, 1.0, seed=seed))
    expected, used = loop_gradients(network, seed)
    assert timesteps == used
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-8)
    assert weights_equal(base, network)
    assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.slow
def test_one_gradient_pass_serves_every_size_and_the_gradients_that_lie_on_the_base_do_not_matter(network):
    base = clone(network)
    gradients, _ = scoring_gradients(task(base, 1.0))
    for parameter in base.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)  # of something earlier
    for share in (0.75, 0.5):
        given = dataclasses.replace(task(base, share), gradients=gradients)
        assert weights_equal(
            starting_network("diff_pruning", given), starting_network("diff_pruning", task(clone(network), share, scored=True))
        )


def test_diff_pruning_without_its_gradients_is_an_error(network):
    with pytest.raises(KeyError, match=r"conv_in\.weight"):
        starting_network("diff_pruning", task(clone(network), 0.5))


# --- the paper's network


@pytest.mark.slow
def test_the_cifar10_network_meets_half_of_its_size(capsys):
    model = build_base(Network(**CIFAR10_NETWORK), seed=0).eval()
    pruned = prune_to_params(model, 20_250_000, criteria.magnitude(), (torch.zeros(1, 3, 32, 32), torch.zeros(1)))
    macs = count_macs(pruned, (3, 32, 32))
    theirs = count_macs_torch_pruning(pruned, (3, 32, 32))
    with capsys.disabled():
        print(f" {size_of(pruned):,} parameters, {macs.total / 1e9:.3f} G MACs, {theirs / 1e9:.3f} G by torch-pruning ", end="")
    assert size_of(pruned) == pytest.approx(20_250_000, rel=0.02)
    # Diff-Pruning's model: 19.8 M parameters, 3.4 G by torch-pruning.
    assert 3.3e9 < theirs < 3.7e9
    assert theirs < macs.total < 1.06 * theirs
