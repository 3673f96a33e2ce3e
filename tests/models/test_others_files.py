"""Files that others made: every setting of a network or scheduler is honoured, known not to matter, or refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.training_utils import EMAModel
from support.hostile import refused

from repro.config import Base, Diffusion
from repro.diffusion.ddpm import noise_schedule, sampling_scheduler
from repro.experiment.pretrained import load_pretrained
from repro.models.denoiser import build_base

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def from_folder(config, folder, weights="raw"):
    return replace(config, base=Base(source="path", folder=str(folder), weights=weights))


def load(config, folder, weights="raw"):
    return load_pretrained(from_folder(config, folder, weights), folder)


def same_weights(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def folder(base, tmp_path):
    """The folder of a network, as `save_pretrained` writes it."""
    base.save_pretrained(tmp_path / "network")
    return tmp_path / "network"


def change(path, **values):
    """Changes values of a JSON file; None takes a key away."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | values).items() if value is not ...}))


# A base's scheduler


def test_a_schedule_of_other_alphas_is_refused_whatever_key_makes_it_so(tiny, folder):
    betas = noise_schedule(tiny.diffusion).betas.tolist()
    wrong = {
        "rescale_betas_zero_snr": {"rescale_betas_zero_snr": True},
        "trained_betas": {"trained_betas": [0.5 * beta for beta in betas]},
        "beta_start": {"beta_start": 0.0002},
        "beta_schedule": {"beta_schedule": "sigmoid"},
        "num_train_timesteps": {"num_train_timesteps": 10**12},  # never allocated
    }
    for key, values in wrong.items():
        DDPMScheduler().save_pretrained(folder)
        change(folder / "scheduler_config.json", **values)
        assert f"{folder / 'scheduler_config.json'}: its {key} is " in refused(load, tiny, folder)


def test_a_class_whose_own_default_schedule_is_another_is_refused(tiny, folder):
    change(folder / "scheduler_config.json", _class_name="HeunDiscreteScheduler")  # beta_start 0.00085 where nothing is said
    assert "its noise schedule is another than the configuration's" in refused(load, tiny, folder)


def test_settings_that_mean_the_same_schedule_are_taken(tiny, base, folder):
    schedulers = [DDIMScheduler(), PNDMScheduler(skip_prk_steps=True), EulerDiscreteScheduler(use_karras_sigmas=True)]
    schedulers += [DDPMScheduler(variance_type=kind, clip_sample=False) for kind in ("fixed_small", "fixed_large")]
    schedulers += [DDPMScheduler(trained_betas=noise_schedule(tiny.diffusion).betas.tolist())]
    for scheduler in schedulers:
        scheduler.save_pretrained(folder)
        assert same_weights(load(tiny, folder), base)
    cosine = replace(tiny, diffusion=Diffusion(beta_schedule="squaredcos_cap_v2"))
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", beta_end=0.5).save_pretrained(folder)  # which that schedule does not look at
    assert same_weights(load(cosine, folder), base)


def test_the_settings_of_the_hub_s_base_are_taken(tiny, base, folder):
    """google/ddpm-cifar10-32's scheduler_config.json of diffusers 0.1.1, and the keys that its siblings have."""
    old = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001}
    old |= {"clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large"}
    (folder / "scheduler_config.json").write_text(json.dumps(old | {"tensor_format": "pt", "timestep_values": None}))
    assert same_weights(load(tiny, folder), base)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "its _class_name is FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "its _class_name is EDMEulerScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "its _class_name is ScoreSdeVeScheduler"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "its _class_name is CMStochasticIterativeScheduler"),
        ({"_class_name": ["DDPMScheduler"]}, "its _class_name is ['DDPMScheduler']"),
        ({"prediction_type": "sample"}, "the network predicts 'sample'"),
        ({"predict_epsilon": False}, "its predict_epsilon is False"),
        ({"variance_type": "learned_range"}, "its variance_type is 'learned_range'"),
        ({"thresholding": True}, "its thresholding is True"),
        ({"timestep_values": [0, 500]}, "its timestep_values is [0, 500]"),
        ({"use_flow_sigmas": True}, "its use_flow_sigmas is True"),
        ({"snr_shift": 3.0}, "its snr_shift is 3.0, a setting that is not known here"),
        ({"beta_start": "small"}, "describes no noise schedule"),
        ({"trained_betas": [0.1]}, "its trained_betas is [0.1]"),
        ({"trained_betas": "all"}, "its trained_betas is 'all'"),
        ({"num_train_timesteps": None}, "its num_train_timesteps is None"),
    ],
)
def test_a_scheduler_s_setting_that_is_not_honoured_is_refused_by_name(values, says, tiny, folder):
    DDPMScheduler().save_pretrained(folder)
    change(folder / "scheduler_config.json", **values)
    line = refused(load, tiny, folder)
    assert line.startswith(f"{folder / 'scheduler_config.json'}: ") and says in line


# A base's network


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "its network is a UNet2DConditionModel"),
        ({"sample_size": 16}, "its sample_size is 16, the configuration's network has 8; change [network] (sample_size)"),
        ({"sample_size": [8, 16]}, "its sample_size is [8, 16]"),
        ({"in_channels": 3}, "its in_channels is 3 and its out_channels is 1; a base answers with as many channels as it is given"),
        ({"in_channels": 3, "out_channels": 3}, "its in_channels is 3, the configuration's network has 1; change [network] (channels)"),
        ({"out_channels": 2}, "its out_channels is 2 for 1 channels: it predicts a variance beside the noise (a learned variance)"),
        ({"out_channels": 4}, "its out_channels is 4, the configuration's network has 1; which no key of [network] changes"),
        ({"num_class_embeds": 10}, "its num_class_embeds is 10"),
        ({"class_embed_type": "timestep"}, "its class_embed_type is 'timestep'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "its resnet_time_scale_shift is 'scale_shift'"),
        ({"add_attention": False}, "its add_attention is False"),
        ({"time_embedding_type": "fourier"}, "its time_embedding_type is 'fourier'"),
        ({"cross_attention_dim": 768}, "its cross_attention_dim is 768, a setting that is not known here"),
        ({"norm_eps": 1e-6}, "its norm_eps is 1e-06, the configuration's network has 1e-05; change [network] (norm_eps)"),
        ({"widths": {"conv_in": [1, 1]}}, "is a pruned network; a base is whole"),
    ],
)
def test_a_network_s_setting_that_is_not_honoured_is_refused_by_name(values, says, tiny, folder):
    change(folder / "config.json", **values)
    line = refused(load, tiny, folder)
    assert line.startswith(f"base.folder {folder}: ") and says in line


@pytest.mark.parametrize("values", [{"sample_size": None}, {"sample_size": [8, 8]}, {"dropout": 0.3}, {"sample_size": ...}])
def test_a_network_s_setting_that_does_not_matter_is_taken(values, tiny, base, folder):
    change(folder / "config.json", **values)
    assert same_weights(load(tiny, folder), base)


@pytest.mark.parametrize("pipeline", ["LDMPipeline", "ScoreSdeVePipeline", "StableDiffusionPipeline"])
def test_the_network_of_another_pipeline_is_refused(pipeline, tiny, base, tmp_path):
    DDIMPipeline(unet=base, scheduler=sampling_scheduler(tiny.diffusion, clip_sample=True)).save_pretrained(tmp_path / "pipeline")
    change(tmp_path / "pipeline" / "model_index.json", _class_name=pipeline)
    assert f"its pipeline is a {pipeline}" in refused(load, tiny, tmp_path / "pipeline")


# Which weights


@pytest.fixture
def both(tiny, base, tmp_path):
    """A folder that holds raw weights and their average, as diffusers' training scripts leave it; returns it with the average."""
    averaged = build_base(tiny.network, seed=1)
    base.save_pretrained(tmp_path / "both" / "unet")
    EMAModel(averaged.parameters(), model_cls=type(averaged), model_config=averaged.config).save_pretrained(tmp_path / "both" / "unet_ema")
    return tmp_path / "both", averaged


def test_the_weights_that_are_declared_are_loaded(tiny, base, both):
    folder, averaged = both
    assert same_weights(load(tiny, folder, "raw"), base)
    assert same_weights(load(tiny, folder, "ema"), averaged)
    assert "say which is meant: --set base.weights=raw, or ema" in refused(load, tiny, folder, "unknown")
    assert same_weights(load(tiny, folder / "unet_ema", "ema"), averaged)
    assert same_weights(load(tiny, folder / "unet", "raw"), base)
    assert same_weights(load(tiny, folder / "unet_ema", "unknown"), averaged)


def test_a_declaration_that_the_files_contradict_is_refused(tiny, both, tmp_path):
    folder, _ = both
    assert refused(load, tiny, folder / "unet", "ema").startswith("base.weights: 'ema', but the average lies beside it, in ")
    assert refused(load, tiny, folder / "unet_ema", "raw").startswith("base.weights: 'raw', but ")
    (folder / "unet_ema").rename(tmp_path / "renamed")  # its config.json still says so
    assert "renamed holds an average of weights; set base.weights=ema" in refused(load, tiny, tmp_path / "renamed", "raw")


def test_without_evidence_the_declaration_is_the_user_s(tiny, base, folder):
    for weights in ("ema", "raw", "unknown"):
        assert same_weights(load(tiny, folder, weights), base)


@pytest.mark.parametrize(("variant", "weights"), [("non_ema", "raw"), ("ema", "ema")])
def test_a_variant_beside_the_weights_tells_which_they_are(variant, weights, tiny, base, folder):
    base.save_pretrained(folder, variant=variant)
    other = {"raw": "ema", "ema": "raw"}[weights]
    assert f"diffusion_pytorch_model.{variant}.safetensors lies beside them" in refused(load, tiny, folder, weights)
    assert same_weights(load(tiny, folder, other), base)
    (folder / WEIGHTS).unlink()
    assert f"diffusion_pytorch_model.{variant}.safetensors lies there" in refused(load, tiny, folder, other)
    assert same_weights(load(tiny, folder, weights), base)


# What lies where a file should be


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "scheduler_config.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, "a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page and not the file itself; download it anew"),
        (b"/annex/objects/SHA256E-s1--0.safetensors\n", "a pointer of git-annex"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a server's answer in XML"),
    ],
)
def test_a_pointer_in_place_of_a_file_is_named(name, content, says, tiny, folder):
    (folder / name).write_bytes(content)
    assert refused(load, tiny, folder).startswith(f"{folder / name}: {says}")
