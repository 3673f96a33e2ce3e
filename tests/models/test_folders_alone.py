"""Folders of every family where torch and diffusers alone are installed: refused without trust, with it the same images to the bit."""

import hashlib
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from support.without_us import without_us

from repro.config import Diffusion, Transformer
from repro.config.networks import SongUNet, UViT
from repro.diffusion.ddpm import DDPM
from repro.diffusion.edm import EDM
from repro.diffusion.vp import VP
from repro.errors import ReproError
from repro.models.denoiser import build_base, load_denoiser, load_pipeline, save_denoiser
from repro.models.narrowed import module_source
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

DDPMS, EDMS, VPS = DDPM(Diffusion()), EDM(Diffusion(formulation="edm")), VP(Diffusion(formulation="vp"))
SONG = SongUNet(
    sample_size=8, channels=1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), norm_num_groups=2, augment_dim=2
)
UVIT = UViT(sample_size=8, channels=1, patch_size=2, width=32, depth=3, heads=2)
DIT = Transformer(sample_size=8, channels=1, patch_size=2, num_layers=2, num_attention_heads=2, attention_head_dim=8)
OF_ADM = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attn_norm_num_groups": 2,
}
# Of numpy, about DPM-Solver's scheduler.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
OTHER = "ConsistencyModelPipeline"
# What each family changes in the tiny UNet, or has in its place; its formulation, its classes, and the pipeline that samples from it.
FAMILIES = {
    "unet-ddpm": ({}, DDPMS, 0, "DDIMPipeline"),
    "unet-ddpm-classes": ({"num_class_embeds": 3}, DDPMS, 3, OTHER),
    "adm-ddpm": (OF_ADM, DDPMS, 0, "DDIMPipeline"),
    "adm-edm-classes": (OF_ADM | {"num_class_embeds": 3}, EDMS, 3, OTHER),
    "dit-ddpm": (DIT, DDPMS, 0, "DDIMPipeline"),
    "song-edm": (SONG, EDMS, 0, OTHER),
    "song-edm-classes": (replace(SONG, num_class_embeds=3), EDMS, 3, OTHER),
    "u-vit-vp": (UVIT, VPS, 0, OTHER),
    "u-vit-vp-classes": (replace(UVIT, num_class_embeds=3), VPS, 3, OTHER),
}
# With this package and without it. Its words: the folder that holds the families, and their classes as JSON.
DRAW = """
def draw(pipeline, classes):
    import torch
    pipeline.set_progress_bar_config(disable=True)
    labels = {"class_labels": [label % classes for label in range(3)]} if classes else {}
    stream = torch.Generator().manual_seed(3)
    return torch.from_numpy(pipeline(batch_size=3, generator=stream, num_inference_steps=4, output_type="np", **labels).images)
"""
ALONE = f"""
import json, sys
import torch
from pathlib import Path
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
torch.set_num_threads(1)
{DRAW}
kinds = {{}}
for name, classes in json.loads(sys.argv[2]).items():
    folder = Path(sys.argv[1]) / name
    try:
        DiffusionPipeline.from_pretrained(folder)
        sys.exit(name + ": code of a folder was run without trust")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    save_file({{"images": draw(pipeline, classes).contiguous()}}, folder / "alone.safetensors")
    kinds[name] = type(pipeline).__name__
assert not any(name.partition(".")[0] in ("repro", "deepspeed", "scipy") and module for name, module in sys.modules.items())
print(json.dumps(kinds))
"""
exec(DRAW)  # noqa: S102


def subnet_of(settings):
    """A subnet of half the size, with weights that are nowhere their initial ones."""
    base, stream = build_base(settings, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    pipes, params = pipes_of(base), sum(parameter.numel() for parameter in base.parameters())
    scores = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    plan = make_plan(pipes, scores, (1.0, 0.5), params_base=params, rule="uniform", floor=0.25)
    return Supernet(base, pipes, plan).extract(0.5).eval()


@pytest.fixture(scope="module")
def families(tiny, tmp_path_factory):
    """A folder for each family, and what lies in each after it was drawn from without this package."""
    place = tmp_path_factory.mktemp("families")
    for name, (settings, formulation, _, _) in FAMILIES.items():
        network = replace(tiny.network, **settings) if isinstance(settings, dict) else settings
        save_denoiser(subnet_of(network), formulation.scheduler(clip_sample=True), place / name)
    classes = json.dumps({name: classes for name, (_, _, classes, _) in FAMILIES.items()})
    said = without_us(ALONE, str(place), classes, home=tmp_path_factory.mktemp("home"))
    return place, json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_draws_the_same_images_with_this_package_and_without_it(name, families):
    place, kinds = families
    *_, classes, kind = FAMILIES[name]
    pipeline = load_pipeline(place / name)
    assert kinds[name] == type(pipeline).__name__ == kind
    assert json.loads((place / name / "model_index.json").read_text())["unet"] == ["repro.harness.denoiser", type(pipeline.unet).__name__]
    images = draw(pipeline, classes)  # noqa: F821
    assert len({image.numpy().tobytes() for image in images}) == 3 and images.isfinite().all()
    assert torch.equal(safetensors.torch.load_file(place / name / "alone.safetensors")["images"], images)


def test_the_code_in_every_folder_is_one_module_of_ours(families):
    place, _ = families
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in place.glob("*/unet/*.py")}
    assert found == {hashlib.sha256(module_source()).hexdigest()}
    assert len(list(place.glob("*/unet/*.py"))) == len(FAMILIES) and len(list(place.glob("*/**/*.py"))) == len(FAMILIES)


@pytest.mark.parametrize(("name", "formulation"), [("song-edm", EDMS), ("u-vit-vp", VPS)])
def test_a_folder_of_before_it_was_a_pipeline_is_loaded_as_one(name, formulation, families, tmp_path):
    place, _ = families
    pipeline = load_pipeline(place / name)
    pipeline.unet.save_pretrained(tmp_path / "unet")
    formulation.scheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    assert torch.equal(draw(load_pipeline(tmp_path), 0), draw(pipeline, 0))  # noqa: F821


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("song-edm", {"sigma_data": 1.0}, "its sigma_data is 1.0"),
        ("song-edm", {"prediction_type": "v_prediction"}, "its prediction_type is 'v_prediction'"),
        ("song-edm", {"beta_start": 0.1}, "its beta_start is 0.1"),
        ("song-edm", {"clip_sample": True}, "its clip_sample is True"),
        ("u-vit-vp", {"solver_order": 1}, "its solver_order is 1"),
        ("u-vit-vp", {"num_train_timesteps": 10**12}, "num_train_timesteps: must be at least 1"),
        ("u-vit-vp", {"algorithm_type": "sde-dpmsolver++"}, "its algorithm_type is 'sde-dpmsolver++'"),
        ("unet-ddpm", {"solver_order": 3}, "its solver_order is 3"),
        ("unet-ddpm", {"variance_type": "fixed_small"}, "its variance_type is 'fixed_small'"),
    ],
)
def test_a_sampler_that_is_not_built_here_is_refused_by_its_key(name, values, reason, families, tmp_path):
    place, _ = families
    pipeline = load_pipeline(place / name)
    pipeline.save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ReproError, match="not a readable sampler") as error:
        load_pipeline(tmp_path / "folder")
    assert reason in str(error.value) and "load the network alone" in str(error.value)


def test_a_network_without_a_pipeline_of_diffusers_is_saved_with_its_sampler_and_loaded_alone(tmp_path):
    save_denoiser(subnet_of(DIT), EDMS.scheduler(clip_sample=False), tmp_path / "folder")
    assert not (tmp_path / "folder" / "model_index.json").exists()
    with pytest.raises(ReproError, match="diffusers has no pipeline for a PrunedDiT2DModel with a EDMDPMSolverMultistepScheduler"):
        load_pipeline(tmp_path / "folder")
    assert type(load_denoiser(tmp_path / "folder")).__name__ == "PrunedDiT2DModel"


def test_ddpm_s_own_sampler_is_taken_with_classes_too(families, tmp_path):
    place, _ = families
    pipeline = load_pipeline(place / "unet-ddpm-classes")
    save_denoiser(pipeline.unet, DDPMScheduler(), tmp_path / "folder")
    assert type(load_pipeline(tmp_path / "folder")).__name__ == OTHER
    assert torch.equal(draw(load_pipeline(tmp_path / "folder"), 3), draw(load_pipeline(tmp_path / "folder"), 3))  # noqa: F821
