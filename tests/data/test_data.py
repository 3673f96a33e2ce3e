"""Data sets: which images are taken, which are refused and in which words, and that the pixels are the right ones."""

import hashlib
import io
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.image_files import folder_of, make_batch, noise, python2_pickle, refusal, save

import repro  # noqa: F401  (before torchvision)
from repro.config import Data
from repro.data import image_decoding
from repro.data.images import Images, digits, downsampled, load_images
from repro.errors import ReproError, RunError
from repro.files.places import Places

from torchvision.datasets import CIFAR10  # isort: skip

CIFAR10_SHAPE = (3, 32, 32)


def publish(monkeypatch, contents: dict[str, bytes]) -> bytes:
    """Makes these files (the last one holds the test split) the official ones; returns their archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        folder = tarfile.TarInfo(f"{CIFAR10.base_folder}/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sums = [[name, hashlib.md5(content, usedforsecurity=False).hexdigest()] for name, content in contents.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:-1])
    monkeypatch.setattr(CIFAR10, "test_list", sums[-1:])
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest())
    return file.getvalue()


class Official:
    """A small CIFAR-10 that passes for the official one: two training batches and a test batch."""

    def __init__(self, monkeypatch):
        self.batches = [make_batch(seed) for seed in range(3)]
        self.contents = dict(zip(("data_batch_1", "data_batch_2", "test_batch"), map(python2_pickle, self.batches), strict=True))
        self.archive = publish(monkeypatch, self.contents)

    def unpack(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return folder

    def check(self, images: Images) -> None:
        """Holds the images against the batches."""
        for split, parts in ((images, self.batches[:2]), (images.test, self.batches[2:])):
            expected = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
            assert np.array_equal(split.pixels.numpy(), expected) and split.pixels.is_contiguous()
            assert split.labels.tolist() == [label for part in parts for label in part["labels"]]
            assert split.sha256 == hashlib.sha256(expected.transpose(0, 2, 3, 1).tobytes()).hexdigest()
        assert images.name == "cifar10" and images.files_sha256 is None and images.test.test is None


@pytest.fixture
def official(monkeypatch) -> Official:
    return Official(monkeypatch)


@pytest.fixture
def server(monkeypatch, official):
    """Serves the archive where torchvision looks for it; `gets` counts the downloads, `content` is what is sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.gets += self.headers["Method"] != "HEAD"  # with that header torchvision only asks where the file is
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *_args):
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gets, server.content = 0, official.archive
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cifar10(tmp_path: Path, root: Path | None = None, **settings: str) -> Images:
    return load_images(Data(name="cifar10", **settings), CIFAR10_SHAPE, Places(cache=tmp_path / "cache", data_root=root))


def copy_of(root: Path, **arrays: np.ndarray) -> Path:
    """Writes a copy of CIFAR-10 as arrays, with `arrays` in place of the training split's."""
    root.mkdir()
    np.savez(root / "train.npz", **({"images": noise(20, 32, 32, 3), "labels": np.arange(20, dtype=np.uint8) % 10} | arrays))
    np.savez(root / "test.npz", images=noise(6, 32, 32, 3, seed=1), labels=np.arange(6))
    return root


# CIFAR-10, the official archive


@pytest.mark.parametrize("kind", ["folder", "the folder itself", "archive"])
def test_official_copy_is_read_in_every_form(kind, official, tmp_path):
    root = tmp_path / "copy"
    if kind == "archive":
        root.mkdir()
        (root / CIFAR10.filename).write_bytes(official.archive)
    else:
        official.unpack(root / CIFAR10.base_folder if kind == "folder" else root)
    official.check(cifar10(tmp_path, root))
    assert not (tmp_path / "cache").exists()


def test_download_lies_in_the_cache_and_happens_once(official, server, tmp_path):
    official.check(cifar10(tmp_path))
    assert (tmp_path / "cache" / "data" / CIFAR10.filename).read_bytes() == official.archive
    official.check(cifar10(tmp_path))
    assert server.gets == 1


def test_of_many_that_need_the_download_one_fetches_it(official, server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(lambda _: cifar10(tmp_path), range(4)):
            official.check(images)
    assert server.gets == 1


def test_half_a_download_is_fetched_anew(official, server, tmp_path):
    (tmp_path / "cache" / "data").mkdir(parents=True)
    (tmp_path / "cache" / "data" / CIFAR10.filename).write_bytes(official.archive[:1000])
    official.check(cifar10(tmp_path))


def test_download_with_another_checksum_is_refused(server, tmp_path):
    server.content = server.content[:-1] + b"?"
    line = refusal(cifar10, tmp_path)
    assert line == f"{CIFAR10.url}: cannot be downloaded (File not found or corrupted.); try again, or name a copy: --data-root FOLDER"


def test_no_network_answers_with_the_way_out(official, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/archive")  # the port where whatever comes is discarded
    line = refusal(cifar10, tmp_path)
    assert line.startswith("http://127.0.0.1:9/archive: cannot be downloaded (<urlopen error")
    assert line.endswith("); try again, or name a copy: --data-root FOLDER")


def test_full_disk_during_the_download_is_named(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cifar-10-python.tar.gz: no space left to write it \(File too large\); free some space"):
            cifar10(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_damaged_batch_is_named(official, tmp_path):
    folder = official.unpack(tmp_path / "copy" / CIFAR10.base_folder)
    content = bytearray(official.contents["test_batch"])
    content[5000] ^= 1
    (folder / "test_batch").write_bytes(content)
    line = refusal(cifar10, tmp_path, tmp_path / "copy")
    assert line == f"{folder / 'test_batch'}: damaged: its MD5 is not that of the official CIFAR-10; unpack the archive anew"


def test_missing_batch_is_named(official, tmp_path):
    folder = official.unpack(tmp_path / "copy")
    (folder / "data_batch_1").unlink()
    line = refusal(cifar10, tmp_path, folder)
    assert line == (
        f"{folder / 'data_batch_1'}: cannot be read (No such file or directory); mend the copy, or name another: --data-root FOLDER"
    )


def test_damaged_archive_is_named(official, tmp_path):
    archive = tmp_path / CIFAR10.filename
    archive.write_bytes(official.archive[:-100])
    line = refusal(cifar10, tmp_path, tmp_path)
    assert line == f"{archive}: damaged: its MD5 is not the official one; fetch it anew from {CIFAR10.url}"


def test_a_pickle_that_would_run_something_is_refused(monkeypatch, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()

    class Malicious:
        def __reduce__(self):
            return os.rmdir, (str(victim),)

    harmful = pickle.dumps(Malicious(), protocol=2)
    publish(monkeypatch, {"data_batch_1": harmful, "test_batch": python2_pickle(make_batch(1))})
    (tmp_path / "data_batch_1").write_bytes(harmful)
    (tmp_path / "test_batch").write_bytes(python2_pickle(make_batch(1)))
    line = refusal(cifar10, tmp_path, tmp_path)
    assert victim.exists()
    assert line == f"{tmp_path / 'data_batch_1'}: refused: it asks for posix.rmdir, which images do not need; fetch it anew"
    pickle.loads(harmful)  # noqa: S301  (it would have done it)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_root_without_cifar10_says_what_is_looked_for(name, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refusal(cifar10, tmp_path, tmp_path / name)
    forms = "cifar-10-batches-py/, cifar-10-python.tar.gz, or train.npz and test.npz"
    reason = "no such folder; name another" if name == "nowhere" else f"holds no CIFAR-10; it needs {forms}"
    assert line == f"--data-root {tmp_path / name}: {reason}"


# CIFAR-10, a copy of another make


def test_other_copy_is_refused_until_its_hash_is_named(tmp_path):
    root = copy_of(tmp_path / "copy")
    sha256 = hashlib.sha256(noise(20, 32, 32, 3).tobytes()).hexdigest()
    assert refusal(cifar10, tmp_path, root) == (
        f"{root}: not the official CIFAR-10 (its training pixels' sha256 is {sha256}); "
        f"to use this copy nonetheless say so: --set data.sha256={sha256}"
    )
    images = cifar10(tmp_path, root, sha256=sha256)
    assert images.sha256 == sha256 and len(images) == 20 and len(images.test) == 6
    assert np.array_equal(images.pixels.numpy(), noise(20, 32, 32, 3).transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [*range(10)] * 2 and images.test.labels.tolist() == [*range(6)]


def test_named_hash_must_be_met(official, tmp_path):
    wrong = "0" * 64
    for load, name, sha256 in (
        (lambda: cifar10(tmp_path, copy_of(tmp_path / "copy"), sha256=wrong), "cifar10", hashlib.sha256(noise(20, 32, 32, 3)).hexdigest()),
        (lambda: load_images(Data(sha256=wrong), (1, 8, 8), Places()), "digits", digits().sha256),
    ):
        assert refusal(load) == f"data.sha256: the training pixels of {name} have {sha256}; name that, or other images"
    assert load_images(Data(sha256=digits().sha256), (1, 8, 8), Places()).sha256 == digits().sha256
    official.unpack(tmp_path / "official")
    assert refusal(cifar10, tmp_path, tmp_path / "official", sha256=wrong).startswith("data.sha256: the training pixels of cifar10 have ")


def test_half_a_copy_is_named(tmp_path):
    root = copy_of(tmp_path / "copy")
    (root / "test.npz").unlink()
    line = refusal(cifar10, tmp_path, root)
    assert line == f"{root / 'test.npz'}: cannot be read (No such file or directory); mend the copy, or name another: --data-root FOLDER"


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": noise(20, 3, 32, 32)}, "images are uint8 [20, 3, 32, 32] and labels uint8 [20]; they must be uint8 [N, 32, 32, 3]"),
        ({"images": np.zeros((20, 32, 32, 3))}, "images are float64 [20, 32, 32, 3] and labels uint8 [20]; they must be uint8"),
        ({"labels": np.arange(19)}, "images are uint8 [20, 32, 32, 3] and labels int64 [19]; they must be"),
        ({"labels": np.zeros(20)}, "images are uint8 [20, 32, 32, 3] and labels float64 [20]; they must be"),
        ({"labels": np.array([{}] * 20)}, "not a readable npz file with the arrays images and labels (Object arrays cannot be loaded"),
    ],
)
def test_copy_with_other_arrays_is_refused(arrays, reason, tmp_path):
    root = copy_of(tmp_path / "copy", **arrays)
    assert refusal(cifar10, tmp_path, root).startswith(f"{root / 'train.npz'}: {reason}")


def test_copy_that_is_no_npz_is_refused(tmp_path):
    root = copy_of(tmp_path / "copy")
    for content in ((root / "train.npz").read_bytes()[:5000], b"", b"text", pickle.dumps([1])):
        (root / "train.npz").write_bytes(content)
        line = refusal(cifar10, tmp_path, root)
        assert line.startswith(f"{root / 'train.npz'}: not a readable npz file with the arrays images and labels (")
    np.savez(root / "train.npz", labels=np.arange(20))
    assert "not a readable npz file with the arrays images and labels ('images is not a file" in refusal(cifar10, tmp_path, root)
    np.save(root / "train.npy", noise(20, 32, 32, 3))
    (root / "train.npy").replace(root / "train.npz")
    assert "not a readable npz file" in refusal(cifar10, tmp_path, root)


@pytest.mark.parametrize(("name", "size", "channels"), [("cifar10", 32, 3), ("digits", 8, 1)])
def test_network_of_another_shape_is_refused_before_anything_is_read(name, size, channels, tmp_path):
    for shape in ((channels, 64, 64), (2, size, size)):
        line = refusal(load_images, Data(name=name), shape, Places(cache=tmp_path / "cache"))
        assert line == (
            f"network.sample_size, network.channels: {name} needs {size} and {channels}, not {shape[1]} and {shape[0]}; "
            "change these, or data.name"
        )
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif("OFA_TEST_CIFAR10" not in os.environ, reason="OFA_TEST_CIFAR10 names no folder with CIFAR-10's train.npz and test.npz")
def test_real_images_have_the_published_means(tmp_path):
    root = Path(os.environ["OFA_TEST_CIFAR10"])
    sha256 = hashlib.sha256(np.load(root / "train.npz")["images"].tobytes()).hexdigest()
    images = cifar10(tmp_path, root, sha256=sha256)
    assert images.pixels.shape == (50_000, 3, 32, 32) and images.test.pixels.shape == (10_000, 3, 32, 32)
    assert images.sha256.startswith("a7051bcfbc5acdbf") and images.test.sha256.startswith("1249626010949d8f")
    assert images.labels.bincount().tolist() == [5000] * 10 and images.test.labels.bincount().tolist() == [1000] * 10
    means = images.pixels.numpy().mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=1e-3)


# A folder of images


def test_images_are_fitted_by_their_shorter_side_and_cropped_to_the_centre(tmp_path):
    """Three flat bands, the middle one square: the middle one is what remains, whichever way the image lies."""
    bands = np.repeat(np.array([[10, 20, 30], [200, 100, 50], [90, 80, 70]], dtype=np.uint8), 64, axis=0)
    wide = np.broadcast_to(bands, (64, 192, 3))
    save(tmp_path / "images" / "wide.png", np.ascontiguousarray(wide))
    save(tmp_path / "images" / "tall.png", np.ascontiguousarray(wide.transpose(1, 0, 2)))
    pixels = folder_of(tmp_path).pixels.numpy()
    assert pixels.shape == (2, 3, 16, 16)
    centre = pixels[:, :, 3:-3, 3:-3]
    assert (centre == np.array([200, 100, 50])[None, :, None, None]).all()
    assert np.array_equal(pixels[0], pixels[1].transpose(0, 2, 1))  # sorted: tall, wide


def test_an_image_is_resized_by_lanczos_then_cropped(tmp_path):
    photo = noise(40, 60, 3)
    save(tmp_path / "images" / "photo.png", photo)
    expected = Image.fromarray(photo).resize((24, 16), Image.Resampling.LANCZOS).crop((4, 0, 20, 16))
    assert np.array_equal(folder_of(tmp_path).pixels[0].numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_images_of_the_right_size_come_through_untouched_in_sorted_order(tmp_path):
    stored = noise(5, 16, 16, 3)
    for position, name in enumerate(("A.PNG", "b/9.png", "b/c/1.bmp", "b0.png", "c.webp")):  # sorted as texts, not as folders
        save(tmp_path / "images" / name, stored[position], **({"lossless": True} if name.endswith("webp") else {}))
    for name in ("notes.txt", "b/list.csv", "._A.png"):
        (tmp_path / "images" / name).write_text("no image")
    images = folder_of(tmp_path)
    assert images.name == "folder" and images.test is None
    assert np.array_equal(images.pixels.numpy(), stored.transpose(0, 3, 1, 2))
    assert images.sha256 == hashlib.sha256(stored.tobytes()).hexdigest()
    names = ("A.PNG", "b/9.png", "b/c/1.bmp", "b0.png", "c.webp")
    lines = [f"{name} {hashlib.sha256((tmp_path / 'images' / name).read_bytes()).hexdigest()}\n" for name in names]
    assert images.files_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert images.labels.tolist() == [0, 1, 1, 0, 0]


def test_labels_are_the_folders_in_order(tmp_path):
    for number, name in enumerate(("dog/2.png", "cat/1.png", "cat/deep/3.png", "eel/0.png")):
        save(tmp_path / "images" / name, noise(16, 16, 3, seed=number))
    assert folder_of(tmp_path).labels.tolist() == [0, 0, 1, 2]
    save(tmp_path / "flat" / "1.png", noise(16, 16, 3))
    save(tmp_path / "flat" / "2.png", noise(16, 16, 3))
    assert folder_of(tmp_path, folder=str(tmp_path / "flat")).labels.tolist() == [0, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_what_the_network_takes(mode, channels, tmp_path):
    save(tmp_path / "images" / ("image.jpg" if mode == "CMYK" else "image.png"), noise(16, 16, 3), mode)
    stored = Image.open(next((tmp_path / "images").iterdir()))
    assert stored.mode == mode
    expected = np.asarray(stored.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert np.array_equal(folder_of(tmp_path, channels=channels).pixels[0].numpy(), expected.transpose(2, 0, 1))


def test_second_load_decodes_nothing_and_is_the_same(tmp_path, monkeypatch):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", noise(20, 30, 3, seed=number))
    decoded = []
    fit = ImageOps.fit
    monkeypatch.setattr(image_decoding.ImageOps, "fit", lambda image, *rest: decoded.append(1) or fit(image, *rest))
    first = folder_of(tmp_path)
    (lock,) = (tmp_path / "cache" / "data").glob(".*.lock")
    lock.unlink()
    second = folder_of(tmp_path)
    assert len(decoded) == 4 and not lock.exists()  # a cache that is only read need not be writable
    assert first.pixels.equal(second.pixels) and first.sha256 == second.sha256 and first.files_sha256 == second.files_sha256
    assert [path.suffix for path in (tmp_path / "cache" / "data").iterdir() if not path.name.startswith(".")] == [".npy"]
    first.pixels.zero_()  # the set is the caller's own; the cache stays
    assert folder_of(tmp_path).pixels.equal(second.pixels)


def test_cache_knows_what_it_was_made_from(tmp_path):
    """Same names and same sizes in bytes: bitmaps of one shape, in another folder, or overwritten."""
    save(tmp_path / "images" / "0.bmp", noise(20, 20, 3))
    save(tmp_path / "others" / "0.bmp", noise(20, 20, 3, seed=1))
    for folder in ("images", "others"):
        os.utime(tmp_path / folder / "0.bmp", ns=(2, 2))
    first = folder_of(tmp_path)
    others = folder_of(tmp_path, folder=str(tmp_path / "others"))
    assert first.files_sha256 != others.files_sha256 and first.sha256 != others.sha256
    save(tmp_path / "images" / "0.bmp", noise(20, 20, 3, seed=1))
    os.utime(tmp_path / "images" / "0.bmp", ns=(2, 2))  # another file of the same size and time took its place
    assert folder_of(tmp_path).sha256 == others.sha256
    assert len(list((tmp_path / "cache" / "data").glob("folder-*.npy"))) == 2  # one for each content, wherever it lies
    assert folder_of(tmp_path, size=8).pixels.shape == (1, 3, 8, 8)
    assert folder_of(tmp_path, channels=1).pixels.shape == (1, 1, 16, 16)


def test_of_many_that_need_the_images_one_decodes_them(tmp_path):
    """Separate processes, as ranks are; the images of each are the same, and one file is made."""
    for number in range(30):
        save(tmp_path / "images" / f"{number}.png", noise(64, 64, 3, seed=number))
    program = (
        "import sys\nfrom pathlib import Path\nfrom repro.data import image_folder as f\nmade = []\ndecode = f._decode\n"
        "f._decode = lambda *all: made.append(1) or decode(*all)\n"
        "pixels, _, _, _ = f.read_folder(Path(sys.argv[1]), (3, 16, 16), Path(sys.argv[2]))\nprint(len(made), int(pixels.sum()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "images"), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [run.communicate()[0].split() for run in runs]
    assert sum(int(made) for made, _ in answers) == 1
    assert len({total for _, total in answers}) == 1


def test_unreadable_image_is_named_and_leaves_no_cache(tmp_path):
    save(tmp_path / "images" / "good.png", noise(200, 200, 3))
    whole = (tmp_path / "images" / "good.png").read_bytes()
    bad = tmp_path / "images" / "sub" / "bad.png"
    bad.parent.mkdir()
    for content in (b"", b"no image", whole[:-2000], whole[:40], b"????".join(whole.rsplit(b"IDAT", 1))):  # the last is a SyntaxError
        bad.write_bytes(content)
        line = refusal(folder_of, tmp_path)
        assert line.startswith(f"{bad}: not a readable image (") and line.endswith("); mend it or take it out of data.folder")
    bad.unlink()
    bad.symlink_to(tmp_path / "gone.png")
    line = refusal(folder_of, tmp_path)
    assert line == f"data.folder: {bad}: cannot be read (No such file or directory); name a folder of images"
    assert not [path for path in (tmp_path / "cache" / "data").iterdir() if not path.name.endswith(".lock")]


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    save(tmp_path / "images" / "deep.png", noise(16, 16).astype(np.uint16) * 256)
    line = refusal(folder_of, tmp_path)
    deep = tmp_path / "images" / "deep.png"
    assert line == f"{deep}: has more than 8 bits a channel (Pillow's mode I;16); convert it or take it out of data.folder"


def test_folder_without_images_is_refused(tmp_path):
    images = tmp_path / "images"
    assert refusal(folder_of, tmp_path) == f"data.folder: {images}: cannot be read (No such file or directory); name a folder of images"
    images.mkdir()
    (images / "notes.txt").write_text("none")
    assert refusal(folder_of, tmp_path) == f"data.folder: {images}: holds no images (.png, .jpg, .jpeg, .webp, .bmp); name another folder"
    file = images / "notes.txt"
    line = refusal(folder_of, tmp_path, folder=str(file))
    assert line == f"data.folder: {file}: cannot be read (Not a directory); name a folder of images"


def test_network_of_two_channels_takes_no_images(tmp_path):
    line = refusal(folder_of, tmp_path, channels=2)
    assert line == "network.channels: a folder of images has 1 channel (grey) or 3 (RGB), not 2"


def test_named_hash_holds_for_a_folder(tmp_path):
    save(tmp_path / "images" / "0.png", noise(16, 16, 3))
    sha256 = hashlib.sha256(noise(16, 16, 3)).hexdigest()
    assert folder_of(tmp_path, sha256=sha256).sha256 == sha256
    line = refusal(folder_of, tmp_path, sha256="1" * 64)
    assert line == f"data.sha256: the training pixels of folder have {sha256}; name that, or other images"


def test_damaged_cache_is_named(tmp_path):
    save(tmp_path / "images" / "0.png", noise(16, 16, 3))
    folder_of(tmp_path)
    (cached,) = (tmp_path / "cache" / "data").glob("*.npy")
    content = cached.read_bytes()
    for damaged in (content[:-1], b"", pickle.dumps([1])):
        cached.write_bytes(damaged)
        line = refusal(folder_of, tmp_path)
        assert line.startswith(f"{cached}: damaged (") and line.endswith("); delete it and run the command again")
    zeroed = content[:-100] + b"\0" * 100
    cached.write_bytes(zeroed)
    assert re.match(rf"{cached}: damaged \(its pixels have the SHA-256 [0-9a-f]{{16}}\.\.\.\); delete it", refusal(folder_of, tmp_path))
    np.save(cached, noise(1, 8, 8, 3))
    assert refusal(folder_of, tmp_path) == f"{cached}: damaged (not uint8 [1, 16, 16, 3]); delete it and run the command again"


def test_cache_that_cannot_be_written_is_named(tmp_path):
    save(tmp_path / "images" / "0.png", noise(16, 16, 3))
    (tmp_path / "cache").write_text("a file stands in the way")
    line = refusal(folder_of, tmp_path)
    assert line.startswith(f"{tmp_path / 'cache' / 'data' / 'folder-'}")
    assert line.endswith(".npy: cannot be written (Not a directory); make the folder writable or name another one")


@pytest.mark.parametrize("settings", [Data(), Data(name="folder", folder="somewhere")])
def test_a_data_root_that_would_go_unread_is_refused(settings, tmp_path):
    with pytest.raises(ReproError, match=f"--data-root: is for cifar10, not for {settings.name}; leave it out"):
        load_images(settings, (1, 8, 8), Places(cache=tmp_path, data_root=tmp_path))


# --- Smaller images


@pytest.mark.parametrize("factor", [2, 4])
def test_downsampled_pixels_are_those_of_pillows_box_filter(factor):
    whole = digits()
    smaller = downsampled(whole, factor, "smaller")
    for pixels, expected in zip(smaller.pixels[:200], whole.pixels[:200], strict=True):
        reduced = Image.fromarray(expected[0].numpy()).reduce(factor)
        assert np.array_equal(pixels[0].numpy(), np.asarray(reduced))
    assert smaller.pixels.shape == (len(whole), 1, 8 // factor, 8 // factor) and smaller.labels.equal(whole.labels)


def test_downsampled_cifar10_is_another_set_made_of_checked_images(official, tmp_path):
    places = Places(data_root=official.unpack(tmp_path / "copy"))
    whole = load_images(Data(name="cifar10"), CIFAR10_SHAPE, places)
    half = load_images(Data(name="cifar10", downsampling=2), (3, 16, 16), places)
    for split, of, name in ((half, whole, "cifar10-downsampled-2"), (half.test, whole.test, "cifar10-downsampled-2-test")):
        means = of.pixels.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        assert (split.pixels - means).abs().max() <= 0.5 and split.name == name
        assert split.sha256 == hashlib.sha256(split.pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest()
    load_images(Data(name="cifar10", downsampling=2, sha256=whole.sha256), (3, 16, 16), places)
    assert "data.sha256" in refusal(lambda: load_images(Data(name="cifar10", downsampling=2, sha256=half.sha256), (3, 16, 16), places))
    line = refusal(lambda: load_images(Data(name="cifar10", downsampling=2), CIFAR10_SHAPE, places))
    assert "network.sample_size" in line and "cifar10-downsampled-2 needs 16 and 3" in line


def test_a_folder_is_not_downsampled_since_it_is_resized():
    line = refusal(lambda: Data(name="folder", folder="somewhere", downsampling=2))
    assert "downsampling" in line and "resized" in line
