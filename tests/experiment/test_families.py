"""The paper's families end to end in small: EDM's UNet, U-ViT, and class conditions with guidance, under every kind of method."""

import json
import re
import subprocess
import sys

import pytest
import torch
from diffusers import ConsistencyModelPipeline, EDMDPMSolverMultistepScheduler
from support.blocks import ROOT
from support.without_us import without_us

from repro.api import METHODS, Cell, Experiment, load_config, main
from repro.deliver.extract import extract_subnet
from repro.diffusion.formulation import predictor
from repro.diffusion.heun import heun, sigma_grid
from repro.diffusion.sampler import Denoise
from repro.experiment.evaluate import Drawing
from repro.experiment.run import load_model
from repro.models.denoiser import load_denoiser

TINY = (ROOT / "tests" / "tiny.toml").read_text()
SONG = "model_channels = 8\nchannel_mult = [1, 2]\nnum_blocks = 1\nattn_resolutions = [4]\nnorm_num_groups = 2\n"
LADDER = "num_train_timesteps = 20\n"
UVIT = "[uvit]\nsample_size = 8\nchannels = 1\npatch_size = 2\nwidth = 32\ndepth = 3\nheads = 2\n"
FAMILIES = {
    "edm": (f"[song_unet]\nsample_size = 8\nchannels = 1\n{SONG}", f'formulation = "edm"\n{LADDER}', ""),
    "uvit": (UVIT, f'formulation = "vp"\n{LADDER}', ""),
    "edm-with-classes": (
        f"[song_unet]\nsample_size = 8\nchannels = 1\nnum_class_embeds = 11\n{SONG}",
        f'formulation = "edm"\n{LADDER}',
        'condition = "class_labels"\ncondition_dropout = 0.1\n',
    ),
}
TRAININGS = ("base_training", "ofa_training", "baseline_training")
# What else each of them tries: the section's key -> its value.
CHANGES = {
    "edm": {},
    "uvit": {"evaluation.sampler": "dpmsolver"} | {f"{name}.weight_decay": 0.03 for name in TRAININGS},
    "edm-with-classes": {"song_unet.augment_dim": 9, "allocation.resampling_units": "whole", "evaluation.churn": 2.0}
    | {f"{name}.augment_probability": 0.2 for name in TRAININGS}
    | {"base_training.ema_half_life_images": 20, "base_training.ema_ramp": 0.5, "base_training.ema_decay": 0.9999},
}
SOME = "base,ofa,ofa_open,ofa_distilled,diff_pruning,random,scratch"


def written(folder, family):
    """Writes the tiny configuration of a family."""
    network, diffusion, data = FAMILIES[family]
    text = re.sub(r"\[network\]\n.*?\n\n", f"{network}\n[diffusion]\n{diffusion}\n[data]\n{data}\n", TINY, flags=re.DOTALL)
    text = text.replace("[evaluation]\n", '[evaluation]\nsampler = "heun"\n' + ("guidance = 1.5\n" if data else ""))
    (folder / "tiny.toml").write_text(text)
    config = load_config(str(folder / "tiny.toml"), [f"{key}={value}" for key, value in CHANGES[family].items()])
    return str(folder / "tiny.toml"), config


def ran(folder, family, methods):
    """An experiment of a family whose cells have been run."""
    path, config = written(folder, family)
    sets = [word for key, value in CHANGES[family].items() for word in ("--set", f"{key}={value}")]
    places = ["--config", path, *sets, "--results", str(folder / "results"), "--runs", str(folder / "runs")]
    assert main(arguments=["run", *places, "--methods", methods, "--sizes", "0.5"]) == 0
    folders = {"results": folder / "results" / "tiny", "runs": folder / "runs" / "tiny"}
    return Experiment(config=config, methods=METHODS, source="", **folders)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, ran(folder, request.param, SOME)


def records_of(experiment):
    return {path.stem: json.loads(path.read_text()) for path in experiment.results.glob("*.json")}


def test_every_kind_of_method_has_a_record_of_the_size_that_was_asked(family):
    _, experiment = family
    records = records_of(experiment)
    for method in SOME.split(",")[1:]:
        record = records[f"{method}-0.5-seed0"]
        assert record["status"] == "done" and record["quality"]["mean"] > 0
        assert record["size"]["realised"] == pytest.approx(0.5, abs=0.05)
        assert record["quality"]["sampler"]["name"] == ("dpmsolver" if family[0] == "uvit" else "heun")
        conditions = {"edm-with-classes": {"name": "class_labels", "num_classes": 10}}
        assert record["quality"].get("condition") == conditions.get(family[0])
    nfe = 3 if family[0] == "uvit" else 2 * 3 - 1
    assert records["ofa-0.5-seed0"]["quality"]["sampler"]["nfe"] == nfe * (2 if "classes" in family[0] else 1)


def test_samples_depend_on_seed_and_index_alone(family):
    _, experiment = family
    cell = Cell(method="ofa", size=0.5, seed=0)
    model = load_model(experiment, cell).eval()
    whole = Drawing(experiment, model, cell, 64)(range(12), 0)
    parts = torch.cat([Drawing(experiment, model, cell, 5)(range(start, start + 4), 0) for start in (0, 4, 8)])
    assert (whole.int() - parts.int()).abs().max() <= 1  # other batches round otherwise
    assert not torch.equal(Drawing(experiment, model, cell, 64)(range(12), 1), whole)


def test_a_subnet_is_handed_over_and_sampled_by_the_card_s_own_lines(family, tmp_path):
    _, experiment = family
    extract_subnet(experiment, size=0.5, seed=0, out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    labelled = family[0] == "edm-with-classes"
    assert ("class_labels (10 classes)" in card) == labelled
    assert ("class_labels=[0, 1, 2, 3])" in card) == labelled  # by itself the pipeline would draw the label that stands for none, too
    code, alone = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    after = "\nassert len(images) == 4 and images[0].size == (8, 8)\n"
    done = subprocess.run([sys.executable, "-c", code + after], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without_us(alone + after, home=tmp_path)
    trained = load_model(experiment, Cell(method="ofa", size=0.5, seed=0))
    for mine, theirs in zip(load_denoiser(tmp_path / "out").state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["edm"], indirect=True)
def test_diffusers_sampler_on_the_folder_is_the_harness_s_at_many_steps(family):
    """EDM's, from the same noise: both follow one flow, so they meet where steps are small."""
    _, experiment = family
    cell = Cell(method="base", size=1.0, seed=0)
    model, formulation, steps = load_model(experiment, cell).eval(), experiment.formulation, 100
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = heun(Denoise(predict=predictor(model), formulation=formulation), noise, sigma_grid(steps, *formulation.sigmas))
    scheduler = EDMDPMSolverMultistepScheduler.from_pretrained(experiment.folder(cell) / "model", subfolder="scheduler")
    pipeline = ConsistencyModelPipeline(unet=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=4, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close(theirs, ours.clamp(-1, 1) / 2 + 0.5, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["edm", "uvit"])
def test_every_method_runs(name, tmp_path):
    experiment = ran(tmp_path, name, ",".join(METHODS))
    records = records_of(experiment)
    assert len(records) > 45
    assert {record["status"] for record in records.values()} == {"done"}
