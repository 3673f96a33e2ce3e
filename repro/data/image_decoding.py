"""One image of a set, decoded to the network's shape: upright, on white where it is transparent, cropped and resized."""

import re
import struct
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageOps

from repro.data.image_source import Source
from repro.errors import ReproError
from repro.files.placeholders import FIRST_BYTES, placeholder_in

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called: Pillow would hand an EPS to Ghostscript, which runs programs
MOST_PIXELS = 2**26  # of an image; many are decoded at once, and a small file can hold a huge one
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning where warnings are errors
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, struct.error, *BOMBS)  # what Pillow raises for damage
DEEP = ("LA;16B", "RGB;16B", "RGBA;16B")  # a PNG's pixels that Pillow opens under a mode of 8 bits
MODES = {1: "L", 3: "RGB"}  # of Pillow, for a network's channels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an image is decoded to.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: Width and height.
        crop: The part that is taken, (left, top, width, height) in pixels of the upright image; empty for all.
    """

    channels: int
    size: int
    crop: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.channels * self.size**2


def decode(source: Source, name: str, shape: Shape) -> bytes:
    """Returns one image as [S, S, C]; what is S x S already comes through untouched.

    The shorter side is fitted, and the centre taken.

    Raises:
        ReproError: It cannot be decoded, is animated, has more than 8 bits a channel, or does not hold the crop.
    """
    with source.open(name) as file:
        try:
            return _square(file, source.placed(name), shape)
        except UNREADABLE as error:
            file.seek(0)
            instead = placeholder_in(file.read(FIRST_BYTES))
            reason = re.sub(r" ?<[^>]*>", "", str(error))  # Pillow names the open file
            what = instead or f"not a readable image ({reason}); mend it or take it out of data.folder"
            raise ReproError(f"{source.placed(name)}: {what}") from error


def _square(file: IO[bytes], place: str, shape: Shape) -> bytes:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
        _check_kind(place, image)
        ImageOps.exif_transpose(image, in_place=True)
        part = _cropped(place, _opaque(image).convert(MODES[shape.channels]), shape.crop)
        return ImageOps.fit(part, (shape.size, shape.size), Image.Resampling.LANCZOS).tobytes()


def _check_kind(place: str, image: Image.Image) -> None:
    """Refuses what Pillow would cut down without a word: to 8 bits a channel, or to the first of several frames."""
    tiles = getattr(image, "tile", [])  # how each part of the file is stored
    stored = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
    mode = stored if stored in DEEP else image.mode
    if mode.startswith(("I", "F")) or mode in DEEP:
        raise ReproError(f"{place}: has more than 8 bits a channel (Pillow's mode {mode}); convert it or take it out of data.folder")
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1  # a camera's JPEG may hold a preview as its second
    if frames > 1:
        raise ReproError(f"{place}: is animated ({frames} frames); save those that you want as images, or take it out of data.folder")


def _opaque(image: Image.Image) -> Image.Image:
    """Returns an image as it looks on white; one without transparent pixels as it is."""
    if not image.has_transparency_data:
        return image
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _cropped(place: str, image: Image.Image, crop: tuple[int, ...]) -> Image.Image:
    """Returns the part that `data.crop` names, which must lie inside."""
    if not crop:
        return image
    left, top, width, height = crop
    if left + width > image.width or top + height > image.height:
        raise ReproError(
            f"{place}: has {image.width} x {image.height} pixels, and data.crop = {list(crop)} does not lie inside them; change it, or "
            "take the image out of data.folder"
        )
    return image.crop((left, top, left + width, top + height))
