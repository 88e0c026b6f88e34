"""Images from files and images to files: what is measured and scored, and what the samplers write.

*Number format.* Published FIDs are computed on 8-bit images (what a PNG holds), so floats in the data range [a, b] are
rounded before scoring:  u = clamp(round(255 (x − a)/(b − a)), 0, 255),  ties to even; back, x = a + u (b − a)/255.
The round trip uint8 -> float32 -> uint8 is exact. Which files are read, and in which order, is in `sources.py`;
which layouts of arrays, in `arrays.py`; what may be given instead of files, in `containers.py`.
"""

from __future__ import annotations

import glob
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .. import checks
from ..errors import InputError, warn
from ..files import expanded, make_folder, regular_file, write_atomic, write_together
from .arrays import ArrayImages, open_array
from .decoding import suffixes
from .ranges import ROUNDED, outside_range
from .sources import FolderImages, ImageSource, PatternImages, ZipImages

_MILLISECONDS = 100  # a frame of an animated PNG file is shown

__all__ = ["ImageSource", "read_images", "save_images", "save_npz", "to_float", "to_uint8"]


def read_images(
    path: str | os.PathLike[str],
    channels: int | None = None,
    *,
    key: str | None = None,
    skip_corrupt: bool = False,
) -> ImageSource:
    """The images at `path`: a folder, `.zip`, `.npy` or `.npz`; items are (C, H, W) uint8, or float32 for float arrays.

    Args:
        path: also a pattern of image files, such as `imgs/*.png` or `imgs/**/*.jpg`.
        channels: 1 converts to grey, 3 to RGB (an alpha channel is dropped). None: grey files keep one channel, all
            others become RGB; arrays stay as they are.
        key: the array in an `.npz`; by default `images`, `arr_0`, `samples`, `x` or its only one.
        skip_corrupt: leave out files in a folder or zip that cannot be decoded, with a warning (see `sources.py`;
            every file is decoded once more for it). Else the first one raises an error that names it.

    Warns of the files, frames and pages that are left out. Raises InputError where the source is missing, empty,
    unreadable, unsafe or of mixed shapes.
    """
    path = expanded(checks.instance("path", path, (str, os.PathLike), "the path of a folder, pattern, zip or array"))
    if channels not in (None, 1, 3):
        raise InputError(f"channels is {channels!r}; expected 1 (grey), 3 (RGB) or None (as stored).")
    pattern = not path.exists() and glob.has_magic(str(path))
    if not path.exists() and not pattern:
        raise InputError(f"there is no file or folder {path}; expected images there: check the path.")
    suffix = path.suffix.lower()
    if not pattern and not path.is_dir() and suffix in (".npy", ".npz"):
        return ArrayImages(path, open_array(path, key), channels)
    if key is not None:
        raise InputError(f"{path} is not an .npz, so it holds no array {key!r}; omit the key.")
    if pattern:
        return PatternImages(path, channels, skip_corrupt)
    if path.is_dir():
        return FolderImages(path, channels, skip_corrupt)
    if suffix == ".zip":
        return ZipImages(regular_file(path, "zip"), channels, skip_corrupt)
    advice = "; for some files of a folder, quote a pattern, such as 'imgs/*.png'" * (suffix in suffixes())
    raise InputError(f"{path} is not a folder, .zip, .npy or .npz; put the images into one of these{advice}.")


def to_uint8(images: Tensor, data_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """8-bit images from floats in the data range, rounded (ties to even) and clamped; uint8 passes unchanged.

    Warns where values are clamped by more than rounding. Raises InputError for NaN or Inf, for other integers, for what
    is no tensor, and for an empty range.
    """
    low, high = checks.given(checks.bounds("data_range", data_range), "data_range is None; give (low, high).")
    if checks.instance("images", images, Tensor, "a tensor").dtype == torch.uint8:
        return images
    found = images.dtype
    wrong = not images.is_floating_point()
    checks.refuse(wrong, f"images are {found}; expected uint8 (0..255) or floats in the data range: convert them.")
    wrong = not bool(torch.isfinite(images).all())
    checks.refuse(wrong, "images hold NaN or Inf; expected finite numbers in the data range: look at what made them.")
    if outside := outside_range(images[None], (low, high), ROUNDED):
        warn(
            f"images hold values from {outside.least:.4g} to {outside.most:.4g}, outside the data range [{low:g}, "
            f"{high:g}], and {outside.share:.2g} of them are clamped; if their range is another one, pass it."
        )
    return ((images.double() - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor, data_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Inverse of `to_uint8`: float32 images in the data range [a, b] from uint8, a + u (b − a)/255."""
    low, high = checks.given(checks.bounds("data_range", data_range), "data_range is None; give (low, high).")
    wrong = checks.instance("images", images, Tensor, "a tensor").dtype != torch.uint8
    checks.refuse(wrong, f"images are {images.dtype}; expected uint8: floats need no conversion.")
    return low + images.float() * ((high - low) / 255.0)


def writable_shape(name: str, shape: tuple[int, ...], videos: bool = False) -> None:
    """Refuse images of a shape that PNG files and scores do not have, before they are made; PNG files hold videos."""
    moving = ", or videos (1, F, H, W) or (3, F, H, W)" if videos else ""
    checks.refuse(
        len(shape) not in ((3, 4) if videos else (3,)) or shape[0] not in (1, 3),
        f"{name} have shape {shape}, but pictures are (1, H, W) or (3, H, W){moving}; sample in Python, and save "
        "arrays of your own.",
    )


def _checked_pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    checks.instance("images", images, Tensor, "a tensor (B, C, H, W) of uint8; stack them")
    if images.dtype != torch.uint8 or images.ndim not in (4, 5) or images.shape[1] not in (1, 3):
        raise InputError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected uint8 (B, C, H, W), 1 or 3 channels, "
            "or videos (B, C, F, H, W): convert with to_uint8, or save latents as an array of your own."
        )
    pixels: npt.NDArray[np.uint8] = images.detach().cpu().contiguous().numpy()
    return pixels


def encode_images(images: Tensor) -> list[bytes]:
    """The PNG files of uint8 images (B, C, H, W), C = 1 or 3; of videos (B, C, F, H, W) animated ones."""
    files = []
    for image in _checked_pixels(images):
        buffer = io.BytesIO()
        first, *more = map(_pillow, image.swapaxes(0, 1) if image.ndim == 4 else [image])
        moving: dict[str, Any] = {"save_all": True, "append_images": more, "duration": _MILLISECONDS} if more else {}
        first.save(buffer, "PNG", **moving)
        files.append(buffer.getvalue())
    return files


def _pillow(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Of pixels (C, H, W)."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def save_images(images: Tensor, folder: str | os.PathLike[str], start: int = 0) -> None:
    """Write uint8 images (B, C, H, W), C = 1 or 3, as `000000.png`, ... from number `start`, each file atomically."""
    files = encode_images(images)
    target = make_folder(folder)
    write_together({target / f"{number:06d}.png": content for number, content in enumerate(files, start)})


def save_npz(images: Tensor, path: str | os.PathLike[str], *, run: str | None = None) -> None:
    """Write uint8 images (N, C, H, W), or videos (N, C, F, H, W), C = 1 or 3, as one `.npz`, atomically.

    They are under the key `images`.
    `run` is kept in the file, under the key `run`: the name of the run that made them.
    """
    pixels = _checked_pixels(images)
    if Path(path).suffix.lower() != ".npz":
        raise InputError(f"{path} does not end in .npz; give the file that suffix, so that it can be read again.")
    arrays = {"images": pixels} | ({} if run is None else {"run": np.array(run)})
    write_atomic(path, lambda file: np.savez(file, **arrays))
