"""A sampler from outside is honoured from the configuration to the folder that is handed over: the script of docs/extend.md."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.blocks import ROOT, blocks_of
from support.gaussian import Gaussian

from repro.api import METHODS, Cell, Experiment, Parts, ReproError, load_config, main, parts_of, plan_cells
from repro.budget.throughput import measure
from repro.budget.work import stages
from repro.config import Diffusion, Evaluation
from repro.data.images import to_pixels
from repro.deliver.extract import sample_images, save_subnet
from repro.diffusion.batches import image_noise
from repro.diffusion.ddpm import DDPM
from repro.diffusion.formulation import predictor
from repro.diffusion.sampler import Denoise, about_sampler
from repro.diffusion.samplers import SAMPLERS
from repro.experiment.stage import costs_of
from repro.models.denoiser import load_denoiser

TINY = ROOT / "tests" / "tiny.toml"
(SCRIPT,) = (block.text for block in blocks_of(ROOT / "docs" / "extend.md") if block.file == "midpoint.py")
KNOWN = "ddim, heun, dpmsolver, dpmsolver++, unipc"
DRAWN = ["evaluation.sampler=midpoint", "evaluation.samples=16", "evaluation.sampler_steps=2"]


def of_script():
    """The class of the script."""
    names = {"__name__": "midpoint"}
    exec(SCRIPT, names)  # noqa: S102
    return names["Midpoint"]


Midpoint = of_script()


class Counted(Midpoint):
    """Remembers how often it was asked, and with how many steps."""

    def __init__(self):
        self.steps = []

    def sample(self, denoise, noise, settings):
        self.steps.append(settings.sampler_steps)
        return super().sample(denoise, noise, settings)


def places(folder):
    return ["--config", str(TINY), "--results", str(folder / "results"), "--runs", str(folder / "runs")]


def experiment(folder, sampler, *more):
    parts = parts_of([sampler])
    config = load_config(str(TINY), [*DRAWN, *more], parts.names)
    folders = {"results": folder / "results" / "tiny", "runs": folder / "runs" / "tiny"}
    return Experiment(config=config, parts=parts, methods=METHODS, source="", **folders)


def by_hand(this, model):
    """The sixteen images of seed 0, drawn by the script's own function."""
    with torch.no_grad():
        noise = image_noise(range(16), (1, 8, 8), 0, 0)
        denoise = Denoise(predict=predictor(model), formulation=this.formulation)
        return to_pixels(Midpoint().sample(denoise, noise, this.config.evaluation))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder where the script's sampler has drawn the samples of a base."""
    folder = tmp_path_factory.mktemp("sampler")
    sets = [word for value in DRAWN for word in ("--set", value)]
    assert main(Midpoint(), arguments=["run", *places(folder), *sets, "--methods", "base"]) == 0
    return folder


def test_the_record_names_it_and_its_images_are_drawn_by_it(ran):
    record = json.loads((ran / "results" / "tiny" / "base-1-seed0.json").read_text())
    assert record["quality"]["sampler"] == {"name": "midpoint", "steps": 2, "precision": "float32", "nfe": 3}
    assert record["provenance"]["config"]["evaluation"]["sampler"] == "midpoint"
    this = experiment(ran, Midpoint())
    expected = by_hand(this, load_denoiser(this.folder(Cell(method="base", size=1.0, seed=0)) / "model").eval())
    strip = torch.from_numpy(np.array(Image.open(ran / "results" / "tiny" / "samples" / "base-1-seed0.png")))
    shown = strip.reshape(8, 16, 8).permute(1, 0, 2)[:, None]
    assert (shown.int() - expected.int()).abs().max() <= 1


def test_the_nfe_that_it_says_is_how_often_it_asks_and_what_the_estimate_charges(tmp_path, base):
    this = experiment(tmp_path, Midpoint(), "evaluation.sampler_steps=5", "evaluation.sampling_seeds=[0, 1]")
    asked = []

    def predict(images, timesteps):
        asked.append(timesteps)
        return predictor(base)(images, timesteps)

    Midpoint().sample(Denoise(predict=predict, formulation=this.formulation), torch.randn(2, 1, 8, 8), this.config.evaluation)
    assert len(asked) == this.nfe == 9
    found = {stage.name: stage for stage in stages(this, plan_cells(this, ["base", "ofa"], None, [0]))}
    macs = costs_of(this.config, "gradual").macs
    assert found["base: sampling"].passes == 9 * 16 * 2
    assert found["base: sampling"].pflop == pytest.approx(2 * macs[1.0] * 9 * 16 * 2 / 1e15)
    assert found["ofa: sampling"].pflop == pytest.approx(2 * (macs[1.0] + macs[0.5]) * 9 * 16 * 2 / 1e15)


def test_the_throughput_is_measured_with_it(tmp_path):
    sampler = Counted()
    this = experiment(tmp_path, sampler, "evaluation.sampler_steps=5")
    found = measure(this)
    assert set(sampler.steps) == {2}
    forward = 1 / (9 * found.sampling_img_per_sec)  # seconds of one evaluation of one image at full size
    large = 2 * costs_of(this.config, "gradual").macs[1.0] / 1e15
    assert found.sampling.seconds(1, large) == pytest.approx(forward)


def test_a_folder_is_handed_over_with_its_images_and_a_card_that_promises_no_more(tmp_path, base):
    this, cell = experiment(tmp_path, Midpoint()), Cell(method="ofa", size=1.0, seed=0)
    assert torch.equal(sample_images(this, base, cell), by_hand(this, base))
    save_subnet(this, cell, base, base, out=tmp_path / "out", onnx=False, recorded=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sampling seed 0, sampler midpoint, steps 2, precision float32, nfe 3.\n" in card
    assert "The quality was measured by the sampler `midpoint`, too." in card
    assert "to the bit" not in card and "which is not the sampler that the quality was measured with" in card
    ours = dataclasses.replace(this, config=load_config(str(TINY)), parts=Parts())
    save_subnet(ours, cell, base, base, out=tmp_path / "ours", onnx=False, recorded=False)
    card = (tmp_path / "ours" / "README.md").read_text()
    assert (
        "sampling seed 0, 3 DDIM steps, quadratic spacing.\n"
        "This draws them as the images were drawn whose quality was measured, to the bit on the same device:\n" in card
    )


def test_the_script_s_sampler_is_of_second_order():
    """Of a Gaussian the flow is known exactly."""

    def error(steps):
        denoise = Gaussian(mean=0.3, deviation=0.5, sigmas=(0.01, 100.0))
        noise = torch.randn(500, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return (Midpoint().sample(denoise, noise, Evaluation(sampler_steps=steps)) - denoise.exact(noise)).abs().max().item()

    assert error(81) < error(41) / 3 < 1e-2


def test_a_record_s_sampler_is_to_the_byte_what_it_was():
    about = about_sampler(SAMPLERS["ddim"], Evaluation(), DDPM(Diffusion()))
    assert json.dumps(about) == (
        '{"name": "ddim", "steps": 100, "nfe": 96, "spacing": "quadratic", "eta": 0.0, "clip_sample": true, "precision": "float32"}'
    )


@pytest.mark.parametrize(
    ("own", "name", "named"),
    [
        ([], "midpoint", f"evaluation.sampler: unknown value 'midpoint', use {KNOWN}"),
        (
            [Midpoint()],
            "midpoin",
            f"evaluation.sampler: unknown value 'midpoin', use {KNOWN}, midpoint; did you mean 'midpoint'?",
        ),
        ([Midpoint(), Midpoint()], "midpoint", "sampler 'midpoint': there is one of this name already"),
        ([type("Again", (Midpoint,), {"name": "ddim"})()], "ddim", "sampler 'ddim': there is one of this name already"),
        ([Midpoint], "midpoint", "no method, metric, sampler, formulation, space or condition; give an object of a class"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, own, name, named):
    assert main(*own, arguments=["status", *places(tmp_path), "--set", f"evaluation.sampler={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


def test_the_names_of_the_package_are_those_that_a_configuration_takes():
    assert Parts().names["evaluation.sampler"] == tuple(SAMPLERS)
    assert Parts().sampler("ddim") is SAMPLERS["ddim"]
    with pytest.raises(ReproError, match="unknown value 'midpoint'"):
        Parts().sampler("midpoint")


def test_a_metric_and_a_sampler_leave_the_default_methods_alone(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(Midpoint(), arguments=["run", "--help"])
    assert "floor,noise,base" in "".join(capsys.readouterr().out.split())
