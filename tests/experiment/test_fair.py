"""Nothing favours a side: protocols, costs, dropout, averages and bases are what they are said to be."""

import copy
import json
import math
import statistics

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from baselines.recipes import Task, scoring_gradients
from repro.config import Diffusion, Training, build, changed, load_config
from repro.data.images import digits
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.ddpm import DDPM, min_snr_weights, noise_schedule
from repro.diffusion.formulation import image_losses, predictor
from repro.errors import ReproError
from repro.experiment import shipped
from repro.experiment.cells import Cell, Experiment, base_cell, plan_cells
from repro.files import shipped_files
from repro.grid import METHODS
from repro.methods.variants import TRAINED_ALONE, TRAINED_ONCE, compute
from repro.metrics.classifier import classifier_for
from repro.models.cost import count_macs, count_params
from repro.models.denoiser import build_base, set_dropout
from repro.ofa.allocation import make_plan
from repro.ofa.importance import equal_importance
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet
from repro.runtime.clock import Clock
from repro.training.loop import Run, train

QUIET = lambda *_: None  # noqa: E731


def experiment_of(config, folder):
    return Experiment(config=config, methods=METHODS, results=folder / "results", runs=folder / "runs", source="")


# --- A3: one gradient pass for all sizes of a seed


def test_the_sizes_of_a_seed_share_one_gradient_pass(tiny, tmp_path):
    cells = plan_cells(experiment_of(tiny, tmp_path), ["diff_pruning", "diff_pruning_short", "diff_pruning_averaged"], None, [0, 1])
    passes = [cell for cell in cells if cell.method.endswith("_scores")]
    assert passes == [Cell(method="diff_pruning_scores", size=None, seed=seed) for seed in (0, 1)]
    pruned = [cell for cell in cells if cell.size is not None and cell.size < 1 and cell.method.startswith("diff_pruning")]
    assert len(pruned) == 6
    for cell in pruned:
        delivered = METHODS[cell.method].delivered_by(cell)
        assert delivered == (Cell(method="diff_pruning_scores", size=None, seed=cell.seed),)
        assert cells.index(delivered[0]) < cells.index(cell)


def test_another_threshold_has_a_pass_of_its_own_and_other_criteria_have_none(tiny):
    cell = Cell(method="diff_pruning_t0", size=0.5, seed=0)
    assert METHODS["diff_pruning_t0"].delivered_by(cell) == (Cell(method="diff_pruning_t0_scores", size=None, seed=0),)
    for name in ("random", "magnitude", "scratch"):
        assert METHODS[name].delivered_by(Cell(method=name, size=0.5, seed=0)) == ()


def test_the_gradients_are_the_sum_over_the_informative_timesteps(tiny):
    base, formulation = build_base(tiny.network, seed=0).eval(), DDPM(Diffusion(num_train_timesteps=20))
    task = Task(base=base, params=0, images=digits(), formulation=formulation, settings=tiny.pruning, seed=3, levels=20)
    (found, used), (again, _) = scoring_gradients(task), scoring_gradients(task)
    assert 1 <= used <= 20
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert all(parameter.grad is None for parameter in base.parameters())
    assert found.keys() == {name for name, _ in base.named_parameters()}


# --- A4: the work of scoring counts


def test_equal_compute_counts_the_scoring_of_both_sides():
    config = load_config("digits")
    alone, joint, scoring, formula4 = compute(config)
    short = changed(config, TRAINED_ALONE["diff_pruning_short"].changes(config))
    long = changed(config, TRAINED_ONCE["ofa_long"].changes(config))
    less, _, _, _ = compute(short)
    _, more, _, _ = compute(long)
    assert (less + scoring) / (joint + formula4) == pytest.approx(1, rel=0.01)
    assert (more + formula4) / (alone + scoring) == pytest.approx(1, rel=0.01)
    macs = count_macs(build_base(config.network, seed=0), (1, 8, 8)).total
    assert scoring == pytest.approx(macs * config.pruning.images * config.pruning.timesteps)
    assert formula4 == pytest.approx(macs * config.importance.images * 2 / 3)


# --- A5: the protocol of the baselines' authors


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10_short"])
def test_the_baselines_train_by_their_authors_protocol(name):
    settings = load_config(name).baseline_training
    assert (settings.loss_reduction, settings.timesteps, settings.gradient_clipping) == ("sum", "antithetic", 1.0)


@pytest.mark.parametrize("batch_size", [6, 7])
def test_antithetic_timesteps_come_in_pairs_and_change_nothing_else(batch_size):
    made = [
        NoisyBatches(digits(), DDPM(Diffusion()), batch_size=batch_size, seed=0, device=torch.device("cpu"), antithetic=antithetic)(5)
        for antithetic in (False, True)
    ]
    plain, paired = made
    half = (batch_size + 1) // 2
    assert torch.equal(paired.timesteps[:half], plain.timesteps[:half])
    assert torch.equal(paired.timesteps[half:], 999 - paired.timesteps[: batch_size - half])
    assert torch.equal(paired.target, plain.target)


def test_a_loss_that_is_summed_over_pixels_is_clipped_where_its_mean_is_not(tiny):
    """The gradient of the sum is 64 times that of the mean, so only its clipping at 1 acts; the curve shows the mean either way."""
    batches = NoisyBatches(digits(), DDPM(tiny.diffusion), batch_size=8, seed=0, device=torch.device("cpu"))
    base = build_base(tiny.network, seed=0)
    loss = image_losses(predictor(base), batches(0)).mean()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in base.parameters() if p.grad is not None))
    assert norm < 64 * norm
    clip = 8 * norm  # between the two
    ends = []
    for pixels in (1, 64):
        model = build_base(tiny.network, seed=0)
        run = Run(
            identity="x",
            seed=0,
            batches=batches,
            loss=lambda module, batch, _step, pixels=pixels: pixels * image_losses(predictor(module), batch).mean(),
            loss_unit=pixels,
        )
        seen = []
        hook = torch.nn.utils.clip_grad_norm_

        def watched(parameters, limit, seen=seen, hook=hook):
            seen.append(float(hook(parameters, limit)))

        torch.nn.utils.clip_grad_norm_ = watched
        try:
            curve = train(model, run, Training(steps=1, batch_size=8, learning_rate=1e-3, gradient_clipping=clip), Clock(), QUIET)
        finally:
            torch.nn.utils.clip_grad_norm_ = hook
        ends.append((curve[0][1], seen[0]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6) == pytest.approx(loss.item(), rel=1e-6)
    assert ends[0][1] == pytest.approx(norm, rel=1e-4) and ends[0][1] < clip
    assert ends[1][1] == pytest.approx(64 * norm, rel=1e-4) and ends[1][1] > clip


def test_min_snr_weights_are_the_published_formula():
    schedule = noise_schedule(Diffusion())
    weights = min_snr_weights(schedule)
    for timestep in (0, 10, 200, 500, 999):
        alpha_bar = float(schedule.alphas_cumprod[timestep])
        ratio = alpha_bar / (1 - alpha_bar)
        assert weights[timestep].item() == pytest.approx(min(ratio, 5.0) / ratio, rel=1e-4)


def test_the_weights_reach_the_losses():
    schedule = noise_schedule(Diffusion())
    batches = NoisyBatches(digits(), DDPM(Diffusion()), batch_size=8, seed=0, device=torch.device("cpu"), weighting="min_snr")
    batch = batches(0)
    plain = image_losses(lambda images, _timesteps: 0 * images, batch._each(lambda tensor: tensor))
    bare = batch.target.square().flatten(1).mean(dim=1)
    torch.testing.assert_close(plain, bare * min_snr_weights(schedule)[batch.timesteps])
    assert torch.equal(batch.parts(2)[1].weights, batch.weights[1::2])
    assert torch.equal(batch.shares(2)[1].weights, batch.weights[4:])


# --- A6: dropout in one place


def test_dropout_is_in_the_residual_units_alone_whoever_is_trained(tiny):
    model = build_base(tiny.network, seed=0)
    set_dropout(model, 0.3)
    inside = {id(layer) for module in model.modules() if isinstance(module, Attention) for layer in module.modules()}
    probabilities = {(id(layer) in inside, layer.p) for layer in model.modules() if isinstance(layer, nn.Dropout)}
    assert probabilities == {(True, 0.0), (False, 0.3)}
    plain = UNet2DModel(**{key: value for key, value in model.config.items() if not key.startswith("_")} | {"dropout": 0.3})
    ours = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, nn.Dropout)}
    assert ours == {name: layer.p for name, layer in plain.named_modules() if isinstance(layer, nn.Dropout)}


# --- A7: the decay that is asked for


def test_the_average_has_the_decay_that_was_asked_for_from_the_first_step():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    weights = []

    def loss(module, _batch, _step):
        weights.append(module.weight.item())
        return -module.weight.sum()

    settings = Training(steps=9, batch_size=1, learning_rate=0.5, ema_decay=0.9, gradient_clipping=0.0)
    train(module, Run(identity="x", seed=0, batches=lambda step: step, loss=loss), settings, Clock(), QUIET)
    ends = [*weights[1:], weights[-1] + 0.5]  # of the steps; Adam goes by its learning rate where the gradient is constant
    shadow = ends[0]
    for weight in ends[1:]:
        shadow = 0.9 * shadow + 0.1 * weight
    assert module.weight.item() == pytest.approx(shadow, rel=1e-4)


# --- A8: attention's scale


@pytest.mark.parametrize("size", [0.5, 0.25])
def test_a_narrowed_attention_is_the_same_by_every_processor(tiny, size):
    base = build_base(tiny.network, seed=0).eval()
    pipes = pipes_of(base)
    plan = make_plan(pipes, equal_importance(pipes), (1.0, size), params_base=count_params(base.parameters()), rule="uniform", floor=0.25)
    subnet = Supernet(base, pipes, plan).eval().extract(size)
    images, timesteps = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        found = []
        for processor in (AttnProcessor2_0(), AttnProcessor()):
            for module in subnet.modules():
                if isinstance(module, Attention):
                    module.set_processor(processor)
            found.append(subnet(images, timesteps).sample)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    narrowed = [module for module in subnet.modules() if isinstance(module, Attention)]
    assert all(module.scale == pytest.approx((module.to_q.out_features // module.heads) ** -0.5) for module in narrowed)


# --- A9: as asked, or refused


def test_images_that_are_no_whole_batches_are_refused():
    with pytest.raises(ReproError, match=r"importance\.images: must be a multiple of importance\.batch_size, 128"):
        load_config("digits", ["importance.images=1000"])


# --- A10, A11: one scale, and a base of its own for every seed


def test_every_seed_has_a_base_of_its_own_where_bases_are_trained_or_shipped(tmp_path):
    config = load_config("digits")
    assert config.base.source == "shipped"
    assert [base_cell(config, seed).seed for seed in (0, 3)] == [0, 3]
    given = load_config("digits", ["base.source=path", "base.folder=somewhere"])
    assert [base_cell(given, seed).seed for seed in (0, 3)] == [0, 0]
    cells = plan_cells(experiment_of(config, tmp_path), ["ofa"], [0.5], [0, 1])
    assert [cell.name for cell in cells if cell.method == "base"] == ["base-1-seed0", "base-1-seed1"]


def fall_over_the_last_quarter(curve):
    """Returns by which share a straight line through the last quarter of a training curve falls."""
    last = curve[-(len(curve) // 4) - 1 :]
    slope, start = statistics.linear_regression([step for step, _ in last], [loss for _, loss in last])
    first, end = (start + slope * last[at][0] for at in (0, -1))
    return 1 - end / first


# The loss of digits_uvit falls with its high rate at the end of the cosine; its quality is at the floor (results/digits_uvit/tuning.md).
@pytest.mark.parametrize(
    ("name", "mean_fall"),
    [("digits", 0.03), ("digits_edm", 0.03), ("digits_edm_cond", 0.032), ("digits_curves", 0.03), ("digits_uvit", 0.037)],
)
def test_the_shipped_bases_have_converged_and_are_the_bytes_that_the_configuration_names(name, mean_fall):
    config = load_config(name)
    weights, falls = set(), []
    for seed in range(len(config.base.sha256)):
        product = shipped.shipped_base(config, seed)
        falls.append(fall_over_the_last_quarter(product.training["curve"]))
        assert product.training["steps"] == config.base_training.steps
        assert shipped.shipped_base_cost(config, seed)["seed"] == seed
        weights.add(float(next(product.model.parameters()).detach().sum()))
    assert len(weights) == len(config.base.sha256) >= 3
    # A curve's own noise moves its fall by 1 %, so their mean is held to the limit; results/README.md says what it is.
    assert statistics.fmean(falls) < mean_fall
    assert max(falls) < 0.05


def test_a_shipped_base_of_another_formulation_is_refused():
    other = load_config("digits").base.sha256[0]
    config = load_config("digits_edm", [f'base.sha256=["{other}"]'])
    with pytest.raises(
        ReproError, match=r"base\.sha256\[0\]: digits-base-seed0-.* was trained in ddpm; set diffusion\.formulation to that"
    ):
        shipped.shipped_base(config, 0)


def test_the_shipped_classifier_is_taken_and_nothing_is_trained(tmp_path):
    config = load_config("digits")
    extractor = classifier_for(digits(), config.classifier, tmp_path, QUIET)
    assert extractor.sha256 == config.classifier.sha256 and extractor.held_out_accuracy > 0.97
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_file_whose_bytes_changed_is_refused(tmp_path, monkeypatch):
    config = load_config("digits")
    source = shipped_files.shipped_file(config.classifier.sha256, "classifier.sha256")
    content = bytearray(source.read_bytes())
    content[-5] ^= 1
    (tmp_path / source.name).write_bytes(bytes(content))
    monkeypatch.setattr(shipped_files, "SHIPPED", tmp_path)
    with pytest.raises(ReproError, match=r"damaged, its SHA-256 is .*; install the package anew"):
        classifier_for(digits(), config.classifier, tmp_path, QUIET)
    with pytest.raises(ReproError, match=r"base\.sha256\[0\]: no file of hash"):
        shipped.shipped_base(config, 0)


def test_a_seed_that_no_base_came_for_is_refused_with_what_to_do():
    with pytest.raises(ReproError, match=r"--seeds 97: no base came for it, .* --set base\.source=train"):
        shipped.shipped_base(load_config("digits"), 97)


def test_a_shipped_network_says_what_it_is(tmp_path):
    model = nn.Linear(2, 2)
    path, sha256 = shipped.ship(tmp_path, "net", copy.deepcopy(model), {"training": {"steps": 1}, "trained": {}})
    assert path.name == f"net-{sha256[:16]}.safetensors"
    assert json.loads(json.dumps(shipped.about(path))) == {"training": {"steps": 1}, "trained": {}}


def test_a_training_section_of_old_is_read_as_it_was():
    old = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    settings = build(Training, old)
    assert (settings.loss_reduction, settings.timesteps, settings.loss_weighting) == ("mean", "independent", "uniform")
