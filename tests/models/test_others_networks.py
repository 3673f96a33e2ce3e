"""Networks as others configure them, in small: each `UNet2DModel` is a base that computes what diffusers does, or is refused by name."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from support.hostile import refused

from baselines.pruning import prune_to_params
from repro.config import Base
from repro.errors import ReproError
from repro.experiment.pretrained import load_pretrained
from repro.models.architecture import unet_section
from repro.models.denoiser import as_pruned, count_params, load_denoiser
from repro.models.example import example_of
from repro.models.narrowed import conditions_of
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

DEFAULTS = {key: value.default for key, value in inspect.signature(UNet2DModel.__init__).parameters.items() if key != "self"}
DDPM = {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
ADM = {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8, "downsample_type": "resnet", "upsample_type": "resnet"}
RESNET = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
ADM |= {"attn_norm_num_groups": 4}


def levels(widths, attending, plain=("DownBlock2D", "UpBlock2D"), **others):
    """Returns the arguments of a network whose levels at some indices attend, and whose other blocks are plain ones."""
    kinds = [("AttnDownBlock2D", "AttnUpBlock2D") if index in attending else plain for index in range(len(widths))]
    names = {"block_out_channels": widths, "down_block_types": tuple(down for down, _ in kinds)}
    names["up_block_types"] = tuple(up for _, up in reversed(kinds))
    return {"sample_size": 2 ** len(widths), "norm_num_groups": 4, "layers_per_block": 1} | names | others


# The settings of config.json on the hub, with narrow widths and few groups.
TAKEN = {
    "google/ddpm-cifar10-32": levels((8, 16, 16, 16), {1}, **DDPM),
    "google/ddpm-celebahq-256": levels((8, 8, 16, 16, 16, 16), {4}, **DDPM),
    "google/ddpm-ema-church-256": levels((8, 8, 16, 16, 16, 16), {4}, **DDPM, num_train_timesteps=1000),
    "CompVis/ldm-celebahq-256": levels((8, 16, 24, 32), {1, 2, 3}, attention_head_dim=8, norm_eps=1e-6),
    "diffusers' train_unconditional.py": levels((8, 8, 16, 16, 24, 24), {4}, layers_per_block=2),
    "the tutorial's butterflies": levels((8, 8, 16, 16, 24, 24), {4}, sample_size=[64, 64], act_fn="swish"),
    "the course's MNIST": levels((8, 16, 16), {1, 2}, in_channels=1, out_channels=1, attention_head_dim=8, num_class_embeds=10),
    "openai/diffusers-cd_imagenet64_l2": levels((8, 16, 24, 32), {1, 2, 3}, RESNET, **ADM, num_class_embeds=10),
    "openai/diffusers-cd_bedroom256_l2": levels(
        (8, 8, 16, 16, 32, 32), {3, 4, 5}, RESNET, **(ADM | {"resnet_time_scale_shift": "default", "attn_norm_num_groups": None})
    ),
    "EDM's ADM": levels((8, 16, 24, 32), {1, 2, 3}, RESNET, **(ADM | {"norm_num_groups": 2}), layers_per_block=2),
    "labels embedded as timesteps": levels((8, 16), {1}, class_embed_type="timestep", num_class_embeds=10, attention_head_dim=8),
    "no attention in the middle": levels((8, 16), set(), add_attention=False, act_fn="mish", mid_block_scale_factor=2**0.5),
    "no middle": levels((8, 16), {0}, mid_block_type=None, attention_head_dim=8, time_embedding_dim=24, center_input_sample=True),
}


LARGE = [name for name, arguments in TAKEN.items() if len(arguments["block_out_channels"]) > 4]


def base_of(config, folder, **settings):
    return load_pretrained(replace(config, base=Base(source="path", folder=str(folder), weights="raw"), **settings), folder)


def saved(arguments, folder):
    torch.manual_seed(0)
    network = UNet2DModel(**arguments).eval()
    network.save_pretrained(folder)
    return network


@torch.no_grad()
def answer(network, *leading):
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(2, network_of(network).config["in_channels"], *[network_side(network)] * 2, generator=stream)
    return network(*leading, images, torch.tensor([3, 700]), **conditions_of(network_of(network), 2, "cpu"), return_dict=False)[0]


def network_of(network):
    return getattr(network, "base", network)


def network_side(network):
    side = network_of(network).config["sample_size"]
    return side if isinstance(side, int) else side[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in TAKEN])
def test_a_network_of_others_is_a_base_that_computes_what_diffusers_computes(name, tiny, tmp_path):
    theirs = saved(TAKEN[name], tmp_path / "theirs")
    side = network_side(theirs)
    network = unet_section(DEFAULTS | TAKEN[name] | {"sample_size": side})
    base = base_of(tiny, tmp_path / "theirs", network=network)
    expected = answer(theirs)
    assert torch.equal(answer(base), expected)

    pipes, params = pipes_of(base), sum(parameter.numel() for parameter in base.parameters())
    plan = make_plan(
        pipes, {pipe.name: torch.rand(pipe.width) for pipe in pipes}, (1.0, 0.7, 0.6), params_base=params, rule="uniform", floor=0.25
    )
    for pipe in pipes:
        kept = [set(plan.kept[size][pipe.name]) for size in (1.0, 0.7, 0.6)]
        assert kept[0] >= kept[1] >= kept[2] and len(kept[2]) < pipe.width
    supernet = Supernet(base, pipes, plan).eval()
    assert torch.equal(answer(supernet, 1.0), expected)
    subnet = supernet.extract(0.6)
    assert torch.equal(answer(subnet), answer(supernet, 0.6))
    as_pruned(subnet).save_pretrained(tmp_path / "subnet")
    assert torch.equal(answer(load_denoiser(tmp_path / "subnet")), answer(subnet))


@pytest.mark.parametrize("modulation", ["scale_shift", pytest.param("default", marks=pytest.mark.slow)])
def test_the_baselines_prune_units_that_scale_and_resample_and_no_channel_loses_its_scale_alone(modulation):
    arguments = levels((16, 32), {1}, RESNET, **(ADM | {"resnet_time_scale_shift": modulation}), num_class_embeds=10)
    network, stream = UNet2DModel(**arguments).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    params, shape = count_params(network.parameters()), (3, network_side(network), network_side(network))
    target = int(0.6 * params)
    pruned = prune_to_params(
        network, target, lambda group: torch.rand(len(group[0][1]), generator=stream), example_of(network, shape, "cpu")
    )
    if modulation == "scale_shift":
        with pytest.raises(ReproError, match=r"pruning\.channels: 'averaged' cannot prune"):
            prune_to_params(network, target, lambda _: None, example_of(network, shape, "cpu"), channels="averaged")
    assert count_params(pruned.parameters()) == pytest.approx(target, rel=0.03)
    assert answer(as_pruned(pruned)).isfinite().all()
    for unit, whole in ((name, module) for name, module in network.named_modules() if isinstance(module, ResnetBlock2D)):
        narrow, width = pruned.get_submodule(unit), whole.conv1.out_channels
        kept = [whole.conv1.bias.tolist().index(value) for value in narrow.conv1.bias.tolist()]
        runs = range(whole.time_emb_proj.out_features // width)
        assert torch.equal(narrow.norm2.weight, whole.norm2.weight[kept])
        assert torch.equal(narrow.time_emb_proj.bias, whole.time_emb_proj.bias[[channel + run * width for run in runs for channel in kept]])


# What is refused, and by which words
REFUSED = {
    "google/ncsnpp-celebahq-256": (
        levels((8, 8, 16, 16), {1}, **DDPM),
        {"time_embedding_type": "fourier"},
        "its time_embedding_type is 'fourier', the configuration's network has 'positional'; which no key of [network] changes",
    ),
    "its blocks": (
        levels((8, 16), {1}, attention_head_dim=8),
        {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"), "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D")},
        "which [network] cannot have (unknown value 'SkipDownBlock2D', use DownBlock2D, ",
    ),
    "k-diffusion's blocks": (
        levels((8, 16), {}),
        {"down_block_types": ("KDownBlock2D", "KDownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")},
        "its down_block_types is ['KDownBlock2D', 'KDownBlock2D']",
    ),
    "labels as vectors": (
        levels((8, 16), {}),
        {"class_embed_type": "identity"},
        "its class_embed_type is 'identity', the configuration's network has None; which [network] cannot have (unknown value 'identity'",
    ),
    "learned variances": (levels((8, 16), {}), {"out_channels": 6}, "it predicts a variance beside the noise"),
    "a learned embedding of time": (
        levels((8, 16), {}),
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        "its time_embedding_type is 'learned'",
    ),
    "the course's labels as channels": (levels((8, 16), {}), {"in_channels": 5}, "its in_channels is 5 and its out_channels is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_narrowed_here_is_refused_by_the_setting(name, tiny, tmp_path):
    common, foreign, says = REFUSED[name]
    saved(common, tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | foreign))
    line = refused(lambda: base_of(tiny, tmp_path / "theirs", network=unet_section(DEFAULTS | common)))
    assert line.startswith(f"base.folder {tmp_path / 'theirs'}: its ") and says in line
