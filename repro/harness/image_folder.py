"""Any folder of images as a data set: decoded once to the network's shape, and kept in the cache by the content of the files."""

import hashlib
import os
import re
import shlex
import stat
import struct
from collections import Counter
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
from repro.harness.placeholders import refuse_placeholder
from repro.harness.progress import bar_style, say
from repro.harness.storage import sha256_of_file, write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called: Pillow would hand an EPS to Ghostscript, which runs programs
MOST_PIXELS = 2**26  # of an image; many are decoded at once, and a small file can hold a huge one
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where warnings are errors
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, struct.error, *BOMBS)  # what Pillow raises for damage
OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".dng", ".svg", ".cr2", ".nef", ".arw"}  # beside those that Pillow knows
HIDDEN, HIDDEN_NAMES = (".", "@", "#recycle", "$"), ("__MACOSX", "__pycache__", "lost+found", "System Volume Information")
# Words of which the folders of a data set's splits are named, such as `test`, `val2017` or `train_images`.
TRAINING = {"train", "training", "trainset"}
HELD_OUT = {"test", "testing", "testset", "val", "valid", "validation", "dev", "eval", "holdout"}
AROUND_SPLIT = {"image", "images", "img", "imgs", "set", "data", "split", "x", "a", "b"}
DEEP = ("LA;16B", "RGB;16B", "RGBA;16B")  # a PNG's pixels that Pillow opens under a mode of 8 bits
DECODING = 2  # counts the ways in which this module has decoded: what another one left in the cache is not read
MODES = {1: "L", 3: "RGB"}  # of Pillow, for a network's channels

Pixels = npt.NDArray[np.uint8]


def read_folder(folder: Path, image_shape: tuple[int, int, int], cache: Path) -> tuple[Pixels, npt.NDArray[np.int64], str, str]:
    """Returns all images below a folder, their labels, the hash of the pixels, and that of the files (names and contents, in order).

    An image is turned upright as its EXIF orientation says, laid on white where it is transparent, resized so that its shorter side fits,
    and cropped to its centre; its colour profile is not applied. Its label is the number of the folder, among those right below `folder`,
    that it lies in. What is left out, such as files of other kinds and hidden folders, is counted and said on stderr.

    Args:
        folder: Where the images lie, at any depth.
        image_shape: [C, S, S]: C = 1 makes them grey, 3 makes them RGB.
        cache: The folder that keeps what was decoded.

    Returns:
        Pixels uint8 [N, S, S, C], from a read-only map of the file in the cache; labels [N]; the SHA-256 of the pixels and of the files.

    Raises:
        ReproError: The folder or an image in it cannot be read, an image is animated or has more than 8 bits a channel, the folder holds no
            images or the splits of a data set, or the network has other channels.
    """
    channels, size, _ = image_shape
    if channels not in MODES:
        raise ReproError(f"network.channels: a folder of images has 1 channel (grey) or 3 (RGB), not {channels}")
    files, left_out = list_images(folder)
    _check_found(folder, files, left_out)
    _check_splits(folder, files)
    listing = "".join(f"{name} {digest}\n" for name, digest in zip(files, _digests(folder, files), strict=True))
    files_sha256 = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    key = hashlib.sha256(repr((files_sha256, image_shape, PIL.__version__, DECODING)).encode()).hexdigest()[:16]
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


def list_images(folder: Path) -> tuple[list[str], Counter[str]]:
    """Lists the images below a folder, and counts what else lies there.

    Hidden folders, which programs and file servers make for themselves, are left out, as are links to folders and files of other kinds.

    Returns:
        The names of the images, sorted, below the folder and with forward slashes; what was left out -> how many.

    Raises:
        ReproError: The folder or an image cannot be read, or is no regular file.
    """

    def refuse(error: OSError) -> None:
        raise ReproError(f"data.folder: {error.filename}: cannot be read ({error.strerror}); name a folder of images") from error

    files, left_out = [], Counter[str]()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        hidden = any(_is_hidden(part) for part in Path(parent).relative_to(folder).parts)
        left_out["linked folders"] += 0 if hidden else sum(Path(parent, name).is_symlink() for name in folders)
        for name in names:
            path, is_image = Path(parent, name), name.lower().endswith(SUFFIXES)
            if hidden or name.startswith("."):
                left_out["images that are hidden or in hidden folders"] += is_image
            elif not is_image:
                left_out[f"{path.suffix.lower() or 'other'} files"] += 1
            else:
                try:
                    status = path.stat()
                except OSError as error:
                    refuse(error)
                if not stat.S_ISREG(status.st_mode):
                    raise ReproError(f"data.folder: {path}: no regular file; take it out of the folder")
                files.append(path.relative_to(folder).as_posix())
    return sorted(files), +left_out


def _is_hidden(name: str) -> bool:
    return name.startswith(HIDDEN) or name in HIDDEN_NAMES


def _check_found(folder: Path, files: list[str], left_out: Counter[str]) -> None:
    """Makes sure that there are images, and says what was left out."""
    listed = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
    if not files:
        known = OTHER_IMAGES | set(Image.registered_extensions())
        images = any(what.split()[0] in known or not what.endswith(" files") for what in left_out)
        remedy = f", only {listed}; convert these to PNG or move them, or name another folder" if images else "; name another folder"
        raise ReproError(f"data.folder: {folder}: holds no images ({', '.join(SUFFIXES)}){remedy}")
    if listed:
        say(f"data.folder: {folder}: {len(files):,} images; left out: {listed}", to_stderr=True)


def _check_splits(folder: Path, files: list[str]) -> None:
    """Refuses a folder that holds the splits of a data set: test images would be trained on, and each split would be a label."""
    inside: dict[str, set[str]] = {}
    for name in files:
        parts = name.split("/")[:-1]
        for depth, part in enumerate(parts):
            inside.setdefault("/".join(parts[:depth]), set()).add(part)
    for parent, folders in sorted(inside.items()):
        splits = sorted(filter(_is_split, folders))
        training = [name for name in splits if _words(name) & TRAINING]
        # A class may be called "train", among others; nothing else here is likely to be one.
        if len(training) < len(splits) or (splits and not parent and set(splits) == folders):
            named = shlex.quote(str(folder / parent / (training or splits)[0]))
            raise ReproError(
                f"data.folder: {folder / parent}: holds the splits of a data set ({', '.join(splits)}); name one of them, "
                f"--set data.folder={named}, or move what is not to be trained on out of the folder"
            )


def _is_split(name: str) -> bool:
    words = _words(name)
    return bool(words & (TRAINING | HELD_OUT)) and words <= TRAINING | HELD_OUT | AROUND_SPLIT


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


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
    """Returns one image as [S, S, C], upright, on white where it is transparent; what is S x S already comes through untouched."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            _check_kind(path, image)
            ImageOps.exif_transpose(image, in_place=True)
            square = ImageOps.fit(_opaque(image).convert(MODES[channels]), (size, size), Image.Resampling.LANCZOS)
    except UNREADABLE as error:
        refuse_placeholder(path)
        raise ReproError(f"{path}: not a readable image ({error}); mend it or take it out of data.folder") from error
    return square.tobytes()


def _check_kind(path: Path, image: Image.Image) -> None:
    """Refuses what Pillow would cut down without a word: to 8 bits a channel, or to the first of several frames."""
    tiles = getattr(image, "tile", [])  # how each part of a file is stored, in Pillow's words
    stored = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
    mode = stored if stored in DEEP else image.mode
    if mode.startswith(("I", "F")) or mode in DEEP:
        raise ReproError(f"{path}: has more than 8 bits a channel (Pillow's mode {mode}); convert it or take it out of data.folder")
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1  # a camera's JPEG may hold a preview as its second
    if frames > 1:
        raise ReproError(f"{path}: is animated ({frames} frames); save those that you want as images, or take it out of data.folder")


def _opaque(image: Image.Image) -> Image.Image:
    """Returns an image as it looks on white; one without transparent pixels as it is."""
    if not image.has_transparency_data:
        return image
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _read(path: Path, shape: tuple[int, int, int, int]) -> Pixels:
    try:
        pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ReproError(f"{path}: damaged ({error}); delete it and run the command again") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ReproError(f"{path}: damaged (not uint8 {list(shape)}); delete it and run the command again")
    return pixels
