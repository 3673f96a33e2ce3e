"""`sizes --network` on the folders of others: labels and added conditions are made up for counting, a missing size is asked for."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from support.hostile import refused

from repro.cli import VERBS, main
from repro.cli.arguments import parser
from repro.deliver.network_sizes import describe_network
from repro.diffusion.ddpm import sampling_scheduler
from repro.errors import ReproError
from repro.models.denoiser import as_pruned, build_base, save_denoiser
from repro.ofa.allocation import make_plan
from repro.ofa.pipes import pipes_of
from repro.ofa.supernet import Supernet

BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 8}
UNET = BLOCKS | {"sample_size": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
TEXT = BLOCKS | {
    "sample_size": 8,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16}
DIT = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2, "in_channels": 4}


def saved(folder, network, **values):
    """Returns the folder of a network's config.json, with values changed after."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        content = json.loads(network.to_json_string())
    (folder / "config.json").write_text(json.dumps(content | values))
    return folder


def rows_of(folder, **options):
    found = json.loads(describe_network(str(folder), **{"only": [1.0, 0.5], "rule": None, "as_json": True} | options))
    return {row["size"]: row for row in found["sizes"]}


def rare(*values):
    """A network that few have, whose test is a slow one."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (UNet2DModel, UNET | {"class_embed_type": "timestep"}),
        (UNet2DModel, UNET | {"num_class_embeds": 10}),
        (UNet2DModel, UNET | {"class_embed_type": "identity"}),
        (UNet2DModel, UNET | {"time_embedding_type": "fourier"}),
        (UNet2DModel, UNET | {"add_attention": False, "resnet_time_scale_shift": "scale_shift"}),
        (UNet2DConditionModel, TEXT),
        rare(UNet2DConditionModel, TEXT | {"num_class_embeds": 1000}),
        rare(UNet2DConditionModel, TEXT | {"class_embed_type": "timestep"}),
        rare(UNet2DConditionModel, TEXT | {"class_embed_type": "identity"}),
        rare(UNet2DConditionModel, TEXT | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 24}),
        rare(UNet2DConditionModel, TEXT | {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 24}),
        (UNet2DConditionModel, TEXT | SDXL),
        rare(UNet2DConditionModel, TEXT | {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}),
        rare(UNet2DConditionModel, TEXT | {"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}),
        rare(UNet2DConditionModel, TEXT | {"time_cond_proj_dim": 16}),
        rare(UNet2DConditionModel, TEXT | {"cross_attention_dim": (12, 12)}),
        (UNet2DConditionModel, TEXT | {"sample_size": (8, 16)}),
        rare(UNet2DConditionModel, TEXT | {"mid_block_type": None}),
        (DiTTransformer2DModel, DIT),
    ],
)
def test_a_network_with_labels_or_added_conditions_is_counted(network, settings, tmp_path):
    with torch.device("meta"):
        model = network(**settings)
    rows = rows_of(saved(tmp_path / "theirs", model))
    assert rows[1.0]["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < rows[0.5]["macs"] < rows[1.0]["macs"]
    text = describe_network(str(tmp_path / "theirs"), only=None, rule=None, as_json=False)
    height, width = settings["sample_size"] if isinstance(settings["sample_size"], tuple) else (8, 8)
    assert f"one input of {model.config['in_channels']} x {height} x {width}" in text


def test_a_label_costs_what_embedding_it_does(tmp_path):
    with torch.device("meta"):
        plain, labelled = UNet2DModel(**UNET), UNet2DModel(**UNET, class_embed_type="timestep")
    macs = [rows_of(saved(tmp_path / str(index), model))[1.0]["macs"] for index, model in enumerate((plain, labelled))]
    assert macs[1] - macs[0] == 8 * 32 + 32 * 32  # of two linear layers


def test_the_old_name_of_a_transformer_is_understood(tmp_path):
    """facebook/DiT-XL-2-256 says Transformer2DModel; diffusers reads it as a DiTTransformer2DModel."""
    with torch.device("meta"):
        model = DiTTransformer2DModel(**DIT)
    expected = rows_of(saved(tmp_path / "new", model))
    assert rows_of(saved(tmp_path / "old" / "transformer", model, _class_name="Transformer2DModel").parent) == expected
    others = {"layer_norm": "Transformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}  # PixArt's
    for kind, name in others.items():
        folder = saved(tmp_path / f"other-{kind}", model, _class_name="Transformer2DModel", norm_type=kind)
        assert f"its _class_name is '{name}', none of UNet2DModel, " in refused(rows_of, folder)


def test_a_size_that_the_file_leaves_open_is_asked_for(tmp_path):
    with torch.device("meta"):
        folder, known = saved(tmp_path / "open", UNet2DModel(**UNET), sample_size=None), saved(tmp_path / "known", UNet2DModel(**UNET))
    path = folder / "config.json"
    line = refused(rows_of, folder)
    assert line == f"{path}: its sample_size is None; say for which images to count, such as --sample-size 64"
    assert rows_of(folder, sample_size=(8, 8)) == rows_of(known)
    assert rows_of(folder, sample_size=(8, 16))[1.0]["macs"] > rows_of(known)[1.0]["macs"]
    assert rows_of(known, sample_size=(16, 16))[1.0]["macs"] > rows_of(known)[1.0]["macs"]
    for sides in ([8], "8", {"height": 8}, [8, 8, 8], 0, -8, 10**9, True, [8.5, 8]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": sides}))
        assert "such as --sample-size 64" in refused(rows_of, folder)


def test_a_size_that_the_network_cannot_take_is_refused_with_one_that_it_can(tmp_path):
    with torch.device("meta"):
        unet, dit = saved(tmp_path / "unet", UNet2DModel(**UNET)), saved(tmp_path / "dit", DiTTransformer2DModel(**DIT))
    assert "cannot denoise 15 x 15: a multiple of 2 is needed, such as --sample-size 14 x 14" in refused(
        lambda: rows_of(unet, sample_size=(15, 15))
    )
    assert "cannot denoise 9 x 9: a multiple of 2 is needed" in refused(lambda: rows_of(dit, sample_size=(9, 9)))
    assert rows_of(dit, sample_size=(16, 16))


@pytest.mark.parametrize(
    ("network", "values", "says"),
    [
        (UNet2DConditionModel(**TEXT), {"addition_embed_type": "image"}, "describes no network"),
        (UNet2DConditionModel(**TEXT), {"cross_attention_dim": [12, 24]}, "cannot be counted"),
        (UNet2DModel(**UNET), {"num_layers": 1, "layers_per_block": 10**9}, "its layers_per_block is 1000000000, more than 64"),
        (DiTTransformer2DModel(**DIT), {"num_layers": 10**9}, "its num_layers is 1000000000, more than 64"),
        (UNet2DModel(**UNET), {"_class_name": "FluxTransformer2DModel"}, "its _class_name is 'FluxTransformer2DModel', none of"),
        (UNet2DModel(**UNET), {"_class_name": ["UNet2DModel"]}, "its _class_name is ['UNet2DModel'], none of"),
        (UNet2DModel(**UNET), {"_class_name": None}, "its _class_name is None, none of"),
        (UNet2DModel(**UNET), {"block_out_channels": "wide"}, "describes no network"),
    ],
)
def test_what_cannot_be_counted_is_one_line(network, values, says, tmp_path):
    assert says in refused(rows_of, saved(tmp_path / "theirs", network, **values))


def test_an_extracted_folder_is_counted_where_it_is_whole(tiny, tmp_path):
    base, scheduler = build_base(tiny.network, seed=0), sampling_scheduler(tiny.diffusion, clip_sample=True)
    save_denoiser(base, scheduler, tmp_path / "whole")
    assert rows_of(tmp_path / "whole")[1.0]["params"] == sum(parameter.numel() for parameter in base.parameters())
    pipes, params = pipes_of(base), sum(parameter.numel() for parameter in base.parameters())
    plan = make_plan(pipes, {p.name: torch.ones(p.width) for p in pipes}, (1.0, 0.5), params_base=params, rule="uniform", floor=0.25)
    save_denoiser(as_pruned(Supernet(base, pipes, plan).extract(0.5)), scheduler, tmp_path / "narrow")
    assert "it is a pruned network; name the whole one" in refused(rows_of, tmp_path / "narrow")


def told(capsys, *arguments):
    """Returns the exit code of a command and what it says of it."""
    code = main(["sizes", *map(str, arguments)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("flag", [["--config", "digits"], ["--set", "allocation.floor=0.5"], ["--baselines"]])
def test_what_sizes_of_a_network_would_not_read_is_refused(flag, capsys):
    code, said = told(capsys, "--network", "stable-diffusion-1.5", *flag)
    assert code == 2 and said.err.startswith(f"error: {flag[0]}: goes without --network") and said.err.count("\n") == 1


def test_a_sample_size_goes_with_a_network(tmp_path, capsys):
    assert told(capsys, "--sample-size", "64")[1].err.startswith("error: --sample-size: goes with --network")
    with torch.device("meta"):
        folder = saved(tmp_path / "open", UNet2DModel(**UNET), sample_size=None)
    code, said = told(capsys, "--network", folder, "--sample-size", "8x16")
    assert code == 0 and "one input of 3 x 8 x 16" in said.out


@pytest.mark.parametrize("text", ["0", "-8", "8.5", "8x", "x8", "8x8x8", "", "big", "9" * 5000, "\u0668"])
def test_a_sample_size_is_one_number_or_two(text, capsys):
    with pytest.raises(SystemExit):
        parser(VERBS).parse_args(["sizes", "--network", "x", f"--sample-size={text}"])
    assert "is no size of an image; write it as 64 or 64x96" in capsys.readouterr().err


def test_a_pointer_in_place_of_a_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ReproError, match=r"config\.json: a pointer of Git LFS and not the file itself; run `git lfs pull`"):
        rows_of(tmp_path)
