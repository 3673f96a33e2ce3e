"""Any folder or zip file of images as a data set: decoded once to the network's shape, and cached by the content of the files."""

import hashlib
import re
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image
from tqdm import tqdm

from repro.config.known_sets import KnownSet
from repro.data.image_decoding import MODES, Shape, decode
from repro.data.image_labels import Labels, labels_of
from repro.data.image_source import SUFFIXES, Archive, Source, image_source
from repro.errors import ReproError
from repro.files.locks import one_at_a_time
from repro.files.writing import write_atomically
from repro.runtime.progress import bar_style, say

OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".dng", ".svg", ".cr2", ".nef", ".arw"}  # beside those that Pillow knows
# Words of which the folders of a data set's splits are named, such as `test`, `val2017` or `train_images`.
TRAINING = {"train", "training", "trainset"}
HELD_OUT = {"test", "testing", "testset", "val", "valid", "validation", "dev", "eval", "holdout"}
AROUND_SPLIT = {"image", "images", "img", "imgs", "set", "data", "split", "x", "a", "b"}
DECODING = 2  # version of the decoding: a cache of another one is not read
WORKERS = 16
GB = 1e9

Pixels = npt.NDArray[np.uint8]
Map = np.memmap[Any, np.dtype[np.uint8]]
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_folder(
    folder: Path, image_shape: tuple[int, int, int], cache: Path, *, crop: tuple[int, ...] = (), known: KnownSet | None = None
) -> tuple[Pixels, Labels, str, str]:
    """Returns all images below a folder or in a zip file, their labels, the hash of the pixels, and that of the files.

    An image is turned upright as its EXIF orientation says, laid on white where it is transparent, resized so that its shorter side fits,
    and cropped to its centre; its colour profile is not applied. Files of other kinds and hidden folders are left out, counted, and
    reported on stderr.

    Args:
        folder: Where the images lie, at any depth.
        image_shape: [C, S, S]: C = 1 makes them grey, 3 makes them RGB.
        cache: The folder of the decoded images.
        crop: The part of each that is taken before it is resized, (left, top, width, height); empty takes all of it.
        known: The data set that must lie there, of which the training images are taken.

    Returns:
        Pixels uint8 [N, S, S, C], a private map of the file in the cache; labels [N]; the SHA-256 of the pixels, and that of the files'
        names and contents, in order.

    Raises:
        ReproError: The folder or an image in it cannot be read, an image is animated, has more than 8 bits a channel or does not hold the
            crop, the folder holds no images, the splits of a data set, a malformed `dataset.json` or another number of images than the
            known set, the disk has too little space, or the network has other channels.
    """
    channels, size, _ = image_shape
    if channels not in MODES:
        raise ReproError(f"network.channels: a folder of images has 1 channel (grey) or 3 (RGB), not {channels}")
    check_there(folder, known)
    with image_source(folder) as source:
        _check_found(source)
        _check_splits(source)
        labels = labels_of(source)
        names = _training_images(source, known)
        files_sha256 = _sha256_of_files(source, names)
        parts = (files_sha256, image_shape, PIL.__version__, DECODING, *([crop] if crop else []))
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        if not _cached(cache, key):
            with one_at_a_time(cache / f"folder-{key}.npy"):
                if not _cached(cache, key):
                    _fill(cache, key, source, names, Shape(channels=channels, size=size, crop=crop))
    path = _cached(cache, key)[0]
    pixels = _read(path, (len(names), size, size, channels))
    sha256 = _sha256_of_map(pixels)
    if not path.stem.endswith(sha256):
        raise ReproError(f"{path}: damaged (its pixels have the SHA-256 {sha256[:16]}...); delete it and run the command again")
    return pixels, labels[: len(names)], sha256, files_sha256


def check_there(folder: Path, known: KnownSet | None) -> None:
    """Makes sure, before anything else is done, that a known data set lies where it should.

    Raises:
        ReproError: There is nothing; says what belongs there and where it comes from.
    """
    if known is not None and not folder.exists():
        raise ReproError(
            f"data.folder: {folder}: no such file or folder; put there the images of {known.title}, as a folder or zip file "
            f"({known.origin}), or name another place"
        )


def undecoded_bytes(count: int, image_shape: tuple[int, int, int], cache: Path) -> int:
    """Returns how much the decoded images of a folder will take in the cache; 0 where some of that number and shape lie there."""
    needed = count * image_shape[0] * image_shape[1] * image_shape[2]
    there = any(needed < path.stat().st_size <= needed + 2**10 for path in cache.glob("folder-*.npy"))
    return 0 if there else needed


def sha256_of_pixels(pixels: Pixels) -> str:
    """Returns the SHA-256 of pixels, in pieces: they may have to be copied into their order."""
    digest = hashlib.sha256()
    for part in np.array_split(pixels, len(pixels) // 1000 + 1):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _cached(cache: Path, key: str) -> list[Path]:
    """Returns the cached file of the decoded images, named by its sources and by its content."""
    return sorted(cache.glob(f"folder-{key}-*.npy"))


def _sha256_of_files(source: Source, names: list[str]) -> str:
    """Returns the SHA-256 of the files' names and contents."""
    whole, bar = hashlib.sha256(), partial(tqdm, total=len(names), desc=f"reading {source.path}", unit="img")
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = bar(_in_order(pool, partial(_sha256_of, source), names), **{"delay": 3} | bar_style())
        for name, digest in zip(names, digests, strict=True):
            whole.update(f"{name} {digest}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _sha256_of(source: Source, name: str) -> str:
    with source.open(name) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except OSError as error:
            raise ReproError(f"data.folder: {source.placed(name)}: cannot be read ({error.strerror}); name a folder of images") from error


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Does work in threads and returns the results in order; few wait at a time, so that any number of items fits into memory."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check_found(source: Source) -> None:
    """Makes sure that there are images, and says what was left out."""
    listed = ", ".join(f"{count} {what}" for what, count in sorted(source.left_out.items()))
    if not source.names:
        known = OTHER_IMAGES | set(Image.registered_extensions())
        images = any(what.split()[0] in known or not what.endswith(" files") for what in source.left_out)
        remedy = f", only {listed}; convert these to PNG or move them, or name another folder" if images else "; name another folder"
        raise ReproError(f"data.folder: {source.path}: holds no images ({', '.join(SUFFIXES)}){remedy}")
    if listed:
        say(f"data.folder: {source.path}: {len(source.names):,} images; left out: {listed}", to_stderr=True)


def _check_splits(source: Source) -> None:
    """Refuses a folder that holds the splits of a data set: test images would be trained on, and each split would be a label."""
    inside: dict[str, set[str]] = {}
    for name in source.names:
        parts = name.split("/")[:-1]
        for depth, part in enumerate(parts):
            inside.setdefault("/".join(parts[:depth]), set()).add(part)
    for parent, folders in sorted(inside.items()):
        splits = sorted(filter(_is_split, folders))
        training = [name for name in splits if _words(name) & TRAINING]
        # A class may be called "train", among others; nothing else here is likely to be one.
        if len(training) < len(splits) or (splits and not parent and set(splits) == folders):
            named = shlex.quote(str(source.path / parent / (training or splits)[0]))
            remedy = "unpack it and name one of them" if isinstance(source, Archive) else f"name one of them, --set data.folder={named}"
            raise ReproError(
                f"data.folder: {source.path / parent}: holds the splits of a data set ({', '.join(splits)}); {remedy}, or move what is not "
                "to be trained on out of the folder"
            )


def _is_split(name: str) -> bool:
    words = _words(name)
    return bool(words & (TRAINING | HELD_OUT)) and words <= TRAINING | HELD_OUT | AROUND_SPLIT


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


def _training_images(source: Source, known: KnownSet | None) -> list[str]:
    """Returns the images that are trained on: all, or those of a known data set, whose number must be right."""
    count = len(source.names)
    if known is None or count == known.training:
        return source.names
    if count != known.whole:
        numbers = f"{known.whole:,} images" + (f", {known.training:,} of them to train on" if known.training < known.whole else "")
        raise ReproError(
            f"data.folder: {source.path}: holds {count:,} images, and {known.title} has {numbers}; complete it, or set data.holds = '' to "
            "take any images"
        )
    rest = count - known.training
    say(f"data.folder: {source.path}: the last {rest:,} images are left out: {known.title} is trained on the others", to_stderr=True)
    return source.names[: known.training]


def _fill(cache: Path, key: str, source: Source, names: list[str], shape: Shape) -> None:
    """Decodes images into the cache, once the disk is known to hold them."""
    needed, free = len(names) * shape.bytes / GB, shutil.disk_usage(cache).free / GB
    if needed > free:
        raise ReproError(
            f"{cache}: {needed:.3g} GB are needed there for {len(names):,} decoded images, {free:.3g} GB are free; free some space, or "
            "name a folder on another disk with --cache"
        )
    size = f"{shape.size} x {shape.size}, {needed:.2g} GB"
    say(f"data.folder: {source.path}: decoding {len(names):,} images to {size}, in {cache}", to_stderr=True)
    draft = cache / f".folder-{key}.npy"
    write_atomically(draft, partial(_decode, source, names, shape))
    draft.replace(cache / f"folder-{key}-{_sha256_of_map(np.load(draft, mmap_mode='r', allow_pickle=False))}.npy")


def _decode(source: Source, names: list[str], shape: Shape, target: Path) -> None:
    """Decodes images into an .npy file, one after another."""
    bar = partial(tqdm, total=len(names), desc=f"decoding {source.path}", unit="img")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), shape.size, shape.size, shape.channels)}
    with target.open("wb") as file, ThreadPoolExecutor(WORKERS) as pool:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in bar(_in_order(pool, lambda name: decode(source, name, shape), names), **{"delay": 3} | bar_style()):
            file.write(pixels)


def _sha256_of_map(pixels: Map) -> str:
    """Returns the SHA-256 of mapped pixels, read from their file: of the map, every page would count as this process's memory."""
    with Path(str(pixels.filename)).open("rb") as file:
        file.seek(pixels.offset)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, shape: tuple[int, int, int, int]) -> Map:
    try:
        pixels: Map = np.load(path, mmap_mode="c", allow_pickle=False)  # private: what is written to it never reaches the file
    except (ValueError, EOFError) as error:
        raise ReproError(f"{path}: damaged ({error}); delete it and run the command again") from error
    except OSError as error:
        raise ReproError(f"{path}: cannot be mapped into memory ({error.strerror}); make it readable, or free some memory") from error
    if pixels.shape != shape or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        raise ReproError(f"{path}: damaged (not uint8 {list(shape)}); delete it and run the command again")
    return pixels
