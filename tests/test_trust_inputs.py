"""Configurations, images and CIFAR-10 of a stranger: one line names the key or file, and nothing is run, waited for or written."""

import io
import os
import pickle
import socket
import tarfile
import zipfile
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.hostile import CLEAR_SCREEN, Payload, bomb, refused
from support.image_files import make_batch, python2_pickle

from repro.cli import main
from repro.config import Base, Data, load_config
from repro.data import cifar10
from repro.data.images import load_images
from repro.errors import ReproError, one_line
from repro.files.places import Places

TINY = Path(__file__).parent / "tiny.toml"
FOLDER = cifar10.CIFAR10.base_folder

pytestmark = [pytest.mark.quick, pytest.mark.timeout(60)]  # a pipe that is waited for fails the test


# Configurations


def run_on(text, tmp_path, capsys):
    """Returns what `status` says of a configuration that it refuses."""
    path = tmp_path / "hostile.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["status", "--config", str(path), "--results", str(tmp_path / "r"), "--runs", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {path}: ") and len(error) < 3000
    assert one_line(error[:-1]) == error[:-1]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hostile.toml"]
    return error


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "tiny"', 'name = "../tiny"', "name: use at most 100 ASCII letters"),
        ('name = "tiny"', 'name = "/tmp/tiny"', "name: use at most 100 ASCII letters"),
        ('name = "tiny"', 'name = "t\u0456ny\u00b2"', "name: use at most 100 ASCII letters"),
        ('name = "tiny"', f'name = "{"x" * 101}"', "name: use at most 100 ASCII letters"),
        ('name = "tiny"', 'name = "tiny\\n"', "name: must be one line"),
        ('name = "tiny"', 'name = "\\u001b[2J"', "name: must be one line"),
        ('name = "tiny"', '"\\u001b[2J" = 1', r"unknown key '\x1b[2J'"),
        ('name = "tiny"', f'name = "{"x" * 10**6}"', "name: must be one line of at most 2,000 letters"),
        ('name = "tiny"', "name = " + "[" * 5000 + "]" * 5000, "not a readable TOML file (nested too deeply)"),
        ('name = "tiny"', "name = " + "9" * 5000, "not a readable TOML file (Exceeds the limit"),
        ('name = "tiny"', "name = 1979-99-99", "not a readable TOML file"),
        ("trial = true", f"trial = true\nhours = {10**400}", "hours: must be an integer of at most 64 bits"),
        ("trial = true", "trial = true\nhours = inf", "hours: must be a finite number"),
        ("layers_per_block = 1", f"layers_per_block = {10**12}", "network.layers_per_block: must be at least 1 and at most 64"),
        ("[8, 16]", f"[8, {10**12}]", "network.block_out_channels: must be at least 1 and at most 65,536"),
        ("steps = 12", f"steps = {10**18}", "base_training.steps: must be at least 1 and at most 1,000,000,000"),
        ("steps = 12", "steps = 1e300", "base_training.steps: must be of type int"),
        ("steps = 12", "steps = [[[[1]]]]", "base_training.steps: must be of type int"),
        ("channels_last", "threads = 1000000\nchannels_last", "compute.threads: must lie in [0, 1024]"),
        ("[evaluation]", "[diffusion]\nnum_train_timesteps = 100000000000\n[evaluation]", "diffusion.num_train_timesteps: "),
    ],
)
def test_a_hostile_configuration_is_one_line_that_names_the_key(old, new, says, tmp_path, capsys):
    text = TINY.read_text()
    assert old in text
    assert says in run_on(text.replace(old, new, 1), tmp_path, capsys)


def test_a_configuration_without_end_is_refused(tmp_path, capsys):
    assert "More than 16 MiB" in run_on(b"#" * (2**24 + 1), tmp_path, capsys)


@pytest.mark.parametrize("name", ["../evil", "/etc", "a/b/c", "owner/..", "owner/a..b", "owner", "own er/x", "owner/x\u0430", "-o/x", "o/"])
def test_a_repository_is_an_owner_and_a_name(name):
    with pytest.raises(ReproError, match="repository: must be an owner and a name, such as google/ddpm-cifar10-32"):
        Base(source="hub", repository=name, revision="0" * 40, weights="raw")
    assert Base(source="hub", repository="google/ddpm-cifar10-32", revision="0" * 40, weights="raw")


@pytest.mark.parametrize("steps", ["1e300", str(10**30), str(10**10), "inf", "[1]", "-5", "true", '"\\u001b[2J"', "[" * 5000])
def test_a_hostile_budget_is_one_line_that_names_it(steps, tmp_path, capsys):
    config = load_config(str(TINY), ["hours=1.0"])
    lines = [f'config_sha256 = "{config.sha256()}"', "[steps]"]
    lines += [f"{name} = {steps}" for name in ("base_training", "ofa_training", "baseline_training", "finetuning")]
    path = tmp_path / "tiny" / "budget.toml"
    path.parent.mkdir()
    path.write_text("\n".join(lines))
    assert main(["status", "--config", str(TINY), "--set", "hours=1.0", "--results", str(tmp_path), "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: not a readable budget (") and error.count("\n") == 1 and "\x1b" not in error


# Folders of images


def images_of(tmp_path, size=8):
    return load_images(Data(name="folder", folder=str(tmp_path / "images")), (1, size, size), Places(cache=tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    """A folder with one good image."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "good.png")
    return tmp_path / "images"


def test_links_that_lead_in_a_circle_are_not_followed(images, tmp_path):
    (images / "circle").symlink_to(images)
    assert len(images_of(tmp_path)) == 1
    (images / "self.png").symlink_to(images / "self.png")
    assert refused(images_of, tmp_path).startswith(
        f"data.folder: {images / 'self.png'}: cannot be read (Too many levels of symbolic links)"
    )


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind, images, tmp_path):
    path = images / "evil.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with chdir(images), socket.socket(socket.AF_UNIX) as server:
            server.bind("evil.png")
    assert refused(images_of, tmp_path) == f"data.folder: {path}: no regular file; take it out of the folder"


@pytest.mark.parametrize(
    ("width", "height", "says"), [(50_000, 50_000, "exceeds limit"), (9_000, 9_000, "9000 x 9000 pixels are more than")]
)
def test_a_small_file_with_a_huge_image_is_refused(width, height, says, images, tmp_path):
    bomb(images / "bomb.png", width, height)
    line = refused(images_of, tmp_path)
    assert line.startswith(f"{images / 'bomb.png'}: not a readable image (") and says in line


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", b"P5\n8 8\n255\n" + bytes(64), b"GIF89a"]
)
def test_another_format_under_the_name_of_an_image_is_handed_to_no_decoder(content, images, tmp_path):
    (images / "evil.png").write_bytes(content)
    assert refused(images_of, tmp_path).startswith(f"{images / 'evil.png'}: not a readable image (cannot identify image file")


def test_the_name_of_an_image_gives_a_terminal_no_orders(images, tmp_path):
    (images / f"a{CLEAR_SCREEN}\n.png").write_bytes(b"x")
    assert r"a\x1b[2J .png: not a readable image" in refused(images_of, tmp_path)


# CIFAR-10


@pytest.fixture
def unverified(monkeypatch):
    """Takes the checksums away, so that what stands behind them is tested alone."""
    batches = [["data_batch_1", "*"]], [["test_batch", "*"]]
    monkeypatch.setattr(cifar10.CIFAR10, "train_list", batches[0])
    monkeypatch.setattr(cifar10.CIFAR10, "test_list", batches[1])
    monkeypatch.setattr(cifar10, "check_integrity", lambda *_: True)
    monkeypatch.setattr(cifar10.hashlib, "md5", lambda *_args, **_kwargs: type("Sum", (), {"hexdigest": lambda _self: "*"})())


def archive_of(root, members):
    root.mkdir(exist_ok=True)
    with tarfile.open(root / cifar10.CIFAR10.filename, "w:gz") as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return Places(data_root=root)


GOOD = [(f"{FOLDER}/{name}", python2_pickle(make_batch(3, count=3)), tarfile.REGTYPE) for name in ("data_batch_1", "test_batch")]


def test_members_that_leave_their_folder_or_link_are_not_followed(unverified, marker, tmp_path):
    poison = pickle.dumps(Payload(marker))
    hostile = [(f"{prefix}data_batch_1", poison, tarfile.REGTYPE) for prefix in ("../", "/", f"{FOLDER}/../../", "other/")]
    links = [(f"{FOLDER}/test_batch", b"", kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)]
    train, test, official = cifar10.read_cifar10(archive_of(tmp_path / "data", [*GOOD, *hostile, *links]))
    assert train[0].shape == (3, 32, 32, 3) and test[1].tolist() == make_batch(3, count=3)["labels"] and official
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"] and len(list((tmp_path / "data").iterdir())) == 1


def test_an_archive_without_a_batch_is_damaged(unverified, tmp_path, monkeypatch):
    monkeypatch.undo()
    places = archive_of(tmp_path / "data", [(f"{FOLDER}/data_batch_1", b"", tarfile.SYMTYPE)])
    monkeypatch.setattr(cifar10, "check_integrity", lambda *_: True)
    assert refused(cifar10.read_cifar10, places).endswith("its MD5 is not that of the official CIFAR-10; unpack the archive anew")


def named(module, name, *arguments):
    """Returns a pickle that calls something by its name: of protocol 0, which names in the open."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("builtins", "eval"), ("builtins", "getattr"), ("__builtin__", "eval"), ("os", "system"), ("posix", "system")),
        *(("numpy", "load"), ("numpy", "core.multiarray._reconstruct"), ("numpy", "ndarray.tofile"), ("numpy", "ndarray.__class__")),
        *(
            ("numpy.core.multiarray", "scalar"),
            ("numpy.core.multiarray", "_reconstruct.__globals__"),
            ("numpy._core.multiarray", "_reconstruct"),
        ),
        *(("repro.data.cifar10", "ARRAY_PARTS"), ("numpy ", "dtype")),
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_a_batch_may_name_three_things_and_nothing_else(module, name, stacked, marker, tmp_path):
    content = named(module, name, f"V{marker}\n".encode())
    if stacked:  # protocol 4 takes dots in a name for attributes
        parts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
        content = b"\x80\x04" + parts + b"\x93."
    line = refused(cifar10._read_batch, tmp_path / "data_batch_1", content)
    assert line.startswith(f"{tmp_path / 'data_batch_1'}: refused: it asks for {module}.{name}, which images do not need")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x02", pickle.dumps(5), pickle.dumps({}), b"\x80\x02}q\x00.", b"P1\n.", b"\x82\x01."]
)
def test_a_batch_that_is_damaged_is_named(content, tmp_path):
    assert refused(cifar10._read_batch, tmp_path / "data_batch_1", content).startswith(f"{tmp_path / 'data_batch_1'}: damaged (")


def test_a_payload_with_the_right_sum_is_refused(unverified, marker, tmp_path):
    poison = pickle.dumps({"data": Payload(marker), "labels": [0]}, protocol=2)
    places = archive_of(tmp_path / "data", [(f"{FOLDER}/{name}", poison, tarfile.REGTYPE) for name in ("data_batch_1", "test_batch")])
    assert "refused: it asks for " in refused(cifar10.read_cifar10, places)
    assert pickle.loads(poison)["data"] is None  # noqa: S301  (it would have done it)
    marker.unlink()


@pytest.mark.parametrize("name", [cifar10.CIFAR10.filename, "train.npz", f"{FOLDER}/data_batch_1"])
def test_a_pipe_in_the_place_of_cifar10_is_refused(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert refused(cifar10.read_cifar10, Places(data_root=tmp_path)) == (
        f"{path}: cannot be read (No regular file); mend the copy, or name another: --data-root FOLDER"
    )


def test_a_copy_that_says_it_is_huge_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)})
    for name in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as file:
            file.writestr("images.npy", header.getvalue())
            file.writestr("labels.npy", header.getvalue())
    assert refused(cifar10.read_cifar10, Places(data_root=tmp_path)).startswith(f"{tmp_path / 'train.npz'}: not a readable npz file")
