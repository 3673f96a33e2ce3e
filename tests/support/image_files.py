"""Images as files: a folder of them, and the batches of CIFAR-10 as Python 2 pickled them."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.config import Data
from repro.data.images import Images, load_images
from repro.errors import ReproError
from repro.files.places import Places


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: texts and raw bytes alike are strings of bytes."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        content = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(value) -> bytes:
    """Pickles as the official batches were, with numpy's module under the name that it had in 2009."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def make_batch(seed: int, count: int = 12) -> dict[str, object]:
    """A batch as the official archive has it: all of an image's red, then its green, then its blue."""
    stream = np.random.default_rng(seed)
    return {
        "batch_label": f"batch {seed}",
        "labels": stream.integers(10, size=count).tolist(),
        "data": stream.integers(256, size=(count, 3072), dtype=np.uint8),
        "filenames": [f"{number}.png" for number in range(count)],
    }


def folder_of(tmp_path: Path, size: int = 16, channels: int = 3, **settings: str) -> Images:
    settings = {"folder": str(tmp_path / "images"), **settings}
    return load_images(Data(name="folder", **settings), (channels, size, size), Places(cache=tmp_path / "cache"))


def refusal(load, *arguments, **settings) -> str:
    """Returns the one line in which a user's mistake is refused."""
    with pytest.raises(ReproError) as caught:
        load(*arguments, **settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
