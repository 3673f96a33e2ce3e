"""The data, the noise, and the sampler."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from sklearn.datasets import load_digits
from support.noise import ALPHA_BARS, DEVIATION, MEAN, batches_of, gaussian_predictor, numbered_images, same

from repro.config import Diffusion
from repro.data.images import Images, digits, to_pixels, to_unit_range
from repro.diffusion.batches import image_noise
from repro.diffusion.ddim import ddim, sampling_timesteps
from repro.diffusion.ddpm import DDPM, noise_schedule, sampling_scheduler
from repro.diffusion.formulation import NoisyBatch, image_losses, predictor
from repro.diffusion.sampler import sample_pixels
from repro.diffusion.samplers import SAMPLERS

pytestmark = pytest.mark.quick

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")
DIGITS_SHA256 = "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"


@pytest.fixture
def schedule():
    return noise_schedule(Diffusion())


@pytest.fixture
def ddpm():
    return DDPM(Diffusion())


def clean_pixels(batch):
    """Takes the noise off again, in double precision: at the last timesteps the image is 1/150 of what is seen."""
    alpha_bar = torch.from_numpy(ALPHA_BARS)[batch.timesteps].view(-1, 1, 1, 1)
    clean = (batch.noisy.double() - (1 - alpha_bar).sqrt() * batch.target.double()) / alpha_bar.sqrt()
    return (clean + 1) * 127.5


# --- data


def test_digits_are_scikit_learn_s_grey_levels_spread_over_uint8():
    images, bunch = digits(), load_digits()
    assert len(images) == 1797
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert images.pixels.dtype == torch.uint8
    # 17 levels, 15.9375 apart.
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert images.pixels.unique().tolist() == levels
    assert images.pixels[:, 0].tolist() == [[[levels[int(value)] for value in row] for row in image] for image in bunch.images]
    assert images.labels.tolist() == bunch.target.tolist()


def test_the_hash_of_the_digits_is_stable():
    assert digits().sha256 == DIGITS_SHA256
    assert hashlib.sha256(digits().pixels.permute(0, 2, 3, 1).numpy().tobytes()).hexdigest() == DIGITS_SHA256


def test_pixels_survive_the_unit_range():
    pixels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit_range(pixels)
    assert (unit.dtype, unit.min().item(), unit.max().item()) == (torch.float32, -1.0, 1.0)
    assert torch.equal(to_pixels(unit), pixels)


def test_pixels_are_clipped_and_rounded_to_the_nearest_level():
    assert to_pixels(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]
    # Half a level is 1 / 255.
    assert to_pixels(torch.tensor([-1 + 0.9 / 255, -1 + 1.1 / 255, 1 - 0.9 / 255, 1 - 1.1 / 255])).tolist() == [0, 1, 255, 254]


# --- noise


def test_the_schedule_is_ddpm_s(schedule):
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), ALPHA_BARS, rtol=2e-5)


def test_noisy_images_follow_the_forward_process(ddpm):
    image = torch.full((1, 1, 4, 4), 204, dtype=torch.uint8)  # 0.6 in [-1, 1]
    images = Images(name="one", pixels=image, labels=torch.zeros(1, dtype=torch.int64), sha256="")
    batch = batches_of(images, ddpm, batch_size=4096)(0)
    alpha_bar = torch.from_numpy(ALPHA_BARS)[batch.timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(batch.noisy.double(), alpha_bar.sqrt() * 0.6 + (1 - alpha_bar).sqrt() * batch.target, rtol=0, atol=2e-5)
    # 4,096 images of 16 pixels: standard errors 0.004 (mean), 0.003 (deviation), 4.5 (timestep, whose deviation is 289).
    assert batch.target.mean().item() == pytest.approx(0, abs=0.016)
    assert batch.target.std().item() == pytest.approx(1, abs=0.012)
    assert batch.timesteps.double().mean().item() == pytest.approx(499.5, abs=18)
    assert (batch.timesteps.min() < 10, batch.timesteps.max() > 989) == (True, True)
    assert batch.timesteps.dtype == torch.int64
    # The mean over the noise is the image, shrunk; near t = 500 alpha_bar is 0.078, so the image's share is 0.167.
    middle = (batch.timesteps - 500).abs() < 50
    assert batch.noisy[middle].mean().item() == pytest.approx(0.6 * np.sqrt(ALPHA_BARS[450:550]).mean(), abs=0.05)


def test_each_epoch_is_another_permutation_of_all_images(ddpm):
    batches = batches_of(numbered_images(100), ddpm)
    drawn = torch.cat([clean_pixels(batches(step))[:, 0, 0, 0].round().long() for step in range(10)])  # 320 images
    epochs = [drawn[start : start + 100].tolist() for start in (0, 100, 200)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(100))


def test_a_batch_larger_than_the_set_runs_through_several_epochs(ddpm):
    drawn = clean_pixels(batches_of(numbered_images(10), ddpm, batch_size=25)(0))[:, 0, 0, 0].round().long().tolist()
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert len(set(drawn[20:])) == 5


@pytest.mark.parametrize("step", [0, 3, 57])
def test_the_slices_of_two_ranks_make_up_the_batch_of_one(ddpm, step):
    whole = batches_of(digits(), ddpm, horizontal_flip=True)(step)
    parts = [batches_of(digits(), ddpm, horizontal_flip=True, rank=rank, ranks=2)(step) for rank in range(2)]
    assert all(len(part.noisy) == 16 for part in parts)
    joined = {name: torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1) for name in ("noisy", "target", "timesteps")}
    assert same(NoisyBatch(**joined), whole)


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_which_subnet_an_image_goes_to_depends_on_neither_ranks_nor_parts(ddpm, ranks, parts):
    whole = [share.noisy for share in batches_of(digits(), ddpm)(3).shares(4)]
    pieces = [part.shares(4) for rank in range(ranks) for part in batches_of(digits(), ddpm, rank=rank, ranks=ranks)(3).parts(parts)]
    for subnet, expected in enumerate(whole):
        ours = torch.cat([piece[subnet].noisy for piece in pieces])
        assert torch.equal(torch.unique(ours, dim=0), torch.unique(expected, dim=0))
        assert len(ours) == len(expected)


def test_a_batch_depends_on_seed_and_step_alone(ddpm):
    forward, backward = batches_of(digits(), ddpm), batches_of(digits(), ddpm)
    seen = [forward(step) for step in range(0, 120, 20)]  # two epochs of 57 batches
    torch.manual_seed(123)
    again = [backward(step) for step in reversed(range(0, 120, 20))][::-1]
    assert all(same(one, other) for one, other in zip(seen, again, strict=True))
    other_seed = batches_of(digits(), ddpm, seed=1)(0)
    for other in (other_seed, seen[1]):
        assert not torch.equal(other.target, seen[0].target)
        assert not torch.equal(other.timesteps, seen[0].timesteps)
        assert not torch.equal(clean_pixels(other).round(), clean_pixels(seen[0]).round())


def test_flipping_mirrors_about_half_of_the_images(ddpm):
    def mirrored(*, horizontal_flip):
        pixels = clean_pixels(batches_of(numbered_images(100), ddpm, batch_size=2000, horizontal_flip=horizontal_flip)(0)).round()
        left, right = pixels[:, 0, :, 0], pixels[:, 0, :, 1]
        assert ((left == 0) | (right == 0)).all()
        told_apart = (left != right).any(dim=1)  # all but image 0
        assert told_apart.sum() == 1980
        return (right > left).all(dim=1)[told_apart].double().mean().item()

    assert mirrored(horizontal_flip=False) == 0
    assert mirrored(horizontal_flip=True) == pytest.approx(0.5, abs=0.045)  # four standard errors


def test_the_loss_of_an_image_is_its_mean_squared_error():
    noise = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    batch = NoisyBatch(noisy=torch.zeros(2, 1, 2, 2), target=noise, timesteps=torch.tensor([3, 5]))
    losses = image_losses(lambda images, timesteps: images + timesteps.view(-1, 1, 1, 1), batch)
    assert losses.tolist() == [(4 + 1 + 0 + 1) / 4, 25.0]


# --- sampler


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # 800 * (i / (n - 1))^2, rounded down; 800 / 81 = 9.877.
        (10, [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]),
        (5, [0, 50, 200, 450, 800]),
        (2, [0, 800]),
    ],
)
def test_quadratic_timesteps_by_hand(steps, expected):
    assert sampling_timesteps(1000, steps, "quadratic") == expected


@pytest.mark.parametrize(("steps", "distinct"), [(10, 10), (18, 18), (20, 20), (50, 49), (100, 96)])
def test_quadratic_timesteps_are_the_ddim_paper_s_each_once(steps, distinct):
    exact = [math.isqrt(math.floor(800**2 * index**4 / (steps - 1) ** 4)) for index in range(steps)]
    found = sampling_timesteps(1000, steps, "quadratic")
    assert found == [time for index, time in enumerate(exact) if time not in exact[:index]]
    assert len(found) == distinct


def test_a_step_from_a_timestep_to_itself_changes_nothing_so_that_it_may_be_left_out(base, schedule):
    predict, noise = predictor(base.double()), torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twice, once = (ddim(predict, noise, schedule, timesteps, clip_sample=False) for timesteps in ([0, 9, 9, 88], [0, 9, 88]))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("steps", "expected"), [(4, [0, 250, 500, 750]), (3, [0, 333, 666]), (1, [0])])
def test_uniform_timesteps_by_hand(steps, expected):
    assert sampling_timesteps(1000, steps, "uniform") == expected


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("steps", [7, 20])
def test_uniform_ddim_is_that_of_diffusers(base, schedule, clip_sample, steps):
    theirs = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=clip_sample, set_alpha_to_one=True
    )
    theirs.set_timesteps(steps)
    # In double precision: the first step divides by sqrt(alpha_bar), 1/150, and would multiply float32's rounding by as much.
    base = base.double()
    noise = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = noise
    with torch.no_grad():
        for time in theirs.timesteps:
            expected = theirs.step(base(expected, time).sample, time, expected, eta=0.0).prev_sample
    found = ddim(predictor(base), noise, schedule, sampling_timesteps(1000, steps, "uniform"), clip_sample=clip_sample)
    scale = expected.abs().max().item()  # a random network's unclipped images grow large
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * max(1.0, scale))


def test_the_scheduler_of_an_extracted_subnet_has_the_same_noise_schedule(schedule):
    theirs = sampling_scheduler(Diffusion(), clip_sample=False)
    torch.testing.assert_close(theirs.alphas_cumprod, schedule.alphas_cumprod, rtol=0, atol=0)
    assert theirs.final_alpha_cumprod == 1
    assert theirs.config.clip_sample is False


def gaussian_error(schedule, steps):
    """The largest distance from the exact flow, which maps every marginal to the next as one Gaussian to another."""
    noise = torch.randn(2000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ddim(gaussian_predictor, noise, schedule, sampling_timesteps(1000, steps, "quadratic"), clip_sample=False)
    first = ALPHA_BARS[800]
    exact = MEAN + DEVIATION * (noise - first**0.5 * MEAN) / (first * DEVIATION**2 + 1 - first) ** 0.5
    return (found - exact).abs().max().item()


def test_ddim_converges_to_the_exact_flow_of_a_gaussian(schedule):
    coarse, fine, finest = (gaussian_error(schedule, steps) for steps in (20, 80, 320))
    # First order: four times the steps, about a quarter of the error, until timesteps repeat for want of integers.
    assert finest < fine < coarse / 2.5
    assert finest < 0.05 * DEVIATION


def test_ddim_samples_have_the_mean_and_deviation_of_the_data(schedule):
    noise = torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ddim(gaussian_predictor, noise, schedule, sampling_timesteps(1000, 320, "quadratic"), clip_sample=False)
    # Starting from N(0, 1) at t = 800 instead of the true marginal shifts the mean by -0.2 * 0.041 * 0.3 = -0.0024; the sampling errors
    # are 0.0014 and 0.001; the rest is discretisation.
    assert found.mean().item() == pytest.approx(MEAN, abs=0.008)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.008)


def test_clipping_keeps_every_image_inside_the_unit_range(schedule):
    noise = torch.randn(500, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    timesteps = sampling_timesteps(1000, 20, "quadratic")

    def far_off(images, times):
        return gaussian_predictor(images, times) - 0.5

    assert ddim(far_off, noise, schedule, timesteps, clip_sample=False).abs().max() > 1
    assert ddim(far_off, noise, schedule, timesteps, clip_sample=True).abs().max() <= 1


def test_the_noise_of_an_image_depends_on_its_seed_and_index_alone():
    together = image_noise(range(6), (1, 8, 8), 3, 0)
    apart = torch.cat([image_noise(range(index, index + 1), (1, 8, 8), 3, 0) for index in range(6)])
    assert torch.equal(together, apart)
    assert len({tuple(image.flatten().tolist()) for image in together}) == 6
    assert not torch.equal(image_noise(range(6), (1, 8, 8), 4, 0), together)
    assert not torch.equal(image_noise(range(6), (1, 8, 8), 3, 1), together)


def test_samples_do_not_depend_on_the_batch_size(tiny, base, ddpm):
    settings = replace(tiny.evaluation, sampler_steps=3)

    def draw(batch_size, seed=0):
        cuts = [range(start, min(start + batch_size, 40)) for start in range(0, 40, batch_size)]
        noises = [image_noise(cut, (1, 8, 8), seed, 0) for cut in cuts]
        return torch.cat([sample_pixels(predictor(base), ddpm, noise, settings, SAMPLERS["ddim"]) for noise in noises])

    expected = draw(40)
    assert (expected.dtype, expected.shape) == (torch.uint8, (40, 1, 8, 8))
    assert 0.05 < (expected.double() / 255).std() < 0.5  # not all black or white, where nothing could differ
    for batch_size in (1, 7):
        difference = (draw(batch_size).int() - expected.int()).abs()
        # Other batches take other kernels, whose sums round otherwise; a value within 1e-6 of the border of two levels may change level.
        assert difference.max() <= 1
        assert (difference > 0).double().mean() <= 0.001
    assert torch.equal(draw(40), expected)
    assert not torch.equal(draw(40, seed=1), expected)
