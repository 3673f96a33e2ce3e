"""Zip files of images, the labels that come with them, crops, known data sets, and what all of that takes of memory and disk."""

import json
import shutil
import tracemalloc
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.image_files import folder_of, noise, refusal, save

from repro.config import Data
from repro.config.known_sets import KNOWN_SETS, KnownSet
from repro.data import image_folder, image_source, step_pixels
from repro.data.image_folder import undecoded_bytes
from repro.data.images import Images
from repro.data.step_pixels import StepPixels
from repro.errors import ReproError
from repro.metrics.fid import PixelSet

pytestmark = pytest.mark.quick

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of this process's memory; a 5 begins its peak anew


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with images in two sub-folders and one in none."""
    for number, name in enumerate(("cat/1.png", "cat/deep/2.jpg", "dog/3.webp", "4.bmp")):
        save(tmp_path / "images" / name, noise(20, 24, 3, seed=number))
    return tmp_path / "images"


def zipped(folder: Path, path: Path, *, below: str = "", packing: int = zipfile.ZIP_STORED) -> Path:
    """Packs a folder, in an order of its own."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, below + file.relative_to(folder).as_posix())
    return path


def of_zip(tmp_path: Path, path: Path, **settings) -> Images:
    return folder_of(tmp_path, folder=str(path), **settings)


# Zip files


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_is_the_folder_that_it_was_made_of(packing, below, images, tmp_path):
    """Whether it holds the folder or its content; the cache of one serves the other."""
    path = zipped(images, tmp_path / "set.ZIP", below=below, packing=packing)
    folder, packed = folder_of(tmp_path), of_zip(tmp_path, path)
    assert folder.pixels.equal(packed.pixels) and folder.labels.tolist() == packed.labels.tolist() == [0, 1, 1, 2]
    assert (folder.sha256, folder.files_sha256) == (packed.sha256, packed.files_sha256)
    assert len(list((tmp_path / "cache" / "data").glob("folder-*.npy"))) == 1
    shutil.rmtree(tmp_path / "cache")
    assert of_zip(tmp_path, path).sha256 == folder.sha256  # decoded out of the zip file
    assert {file.name for file in tmp_path.iterdir()} == {"images", "set.ZIP", "cache"}


def test_what_a_folder_is_refused_for_a_zip_file_is_refused_for_by_the_member_s_name(tmp_path):
    root = tmp_path / "one"
    save(root / "good.png", noise(16, 16, 3))
    frames = [Image.fromarray(noise(16, 16, 3, seed=seed)) for seed in range(3)]
    for number, (write, says) in enumerate(
        [
            (lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]), "is animated (3 frames)"),
            (lambda path: save(path, noise(16, 16).astype(np.uint16) * 256), "has more than 8 bits a channel (Pillow's mode I;16)"),
            (lambda path: path.write_bytes(b"no image"), "not a readable image (cannot identify image file); mend it"),
            (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
        ]
    ):
        write(root / "bad.png")
        path = zipped(root, tmp_path / f"{number}.zip")
        assert refusal(of_zip, tmp_path, path).startswith(f"{path}: bad.png: {says}")
    assert not [file for file in (tmp_path / "cache" / "data").iterdir() if not file.name.endswith(".lock")]


def test_splits_and_files_of_other_kinds_in_a_zip_file_are_those_of_a_folder(tmp_path, capsys):
    root = tmp_path / "set"
    for name in ("train/1.png", "test/2.png", "__MACOSX/train/._1.png", ".hidden/3.png"):
        save(root / name, noise(16, 16, 3))
    line = refusal(of_zip, tmp_path, zipped(root, tmp_path / "set.zip"))
    assert ": holds the splits of a data set (test, train); unpack it and name one of them, or move" in line
    shutil.rmtree(root / "test")
    (root / "train" / "list.csv").touch()
    capsys.readouterr()
    assert len(of_zip(tmp_path, zipped(root, tmp_path / "train.zip"))) == 1  # all lies in one folder, which is the top
    assert "1 images; left out: 1 .csv files, 2 images that are hidden or in hidden folders" in capsys.readouterr().err
    (root / "train" / "1.png").unlink()
    assert ": holds no images (" in refusal(of_zip, tmp_path, zipped(root, tmp_path / "none.zip"))


def test_a_zip_file_that_is_damaged_is_named_with_its_member(images, tmp_path):
    path = zipped(images, tmp_path / "set.zip")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("4.bmp").header_offset
    content = bytearray(whole)
    content[begin + 200] ^= 1  # a pixel: the checksum alone tells
    path.write_bytes(content)
    assert refusal(of_zip, tmp_path, path).startswith(f"{path}: 4.bmp: damaged (Bad CRC-32 for file '4.bmp'); fetch the zip file anew")
    for content in (whole[:-30], b"", b"text", b"PK\x05\x06" + b"\xff" * 18):
        path.write_bytes(content)
        assert refusal(of_zip, tmp_path, path).startswith(f"data.folder: {path}: not a readable zip file (")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(of_zip, tmp_path, path) == f"{path}: a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository"


def patched(path: Path, offset: int, value: bytes) -> None:
    """Overwrites a field of the one member: in the directory at the end, and in the member's own header, where it lies 2 bytes before."""
    content = bytearray(path.read_bytes())
    for start, at in ((content.index(b"PK\x01\x02"), offset), (0, offset - 2)):
        content[start + at : start + at + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (8, b"\x01\0", "1.png: is encrypted; decrypt the zip file"),
        (10, b"\x0e\0", "1.png: is packed by method 14; store or deflate it"),
        (24, b"\0\0\0\x7f", "1.png: declares 2,130,706,432 bytes, more than the 268,435,456 of an image; take it out of the zip file"),
    ],
)
def test_a_hostile_member_is_refused_before_anything_is_unpacked(offset, value, says, tmp_path, monkeypatch):
    save(tmp_path / "one" / "1.png", noise(16, 16, 3))
    path = zipped(tmp_path / "one", tmp_path / "set.zip")
    patched(path, offset, value)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("a member was opened"))
    assert refusal(of_zip, tmp_path, path) == f"data.folder: {path}: {says}"


def test_a_member_that_is_larger_than_it_declares_is_unpacked_no_further(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "1.png").write_bytes(bytes(2**26))
    path = zipped(tmp_path / "one", tmp_path / "bomb.zip", packing=zipfile.ZIP_DEFLATED)
    patched(path, 24, b"\0\x10\0\0")
    tracemalloc.start()
    assert refusal(of_zip, tmp_path, path).startswith(f"{path}: 1.png: damaged (Bad CRC-32")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"anything")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("1.png", b"anything")
    assert refusal(of_zip, tmp_path, path) == f"data.folder: {path}: 1.png: is there twice; take one out of the zip file"


# Labels


LISTED = [["cat/1.png", 7], ["dog/3.webp", 0], ["4.bmp", 2], ["cat/deep/2.jpg", 7]]


@pytest.mark.parametrize(("labels", "expected"), [(LISTED, [2, 7, 7, 0]), (None, [0, 0, 0, 0])])
def test_labels_are_those_of_edm_s_list_in_a_folder_and_in_a_zip_file(labels, expected, images, tmp_path, capsys):
    (images / "dataset.json").write_text(json.dumps({"labels": labels}))
    for found in (folder_of(tmp_path), of_zip(tmp_path, zipped(images, tmp_path / "set.zip"))):
        assert found.labels.tolist() == expected
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable JSON ("),
        ("[" * 100_000, "not readable JSON ("),
        ("[]", 'must be {"labels": [["name", 0], ...]}, or null in place of the list'),
        ("{}", "must be {"),
        ('{"labels": {"cat/1.png": 0}}', "must be {"),
        (json.dumps({"labels": [*LISTED[:3], ["cat/deep/2.jpg", 1.5]]}), "['cat/deep/2.jpg', 1.5] is no image's name with its class"),
        (json.dumps({"labels": [*LISTED[:3], ["cat/deep/2.jpg", True]]}), "['cat/deep/2.jpg', True] is no image's name"),
        (json.dumps({"labels": [*LISTED[:3], ["cat/deep/2.jpg", -1]]}), "['cat/deep/2.jpg', -1] is no image's name"),
        (json.dumps({"labels": [*LISTED[:3], ["cat/deep/2.jpg", 10**9]]}), "['cat/deep/2.jpg', 1000000000] is no image's name"),
        (json.dumps({"labels": [*LISTED, LISTED[0]]}), "cat/1.png is there twice"),
        (json.dumps({"labels": LISTED[:2]}), "has no label for 4.bmp (2 such)"),
        (json.dumps({"labels": [*LISTED, ["eel.png", 0]]}), "labels images that are not there, eel.png (1 such)"),
    ],
)
def test_a_list_of_labels_that_is_malformed_or_incomplete_is_refused(content, says, images, tmp_path):
    (images / "dataset.json").write_text(content)
    path = zipped(images, tmp_path / "set.zip")
    assert refusal(folder_of, tmp_path).startswith(f"{images / 'dataset.json'}: {says}")
    assert refusal(of_zip, tmp_path, path).startswith(f"{path}: dataset.json: {says}")
    assert not (tmp_path / "cache").exists()


def test_a_list_of_labels_without_end_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(image_source, "MOST_LABEL_BYTES", 2**20)
    (images / "dataset.json").write_bytes(b" " * (2**20 + 1))
    assert refusal(folder_of, tmp_path) == f"{images / 'dataset.json'}: has more than 1 MiB; take it out of data.folder"


# Crops


def test_celeba_s_crop_is_that_of_u_vit(tmp_path):
    """128 x 128 pixels around (89, 121) of 178 x 218, then resized."""
    photo = noise(218, 178, 3)
    save(tmp_path / "images" / "000001.png", photo)
    part = Image.fromarray(photo[121 - 64 : 121 + 64, 89 - 64 : 89 + 64])
    whole, cropped = folder_of(tmp_path, size=64), folder_of(tmp_path, size=64, crop=(25, 57, 128, 128))
    expected = ImageOps.fit(part, (64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(cropped.pixels[0].numpy(), np.asarray(expected).transpose(2, 0, 1))
    assert whole.sha256 != cropped.sha256 and len(list((tmp_path / "cache" / "data").glob("folder-*.npy"))) == 2
    assert folder_of(tmp_path, size=64, crop=(25, 57, 128, 127)).sha256 not in (whole.sha256, cropped.sha256)


def test_a_crop_is_of_the_upright_image_and_lies_inside_of_each(tmp_path):
    stored, exif = noise(20, 40, 3), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right: 20 wide, 40 high
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "1.png", exif=exif)
    found = folder_of(tmp_path, crop=(4, 24, 16, 16)).pixels[0].numpy().transpose(1, 2, 0)
    assert np.array_equal(found, np.rot90(stored, -1)[24:, 4:])
    line = refusal(folder_of, tmp_path, crop=(5, 24, 16, 16))
    assert line == (
        f"{tmp_path / 'images' / '1.png'}: has 20 x 40 pixels, and data.crop = [5, 24, 16, 16] does not lie inside them; change it, or "
        "take the image out of data.folder"
    )


@pytest.mark.parametrize("crop", [(1,), (0, 0, 8), (-1, 0, 8, 8), (0, 0, 0, 8), (0, 0, 8, 8, 8)])
def test_a_crop_is_four_numbers(crop):
    with pytest.raises(ReproError, match=r"crop: must be \[left, top, width, height\] in pixels, or empty"):
        Data(name="folder", folder="somewhere", crop=crop)


@pytest.mark.parametrize("settings", [{"crop": (0, 0, 8, 8)}, {"holds": "ffhq"}])
def test_what_is_said_of_a_folder_is_said_of_nothing_else(settings):
    with pytest.raises(ReproError, match=f"{next(iter(settings))}: goes with data.name = 'folder', and only with that"):
        Data(name="digits", **settings)


# Known data sets


@pytest.fixture
def celeba(monkeypatch):
    """A CelebA of three training images and one more."""
    known = KnownSet(title="CelebA", training=3, whole=4, origin="its page")
    monkeypatch.setitem(KNOWN_SETS, "celeba", known)
    return known


def test_of_a_known_set_the_training_images_are_taken(celeba, images, tmp_path, capsys):
    whole, found = folder_of(tmp_path), folder_of(tmp_path, holds="celeba")
    assert found.name == "celeba" and len(found) == len(found.labels) == 3
    assert found.pixels.equal(whole.pixels[:3]) and found.labels.equal(whole.labels[:3])
    assert f"{images}: the last 1 images are left out: CelebA is trained on the others" in capsys.readouterr().err
    (images / "dog" / "3.webp").unlink()
    assert len(folder_of(tmp_path, holds="celeba")) == 3  # no more than these may lie there
    (images / "4.bmp").unlink()
    assert refusal(folder_of, tmp_path, holds="celeba") == (
        f"data.folder: {images}: holds 2 images, and CelebA has 4 images, 3 of them to train on; complete it, or set data.holds = '' to "
        "take any images"
    )


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_a_known_set_that_is_missing_is_told_what_it_is_and_where_it_comes_from(name, tmp_path):
    path, known = tmp_path / "set.zip", KNOWN_SETS[name]
    assert refusal(of_zip, tmp_path, path, holds=name) == (
        f"data.folder: {path}: no such file or folder; put there the images of {known.title}, as a folder or zip file ({known.origin}), or "
        "name another place"
    )


# Memory and disk


def memory_mib(key: str) -> float:
    return int(STATUS.read_text().partition(f"{key}:")[2].split()[0]) / 2**10


@pytest.mark.skipif(not PEAK.exists(), reason="the peak of a process's memory is told by Linux alone")
def test_a_set_stays_in_its_file(tmp_path):
    """Neither loading nor batches hold more than a fraction of it, in memory of the process or mapped from the file."""
    for number in range(144):
        save(tmp_path / "images" / f"{number}.bmp", np.broadcast_to(noise(1, 512, 3, seed=number), (512, 512, 3)).copy())
    folder_of(tmp_path, size=512)
    PEAK.write_text("5")
    before = memory_mib("VmRSS")
    pixels = folder_of(tmp_path, size=512).pixels
    batches = StepPixels(pixels, torch.device("cpu"))
    for step in range(4):
        batches(step, lambda step: torch.tensor([step, 7 * step + 1]))
    whole = pixels.nbytes / 2**20
    assert whole == 108 and memory_mib("VmHWM") - before < whole / 4


def test_batches_of_a_map_are_those_of_a_copy_to_the_bit_and_in_their_layout(images, tmp_path, monkeypatch):
    mapped = folder_of(tmp_path).pixels
    copy, order = mapped.clone(memory_format=torch.contiguous_format), torch.tensor([3, 0, 0, 2])
    assert not mapped.is_contiguous()
    for resident in (True, False):  # the other way is that of a GPU that does not hold the set: a thread gathers the next batch
        monkeypatch.setattr(step_pixels, "resident", lambda *_, resident=resident: resident)
        batch = StepPixels(mapped, torch.device("cpu"))(0, lambda _step: order)
        assert batch.equal(copy[order]) and batch.stride() == copy[order].stride()
    judged, expected = (torch.stack([PixelSet(pixels)[index] for index in range(4)]) for pixels in (mapped, copy))
    assert judged.equal(expected) and judged.stride() == expected.stride()


def test_the_size_of_the_cache_is_told_before_it_is_made_and_must_fit(images, tmp_path, monkeypatch, capsys):
    cache, shape = tmp_path / "cache" / "data", (3, 16, 16)
    assert undecoded_bytes(4, shape, cache) == 4 * 3 * 16 * 16
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(image_folder.shutil, "disk_usage", lambda _folder: usage(1, 1, 4 * 3 * 16 * 16 - 1))
    assert refusal(folder_of, tmp_path) == (
        f"{cache}: 3.07e-06 GB are needed there for 4 decoded images, 3.07e-06 GB are free; free some space, or name a folder on another "
        "disk with --cache"
    )
    assert not list(cache.glob("*.npy"))
    monkeypatch.setattr(image_folder.shutil, "disk_usage", lambda _folder: usage(1, 0, 4 * 3 * 16 * 16))
    folder_of(tmp_path)
    assert f"data.folder: {images}: decoding 4 images to 16 x 16, 3.1e-06 GB, in {cache}\n" in capsys.readouterr().err
    assert undecoded_bytes(4, shape, cache) == 0 and undecoded_bytes(5, shape, cache) > 0
