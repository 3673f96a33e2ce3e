"""EDM against its formulas (Karras et al., 2022), diffusers' preconditioning, and closed forms of a Gaussian."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from repro.config import Diffusion, Training
from repro.data.images import digits
from repro.diffusion.batches import NoisyBatches
from repro.diffusion.edm import EDM
from repro.diffusion.formulation import image_losses
from repro.diffusion.heun import heun, sigma_grid
from repro.diffusion.sampler import Denoise
from repro.errors import ReproError

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")
SIGMAS = (0.002, 0.05, 0.3, 1.0, 7.0, 80.0)


@pytest.fixture
def edm():
    return EDM(Diffusion(formulation="edm"))


def network(images, timesteps):
    """A function of both, in double precision, that no constant can stand in for."""
    return torch.sin(3 * images) * (1 + timesteps.view(-1, 1, 1, 1)) + 0.3 * images.flip(-1)


def by_hand(images, sigma):
    """D(x; sigma) as table 1 writes it."""
    sigma, data = torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1, 1, 1), 0.5
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    scale, noise = 1 / (sigma**2 + data**2).sqrt(), sigma.log().flatten() / 4
    return skip * images + out * network(scale * images, noise.expand(len(images)))


def test_the_loss_is_that_of_the_paper(edm):
    """lambda (D - y)^2, with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, at every noise level."""
    stream = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(len(SIGMAS), 1, 4, 4, dtype=torch.float64, generator=stream) for _ in range(2))
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    found = image_losses(network, edm.noised(clean, noise, sigma))
    denoised = by_hand(clean + sigma.view(-1, 1, 1, 1) * noise, sigma)
    expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (denoised - clean).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert edm.noised(clean, noise, sigma).weights is None


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_is_that_of_the_paper_and_of_diffusers(edm, sigma):
    images = sigma * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = Denoise(predict=network, formulation=edm)(images.double(), sigma)
    torch.testing.assert_close(found, by_hand(images.double(), sigma), rtol=1e-5, atol=1e-6)
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    inputs, level = theirs.precondition_inputs(images, sigma), theirs.precondition_noise(torch.tensor([sigma]))
    outputs = theirs.precondition_outputs(images, network(inputs, level.expand(3)), torch.tensor(sigma))
    torch.testing.assert_close(found.float(), outputs, rtol=1e-5, atol=1e-6)
    assert edm.timesteps(torch.tensor([sigma])).item() == pytest.approx(math.log(sigma) / 4, rel=1e-6)


def test_the_grid_is_that_of_diffusers():
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    theirs.set_timesteps(18)
    assert sigma_grid(18, 0.002, 80.0) == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)


def test_an_euler_step_of_diffusers_is_the_first_half_of_heun_s(edm):
    """Between two noise levels; the corrector is then by hand."""
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    theirs.set_timesteps(18)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    sigmas, images = sigma_grid(18, 0.002, 80.0), 80.0 * noise
    answer = network(theirs.scale_model_input(images, theirs.timesteps[0]), theirs.timesteps[0].expand(3))
    following = theirs.step(answer, theirs.timesteps[0], images).prev_sample.double()
    first, later = (images.double() - by_hand(images.double(), sigmas[0])) / sigmas[0], sigmas[1]
    torch.testing.assert_close(following, images + (later - 80.0) * first, rtol=1e-4, atol=1e-4)
    corrected = images + (later - 80.0) * (first + (following - by_hand(following, later)) / later) / 2
    found = heun(Denoise(predict=network, formulation=edm), noise, sigmas[:2])
    torch.testing.assert_close(found.double(), corrected, rtol=1e-4, atol=1e-4)


def test_the_exact_network_of_a_gaussian_is_sampled_exactly(edm):
    """Pixels from N(m, s^2): the best D is known, F follows from it, and so does where the flow ends."""
    mean, deviation = 0.2, 0.5

    def best(images, timesteps):
        sigma = (4 * timesteps.double()).exp().view(-1, 1, 1, 1)
        noisy = images.double() * (sigma**2 + 0.25).sqrt()
        denoised = (mean * sigma**2 + noisy * deviation**2) / (deviation**2 + sigma**2)
        return (denoised - 0.25 / (sigma**2 + 0.25) * noisy) / (sigma * 0.5 / (sigma**2 + 0.25).sqrt())

    noise = torch.randn(200, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn = heun(Denoise(predict=best, formulation=edm), noise, sigma_grid(400, *edm.sigmas)).double()
    exact = mean + (80 * noise - mean) * deviation / (deviation**2 + 80**2) ** 0.5
    torch.testing.assert_close(drawn, exact, rtol=0, atol=1e-3)
    # Its loss is what no network can be below: the variance of the image given the noisy one, at each noise level.
    sigma = torch.full((200_000,), 0.7)
    clean, other = (torch.randn(200_000, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    losses = image_losses(best, edm.noised(mean + deviation * clean, other, sigma))
    left = deviation**2 * 0.7**2 / (deviation**2 + 0.7**2)
    assert losses.mean().item() == pytest.approx((0.7**2 + 0.25) / (0.5 * 0.7) ** 2 * left, rel=0.02)


def test_noise_levels_are_log_normal_and_those_of_ranks_and_pairs(edm):
    batch = NoisyBatches(digits(), edm, batch_size=4096, seed=0, device=CPU)(0)
    log_sigma = 4 * batch.timesteps
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.08)  # four standard errors
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.06)
    parts = [NoisyBatches(digits(), edm, batch_size=32, seed=0, device=CPU, rank=rank, ranks=2)(3).timesteps for rank in range(2)]
    whole = NoisyBatches(digits(), edm, batch_size=32, seed=0, device=CPU)(3).timesteps
    assert torch.equal(torch.stack(parts, dim=1).flatten(), whole)
    for count in (6, 7):
        paired = edm.levels(count, torch.Generator().manual_seed(1), antithetic=True).log()
        half = (count + 1) // 2
        torch.testing.assert_close(paired[half:], -2.4 - paired[: count - half], rtol=0, atol=1e-6)


def test_the_ladder_stands_for_the_training_s_distribution(edm):
    log_sigma = edm.ladder(1000).double().log()
    assert (log_sigma.diff() > 0).all()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-6)
    assert log_sigma.std().item() == pytest.approx(1.2, rel=5e-3)


def test_min_snr_has_no_meaning(edm):
    edm.check(Training(steps=1, batch_size=1, learning_rate=1e-3))
    with pytest.raises(ReproError, match="loss_weighting: min_snr has no meaning under the formulation edm"):
        edm.check(Training(steps=1, batch_size=1, learning_rate=1e-3, loss_weighting="min_snr"))
