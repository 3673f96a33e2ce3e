"""Any folder of images as a data set: decoded once to the network's shape, and kept in the cache by the content of the files."""

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from repro.errors import ReproError
from repro.harness.lock import one_at_a_time
from repro.harness.progress import bar_style
from repro.harness.storage import sha256_of_file, write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called: Pillow would hand an EPS to Ghostscript, which runs programs
MOST_PIXELS = 2**26  # of an image; many are decoded at once, and a small file can hold a huge one
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where warnings are errors
MODES = {1: "L", 3: "RGB"}  # of Pillow, for a network's channels

Pixels = npt.NDArray[np.uint8]


def read_folder(folder: Path, image_shape: tuple[int, int, int], cache: Path) -> tuple[Pixels, npt.NDArray[np.int64], str, str]:
    """Returns all images below a folder, their labels, the hash of the pixels, and that of the files (names and contents, in order).

    An image is resized so that its shorter side fits, and cropped to its centre. Its label is the number of the folder, among those right
    below `folder`, that it lies in.

    Args:
        folder: Where the images lie, at any depth.
        image_shape: [C, S, S]: C = 1 makes them grey, 3 makes them RGB.
        cache: The folder that keeps what was decoded.

    Returns:
        Pixels uint8 [N, S, S, C], from a read-only map of the file in the cache; labels [N]; the SHA-256 of the pixels and of the files.

    Raises:
        ReproError: The folder or an image in it cannot be read, it holds no images, or the network has other channels.
    """
    channels, size, _ = image_shape
    if channels not in MODES:
        raise ReproError(f"network.channels: a folder of images has 1 channel (grey) or 3 (RGB), not {channels}")
    files = sorted(_files(folder))
    if not files:
        raise ReproError(f"data.folder: {folder}: holds no images ({', '.join(SUFFIXES)}); name another folder")
    listing = "".join(f"{name} {digest}\n" for name, digest in zip(files, _digests(folder, files), strict=True))
    files_sha256 = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    key = hashlib.sha256(repr((files_sha256, image_shape, PIL.__version__)).encode()).hexdigest()[:16]
    if not _cached(cache, key):
        with one_at_a_time(cache / f"folder-{key}.npy"):
            if not _cached(cache, key):
                draft = cache / f".folder-{key}.npy"
                write_atomically(draft, partial(_decode, folder, files, channels, size))
                draft.replace(cache / f"folder-{key}-{sha256_of_pixels(np.load(draft, mmap_mode='r'))}.npy")
    path = _cached(cache, key)[0]
    pixels = _read(path, (len(files), size, size, channels))
    sha256 = sha256_of_pixels(pixels)
    if not path.stem.endswith(sha256):
        raise ReproError(f"{path}: damaged (its pixels have the SHA-256 {sha256[:16]}...); delete it and run the command again")
    return pixels, _labels(files), sha256, files_sha256


def sha256_of_pixels(pixels: Pixels) -> str:
    """Returns the SHA-256 of pixels, in pieces: a set may be larger than the memory that is left."""
    digest = hashlib.sha256()
    for part in np.array_split(pixels, len(pixels) // 1000 + 1):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _cached(cache: Path, key: str) -> list[Path]:
    """Returns the file that keeps what was decoded, named by what it was decoded from and by its content."""
    return sorted(cache.glob(f"folder-{key}-*.npy"))


def _digests(folder: Path, files: list[str]) -> list[str]:
    """Returns the SHA-256 of every file's content."""
    bar = partial(tqdm, total=len(files), desc=f"reading {folder}", unit="img")
    with ThreadPoolExecutor() as pool:
        return list(bar(pool.map(lambda name: _digest(folder / name), files), **{"delay": 3} | bar_style()))


def _digest(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise ReproError(f"data.folder: {path}: cannot be read ({error.strerror}); name a folder of images") from error


def _files(folder: Path) -> Iterator[str]:
    """Yields every image's name, below the folder and with forward slashes."""

    def refuse(error: OSError) -> None:
        raise ReproError(f"data.folder: {error.filename}: cannot be read ({error.strerror}); name a folder of images") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent, name)
                try:
                    status = path.stat()
                except OSError as error:
                    refuse(error)
                if not stat.S_ISREG(status.st_mode):
                    raise ReproError(f"data.folder: {path}: no regular file; take it out of the folder")
                yield path.relative_to(folder).as_posix()


def _labels(names: list[str]) -> npt.NDArray[np.int64]:
    """Numbers the images by the first folder in their name; those in none come before all folders."""
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    numbers = {top: number for number, top in enumerate(sorted(set(tops)))}
    return np.array([numbers[top] for top in tops], dtype=np.int64)


def _decode(folder: Path, names: list[str], channels: int, size: int, target: Path) -> None:
    """Decodes images into an .npy file, one after another, so that any number of them fits into memory."""
    bar = partial(tqdm, total=len(names), desc=f"decoding {folder}", unit="img")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), size, size, channels)}
    with target.open("wb") as file, ThreadPoolExecutor() as pool:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in bar(pool.map(lambda name: _image(folder / name, channels, size), names), **{"delay": 3} | bar_style()):
            file.write(pixels)


def _image(path: Path, channels: int, size: int) -> bytes:
    """Returns one image as [S, S, C]; what is S x S already comes through untouched."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            mode = image.mode
            square = ImageOps.fit(image.convert(MODES[channels]), (size, size), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, EOFError, *BOMBS) as error:
        raise ReproError(f"{path}: not a readable image ({error}); mend it or take it out of data.folder") from error
    if mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits without a word
        raise ReproError(f"{path}: has more than 8 bits a channel (Pillow's mode {mode}); convert it or take it out of data.folder")
    return square.tobytes()


def _read(path: Path, shape: tuple[int, int, int, int]) -> Pixels:
    try:
        pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ReproError(f"{path}: damaged ({error}); delete it and run the command again") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ReproError(f"{path}: damaged (not uint8 {list(shape)}); delete it and run the command again")
    return pixels
