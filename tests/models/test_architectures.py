"""Every architecture: its pipes, and what the method must hold for each."""

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, DDIMPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional

from baselines import criteria
from baselines.pruning import prune_to_params
from repro.config import Diffusion, Network, Transformer, load_config
from repro.config.networks import Architecture, SongUNet, UViT
from repro.deliver.network_sizes import describe_network
from repro.deliver.onnx_export import to_onnx
from repro.diffusion.ddpm import sampling_scheduler
from repro.diffusion.edm import EDM
from repro.diffusion.vp import VP
from repro.errors import ReproError
from repro.models.cost import count_macs, count_macs_torch_pruning, measure_latency, peak_bytes
from repro.models.denoiser import as_pruned, build_base, channel_widths, load_denoiser, load_pipeline, meta_base, save_denoiser
from repro.models.example import conditions_of, example_of
from repro.models.memory import activation_bytes
from repro.models.narrowed import SongUNet as SongUNetModel
from repro.ofa.accounting import count_base_macs, params_at, pipe_macs
from repro.ofa.allocation import make_plan
from repro.ofa.importance import other_scores, pipe_importance
from repro.ofa.pipes import make_pipe, pipes_of
from repro.ofa.supernet import Supernet

SIZES = (1.0, 0.75, 0.5, 0.25)
UNET = Network(
    sample_size=8,
    channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=2,
    attention_head_dim=8,
)
DIT = Transformer(sample_size=8, channels=1, patch_size=2, num_layers=2, num_attention_heads=2, attention_head_dim=8)
TEXT = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 2,
    "attention_head_dim": 2,  # diffusers' name for the number of heads
    "cross_attention_dim": 12,
}
# One layer of each kind, by hand: (width, groups, parameters of one channel).
# The transformer is 16 wide: attention 3 * (16 + 1) + 16, feed-forward 16 + 1 + 16.
DIT_PIPES = {"attn1": ("attention", 16, 2, 67), "ff": ("feed_forward", 64, 1, 33)}
# The first text block is 8 wide, its text 12: no biases in q, k and v; a GEGLU holds a channel twice.
TEXT_PIPES = {
    "attn1": ("attention", 8, 2, 3 * 8 + 8),
    "attn2": ("attention", 8, 2, 8 + 2 * 12 + 8),
    "ff": ("feed_forward", 32, 1, 2 * (8 + 1) + 8),
}
DIT_CONFIG = Path(__file__).parents[2] / "repro" / "configs" / "digits_transformer.toml"


def text_unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**TEXT)


SONG = SongUNet(
    sample_size=8,
    channels=1,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
    norm_num_groups=2,
    num_class_embeds=3,
    augment_dim=2,
)
UVIT = UViT(sample_size=8, channels=1, patch_size=2, width=16, depth=3, heads=2, num_class_embeds=3)
ADM = replace(
    UNET,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
    downsample_type="resnet",
    upsample_type="resnet",
    attn_norm_num_groups=2,
    num_class_embeds=3,
)
MODELS = {
    "unet": lambda: build_base(UNET, seed=0),
    "unet-with-classes": lambda: build_base(replace(UNET, num_class_embeds=3), seed=0),
    "adm": lambda: build_base(ADM, seed=0),
    "transformer": lambda: build_base(DIT, seed=0),
    "text-to-image": text_unet,
    "song-unet": lambda: build_base(SONG, seed=0),
    "u-vit": lambda: build_base(UVIT, seed=0),
}


@pytest.fixture(params=MODELS)
def model(request):
    """A small network with every weight moved away from its initial value, so that no norm is 1 and no bias 0."""
    made, stream = MODELS[request.param](), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return made.eval()


def inputs(model, count):
    stream, channels = torch.Generator().manual_seed(2), model.config["in_channels"]
    images, timesteps = torch.randn(count, channels, 8, 8, generator=stream), torch.randint(0, 1000, (count,), generator=stream)
    text = {"encoder_hidden_states": torch.randn(count, 5, 12, generator=stream)} if isinstance(model, UNet2DConditionModel) else {}
    classes = {"class_labels": torch.arange(count) % 3} if "class_labels" in conditions_of(model, 1, "cpu") else {}
    return images, timesteps, text | classes


def importances(pipes):
    stream, scores = torch.Generator().manual_seed(3), {}
    for pipe in pipes:
        score = torch.rand(pipe.width, generator=stream) ** 3
        scores[pipe.name] = score[: pipe.units].repeat(pipe.groups) if pipe.kind == "attention" else score
    return scores


def supernet_of(model, rule="gradual"):
    pipes = pipes_of(model)
    params_base = sum(parameter.numel() for parameter in model.parameters())
    return Supernet(model, pipes, make_plan(pipes, importances(pipes), SIZES, params_base=params_base, rule=rule, floor=0.25)).eval()


def test_pipes_of_transformer_blocks_are_those_counted_by_hand():
    found = {pipe.name: (pipe.kind, pipe.width, pipe.groups, pipe.params_per_channel) for pipe in pipes_of(MODELS["transformer"]())}
    assert found == {f"transformer_blocks.{block}.{name}": counts for block in (0, 1) for name, counts in DIT_PIPES.items()}
    found = {pipe.name: (pipe.kind, pipe.width, pipe.groups, pipe.params_per_channel) for pipe in pipes_of(text_unet())}
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert {name: found[f"{block}.{name}"] for name in TEXT_PIPES} == TEXT_PIPES
    assert {kind for kind, *_ in found.values()} == {"conv", "attention", "feed_forward"}


def test_size_1_is_the_base_to_the_bit(model):
    images, timesteps, text = inputs(model, 3)
    with torch.no_grad():
        expected = model(images, timesteps, **text, return_dict=False)[0]
        found = supernet_of(model)(1.0, images, timesteps, **text, return_dict=False)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rule", ["gradual", "formula5", "uniform"])
def test_an_extracted_subnet_is_that_of_the_supernet_to_the_bit(model, rule):
    supernet, (images, timesteps, text) = supernet_of(model, rule), inputs(model, 3)
    outputs = []
    for size in SIZES:
        subnet = supernet.extract(size)
        with torch.no_grad():
            outputs.append(subnet(images, timesteps, **text, return_dict=False)[0])
            assert torch.equal(outputs[-1], supernet(size, images, timesteps, **text, return_dict=False)[0])
        assert sum(parameter.numel() for parameter in subnet.parameters()) == supernet.plan.params[size]
    assert not torch.allclose(outputs[0], outputs[-1])


@pytest.mark.parametrize("rule", ["gradual", "formula5", "uniform"])
def test_subnets_are_nested(model, rule):
    kept = supernet_of(model, rule).plan.kept
    for larger, smaller in pairwise(SIZES):
        assert all(set(kept[smaller][name]) <= set(kept[larger][name]) for name in kept[larger])
        # Formula 5 as it is published gives the wider feed-forward layers all that the attentions of their block lack, at several sizes.
        assert kept[smaller] != kept[larger] or rule == "formula5"


def test_gradients_reach_the_shared_weights_where_the_subnet_s_lie(model):
    supernet, (images, timesteps, text) = supernet_of(model), inputs(model, 3)
    subnet = supernet.extract(0.5).eval()
    supernet(0.5, images, timesteps, **text, return_dict=False)[0].square().mean().backward()
    subnet(images, timesteps, **text, return_dict=False)[0].square().mean().backward()
    shared, alone, cut = dict(model.named_parameters()), dict(subnet.named_parameters()), {}
    for pipe in pipes_of(model):
        kept = torch.tensor(supernet.plan.kept[0.5][pipe.name])
        for name, dimension in pipe.slices:
            runs = shared[name].shape[dimension] // pipe.width
            cut.setdefault(name, []).append((dimension, torch.cat([kept + run * pipe.width for run in range(runs)])))
    for name, parameter in shared.items():
        if alone[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        picked, rest = parameter.grad, parameter.grad.clone()
        for dimension, kept in cut.get(name, []):
            picked = picked.index_select(dimension, kept)
            rest.index_fill_(dimension, kept, 0)
        assert torch.equal(picked, alone[name].grad), name
        assert not (rest.any() if cut.get(name) else False), name


def loop_importance(model, pipes, images, timesteps, text, noise):
    """Formula 4 as it is written: one backward pass for each image, from the weights and their gradients."""
    totals = {pipe.name: torch.zeros(pipe.width, dtype=torch.float64) for pipe in pipes}
    for index in range(len(images)):
        model.zero_grad()
        one = slice(index, index + 1)
        predicted = model(images[one], timesteps[one], **{key: value[one] for key, value in text.items()}, return_dict=False)[0]
        (predicted - noise[one]).square().mean().backward()
        for pipe in pipes:
            for layer in pipe.producers:
                weight = model.get_submodule(layer).weight
                rows = (weight * weight.grad).double().flatten(1).sum(dim=1)
                # All the rows of a channel count together: a GEGLU has two of them, `width` apart.
                totals[pipe.name] += sum(rows[run : run + pipe.width] for run in range(0, len(rows), pipe.width)).abs()
            for layer in pipe.consumers:
                weight = model.get_submodule(layer).weight
                totals[pipe.name] += (weight * weight.grad).double().transpose(0, 1).flatten(1).sum(dim=1).abs()
    for pipe in pipes:
        if pipe.kind == "attention":
            totals[pipe.name] = sum(totals[pipe.name].split(pipe.units)).repeat(pipe.groups)
    model.zero_grad()
    return {name: (total / len(images)).detach() for name, total in totals.items()}


def test_batched_importance_is_that_of_the_loop_over_images(model):
    pipes, (images, timesteps, text) = pipes_of(model), inputs(model, 6)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    expected = loop_importance(model, pipes, images, timesteps, text, noise)

    def losses(module, cut):
        about = {key: value[cut] for key, value in text.items()}
        return (module(images[cut], timesteps[cut], **about, return_dict=False)[0] - noise[cut]).square().flatten(1).mean(dim=1)

    found = pipe_importance(model, pipes, [slice(0, 4), slice(4, 6)], losses)
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name].double(), score, rtol=1e-4, atol=1e-5 * float(score.max()))


def test_magnitudes_count_both_halves_of_a_geglu():
    model = text_unet()
    pipe = next(pipe for pipe in pipes_of(model) if pipe.kind == "feed_forward")
    first, second = (model.get_submodule(name).weight.detach() for name in (*pipe.producers, *pipe.consumers))
    expected = first[:32].abs().sum(1) + first[32:].abs().sum(1) + second.abs().sum(0)
    torch.testing.assert_close(other_scores(model, (pipe,), "magnitude", 0)[pipe.name], expected)


def test_the_pipes_macs_are_what_a_subnet_lacks():
    with torch.device("meta"):
        model = build_base(DIT, seed=0)
    supernet, shares = supernet_of(MODELS["transformer"]()), pipe_macs(model, pipes_of(model), (1, 8, 8))
    for size in SIZES:
        lacks = sum(shares[pipe.name] * (1 - len(supernet.plan.kept[size][pipe.name]) / pipe.width) for pipe in pipes_of(model))
        assert count_macs(supernet.extract(size), (1, 8, 8)).total == count_macs(model, (1, 8, 8)).total - lacks


def test_a_transformer_s_macs_are_those_counted_by_hand():
    # 16 tokens of width 16; a block: q, k, v, out and scores and their sums; two layers of 64; one row for the timestep's part.
    block = 16 * 4 * 16 * 16 + 2 * 16 * 16 * 16 + 2 * 16 * 16 * 64 + (256 * 16 + 16 * 16 + 16 * 96)
    ends = 16 * 4 * 16 + (256 * 16 + 16 * 16) + 16 * 32 + 16 * 16 * 4
    assert count_macs(build_base(DIT, seed=0), (1, 8, 8)).total == 2 * block + ends


def test_a_transformer_drops_no_class_and_takes_one_timestep_for_all():
    model, (images, _, _) = build_base(DIT, seed=0), inputs(MODELS["transformer"](), 3)
    with torch.no_grad():
        training = model.train()(images, torch.tensor(7)).sample
        assert torch.equal(training, model.eval()(images, torch.full((3,), 7)).sample)
        assert torch.equal(training, model(images, 7, return_dict=False)[0])


def test_a_subnet_of_a_transformer_is_saved_and_loaded_by_this_program_and_by_diffusers(tmp_path):
    subnet = supernet_of(MODELS["transformer"]()).extract(0.5).eval()
    save_denoiser(subnet, sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "subnet")
    images, timesteps, _ = inputs(subnet, 3)
    with torch.no_grad():
        expected = subnet(images, timesteps).sample
        for loaded in (load_denoiser(tmp_path / "subnet"), DDIMPipeline.from_pretrained(tmp_path / "subnet").unet):
            assert channel_widths(loaded) == channel_widths(subnet)
            assert torch.equal(loaded.eval()(images, timesteps).sample, expected)
    drawn = load_pipeline(tmp_path / "subnet")(batch_size=2, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (2, 8, 8, 1)
    assert as_pruned(subnet).config["widths"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_layers": 10**9}, "num_layers"),
        ({"sample_size": 7}, "patch_size"),
        ({"norm_type": "ada_norm"}, "its norm_type is 'ada_norm'"),
        ({"activation_fn": "geglu"}, "its activation_fn is 'geglu'"),
        ({"num_embeds_ada_norm": 10**9}, "its num_embeds_ada_norm is"),
        ({"widths": {"pos_embed.proj": [1, 1]}}, "not a readable network"),
        ({"widths": {"proj_out_2": [10**9, 16]}}, "widths: proj_out_2"),
    ],
)
def test_a_stranger_s_transformer_is_refused_where_it_is_another(tmp_path, change, what):
    save_denoiser(build_base(DIT, seed=0), sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "subnet")
    path = tmp_path / "subnet" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReproError, match=what):
        load_denoiser(tmp_path / "subnet")


def test_a_configuration_has_one_architecture(tmp_path):
    text = DIT_CONFIG.read_text()
    assert load_config(str(DIT_CONFIG)).denoiser == Transformer(
        sample_size=8, channels=1, patch_size=2, num_layers=4, num_attention_heads=8, attention_head_dim=12
    )
    path = tmp_path / "both.toml"
    path.write_text(
        text.replace(
            "[sizes]",
            "[network]\nsample_size = 8\nchannels = 1\nblock_out_channels = [32]\n"
            'down_block_types = ["DownBlock2D"]\nup_block_types = ["UpBlock2D"]\n\n[sizes]',
        )
    )
    with pytest.raises(ReproError, match=r"network: a base is a \[network\], a \[transformer\] or of another"):
        load_config(str(path))
    path.write_text(text.replace(text[text.index("[transformer]") : text.index("[sizes]")], ""))
    with pytest.raises(ReproError, match=r"network: a base is a \[network\], a \[transformer\] or of another"):
        load_config(str(path))
    with pytest.raises(ReproError, match=r"patch_size: must divide sample_size, 8"):
        load_config(str(DIT_CONFIG), ["transformer.patch_size=3"])
    with pytest.raises(ReproError, match=r"base\.source: must be 'train'"):
        load_config(str(DIT_CONFIG), ["base.source=path", "base.folder=x", "base.weights=ema"])


def test_a_transformer_leaves_the_hash_of_other_configurations_alone():
    config = load_config("digits")
    assert "transformer" not in config.as_dict()
    records = json.loads((DIT_CONFIG.parents[2] / "results" / "digits" / "base-1-seed0.json").read_text())
    assert config.sha256() == records["provenance"]["config_sha256"]


@pytest.mark.slow
def test_sizes_of_stable_diffusion_are_those_of_the_published_network():
    found = json.loads(describe_network("stable-diffusion-1.5", only=None, rule=None, as_json=True))
    rows = {row["size"]: row for row in found["sizes"]}
    assert rows[1.0]["params"] == 859_520_964  # of the weights that were published
    assert rows[1.0]["macs_conv_linear"] == pytest.approx(339e9, rel=2e-3)  # BK-SDM (Kim et al., 2023), table 1: 339 G
    assert found["pipes"] == {"conv": 22, "attention": 32, "feed_forward": 16}
    assert [rows[size]["macs"] for size in sorted(rows)] == sorted(row["macs"] for row in rows.values())
    assert rows[0.5]["realised"] == pytest.approx(0.5, abs=0.002)


def test_sizes_of_a_network_that_somebody_saved(tmp_path):
    text_unet().save_pretrained(tmp_path / "mine")
    text = describe_network(str(tmp_path / "mine"), only=[1.0, 0.5], rule="gradual", as_json=False)
    assert "allocation gradual" in text
    assert f"{sum(parameter.numel() for parameter in text_unet().parameters()):,}" in text
    with pytest.raises(ReproError, match=r"--network nothing: no such network; name stable-diffusion-1\.5"):
        describe_network("nothing", only=None, rule=None, as_json=False)
    (tmp_path / "mine" / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(ReproError, match="describes no network"):
        describe_network(str(tmp_path / "mine"), only=None, rule=None, as_json=False)
    with pytest.raises(ReproError, match="--sizes 2: a size must lie in"):
        describe_network("stable-diffusion-1.5", only=[2.0], rule=None, as_json=False)


def test_a_transformer_starts_with_blocks_that_add_nothing_and_predicts_zero():
    model, (images, timesteps, _) = build_base(DIT, seed=0), inputs(MODELS["transformer"](), 3)
    with torch.no_grad():
        assert not model(images, timesteps).sample.any()
        tokens = model.pos_embed(images)
        assert torch.equal(model.transformer_blocks[0](tokens, timestep=timesteps, class_labels=torch.ones_like(timesteps)), tokens)


def test_a_network_of_unknown_units_asks_for_an_adapter():
    with pytest.raises(ReproError, match="Linear: has no ResnetBlock2D, Attention or FeedForward unit"):
        pipes_of(torch.nn.Linear(2, 2))


def test_an_adapter_of_one_s_own_is_enough_for_the_supernet():
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    pipe = make_pipe(model, name="hidden", kind="feed_forward", width=8, producers=("0",), consumers=("2",))
    plan = make_plan((pipe,), {"hidden": torch.arange(8.0)}, (1.0, 0.5), params_base=50, rule="uniform", floor=0.25)
    supernet, values = Supernet(model, (pipe,), plan), torch.randn(4, 3)
    assert torch.equal(supernet(0.5, values), supernet.extract(0.5)(values))
    assert plan.kept[0.5]["hidden"] == (4, 5, 6, 7)


# --- EDM's UNet


@pytest.mark.parametrize(
    ("arguments", "params", "macs", "pipes"),
    [  # of EDM's networks (Karras et al., 2022): CIFAR-10, the same with classes, FFHQ
        ({"sample_size": 32}, 55_733_891, (21.19, 21.02), 39),
        ({"sample_size": 32, "num_class_embeds": 10}, 55_735_299, (21.19, 21.02), 39),
        ({"sample_size": 64, "channel_mult": (1, 2, 2, 2)}, 61_805_571, (41.86, 41.69), 50),
    ],
)
def test_edm_s_networks_have_the_published_sizes(arguments, params, macs, pipes):
    with torch.device("meta"):
        model = build_base(SongUNet(channels=3, augment_dim=9, **arguments), seed=0)
    found = count_macs(model, (3, arguments["sample_size"], arguments["sample_size"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert (found.total / 1e9, found.conv_linear / 1e9) == pytest.approx(macs, abs=0.006)
    assert len(pipes_of(model)) == pipes


IMAGENET = Network(
    sample_size=64,
    channels=3,
    block_out_channels=(192, 384, 576, 768),
    layers_per_block=3,
    down_block_types=("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3),
    up_block_types=(*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
    downsample_type="resnet",
    upsample_type="resnet",
    attn_norm_num_groups=32,
    attention_head_dim=64,
    num_class_embeds=1000,
)


def test_adm_has_the_published_size():
    with torch.device("meta"):
        model = build_base(IMAGENET, seed=0)
    found, params = count_macs(model, (3, 64, 64)), sum(parameter.numel() for parameter in model.parameters())
    assert params == 295_899_267
    assert (found.total / 1e9, found.conv_linear / 1e9) == pytest.approx((109.66, 103.44), abs=0.006)


@pytest.mark.parametrize(
    ("settings", "units", "expected"),  # millions of parameters and GMACs at P = 0.25, 0.375, ... 0.875 by the uniform rule
    [
        (
            SongUNet(sample_size=32, channels=3, augment_dim=9),
            "whole",  # 35 pipes, as the paper's authors chose
            [(19.83, 7.46), (25.81, 9.75), (31.80, 12.04), (37.78, 14.33), (43.76, 16.61), (49.75, 18.90)],
        ),
        (
            SongUNet(sample_size=32, channels=3, augment_dim=9),
            "pruned",
            [(15.89, 6.05), (22.53, 8.57), (29.17, 11.09), (35.81, 13.62), (42.45, 16.14), (49.09, 18.67)],
        ),
        (
            UViT(sample_size=64, channels=3),
            "pruned",
            [(13.60, 3.67), (18.72, 5.09), (23.83, 6.52), (28.95, 7.94), (34.06, 9.36), (39.18, 10.79)],
        ),
        (IMAGENET, "pruned", [(85.1, 33.0), (119.9, 44.1), (153.5, 56.7), (189.9, 72.2), (227.5, 85.9), (262.3, 97.1)]),
    ],
    ids=["CIFAR-10, whole", "CIFAR-10", "CelebA-64", "ImageNet-64"],
)
def test_sizes_of_edm_s_networks_are_those_of_the_sketches(settings, units, expected):
    base, sizes = meta_base(settings), (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
    pipes, params = pipes_of(base, units), sum(parameter.numel() for parameter in base.parameters())
    equal = {pipe.name: torch.ones(pipe.width) for pipe in pipes}
    plan = make_plan(pipes, equal, sizes, params_base=params, rule="uniform", floor=0.25)
    macs = count_base_macs(base, pipes, (3, settings.sample_size, settings.sample_size))
    for size, (millions, giga) in zip(sorted(sizes), expected, strict=False):
        shares = {pipe.name: len(plan.kept[size][pipe.name]) / pipe.width for pipe in pipes}
        assert plan.params[size] / 1e6 == pytest.approx(millions, rel=1e-3)
        assert macs.keeping(shares) / 1e9 == pytest.approx(giga, rel=2e-3)
        if settings is not IMAGENET:  # whose heads of 64 channels are coarse
            assert params_at(base, size, units) == pytest.approx(plan.params[size], rel=1e-3)
    if units == "whole":
        assert len(pipes) == 35


def edm_by_hand(model, images, noise, labels, augmented):
    """DDPM++ as Song et al. and Karras et al. describe it, of torch's functions and the network's weights alone."""
    weights = dict(model.named_parameters())

    def linear(name, values):
        return functional.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def conv(name, values):
        kernel = weights[f"{name}.weight"]
        return functional.conv2d(values, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(name, values):
        return functional.group_norm(values, 2, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def unit(name, values, resampled):
        hidden = functional.silu(norm(f"{name}.resnet.norm1", values))
        hidden, straight = resampled(hidden), resampled(values)
        hidden = conv(f"{name}.resnet.conv1", hidden) + linear(f"{name}.resnet.time_emb_proj", embedding)[:, :, None, None]
        hidden = conv(f"{name}.resnet.conv2", functional.silu(norm(f"{name}.resnet.norm2", hidden)))
        if f"{name}.resnet.conv_shortcut.weight" in weights:
            straight = conv(f"{name}.resnet.conv_shortcut", straight)
        hidden = (hidden + straight) / 2**0.5
        if f"{name}.attention.to_q.weight" not in weights:
            return hidden
        tokens = norm(f"{name}.attention.group_norm", hidden).flatten(2).transpose(1, 2)
        query, key, value = (linear(f"{name}.attention.to_{each}", tokens) for each in "qkv")
        seen = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value
        seen = linear(f"{name}.attention.to_out.0", seen).transpose(1, 2).view_as(hidden)
        return (hidden + seen) / 2**0.5

    def plain(values):
        return values

    def halved(values):
        return functional.avg_pool2d(values, 2)

    def doubled(values):
        return values.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    frequencies = 10_000 ** (-torch.arange(4) / 3)
    waves = noise[:, None] * frequencies
    embedding = torch.cat([waves.sin(), waves.cos()], dim=1)
    embedding = embedding + linear("class_embedding", 3**0.5 * functional.one_hot(labels, 3).float())
    embedding = embedding + linear("augment_embedding", augmented)
    embedding = linear("time_embedding.linear_2", functional.silu(linear("time_embedding.linear_1", embedding)))
    embedding = functional.silu(embedding)
    skipped = [conv("conv_in", images)]
    for name, resampled in (("0.0", plain), ("1.0", halved), ("1.1", plain)):
        skipped.append(unit(f"down_blocks.{name}", skipped[-1], resampled))
    hidden = skipped[-1]
    for index in range(2):
        hidden = unit(f"mid_block.{index}", hidden, plain)
    for name in ("0.0", "0.1", "up", "1.1", "1.2"):
        if name == "up":
            hidden = unit("up_blocks.1.0", hidden, doubled)
        else:
            hidden = unit(f"up_blocks.{name}", torch.cat([hidden, skipped.pop()], dim=1), plain)
    assert not skipped
    return conv("conv_out", functional.silu(norm("conv_norm_out", hidden)))


def test_edm_s_network_computes_what_the_papers_describe():
    model, stream = MODELS["song-unet"](), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    images, noise, labels = torch.randn(4, 1, 8, 8, generator=stream), torch.randn(4, generator=stream), torch.tensor([0, 1, 2, 1])
    augmented = torch.randn(4, 2, generator=stream)
    with torch.no_grad():
        found = model.eval()(images, noise, class_labels=labels, augment_labels=augmented).sample
        expected = edm_by_hand(model, images, noise, labels, augmented)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_edm_s_network_starts_as_a_sum_of_skips():
    """What ends a residual is near zero at first, so nothing of the images reaches the output but in small."""
    model = MODELS["song-unet"]()
    with torch.no_grad():
        output = model(torch.randn(2, 1, 8, 8), torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.int64)).sample
    assert 0 < output.abs().max() < 1e-3
    bound = (6 / (2 * 16)) ** 0.5 * 0.1**0.5
    query = model.mid_block[0].attention.to_q.weight
    assert 0.9 * bound < query.abs().max() <= bound


@pytest.mark.parametrize("labels", [None, torch.zeros(1, dtype=torch.int64)])
def test_edm_s_network_takes_labels_where_it_has_classes_and_nowhere_else(labels):
    classes = 3 if labels is None else None
    model = SongUNetModel(8, 1, model_channels=8, channel_mult=(1,), num_blocks=1, num_class_embeds=classes)
    with pytest.raises(ValueError, match="class_labels: the network has"):
        model(torch.randn(1, 1, 8, 8), torch.zeros(1), class_labels=labels)


@pytest.mark.parametrize("criterion", [criteria.magnitude(), criteria.random(0)], ids=["magnitude", "random"])
@pytest.mark.parametrize("size", [0.75, 0.5, 0.25])
def test_edm_s_network_is_pruned_to_the_size_that_is_asked_its_stream_too(size, criterion):
    model = build_base(replace(SONG, model_channels=16, norm_num_groups=4), seed=0).eval()
    target = params_at(model, size)
    pruned = prune_to_params(model, target, criterion, example_of(model, (1, 8, 8), "cpu"))
    assert sum(parameter.numel() for parameter in pruned.parameters()) == pytest.approx(target, rel=0.05)
    assert size == 0.75 or pruned.conv_in.out_channels < model.conv_in.out_channels
    with torch.no_grad():
        output = pruned(torch.randn(2, 1, 8, 8), torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.int64)).sample
    assert output.shape == (2, 1, 8, 8) and torch.isfinite(output).all()
    with torch.no_grad():
        again = as_pruned(pruned)(torch.randn(2, 1, 8, 8), torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.int64)).sample
    assert again.shape == output.shape


def test_a_size_that_cannot_be_reached_is_refused_by_name():
    model = MODELS["transformer"]().eval()
    with pytest.raises(ReproError, match=r"cannot prune to 100 parameters: .* are left when all that may be pruned is"):
        prune_to_params(model, 100, criteria.magnitude(), example_of(model, (1, 8, 8), "cpu"))


def test_a_subnet_of_edm_s_network_is_saved_and_loaded(tmp_path):
    subnet = supernet_of(MODELS["song-unet"]()).extract(0.5).eval()
    save_denoiser(subnet, EDM(Diffusion(formulation="edm")).scheduler(clip_sample=False), tmp_path / "subnet")
    images, timesteps, given = inputs(subnet, 3)
    with torch.no_grad():
        expected = subnet(images, timesteps, **given).sample
        loaded = load_denoiser(tmp_path / "subnet")
        assert torch.equal(loaded(images, timesteps, **given).sample, expected)
    assert channel_widths(loaded) == channel_widths(subnet)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"channel_mult": [10**9]}, "channel_mult"),
        ({"sample_size": 7}, "sample_size"),
        ({"norm_num_groups": 3}, "norm_num_groups"),
        ({"widths": {"conv_in": [10**9, 1]}}, "widths: conv_in"),
        ({"attn_resolutions": 4}, "attn_resolutions"),
        ({"surprise": 1}, "its surprise is 1"),
    ],
)
def test_a_stranger_s_edm_network_is_refused_where_it_is_another(tmp_path, change, what):
    save_denoiser(MODELS["song-unet"](), EDM(Diffusion(formulation="edm")).scheduler(clip_sample=False), tmp_path / "subnet")
    path = tmp_path / "subnet" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReproError, match=what):
        load_denoiser(tmp_path / "subnet")


# --- U-ViT


def test_u_vit_has_the_published_size():
    """S/4, as for CelebA 64 x 64 (Bao et al., 2023): 44 M parameters."""
    with torch.device("meta"):
        model = build_base(UViT(sample_size=64, channels=3), seed=0)
    found = count_macs(model, (3, 64, 64))
    width, tokens, depth = 512, 257, 13
    block = 4 * width**2 + width + 2 * 4 * width**2 + 5 * width + 4 * width
    rest = 3 * 16 * width + width + tokens * width + 2 * width + width * 48 + 48 + 3 * 3 * 9 + 3
    assert sum(parameter.numel() for parameter in model.parameters()) == depth * block + 6 * (2 * width**2 + width) + rest == 44_292_228
    assert found.total / 1e9 == pytest.approx(12.21, abs=0.006)
    assert len(pipes_of(model)) == 26


def test_u_vit_computes_what_the_paper_describes():
    model, stream = MODELS["u-vit"](), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    weights = dict(model.named_parameters())

    def linear(name, values):
        return functional.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, values):
        return functional.layer_norm(values, (16,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(name, hidden):
        query, key, value = (
            linear(f"{name}.attention.to_{each}", norm(f"{name}.norm1", hidden)).unflatten(2, (2, 8)).transpose(1, 2) for each in "qkv"
        )
        seen = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=-1) @ value
        hidden = hidden + linear(f"{name}.attention.to_out.0", seen.transpose(1, 2).flatten(2))
        wide = functional.gelu(linear(f"{name}.feed_forward.net.0.proj", norm(f"{name}.norm2", hidden)))
        return hidden + linear(f"{name}.feed_forward.net.2", wide)

    images, times, labels = torch.randn(4, 1, 8, 8, generator=stream), 999 * torch.rand(4, generator=stream), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        found = model.eval()(images, times, labels).sample
        waves = times[:, None] * torch.exp(-math.log(10_000) * torch.arange(8) / 8)
        time = torch.cat([waves.cos(), waves.sin()], dim=1)
        cut = functional.unfold(images, 2, stride=2).transpose(1, 2)  # one row a patch
        patches = cut @ weights["patches.weight"].flatten(1).T + weights["patches.bias"]
        hidden = torch.cat([time[:, None], weights["class_embedding.weight"][labels][:, None], patches], dim=1) + weights["positions"]
        skipped = block("down_blocks.0", hidden)
        hidden = block("mid_block", skipped)
        hidden = block("up_blocks.0", linear("up_blocks.0.blend", torch.cat([hidden, skipped], dim=-1)))
        rows = linear("to_patches", norm("norm", hidden))[:, 2:]
        whole = functional.fold(rows.transpose(1, 2), (8, 8), 2, stride=2)
        expected = functional.conv2d(whole, weights["conv_out.weight"], weights["conv_out.bias"], padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0.75, 0.5, 0.25])
def test_u_vit_is_pruned_to_the_size_that_is_asked(size):
    model = build_base(replace(UVIT, width=32, num_class_embeds=0), seed=0).eval()
    target = params_at(model, size)
    pruned = prune_to_params(model, target, criteria.magnitude(), example_of(model, (1, 8, 8), "cpu"))
    internal = sum(pipe.units * pipe.params_per_unit for pipe in pipes_of(model))
    assert abs(sum(parameter.numel() for parameter in pruned.parameters()) - target) < 0.05 * internal
    with torch.no_grad():
        assert torch.isfinite(pruned(torch.randn(2, 1, 8, 8), torch.zeros(2)).sample).all()


def test_a_subnet_of_u_vit_is_saved_and_loaded_and_another_s_is_refused(tmp_path):
    subnet = supernet_of(MODELS["u-vit"]()).extract(0.5).eval()
    save_denoiser(subnet, VP(Diffusion(formulation="vp")).scheduler(clip_sample=False), tmp_path / "subnet")
    images, timesteps, given = inputs(subnet, 3)
    with torch.no_grad():
        assert torch.equal(load_denoiser(tmp_path / "subnet")(images, timesteps, **given).sample, subnet(images, timesteps, **given).sample)
    path = tmp_path / "subnet" / "unet" / "config.json"
    written = json.loads(path.read_text())
    for change, what in (({"depth": 10**9}, "depth"), ({"heads": 3}, "heads"), ({"surprise": 1}, "its surprise is 1")):
        path.write_text(json.dumps(written | change))
        with pytest.raises(ReproError, match=what):
            load_denoiser(tmp_path / "subnet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["song-unet", "u-vit", "adm"])
def test_networks_with_classes_are_exported_to_onnx_for_any_batch(name):
    timesteps = torch.linspace(-1, 1, 100) if name == "song-unet" else torch.arange(100)
    content, difference = to_onnx(MODELS[name]().eval(), (1, 8, 8), timesteps)  # held against torch at three sizes of a batch
    assert len(content) > 1000 and difference < 1e-4


class Inked(ModelMixin, ConfigMixin):
    """A network that takes two conditions, by names of its own, in an order of its own."""

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(in_channels, 8, 3, padding=1), torch.nn.Conv2d(8, in_channels, 3, padding=1)
        self.ink, self.kind = torch.nn.Linear(1, 8), torch.nn.Linear(3, 8)
        self.unit = ResnetBlock2D(in_channels=8, temb_channels=8, groups=2)

    def conditions(self, count):
        return {"ink": torch.zeros(count, 1), "kind": torch.zeros(count, 3)}

    def forward(self, sample, timestep, class_labels=None, return_dict=True, kind=None, ink=None):
        return (self.last(self.unit(self.first(sample), self.ink(ink) + self.kind(kind))),)


@dataclass(frozen=True, kw_only=True)
class InkedSettings(Architecture):
    section = "inked"

    def build(self):
        return Inked(self.sample_size, self.channels)


def test_a_network_of_one_s_own_with_conditions_is_narrowed_counted_timed_saved_and_read_back(tmp_path):
    settings = InkedSettings(sample_size=8, channels=1)
    base = build_base(settings, seed=0).eval()
    subnet = supernet_of(base).extract(0.5).eval()
    save_denoiser(subnet, sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "subnet")
    loaded = load_denoiser(tmp_path / "subnet", settings)
    images, given = torch.randn(3, 1, 8, 8), {"ink": torch.randn(3, 1), "kind": torch.randn(3, 3)}
    with torch.no_grad():
        assert torch.equal(loaded(images, torch.zeros(3), **given)[0], subnet(images, torch.zeros(3), **given)[0])
    assert count_macs(loaded, (1, 8, 8)).total < count_macs(base, (1, 8, 8)).total
    assert count_macs_torch_pruning(base, (1, 8, 8)) > 0
    assert measure_latency(base, (1, 8, 8), 2, seconds=0.01).ms > 0
    assert peak_bytes(base, (1, 8, 8)) > 0 and activation_bytes(meta_base(settings), (1, 8, 8)) > 0
    pruned = prune_to_params(base.eval(), params_at(base, 0.5), criteria.magnitude(), example_of(base, (1, 8, 8), "cpu"))
    with torch.no_grad():
        assert pruned(images, torch.zeros(3), **given)[0].shape == images.shape


def test_a_second_section_of_an_architecture_is_refused_by_name():
    with pytest.raises(ReproError, match="write one of these sections, not song_unet and uvit"):
        load_config("digits_edm", ["uvit.width=48"])
    with pytest.raises(ReproError, match="write one of these sections, not network and song_unet"):
        load_config("digits_edm", ["network.channels=1"])
