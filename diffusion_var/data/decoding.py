"""From an image file's bytes, or a PIL image, to 8-bit pixels as a viewer shows them.

*Formats.* Pillow knows some forty, several of which start other programs or no one has looked at in years. Only those
listed here are decoded, whatever a file is called, and only as far as this Pillow was built with them.

*Upright.* Cameras store how they were held (EXIF or XMP orientation, 1 to 8); the pixels are turned accordingly.

*8 bits.* Files of deeper samples are refused: Pillow would clip or truncate them without a word.
"""

from __future__ import annotations

from functools import cache
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, features
from torch import Tensor

from ..errors import InputError

#: Pillow's name of a format: the suffixes its files have.
_FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
}
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # in Pillow, as it was built
LARGEST_PIXELS = 2**26
_HEAD = 2**16

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def decoders() -> tuple[str, ...]:
    """The formats of the list that this Pillow can decode."""
    Image.init()
    return tuple(
        name
        for name in _FORMATS
        if name in Image.OPEN and (name not in _OPTIONAL or bool(features.check(_OPTIONAL[name])))
    )


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that are read, in lower case."""
    return frozenset(suffix for name in decoders() for suffix in _FORMATS[name])


def open_image(file: IO[bytes], name: str) -> Image.Image:
    """The image in an open file, not yet decoded. Raises InputError for too many pixels or deep ones, Pillow's own
    errors for what is no image."""
    try:
        image = Image.open(file, formats=decoders())
    except Image.DecompressionBombError:
        raise _too_large(name, "far too many") from None
    if image.width * image.height > LARGEST_PIXELS:
        raise _too_large(name, f"{image.width}x{image.height}")
    _require_8_bits(image, name)
    if image.format in ("AVIF", "JPEG2000"):
        file.seek(0)
        if _deep_header(str(image.format), file.read(_HEAD)):
            raise _too_deep(name)
    return image


def shape_of(image: Image.Image, channels: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the upright pixels, as far as the header tells: a PNG's EXIF may follow its pixels."""
    # Pillow turns TIFFs by itself, in the header too.
    turned = image.format != "TIFF" and _orientation(image, loaded=False) >= 5
    size = (image.width, image.height) if turned else (image.height, image.width)
    return (1 if mode_of(image, channels) == "L" else 3, *size)


def pixels_of(image: Image.Image, name: str, channels: int | None = None) -> Tensor:
    """The upright pixels, (C, H, W) uint8; `channels` as in `read_images`. Decodes what is not decoded yet."""
    _require_8_bits(image, name)
    mode = mode_of(image, channels)
    image.load()
    turn = _TURNS.get(_orientation(image, loaded=True))
    flat = image.convert(mode)
    pixels = np.array(flat if turn is None else flat.transpose(turn), dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())


def mode_of(image: Image.Image, channels: int | None = None) -> str:
    """The mode to convert to: "L" or "RGB"."""
    return "L" if channels == 1 or (channels is None and image.mode in ("1", "L", "LA")) else "RGB"


def frames_of(image: Image.Image) -> int:
    """How many pictures a file holds: pages, or frames. (A camera's MPO is one, with its preview.)"""
    try:
        return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))
    except Exception:  # the first may be whole where what follows is damaged
        return 1


def _orientation(image: Image.Image, loaded: bool) -> int:
    """1 to 8; 1 where none is stored, or nothing that can be read."""
    try:
        # PngImageFile's own getexif would decode the whole image for it.
        exif = image.getexif() if loaded else Image.Image.getexif(image)
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata: viewers show the pixels as they are stored
        return 1


def _require_8_bits(image: Image.Image, name: str) -> None:
    # The raw mode in the tiles tells (RGB;16B, I;16, ...), and a PPM's greatest value.
    tiles: Any = getattr(image, "tile", ())
    greatest = [tile[3][1] for tile in tiles if image.format == "PPM" and isinstance(tile[3], tuple)]
    if image.mode[0] in "IF" or ";16" in str(tiles) or any(value > 255 for value in greatest):
        raise _too_deep(name)


def _deep_header(kind: str, head: bytes) -> bool:
    """Whether an AVIF or JPEG 2000 stores more than 8 bits a sample, which Pillow gives as 8."""
    if kind == "AVIF":  # the flag high_bitdepth of the box av1C
        box = head.find(b"av1C")
        return box >= 0 and len(head) > box + 6 and bool(head[box + 6] & 0x40)
    marker = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ: Ssiz, bits less one, follows 38 bytes of it
    return marker >= 0 and len(head) > marker + 42 and head[marker + 42] & 0x7F > 7


def _too_deep(name: str) -> InputError:
    return InputError(f"{name} does not hold 8-bit samples; convert it to 8 bits per channel.")


def _too_large(name: str, pixels: str) -> InputError:
    return InputError(f"{name} declares {pixels} pixels; expected at most {LARGEST_PIXELS}: remove or shrink it.")
