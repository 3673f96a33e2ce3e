"""Bases out of files of weights: EDM's code's names in three formats, our own names, and what is refused, with nothing of a file run."""

import copyreg
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.edm_code import EDMPrecond, UNet, VEPrecond, VPPrecond, pickled
from support.hostile import Payload, refused
from torch import nn

from repro.cli import main
from repro.config import Base, Diffusion, Network
from repro.config.networks import SongUNet, UViT
from repro.errors import ReproError
from repro.experiment.pretrained import load_pretrained, origin
from repro.files import inert_pickle
from repro.files.tensor_files import STORAGE_MAGIC, STORAGE_VERSION, read_tensors
from repro.files.writing import sha256_of_file
from repro.models.denoiser import build_base

TINY = Path(__file__).parents[1] / "tiny.toml"
EDM = Diffusion(formulation="edm", num_train_timesteps=20)
SONG = SongUNet(sample_size=8, channels=3, model_channels=16, channel_mult=(1, 2), num_blocks=2, attn_resolutions=(4,))
ADM = Network(
    sample_size=8,
    channels=3,
    block_out_channels=(128, 128),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    layers_per_block=1,
    norm_num_groups=32,
    attn_norm_num_groups=32,
    attention_head_dim=64,
    num_class_embeds=4,
    **{"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
)
# A section, and the network of EDM's code that it describes.
NETWORKS = {
    "SongUNet": (SONG, lambda: UNet(8, 3, 16, (1, 2), 2, (4,))),
    "SongUNet, three levels": (replace(SONG, channel_mult=(1, 2, 1)), lambda: UNet(8, 3, 16, (1, 2, 1), 2, (4,))),
    "SongUNet with classes": (
        replace(SONG, num_class_embeds=4, augment_dim=9),
        lambda: UNet(8, 3, 16, (1, 2), 2, (4,), labels=4, augment=9),
    ),
}
SAVERS = {
    "pkl": lambda network, path: path.write_bytes(pickled({"ema": network, "augment_pipe": None, "dataset_kwargs": {"path": "x.zip"}})),
    "pt": lambda network, path: torch.save(network.state_dict(), path),
    "safetensors": lambda network, path: safetensors.torch.save_file(network.state_dict(), path),
}


def published(build, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EDMPrecond(build(), **settings).eval()


def from_file(tiny, section, path, formulation="edm", **settings):
    """Returns the tiny experiment with another network, its base a file."""
    base = Base(source="path", file=str(path), sha256=(sha256_of_file(path),), formulation=formulation, weights="ema")
    networks = {"network": section, "own": None} if isinstance(section, Network) else {"network": None, "own": section}
    return replace(tiny, **networks, **({"diffusion": EDM, "base": base} | settings))


def load(tiny, section, path, **settings):
    return load_pretrained(from_file(tiny, section, path, **settings), path)


def same(one, other):
    theirs = other.state_dict()
    return one.state_dict().keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def saved(tensors, path):
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.fixture
def song():
    return published(NETWORKS["SongUNet"][1])


# The mapping


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_edm_s_code_make_the_network_that_computes_what_theirs_does(name, tiny, tmp_path):
    section, build = NETWORKS[name]
    theirs = published(build)
    SAVERS["pt"](theirs, tmp_path / "weights.pt")
    ours, stream = load(tiny, section, tmp_path / "weights.pt"), torch.Generator().manual_seed(1)
    images, noise = torch.randn(4, 3, 8, 8, generator=stream), torch.randn(4, generator=stream)
    labels = torch.tensor([0, 3, 1, 1]) if section.num_class_embeds else None
    augmented = torch.randn(4, 9, generator=stream) if section.augment_dim else None
    with torch.no_grad():
        expected = theirs.model(images, noise, labels, augmented)
        found = ours(images, noise, labels, augment_labels=augmented).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_network_section_takes_adm_of_edm_s_code_where_its_norms_have_as_many_groups(tiny, tmp_path):
    theirs = published(lambda: UNet(8, 3, 128, (1, 1), 1, (4,), labels=4, adm=True))
    SAVERS["pkl"](theirs, tmp_path / "adm.pkl")
    ours, stream = load(tiny, ADM, tmp_path / "adm.pkl"), torch.Generator().manual_seed(1)
    images, noise, labels = torch.randn(4, 3, 8, 8, generator=stream), torch.randn(4, generator=stream), torch.tensor([0, 3, 1, 1])
    with torch.no_grad():
        found, expected = ours(images, noise, labels).sample, theirs.model(images, noise, labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    fewer = replace(ADM, norm_num_groups=16)
    line = refused(load, tiny, fewer, tmp_path / "adm.pkl")
    assert line.startswith("norm_num_groups, norm_eps: down_blocks.0.resnets.0.norm1 has 16 groups") and "in EDM's code 32" in line


def test_every_format_gives_the_same_bits_and_a_pickle_needs_no_declaration(song, tiny, tmp_path):
    networks = []
    for ending, save in SAVERS.items():
        save(song, tmp_path / f"weights.{ending}")
        networks.append(load(tiny, SONG, tmp_path / f"weights.{ending}", formulation="" if ending == "pkl" else "edm"))
    assert same(networks[0], networks[1]) and same(networks[0], networks[2])
    assert torch.equal(networks[0].conv_in.weight, song.model.enc["8x8_conv"].weight)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_tensor_of_a_pickle_is_read_to_the_bit(protocol, song, tmp_path):
    song.model.map_layer0.weight.data = song.model.map_layer0.weight.data.T.contiguous().T  # in another order, and within more
    song.model.map_layer1.bias.data = torch.arange(200, dtype=torch.float64).half()[7:71]
    (tmp_path / "song.pkl").write_bytes(pickled({"ema": song}, protocol))
    found, expected = read_tensors(tmp_path / "song.pkl"), song.state_dict()
    assert found.tensors.keys() == expected.keys() and found.about["class"] == "EDMPrecond"
    assert all(torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_a_network_s_own_names_are_taken_in_any_architecture(tiny, tmp_path):
    for section in (SONG, tiny.network, UViT(sample_size=8, channels=3, width=16, depth=3, heads=2)):
        base = build_base(section, seed=1)
        path = saved({name: tensor.contiguous() for name, tensor in base.state_dict().items()}, tmp_path / "own.safetensors")
        assert same(load(tiny, section, path), base)
        torch.save(base.state_dict(), tmp_path / "own.pt")
        assert same(load(tiny, section, tmp_path / "own.pt"), base)


# What is another network's


def lacks(tensors):
    del tensors["model.enc.8x8_block0.norm0.weight"]


def has_more(tensors):
    tensors["model.map_noise.freqs"] = torch.zeros(4)


def is_narrower(tensors):
    tensors["model.dec.4x4_in0.qkv.weight"] = tensors["model.dec.4x4_in0.qkv.weight"][:48]


def is_no_number(tensors):
    tensors["model.dec.4x4_in0.qkv.weight"][5] = torch.nan


def blurs_more(tensors):
    tensors["model.enc.4x4_down.conv0.resample_filter"] *= 2


def counts(tensors):
    tensors["model.map_layer0.bias"] = torch.zeros(64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lacks, "model.enc.8x8_block0.norm0.weight is missing"),
        (has_more, "model.map_noise.freqs is no part of the network"),
        (is_narrower, "model.dec.4x4_in0.qkv.weight is torch.float32 [48, 32, 1, 1], the network's [96, 32, 1, 1]"),
        (is_no_number, "model.dec.4x4_in0.qkv.weight is not finite"),
        (blurs_more, "model.enc.4x4_down.conv0.resample_filter is no average of 2 x 2 pixels"),
        (counts, "model.map_layer0.bias is torch.int64 [64]"),
    ],
)
def test_a_tensor_that_is_not_the_network_s_is_named(change, says, song, tiny, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in song.state_dict().items()}
    change(tensors)
    path = saved(tensors, tmp_path / "weights.safetensors")
    line = refused(load, tiny, SONG, path)
    assert line.startswith(f"base.file {path}: does not hold the weights of the configured network (") and says in line


def test_own_names_are_held_to_the_network_too(tiny, tmp_path):
    tensors = dict(build_base(SONG, seed=0).state_dict())
    for name, tensor, says in (
        ("conv_in.bias", torch.full((16,), torch.inf), "conv_in.bias is not finite"),
        ("conv_in.bias", torch.zeros(8), "conv_in.bias is torch.float32 [8], the network's [16]"),
        ("evil", torch.zeros(1), "evil is no part of the network"),
    ):
        assert says in refused(load, tiny, SONG, saved(tensors | {name: tensor}, tmp_path / "own.safetensors"))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (replace(SONG, norm_num_groups=2), "norm_num_groups, norm_eps: down_blocks.0.0.resnet.norm1 has 2 groups"),
        (replace(ADM, freq_shift=1), "network.freq_shift: is 1, and a network of EDM's code has 0"),
        (replace(ADM, norm_eps=1e-6), "norm_num_groups, norm_eps: down_blocks.0.resnets.0.norm1 has 32 groups and 1e-06"),
        (UViT(sample_size=8, channels=3, width=16, depth=3, heads=2), "those of a [song_unet] or a [network]"),
    ],
)
def test_settings_that_no_shape_shows_are_those_of_edm_s_code(section, says, song, tiny, tmp_path):
    assert says in refused(load, tiny, section, saved(song.state_dict(), tmp_path / "weights.safetensors"))


# How it was trained


def test_a_file_that_does_not_say_its_formulation_has_it_declared(song, tiny, tmp_path):
    path = saved(song.state_dict(), tmp_path / "weights.safetensors")
    line = refused(lambda: load(tiny, SONG, path, formulation=""))
    assert line.startswith(f"base.formulation: nothing in base.file {path} says how its weights were trained; set base.formulation=edm if ")
    assert "fed ln(sigma) / 4 (OpenAI's networks and the consistency models made from them are fed 1,000 times that)" in line
    with pytest.raises(ReproError, match=r"base\.formulation: is 'edm', and diffusion\.formulation 'ddpm'"):
        from_file(tiny, SONG, path, diffusion=Diffusion())


@pytest.mark.parametrize(
    ("wrap", "settings", "formulation", "says"),
    [
        (VEPrecond, {}, "edm", "its network is a VEPrecond, and only a EDMPrecond or VPPrecond is read"),
        (EDMPrecond, {"sigma_data": 1.0}, "edm", "its sigma_data is 1.0, and the formulation edm has 0.5"),
        (VPPrecond, {"beta_min": 0.1, "beta_d": 10.0, "M": 1000}, "vp", "its beta_d is 10.0, and the formulation vp has 19.9"),
        (VPPrecond, {"beta_min": 0.1, "beta_d": 19.9, "M": 1000}, "edm", "was trained in the formulation vp; set diffusion.formulation=vp"),
        (VPPrecond, {"beta_min": 0.1, "beta_d": 19.9, "M": 1000}, "vp", ""),
    ],
)
def test_what_preconditions_a_pickled_network_is_held_to_the_formulation(wrap, settings, formulation, says, song, tiny, tmp_path):
    path = tmp_path / "weights.pkl"
    SAVERS["pkl"](wrap(song.model, **settings), path)
    given = {"formulation": "", "diffusion": Diffusion(formulation=formulation)}
    if says:
        assert says in refused(lambda: load(tiny, SONG, path, **given))
    else:
        assert torch.equal(load(tiny, SONG, path, **given).conv_in.weight, song.model.enc["8x8_conv"].weight)


def test_the_file_s_hash_is_pinned_and_goes_into_the_record(song, tiny, tmp_path):
    path = saved(song.state_dict(), tmp_path / "weights.safetensors")
    config, sha256 = from_file(tiny, SONG, path), sha256_of_file(path)
    assert origin(config, 0) == {"source": "path", "weights": "ema", "file": str(path), "file_sha256": sha256, "formulation": "edm"}
    for pinned, says in (((), "none is there"), (("0" * 64,), f"it is {'0' * 64}")):
        line = refused(load_pretrained, replace(config, base=replace(config.base, sha256=pinned)), tmp_path)
        assert line == f"base.sha256: must be the hash of base.file, and {says}; --set base.sha256='[\"{sha256}\"]' takes {path}"


# Folders in another formulation


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_max": 10.0}, ""),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, ""),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, "its sigma_data is 1.0"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "its prediction_type is 'v_prediction'"),
        ({"_class_name": "EDMEulerScheduler", "c_noise": 1000}, "its c_noise is 1000, a setting that is not known here"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "its _class_name is CMStochasticIterativeScheduler, none of EDM's"),
        ({"_class_name": "DDPMScheduler"}, "its _class_name is DDPMScheduler, none of EDM's"),
        (None, "nothing in base.folder "),
    ],
)
def test_a_folder_s_scheduler_says_that_it_is_edm_s(scheduler, says, tiny, base, tmp_path):
    base.save_pretrained(tmp_path)
    if scheduler is not None:
        (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    config = replace(tiny, diffusion=EDM, base=Base(source="path", folder=str(tmp_path), weights="raw"))
    if says:
        assert says in refused(load_pretrained, config, tmp_path)
    else:
        assert same(load_pretrained(config, tmp_path), base)
    declared = replace(config, base=replace(config.base, formulation="edm"))
    if scheduler is None:
        assert same(load_pretrained(declared, tmp_path), base)


def test_a_folder_under_vp_is_declared_and_has_no_scheduler(tiny, base, tmp_path):
    base.save_pretrained(tmp_path)
    source = Base(source="path", folder=str(tmp_path), weights="raw", formulation="vp")
    config = replace(tiny, diffusion=Diffusion(formulation="vp"), base=source)
    assert same(load_pretrained(config, tmp_path), base)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DPMSolverSinglestepScheduler"}))
    assert "tells nothing of the formulation vp; name a folder of the network alone" in refused(load_pretrained, config, tmp_path)


# What a stranger might send


class Stateful:
    """An object whose state would be taken by its own code."""

    def __setstate__(self, _state):
        raise AssertionError("it was run")


class Elsewhere(pickle.Pickler):
    """Says of every object of a class that it lies elsewhere, and where: another object."""

    def persistent_id(self, content):
        return ("storage", Payload(content.marker)) if isinstance(content, Stateful) else None


def persistent(marker):
    content, stream = Stateful(), io.BytesIO()
    content.marker = marker
    Elsewhere(stream, 4).dump({"ema": content})
    return stream.getvalue()


def extended(_marker):
    copyreg.add_extension("posix", "system", 211)
    try:
        return pickle.dumps({"ema": os.system}, 2)
    finally:
        copyreg.remove_extension("posix", "system", 211)


def with_attribute(value):
    network = published(NETWORKS["SongUNet"][1])
    network.evil = value
    return pickled({"ema": network})


def itself(_marker):
    modules = nn.ModuleDict()
    modules._modules["again"] = modules
    return pickled({"ema": EDMPrecond(modules)})


def storage(content):
    """A network whose only tensor has a storage of other bytes."""
    network = EDMPrecond(nn.ModuleDict())
    network.register_buffer("weight", torch.arange(4.0))
    whole = pickled({"ema": network}, 3)
    begin = whole.index(b"\x80\x02\x8a\x0a")  # the magic number of torch.save
    length = int.from_bytes(whole[begin - 4 : begin], "little")
    return whole[: begin - 4] + len(content).to_bytes(4, "little") + content + whole[begin + length :]


def with_class(content):
    """A network whose class is another value."""
    name = b"\x8c\x0aEDMPrecond"
    return pickled({"ema": EDMPrecond(nn.ModuleDict())}, 4).replace(name, content)


NEST = b"]" * 9_999 + b"a" * 9_998
STORAGE = b"".join(pickle.dumps(each, 2) for each in (STORAGE_MAGIC, STORAGE_VERSION, {"little_endian": True}))
HOSTILE = {
    "a call": (lambda marker: pickle.dumps({"ema": Payload(marker)}), "it names pathlib."),
    "a call by name": (lambda _: b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "it names os.system, which is not one of"),
    "a call by a name of ours": (lambda _: b"\x80\x02U\x04evil\x85R.", "its opcode SHORT_BINSTRING is not one of plain values"),
    "a call of a value": (lambda _: b"\x80\x02X\x04\x00\x00\x00evil)R.", "it calls what is no name"),
    "in a state": (lambda marker: with_attribute({"deep": [Payload(marker)]}), "it names pathlib."),
    "a state of its own": (lambda _: pickle.dumps({"ema": Stateful()}), "Stateful, which is not one of"),
    "an extension": (extended, "its opcode EXT1 is not one of"),
    "lies elsewhere": (persistent, "it names pathlib."),
    "a huge memo": (lambda _: b"\x80\x02Nr\xff\xff\xff\xff.", "it holds no 'ema'"),
    "a memo that is empty": (lambda _: b"\x80\x02h\x07.", "it is no pickle (7)"),
    "a huge text": (lambda _: b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".", "expected 4611686018427387904 bytes"),
    "a deep list": (lambda _: b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".", "it holds no 'ema'"),
    "no end": (lambda _: pickle.dumps({"ema": 1}, 4)[:-1], "exhausted before seeing STOP"),
    "an empty stack": (lambda _: b"\x80\x04.", "it is no pickle (pop from empty list)"),
    "a mark for a value": (lambda _: b"\x80\x04(.", "a mark in place of a value"),
    "a key that is none": (lambda _: b"\x80\x04}]Ns.", "whose keys are neither text nor numbers"),
    "a module in itself": (itself, "again is a module that stands in two places"),
    "no network": (lambda _: pickle.dumps({"ema": {"weights": [1.0]}}), "it holds no 'ema'"),
    "a storage with a call": (lambda marker: storage(pickle.dumps(Payload(marker)) * 5), "it names pathlib."),
    "a storage of nothing": (lambda _: storage(b"\x80\x02N." * 5), "is not what torch.save writes"),
    "a storage of nests": (
        lambda _: storage(
            STORAGE + NEST.join((b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n", b"NK\x01tQ.")) + b"\x80\x02" + NEST + b"."
        ),
        "is not what torch.save writes",
    ),
    "a class of nests": (lambda _: with_class(b"]" * 9_999 + b"a" * 9_998), "the network has no class_name"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_of_a_hostile_pickle_is_run(kind, tiny, marker, tmp_path):
    make, says = HOSTILE[kind]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(make(marker))
    line = refused(load, tiny, SONG, path)
    assert line.startswith(f"base.file {path}: does not hold the weights") and says in line


def test_a_pickle_that_is_cut_anywhere_is_refused(song, tiny, tmp_path):
    whole, path = pickled({"ema": song}), tmp_path / "cut.pkl"
    for kept in (3, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert refused(load, tiny, SONG, path).startswith(f"base.file {path}: does not hold the weights")


def test_a_tensor_that_claims_more_than_is_stored_is_refused(tmp_path):
    network = EDMPrecond(nn.ModuleDict())
    for tensor in (torch.zeros(1).expand(2**30), torch.zeros(4)[2:]):
        network.register_buffer("weight", tensor)
        content = pickled({"ema": network}, 3)
        if tensor.dim() == 1 and len(tensor) == 2:
            content = content.replace(b"K\x02K\x02\x85", b"K\x02K\x03\x85")  # one more than there is
        (tmp_path / "large.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="is larger than what is stored of it"):
            read_tensors(tmp_path / "large.pkl")


def test_a_pickle_of_endless_opcodes_is_refused(song, tiny, tmp_path, monkeypatch):
    SAVERS["pkl"](song, tmp_path / "song.pkl")
    monkeypatch.setattr(inert_pickle, "MOST_OPCODES", 1000)
    assert "it has more than 1,000 opcodes" in refused(load, tiny, SONG, tmp_path / "song.pkl")


def compressed(content, path):
    torch.save(content, path)
    with zipfile.ZipFile(path) as stored:
        items = {item.filename: stored.read(item) for item in stored.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in items.items():
            archive.writestr(name, held)


OTHERS = {
    "a call": (lambda path, marker: torch.save({"weights": Payload(marker)}, path), "torch.load(weights_only=True) refuses it"),
    "a checkpoint": (lambda path, _: torch.save({"state_dict": {"weight": torch.zeros(1)}}, path), "no dictionary of tensors alone"),
    "compressed": (lambda path, _: compressed({"weight": torch.zeros(1)}, path), "it is compressed, which torch.save never does"),
    "old": (lambda path, _: torch.save({}, path, _use_new_zipfile_serialization=False), "torch.save wrote it before 1.6; load and save it"),
    "half an archive": (lambda path, _: path.write_bytes(b"PK\x03\x04 and nothing"), "torch.load(weights_only=True) refuses it"),
    "an old pickle": (lambda path, _: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."), "it is neither safetensors nor"),
    "nothing": (lambda path, _: path.write_bytes(b""), "it is neither safetensors nor"),
    "a page": (lambda path, _: path.write_bytes(b"<html>Sign in</html>"), "a web page and not the file itself"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_is_refused_in_one_line(kind, tiny, marker, tmp_path):
    (save, says), path = OTHERS[kind], tmp_path / "weights.pt"
    save(path, marker)
    line = refused(load, tiny, SONG, path)
    assert str(path) in line and says in line


def test_a_file_that_is_not_there_is_refused(tiny, tmp_path):
    (tmp_path / "there").touch()
    config = from_file(tiny, SONG, tmp_path / "there")
    for place in (tmp_path / "nowhere", tmp_path):
        line = refused(load_pretrained, replace(config, base=replace(config.base, file=str(place))), tmp_path)
        assert line.startswith(f"base.file {place}: ")


# The whole way


@pytest.mark.slow
def test_a_published_pickle_is_the_base_of_a_run(tiny, tmp_path):
    path, config = tmp_path / "edm.pkl", tmp_path / "edm.toml"
    theirs = published(lambda: UNet(8, 1, 16, (1, 2), 1, (4,)))
    SAVERS["pkl"](theirs, path)
    before, _, after = TINY.read_text().partition("[network]")
    song = (
        "[song_unet]\nsample_size = 8\nchannels = 1\nmodel_channels = 16\nchannel_mult = [1, 2]\nnum_blocks = 1\nattn_resolutions = [4]\n"
    )
    base = f'[diffusion]\nformulation = "edm"\nnum_train_timesteps = 4\n[base]\nsource = "path"\nfile = "{path}"\n'
    config.write_text(f"{before}{song}{base}sha256 = ['{sha256_of_file(path)}']\n[sizes]{after.partition('[sizes]')[2]}")
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    sampler = ["--set", "evaluation.sampler=heun"]
    assert main(["run", "--config", str(config), *places, *sampler, "--methods", "base,ofa", "--sizes", "0.5", "--yes"]) == 0
    record = json.loads(next((tmp_path / "results").rglob("ofa-0.5-seed0.json")).read_text())
    assert record["status"] == "done" and record["base"]["file_sha256"] == sha256_of_file(path)
