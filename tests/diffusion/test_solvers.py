"""diffusers' solvers as samplers of every formulation, and churn: against closed forms, diffusers by itself, and formulas."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler
from support.gaussian import Gaussian

from repro.config import Diffusion, load_config
from repro.diffusion.batches import image_noise
from repro.diffusion.ddpm import DDPM, noise_schedule
from repro.diffusion.edm import EDM
from repro.diffusion.heun import heun, sigma_grid
from repro.diffusion.sampler import Denoise, about_sampler, sample_pixels
from repro.diffusion.samplers import SAMPLERS
from repro.diffusion.vp import VP
from repro.errors import ReproError, RunError

pytestmark = pytest.mark.quick

SOLVERS = ("dpmsolver", "dpmsolver++", "unipc")
FORMULATIONS = {"ddpm": DDPM(Diffusion()), "edm": EDM(Diffusion(formulation="edm")), "vp": VP(Diffusion(formulation="vp"))}


def settings(**changes):
    return replace(load_config("digits").evaluation, **({"clip_sample": False, "sampler": "heun"} | changes))


def noise(count=200):
    return torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_gaussian_is_sampled_the_more_exactly_the_more_steps_and_as_often_asked(name, formulation):
    known = FORMULATIONS[formulation]
    errors = []
    for steps in (10, 40, 160):
        denoise, judged = Gaussian(mean=0.2, deviation=0.5, sigmas=known.sigmas), settings(sampler_steps=steps)
        denoise.formulation = known
        drawn = SAMPLERS[name].sample(denoise, noise(), judged)
        assert len(denoise.asked) == SAMPLERS[name].nfe(judged, known) == steps
        assert denoise.asked == pytest.approx(known.grid(steps), rel=0.02)  # a scheduler keeps alpha in float32
        errors.append((drawn - denoise.exact(noise())).abs().max().item())
    assert errors[1] < errors[0] / 3 and errors[2] < 0.01, errors


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("dpmsolver", DPMSolverSinglestepScheduler, 3),
        ("dpmsolver++", DPMSolverMultistepScheduler, 2),
        ("unipc", UniPCMultistepScheduler, 2),
    ],
)
def test_on_ddpm_they_draw_what_diffusers_draws_by_itself(name, kind, order):
    """diffusers is told the noise, at its own timesteps of the whole schedule."""
    ddpm, steps = FORMULATIONS["ddpm"], 12

    def network(images, timesteps):
        return 0.9 * images + 0.1 * torch.sin(images + timesteps.float().view(-1, 1, 1, 1) / 300)

    ours = SAMPLERS[name].sample(Denoise(predict=network, formulation=ddpm), noise(), settings(sampler_steps=steps))
    schedule = noise_schedule(Diffusion())
    theirs = kind(trained_betas=schedule.betas.tolist(), solver_order=order, final_sigmas_type="zero")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs.set_timesteps(steps)
    assert [round(time) for time in map(float, theirs.timesteps)] == [round(999 * (steps - step) / steps) for step in range(steps)]
    images = noise() * (1 - schedule.alphas_cumprod[-1]).sqrt()
    for time in theirs.timesteps:
        images = theirs.step(network(images, time.expand(len(images))), time, images).prev_sample
    torch.testing.assert_close(ours, images, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 19, 20])
def test_any_number_of_steps_ends_in_numbers(name, steps, capsys, caplog):
    """Up to all timesteps of a short schedule, where two may not fall on one."""
    ddpm = DDPM(Diffusion(num_train_timesteps=20))
    assert len(set(ddpm.grid(steps))) == steps
    for known in (ddpm, FORMULATIONS["edm"], FORMULATIONS["vp"]):
        denoise = Gaussian(mean=0.2, deviation=0.5, sigmas=known.sigmas)
        denoise.formulation = known
        assert SAMPLERS[name].sample(denoise, noise(), settings(sampler_steps=steps)).isfinite().all()
        assert len(denoise.asked) == steps
    assert not caplog.records and not any(capsys.readouterr())  # diffusers reports settings that it corrects


def test_only_a_sampler_of_timesteps_has_no_more_steps_than_there_are():
    for sampler in ("heun", "unipc"):
        assert load_config("digits_edm", [f"evaluation.sampler={sampler}", "evaluation.sampler_steps=128"]).evaluation.sampler_steps == 128
    load_config("digits", ["evaluation.sampler=heun", "evaluation.sampler_steps=1", "diffusion.num_train_timesteps=500"])
    with pytest.raises(ReproError, match=r"evaluation\.sampler_steps: is 501, but there are only 500 timesteps to visit"):
        load_config("digits", ["evaluation.sampler=unipc", "evaluation.sampler_steps=501", "diffusion.num_train_timesteps=500"])


def test_images_that_are_not_finite_are_no_pixels():
    def network(images, timesteps):
        return torch.where(torch.arange(len(images)).view(-1, 1, 1, 1) == 3, torch.nan, images)

    with pytest.raises(RunError, match=r"evaluation\.sampler: unipc drew images that are not finite; take another sampler or number"):
        sample_pixels(network, FORMULATIONS["vp"], noise(), settings(sampler_steps=5), SAMPLERS["unipc"])
    pixels = sample_pixels(lambda images, _: images, FORMULATIONS["vp"], noise(), settings(sampler_steps=5), SAMPLERS["unipc"])
    assert pixels.shape == noise().shape and pixels.dtype == torch.uint8


def test_clean_images_are_clipped_where_that_is_asked_for():
    denoise = Gaussian(mean=1.2, deviation=0.1, sigmas=FORMULATIONS["edm"].sigmas)
    denoise.formulation = FORMULATIONS["edm"]
    for name in SOLVERS:
        judged = settings(sampler_steps=10, clip_sample=True)
        assert SAMPLERS[name].sample(denoise, noise(), judged).max() <= 1.0 < SAMPLERS[name].sample(denoise, noise(), settings()).max()
        assert about_sampler(SAMPLERS[name], judged, denoise.formulation)["clip_sample"] is True


def test_a_record_says_which_solver_it_was():
    assert about_sampler(SAMPLERS["dpmsolver"], settings(sampler_steps=50), FORMULATIONS["vp"]) == {
        "name": "dpmsolver",
        "steps": 50,
        "precision": "float32",
        "solver": "DPMSolverSinglestepScheduler",
        "order": 3,
        "clip_sample": False,
        "nfe": 50,
    }


# Churn


class Fresh(Gaussian):
    """A Gaussian whose images are given more noise."""

    def __init__(self):
        super().__init__(mean=0.2, deviation=0.5, sigmas=(0.002, 80.0))
        self.times = []

    def fresh(self, time):
        self.times.append(time)
        return torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(time))


def test_a_step_with_churn_is_that_of_the_paper():
    """Algorithm 2, lines 4 to 11, by hand."""
    denoise, sigmas, start = Fresh(), sigma_grid(18, 0.002, 80.0)[8:10], noise(20_000)
    assert 0.05 < sigmas[0] < 50
    found = heun(denoise, start, sigmas, churn=0.3, within=(0.05, 50), scale=1.003)
    gamma = min(0.3 / 1, math.sqrt(2) - 1)
    raised = sigmas[0] + gamma * sigmas[0]
    images = sigmas[0] * start.double() + math.sqrt(raised**2 - sigmas[0] ** 2) * 1.003 * Fresh().fresh(1).double()
    slope = (images - Fresh()(images, raised)) / raised
    following = images + (sigmas[1] - raised) * slope
    corrected = (following - Fresh()(following, sigmas[1])) / sigmas[1]
    torch.testing.assert_close(found.double(), images + (sigmas[1] - raised) * (slope + corrected) / 2, rtol=1e-6, atol=1e-6)


def test_churn_leaves_the_distribution_as_it_is_and_happens_within_its_range():
    denoise, judged = Fresh(), settings(sampler_steps=60, churn=40.0, churn_range=(0.05, 50.0))
    drawn = SAMPLERS["heun"].sample(denoise, noise(20_000), judged)
    levels = sigma_grid(60, 0.002, 80.0)[:-1]
    assert denoise.times == [step + 1 for step, sigma in enumerate(levels) if 0.05 <= sigma <= 50]
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.015)  # four standard errors
    assert drawn.std().item() == pytest.approx(0.5, rel=0.03)
    still = SAMPLERS["heun"].sample(denoise, noise(20_000), settings(sampler_steps=60))
    assert (drawn - still).std() > 0.3  # another image, not the same one nearly


def test_later_noise_is_an_image_s_own():
    shape, together = (1, 4, 4), image_noise(range(5), (1, 4, 4), 0, 1, 7)
    assert torch.equal(image_noise([3, 1], shape, 0, 1, 7), together[[3, 1]])
    others = [image_noise(range(5), shape, 0, 1), image_noise(range(5), shape, 0, 1, 8), image_noise(range(5), shape, 0, 2, 7)]
    assert not any(torch.equal(together, other) for other in others)


@pytest.mark.parametrize("name", ["ddim", *SOLVERS])
def test_churn_of_a_sampler_that_has_none_is_refused(name):
    with pytest.raises(ReproError, match=r"evaluation.churn: .* adds no noise on its way; set 0, or evaluation.sampler = 'heun'"):
        SAMPLERS[name].check(settings(churn=40.0), FORMULATIONS["ddpm"])


def test_a_record_says_how_much_churn_there_was():
    judged = settings(sampler_steps=256, churn=40.0, churn_range=(0.05, 50.0), churn_noise=1.003)
    about = about_sampler(SAMPLERS["heun"], judged, FORMULATIONS["edm"])
    assert about == {
        "name": "heun",
        "steps": 256,
        "precision": "float32",
        "churn": 40.0,
        "churn_range": [0.05, 50.0],
        "churn_noise": 1.003,
        "nfe": 511,
    }
