"""The continuous VP formulation against its formulas, DDPM's discrete schedule, and the closed form of a Gaussian."""

import math

import pytest
import torch

from repro.config import Diffusion
from repro.data.images import digits
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.ddpm import noise_schedule
from repro.diffusion.formulation import image_losses
from repro.diffusion.heun import heun, sigma_grid
from repro.diffusion.sampler import Denoise
from repro.diffusion.vp import VP

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")


@pytest.fixture
def vp():
    return VP(Diffusion(formulation="vp"))


def alpha_of(time):
    """By quadrature of beta(s) = 0.1 + 19.9 s from 0 to t."""
    grid = torch.linspace(0, time, 10_001, dtype=torch.float64)
    return math.exp(-torch.trapezoid(0.1 + 19.9 * grid, grid).item())


@pytest.mark.parametrize("time", [0.01, 0.3, 0.77, 1.0])
def test_images_are_noised_by_the_integral_of_beta(vp, time):
    clean, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    batch, alpha = vp.noised(clean, noise, torch.full((2,), time)), alpha_of(time)
    torch.testing.assert_close(batch.noisy, alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch.target, noise) and batch.weights is None
    assert batch.timesteps.tolist() == pytest.approx([999 * time] * 2)


def test_the_discrete_schedule_of_diffusers_is_its_limit(vp):
    """DDPM's betas are beta(t) / 1000, so that both agree to about that."""
    found = noise_schedule(Diffusion()).alphas_cumprod[[99, 499, 999]].tolist()
    assert found == pytest.approx([alpha_of(time) for time in (0.1, 0.5, 1.0)], rel=8e-2)


@pytest.mark.parametrize("time", [0.001, 0.2, 0.9, 1.0])
def test_the_denoiser_is_that_of_the_noising(vp, time):
    clean, noise, alpha, asked = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), alpha_of(time), []
    sigma = ((1 - alpha) / alpha) ** 0.5

    def predict(images, timesteps):
        asked.append(timesteps[0].item())
        torch.testing.assert_close(images, alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, rtol=1e-4, atol=1e-4)
        return noise

    torch.testing.assert_close(vp.denoise(predict, clean + sigma * noise, sigma), clean, rtol=1e-3, atol=1e-3)
    assert asked == pytest.approx([999 * time], rel=1e-3, abs=1e-2)
    assert vp.sigmas == pytest.approx([((1 - alpha_of(end)) / alpha_of(end)) ** 0.5 for end in (1e-3, 1.0)], rel=1e-3)


def test_the_exact_network_of_a_gaussian_is_sampled_exactly(vp):
    mean, deviation = 0.2, 0.5

    def best(images, timesteps):
        time = timesteps.double().view(-1, 1, 1, 1) / 999
        alpha = torch.exp(-(0.1 * time + 9.95 * time**2))
        variance = alpha * deviation**2 + 1 - alpha
        return (1 - alpha).sqrt() * (images.double() - alpha.sqrt() * mean) / variance

    noise, (least, greatest) = torch.randn(200, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), vp.sigmas
    drawn = heun(Denoise(predict=best, formulation=vp), noise, sigma_grid(300, least, greatest)).double()
    exact = mean + (greatest * noise - mean) * deviation / (deviation**2 + greatest**2) ** 0.5
    torch.testing.assert_close(drawn, exact, rtol=0, atol=2e-3)
    times = torch.full((100_000,), 0.4)
    clean, other = (torch.randn(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    alpha = alpha_of(0.4)
    left = alpha * deviation**2 / (alpha * deviation**2 + 1 - alpha)  # the variance of the noise given the noisy image
    assert image_losses(best, vp.noised(mean + deviation * clean, other, times)).mean().item() == pytest.approx(left, rel=0.03)


def test_times_are_uniform_and_mirrored_in_pairs(vp):
    times = NoisyBatches(digits(), vp, batch_size=4096, seed=0, device=CPU)(0).timesteps / 999
    assert times.mean().item() == pytest.approx(0.5, abs=0.02)
    assert (times.min() < 0.01, times.max() > 0.99) == (True, True)
    paired = vp.levels(7, torch.Generator().manual_seed(1), antithetic=True)
    torch.testing.assert_close(paired[4:], 1 - paired[:3])
    assert vp.ladder(4).tolist() == [0.125, 0.375, 0.625, 0.875]
