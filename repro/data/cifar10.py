"""CIFAR-10 (Krizhevsky, 2009): the official archive, verified by torchvision's checksums, or a copy as npz files."""

import errno
import hashlib
import http.client
import io
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from repro.errors import ReproError, storage_error
from repro.files.locks import one_at_a_time
from repro.files.placeholders import refuse_placeholder
from repro.files.places import Places
from repro.files.reading import open_regular

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # pixels [N, 32, 32, 3], labels [N]

COPIES = f"{CIFAR10.base_folder}/, {CIFAR10.filename}, or train.npz and test.npz"
CLASSES = 10
MOST_BYTES = 2**31  # of a copy's arrays; CIFAR-10 has 184 MB
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Allow-list of the globals in a pickled array, by the names of the numpy of 2009; its helper has no public name today.
ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_cifar10(places: Places) -> tuple[Split, Split, bool]:
    """Returns the training images, the test images, and whether they are the official ones, from an offline copy or the download.

    Args:
        places: The copy, or the cache that the archive is downloaded into.

    Raises:
        ReproError: There is no copy where it should be, it is damaged or unreadable, or the download fails.
    """
    root = places.data_root
    try:
        if root is not None:
            batches = [folder / name for folder in (root, root / CIFAR10.base_folder) for name, _ in CIFAR10.train_list + CIFAR10.test_list]
            refuse_placeholder(root / CIFAR10.filename, root / "train.npz", root / "test.npz", *batches)
        if root is None:
            return *_from_archive(_downloaded(places.cache / "data")), True
        for folder in (root / CIFAR10.base_folder, root):
            if any((folder / name).exists() for name, _ in CIFAR10.train_list):
                return *_from_folder(folder), True
        archive = root / CIFAR10.filename
        if archive.exists():
            open_regular(archive).close()
            if not check_integrity(archive, CIFAR10.tgz_md5):
                raise ReproError(f"{archive}: damaged: its MD5 is not the official one; fetch it anew from {CIFAR10.url}")
            return *_from_archive(archive), True
        if (root / "train.npz").exists():
            return _from_npz(root / "train.npz"), _from_npz(root / "test.npz"), False
    except OSError as error:
        raise ReproError(
            f"{error.filename}: cannot be read ({error.strerror}); mend the copy, or name another: --data-root FOLDER"
        ) from error
    raise ReproError(f"--data-root {root}: {f'holds no CIFAR-10; it needs {COPIES}' if root.is_dir() else 'no such folder; name another'}")


def _downloaded(folder: Path) -> Path:
    """Returns the official archive, downloaded unless it lies in the folder whole."""
    archive = folder / str(CIFAR10.filename)
    if check_integrity(archive, CIFAR10.tgz_md5):
        return archive
    with one_at_a_time(archive):
        try:
            download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)  # looks again whether it is there, and verifies it
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in NO_SPACE:
                raise storage_error(archive, error) from error
            raise ReproError(f"{CIFAR10.url}: cannot be downloaded ({error}); try again, or name a copy: --data-root FOLDER") from error
    return archive


def _from_archive(archive: Path) -> tuple[Split, Split]:
    """Reads the splits out of the official archive, whose MD5 is right, without unpacking it: no member's path or link is followed."""
    wanted = {f"{CIFAR10.base_folder}/{name}": name for name, _ in CIFAR10.train_list + CIFAR10.test_list}
    contents = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.name in wanted else None
            if file is not None:
                contents[wanted[member.name]] = file.read()
    return _join(archive, contents, CIFAR10.train_list), _join(archive, contents, CIFAR10.test_list)


def _from_folder(folder: Path) -> tuple[Split, Split]:
    contents = {}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        with open_regular(folder / name) as file:
            contents[name] = file.read()
    return _join(folder, contents, CIFAR10.train_list), _join(folder, contents, CIFAR10.test_list)


def _join(source: Path, contents: dict[str, bytes], batches: list[list[str]]) -> Split:
    """Verifies batches, each by its MD5, and joins them."""
    pixels, labels = [], []
    for name, md5 in batches:
        if hashlib.md5(contents.get(name, b""), usedforsecurity=False).hexdigest() != md5:
            raise ReproError(f"{source / name}: damaged: its MD5 is not that of the official CIFAR-10; unpack the archive anew")
        images, classes = _read_batch(source / name, contents[name])
        pixels.append(images)
        labels.append(classes)
    return np.concatenate(pixels).transpose(0, 2, 3, 1), np.concatenate(labels)


def _read_batch(source: Path, content: bytes) -> Split:
    """Returns the images, [N, 3, 32, 32], and labels of a batch, which is a pickle, of arrays alone."""
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1", source=source).load()
        return batch["data"].reshape(-1, 3, 32, 32), np.asarray(batch["labels"], dtype=np.int64)
    except ReproError:
        raise
    except Exception as error:  # a pickle that is damaged raises errors of every kind
        raise ReproError(f"{source}: damaged ({error}); unpack the archive anew") from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and numpy arrays; any other global is refused."""

    def __init__(self, file: io.BytesIO, *, encoding: str, source: Path) -> None:
        super().__init__(file, encoding=encoding)
        self._source = source

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns a part of an array.

        Raises:
            ReproError: It is something else.
        """
        if (module_name, global_name) not in ARRAY_PARTS:
            raise ReproError(f"{self._source}: refused: it asks for {module_name}.{global_name}, which images do not need; fetch it anew")
        return ARRAY_PARTS[module_name, global_name]


def _from_npz(path: Path) -> Split:
    """Reads a split that is kept as arrays: images, uint8 [N, 32, 32, 3], and labels, integers [N]."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            if sum(item.file_size for item in arrays.zip.infolist()) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES >> 30} GiB")
            pixels, labels = arrays["images"], arrays["labels"]
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ReproError(f"{path}: not a readable npz file with the arrays images and labels ({error}); name another copy") from error
    fits = pixels.shape == (len(pixels), 32, 32, 3) and labels.shape == (len(pixels),) and len(pixels) > 0
    if fits and labels.dtype.kind in "iu" and not (labels.min() >= 0 and labels.max() < CLASSES):
        raise ReproError(f"{path}: labels lie in [{labels.min()}, {labels.max()}]; they must lie in [0, {CLASSES - 1}]")
    if not fits or pixels.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise ReproError(
            f"{path}: images are {pixels.dtype} {list(pixels.shape)} and labels {labels.dtype} {list(labels.shape)}; "
            "they must be uint8 [N, 32, 32, 3] and integers [N]"
        )
    return pixels, labels.astype(np.int64)
