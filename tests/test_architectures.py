"""Every architecture: its pipes, and what the method must hold for each."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DConditionModel

from repro.config import Diffusion, Network, Transformer, load_config
from repro.errors import ReproError
from repro.harness.cost import count_macs, pipe_macs
from repro.harness.denoiser import as_pruned, build_base, channel_widths, load_denoiser, load_pipeline, save_denoiser
from repro.harness.diffusion import sampling_scheduler
from repro.network_sizes import describe_network
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
DIT_CONFIG = Path(__file__).parents[1] / "repro" / "configs" / "digits_transformer.toml"


def text_unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**TEXT)


MODELS = {"unet": lambda: build_base(UNET, seed=0), "transformer": lambda: build_base(DIT, seed=0), "text-to-image": text_unet}


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
    return images, timesteps, text


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
    with pytest.raises(ReproError, match=r"network: a base is either a \[network\] or a \[transformer\]"):
        load_config(str(path))
    path.write_text(text.replace(text[text.index("[transformer]") : text.index("[sizes]")], ""))
    with pytest.raises(ReproError, match=r"network: a base is either a \[network\] or a \[transformer\]"):
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
