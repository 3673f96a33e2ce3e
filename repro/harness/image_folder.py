"""Any folder of images as a data set: decoded once to the network's shape, and kept in the cache."""

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
from repro.harness.storage import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called: Pillow would hand an EPS to Ghostscript, which runs programs
MOST_PIXELS = 2**26  # of an image; many are decoded at once, and a small file can hold a huge one
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where warnings are errors
MODES = {1: "L", 3: "RGB"}  # of Pillow, for a network's channels

Pixels = npt.NDArray[np.uint8]


def read_folder(folder: Path, image_shape: tuple[int, int, int], cache: Path) -> tuple[Pixels, npt.NDArray[np.int64], str]:
    """Returns all images below a folder, their labels, and the hash of the list of files (names and sizes, in order).

    An image is resized so that its shorter side fits, and cropped to its centre. Its label is the number of the folder, among those right
    below `folder`, that it lies in.

    Args:
        folder: Where the images lie, at any depth.
        image_shape: [C, S, S]: C = 1 makes them grey, 3 makes them RGB.
        cache: The folder that keeps what was decoded.

    Returns:
        Pixels uint8 [N, S, S, C], from a read-only map of the file in the cache; labels [N]; the hash.

    Raises:
        ReproError: The folder or an image in it cannot be read, it holds no images, or the network has other channels.
    """
    channels, size, _ = image_shape
    if channels not in MODES:
        raise ReproError(f"network.channels: a folder of images has 1 channel (grey) or 3 (RGB), not {channels}")
    files = sorted(_files(folder))
    if not files:
        raise ReproError(f"data.folder: {folder}: holds no images ({', '.join(SUFFIXES)}); name another folder")
    listing = "".join(f"{name} {length}\n" for name, length, _ in files)
    # Two folders may agree in names and sizes and not in pixels, so the cache also goes by place and time.
    key = hashlib.sha256(repr((str(folder.resolve()), files, image_shape, PIL.__version__)).encode(errors="surrogateescape"))
    path = cache / f"folder-{key.hexdigest()[:16]}.npy"
    names = [name for name, _, _ in files]
    if not path.exists():
        with one_at_a_time(path):
            if not path.exists():
                write_atomically(path, partial(_decode, folder, names, channels, size))
    return (
        _read(path, (len(files), size, size, channels)),
        _labels(names),
        hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
    )


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yields every image's name, below the folder and with forward slashes, its size in bytes, and its time of change in ns."""

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
                yield path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns


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
