"""Networks and folders in other people's tools: made from a configuration, saved and loaded by diffusers, with this package and without."""

import copy
import inspect
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.training_utils import EMAModel
from support.hostile import refused
from support.without_us import without_us
from torch import nn

from repro.config import Base, Diffusion, Transformer
from repro.deliver.network_sizes import describe_network
from repro.diffusion.ddpm import sampling_scheduler
from repro.experiment.pretrained import load_pretrained
from repro.models import narrowed
from repro.models.denoiser import (
    PrunedDiT2DModel,
    PrunedUNet2DModel,
    as_pruned,
    build_base,
    channel_widths,
    load_denoiser,
    load_pipeline,
    save_denoiser,
    with_widths,
)
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

ROOT = Path(__file__).resolve().parents[2]
DIT = Transformer(sample_size=8, channels=1, patch_size=2, num_layers=2, num_attention_heads=2, attention_head_dim=8)
WEIGHTS, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
KINDS = ("unet", "transformer")


@pytest.fixture
def model(request, tiny):
    """A subnet of half the size, with weights that are nowhere their initial ones."""
    base, stream = build_base(tiny.network if request.param == "unet" else DIT, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    pipes = pipes_of(base)
    params = sum(parameter.numel() for parameter in base.parameters())
    plan = make_plan(
        pipes, {pipe.name: torch.ones(pipe.width) for pipe in pipes}, (1.0, 0.5), params_base=params, rule="uniform", floor=0.25
    )
    return as_pruned(Supernet(base, pipes, plan).extract(0.5)).eval()


def each_kind(test):
    return pytest.mark.parametrize("model", KINDS, indirect=True)(test)


def same(one, other):
    theirs = other.state_dict()
    return one.state_dict().keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def plain(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


def soil_memory():
    """Leaves values in freed memory that no network starts with."""
    soil = [torch.full((size,), 7e30) for size in (8, 16, 64, 256, 1024, 4096, 2**14) for _ in range(50)]
    del soil


def new(model, seed=0):
    soil_memory()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model).from_config(model.config)


@each_kind
def test_whoever_may_read_the_settings_may_read_the_weights(model, tmp_path):
    save_denoiser(model, DDIMScheduler(), tmp_path / "saved")
    modes = {path.stat().st_mode for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert len(modes) == 1, modes


# New networks


@each_kind
def test_a_narrowed_network_of_a_configuration_has_new_weights_which_its_seed_decides(model):
    made = new(model)
    assert channel_widths(made) == channel_widths(model) and made.config["widths"]
    assert same(made, new(model)) and not same(made, new(model, seed=1))
    assert same(copy.deepcopy(made), made)
    assert all(parameter.isfinite().all() and parameter.abs().max() < 10 for parameter in made.parameters())
    with torch.no_grad():
        assert made(torch.randn(2, 1, 8, 8), torch.tensor([1, 900])).sample.isfinite().all()


def test_every_narrowed_layer_starts_as_torch_starts_a_layer_of_its_shape(tiny):
    config = plain(build_base(tiny.network, seed=0).config)
    fresh = {
        "conv1": nn.Conv2d(8, 4, 3, padding=1),
        "time_emb_proj": nn.Linear(32, 4),
        "norm2": nn.GroupNorm(2, 4),
        "conv2": nn.Conv2d(4, 8, 3, padding=1),
    }
    unit = "down_blocks.0.resnets.0"
    widths = {f"{unit}.{name}": list(layer.weight.shape[:2]) for name, layer in reversed(fresh.items())}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = PrunedUNet2DModel(**config, widths=widths)
        torch.manual_seed(3)
        UNet2DModel(**config)  # the layers follow the whole network, in its order
        for name, _ in model.get_submodule(unit).named_children():
            if name in fresh:
                fresh[name].reset_parameters()
                assert same(model.get_submodule(f"{unit}.{name}"), fresh[name]), name


def test_a_transformer_of_a_configuration_starts_as_the_base_does():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PrunedDiT2DModel.from_config(build_base(DIT, seed=1).config)
    assert same(made, build_base(DIT, seed=0))
    assert not made(torch.randn(2, 1, 8, 8), 5).sample.any()


@each_kind
@pytest.mark.parametrize("low_memory", [True, False])
def test_what_a_file_lacks_has_new_weights(model, low_memory, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    lost = [name for name in tensors if name.endswith(("conv2.weight", "to_q.weight", "norm2.bias", "net.2.weight", "pos_embed"))]
    assert lost
    for name in lost:
        del tensors[name]
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    soil_memory()
    loaded = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=low_memory)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, tensors[name]) if name in tensors else tensor.isfinite().all() and tensor.abs().max() < 10, name


@each_kind
def test_networks_without_storage_draw_no_random_numbers(model, tiny, tmp_path):
    save_denoiser(model, sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "folder")
    before = torch.get_rng_state()
    load_pipeline(tmp_path / "folder")
    as_pruned(model)
    with_widths(build_base(tiny.network, seed=0), {})
    build_base(DIT, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# Arguments


@pytest.mark.parametrize(("narrow", "whole"), [(PrunedUNet2DModel, UNet2DModel), (PrunedDiT2DModel, DiTTransformer2DModel)])
def test_a_narrowed_class_shows_and_takes_the_arguments_of_the_whole_one(narrow, whole):
    shown = dict(inspect.signature(narrow).parameters)
    assert shown.pop("widths").kind is inspect.Parameter.KEYWORD_ONLY
    assert shown == dict(inspect.signature(whole).parameters)


def test_positional_arguments_are_those_of_the_whole_network(tmp_path):
    model = PrunedUNet2DModel(16, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    assert [model.config[key] for key in ("sample_size", "in_channels", "out_channels")] == [16, 3, 3]
    model.save_pretrained(tmp_path)
    assert same(PrunedUNet2DModel.from_pretrained(tmp_path), model)
    transformer = PrunedDiT2DModel(2, 8, 1, 1, 1, sample_size=8, num_embeds_ada_norm=1)
    assert transformer.config["attention_head_dim"] == 8 and transformer(torch.ones(1, 1, 8, 8), 3).sample.shape == (1, 1, 8, 8)


def test_a_transformer_is_called_as_a_unet_is(tiny):
    unet, transformer, images = build_base(tiny.network, seed=0), build_base(DIT, seed=0), torch.ones(2, 1, 8, 8)
    assert list(inspect.signature(transformer.forward).parameters) == list(inspect.signature(unet.forward).parameters)
    for model in (unet, transformer):
        for timestep in (3, 3.0, torch.tensor(3), torch.tensor([3, 4])):
            assert torch.equal(model(images, timestep, None, False)[0], model(images, timestep, class_labels=None).sample)
        with pytest.raises(ValueError, match="class"):
            model(images, 3, torch.tensor([0, 1]))


MISFITS = {
    "conv in the stream": ({"conv_in": [4, 1]}, "down_blocks.0.resnets.0.norm1, [8], does not fit the others (Expected weight"),
    "no consumer": ({"down_blocks.0.resnets.0.conv1": [4, 8]}, "down_blocks.0.resnets.0."),
    "norm that no group divides": (
        {f"mid_block.resnets.0.{name}": width for name, width in {"conv1": [3, 16], "norm2": [3], "conv2": [16, 3]}.items()}
        | {"mid_block.resnets.0.time_emb_proj": [3, 32]},
        "mid_block.resnets.0.norm2, [3], does not fit the others",
    ),
    "timestep": ({"time_embedding.linear_1": [16, 8]}, "time_embedding.linear_2, [32, 32], does not fit the others"),
    "heads": (
        {f"mid_block.attentions.0.{name}": [5, 16] for name in ("to_q", "to_k", "to_v")} | {"mid_block.attentions.0.to_out.0": [16, 5]},
        "mid_block.attentions.0.",
    ),
    "channels of the image": (
        {"conv_out": [1, 8]},
        "conv_out, [1, 8], does not fit the others (it gives 1 channels, and out_channels is 2)",
    ),
    "wider": ({"conv_in": [16, 1]}, "conv_in is [16, 1], and the whole network's [8, 1]"),
    "no layer": ({"conv_inn": [4, 1]}, "conv_inn is [4, 1], and the whole network's has no such layer"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_widths_that_do_not_fit_are_refused_in_one_line_that_names_them(misfit, device, tiny):
    widths, says = MISFITS[misfit]
    config = dict(build_base(tiny.network, seed=0).config) | {"out_channels": 2 if misfit == "channels of the image" else 1}
    with torch.device(device), pytest.raises(ValueError, match=r"^widths: ") as caught:
        PrunedUNet2DModel(**config, widths=widths)
    line = str(caught.value)
    assert says in line and "\n" not in line
    assert refused(with_widths, build_base(tiny.network, seed=0), {"conv_in": [4, 1]}).startswith("widths: down_blocks.0.resnets.0.norm1")


def test_widths_fit_whatever_else_a_unet_takes(tiny):
    widths = {"mid_block.resnets.0.conv1": [8, 16], "mid_block.resnets.0.norm2": [8], "mid_block.resnets.0.conv2": [16, 8]}
    widths |= {"mid_block.resnets.0.time_emb_proj": [8, 32]}
    config = dict(build_base(tiny.network, seed=0).config)
    others = ({"sample_size": None}, {"sample_size": (8, 16)}, {"num_class_embeds": 10}, {"class_embed_type": "timestep"}, {"dropout": 0.5})
    for other in others:
        assert PrunedUNet2DModel(**config | other, widths=widths).mid_block.resnets[0].conv1.out_channels == 8


def test_a_network_of_another_class_is_refused_by_its_name():
    text = UNet2DConditionModel(8, 2, 2, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    assert refused(as_pruned, text).startswith("UNet2DConditionModel: cannot be saved with its widths")


# Folders of diffusers


@pytest.fixture
def folder(model, tmp_path):
    """A folder as `extract` makes it."""
    save_denoiser(model, sampling_scheduler(Diffusion(), clip_sample=True), tmp_path / "subnet")
    return tmp_path / "subnet"


def saved(model, folder, **how):
    shutil.rmtree(folder / "unet")
    model.save_pretrained(folder / "unet", **how)
    return folder


SAVED = {
    "shards": {"max_shard_size": "10KB"},
    "variant": {"variant": "fp16"},
    "shards of a variant": {"variant": "non_ema", "max_shard_size": "10KB"},
}


@each_kind
@pytest.mark.parametrize("how", SAVED)
def test_shards_and_variants_are_loaded_bit_for_bit(model, folder, how):
    saved(model, folder, **SAVED[how])
    files = [path.name for path in (folder / "unet").glob("*.safetensors")]
    assert WEIGHTS not in files and (len(files) > 1) is ("shards" in how)
    assert same(load_denoiser(folder), model) and same(load_pipeline(folder).unet, model)
    assert same(load_denoiser(folder / "unet"), model)  # the network alone


@each_kind
def test_half_precision_is_read_as_float32(model, folder):
    half = copy.deepcopy(model).half()
    saved(half, folder, variant="fp16")
    assert same(load_denoiser(folder), half.float())


@pytest.mark.parametrize("how", SAVED)
def test_a_base_of_shards_or_a_variant_is_loaded_and_its_sizes_are_told(how, tiny, base, tmp_path):
    base.save_pretrained(tmp_path / "network", **SAVED[how])
    config = replace(tiny, base=Base(source="path", folder=str(tmp_path / "network"), weights="raw"))
    assert same(load_pretrained(config, tmp_path), base)
    assert "conv" in describe_network(str(tmp_path / "network"), only=[1.0], rule=None, as_json=False)


def without_a_shard(unet):
    next(unet.glob("*-00002-of-*.safetensors")).unlink()


def with_half_a_shard(unet):
    path = next(unet.glob("*-00002-of-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])


def with_a_shard_twice(unet):
    first, second = sorted(unet.glob("*.safetensors"))[:2]
    shutil.copy(first, second)


def with_an_index(**listed):
    return lambda unet: (unet / INDEX).write_text(json.dumps(listed))


DAMAGES = {
    "a shard is missing": (without_a_shard, "No such file or directory"),
    "a shard is cut": (with_half_a_shard, "-00002-of-"),
    "a shard in another's place": (with_a_shard_twice, "is there twice, the second time in "),
    "the index lists one shard only": (
        lambda unet: with_an_index(weight_map={"conv_in.weight": min(unet.glob("*.safetensors")).name})(unet),
        " is missing",
    ),
    "the index is no JSON": (lambda unet: (unet / INDEX).write_text("{"), "Expecting property name"),
    "the index is a list": (lambda unet: (unet / INDEX).write_text("[]"), f"{INDEX} lists no shards"),
    "the index lists nothing": (with_an_index(weight_map={}), f"{INDEX} lists no shards"),
    "the index leads elsewhere": (
        with_an_index(weight_map={"conv_in.weight": "../other.safetensors"}),
        f"{INDEX} names '../other.safetensors', which is no safetensors file beside it",
    ),
    "the index names a number": (with_an_index(weight_map={"conv_in.weight": 3}), f"{INDEX} names 3, which is no safetensors file"),
    "the index is gone": (lambda unet: (unet / INDEX).unlink(), "No such file or directory"),
}


@pytest.mark.parametrize("model", ["unet"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_shards_that_are_damaged_or_not_all_there_are_refused_in_one_line(model, folder, damage, tiny, base, tmp_path):
    spoil, reason = DAMAGES[damage]
    saved(model, folder, max_shard_size="10KB")
    spoil(folder / "unet")
    assert reason in refused(load_denoiser, folder)
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    spoil(tmp_path / "base")
    assert str(tmp_path / "base") in refused(
        load_pretrained, replace(tiny, base=Base(source="path", folder=str(tmp_path / "base"), weights="raw")), tmp_path
    )


@pytest.mark.parametrize("model", ["unet"], indirect=True)
def test_of_several_variants_none_is_guessed(model, folder):
    saved(model, folder, variant="fp16")
    model.save_pretrained(folder / "unet", variant="ema")
    line = refused(load_denoiser, folder)
    assert "several variants: diffusion_pytorch_model.ema.safetensors, diffusion_pytorch_model.fp16.safetensors; leave one of them" in line
    model.save_pretrained(folder / "unet")
    assert same(load_denoiser(folder), model)


@each_kind
def test_an_average_that_diffusers_saved_is_loaded(model, folder):
    average = EMAModel(model.parameters(), model_cls=type(model), model_config=model.config, use_ema_warmup=True)
    expected = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    average.save_pretrained(folder / "unet")
    assert json.loads((folder / "unet" / "config.json").read_text())["decay"] == 0.9999
    assert same(load_denoiser(folder), expected)


@pytest.mark.parametrize("model", ["unet"], indirect=True)
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(timestep_spacing="trailing"),
        DDIMScheduler(timestep_spacing="linspace", steps_offset=1, set_alpha_to_one=False),
        DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        DDPMScheduler(),
        DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False),
    ],
)
def test_a_pipeline_samples_here_as_in_diffusers(model, scheduler, tmp_path):
    pipeline = (DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline)(unet=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = load_pipeline(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipeline) and plain(loaded.scheduler.config) == plain(scheduler.config)
    drawn = [
        each(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images for each in (pipeline, loaded)
    ]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("model", ["unet"], indirect=True)
@pytest.mark.parametrize(
    "refusal",
    [
        {"rescale_betas_zero_snr": True},
        {"prediction_type": "v_prediction"},
        {"thresholding": True},
        {"timestep_spacing": "quadratic"},
        {"clip_sample": 2},
        {"clip_sample_range": 2.0},
        {"steps_offset": 10**9},
    ],
)
def test_a_sampler_that_is_not_built_here_is_refused_by_its_key_with_a_remedy_that_works(model, folder, refusal):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | refusal))
    line = refused(load_pipeline, folder)
    assert f"its {next(iter(refusal))} is " in line
    remedy = line[line.index("load_denoiser(") : line.index(", and give it a scheduler of your own")]
    network = eval(remedy, {"load_denoiser": load_denoiser, "Path": Path})  # noqa: S307
    assert DDIMPipeline(unet=network, scheduler=DDIMScheduler())


# Without this package

DRAW = """
import json, sys
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
try:
    DiffusionPipeline.from_pretrained(sys.argv[1])
    sys.exit("code of a folder was run without trust")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.unet(torch.ones(1, 1, 8, 8), 3, class_labels=None)
images = pipeline(batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="np").images
assert not any(name.split(".")[0] in ("repro", "deepspeed", "sklearn") and module for name, module in sys.modules.items())
pipeline.save_pretrained(sys.argv[1] + "-again")
print(json.dumps([type(pipeline).__name__, images.ravel().tolist()]))
"""


@pytest.mark.parametrize("model", ["unet", pytest.param("transformer", marks=pytest.mark.slow)], indirect=True)
def test_a_folder_gives_the_same_images_where_this_package_is_not_installed(model, folder, tmp_path):
    expected = load_pipeline(folder)(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="np"
    ).images
    name, images = json.loads(without_us(DRAW, str(folder), home=tmp_path).splitlines()[-1])
    assert name == "DDIMPipeline" and np.array_equal(np.array(images, dtype=np.float32).reshape(expected.shape), expected)
    again = tmp_path / "subnet-again"  # what was loaded by the folder's code and saved
    assert (again / "unet" / "repro.harness.denoiser.py").read_bytes() == Path(narrowed.__file__).read_bytes()
    assert same(load_denoiser(again), model) and same(DDIMPipeline.from_pretrained(again).unet, model)


@pytest.mark.parametrize("model", ["unet"], indirect=True)
def test_where_this_package_is_imported_no_code_of_a_folder_is_run_and_no_trust_is_needed(model, folder, marker):
    code = folder / "unet" / "repro.harness.denoiser.py"
    assert json.loads((folder / "model_index.json").read_text())["unet"] == ["repro.harness.denoiser", "PrunedUNet2DModel"]
    assert code.read_bytes() == Path(narrowed.__file__).read_bytes()
    code.write_text(f"open({str(marker)!r}, 'w')")
    for loaded in (
        load_pipeline(folder),
        DDIMPipeline.from_pretrained(folder),
        DDIMPipeline.from_pretrained(folder, trust_remote_code=True),
    ):
        assert type(loaded.unet) is PrunedUNet2DModel and same(loaded.unet, model)


@pytest.mark.parametrize("model", ["unet"], indirect=True)
def test_a_folder_of_before_there_was_code_in_it_still_loads(model, folder):
    (folder / "unet" / "repro.harness.denoiser.py").unlink()
    assert same(load_pipeline(folder).unet, model) and same(DDIMPipeline.from_pretrained(folder).unet, model)


def test_the_code_that_goes_with_a_network_needs_nothing_of_this_package():
    modules = [line.split()[1] for line in inspect.getsource(narrowed).splitlines() if line.startswith(("import ", "from "))]
    assert {name.partition(".")[0] for name in modules} - {"torch", "diffusers"} <= sys.stdlib_module_names
