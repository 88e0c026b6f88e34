"""Where images come from: a folder of image files at any depth, a zip of image files, or one array.

Every source is a map-style `Dataset` of (C, H, W) tensors of one shape. The shapes in a folder or zip are checked
when the source is opened (from the files' headers, without decoding them), so that one odd file is found before an
hour of work and not after it. Nothing is ever unpacked to disk or unpickled.

*Order.* Files are sorted by their path relative to the source, as text, so an index means the same image everywhere.
Hidden files and folders (a leading dot) and `__MACOSX` are skipped.

*Array layout.* (N, H, W) is grey. Of four axes, axis 1 is the channel where its length is 1 or 3; else the last axis
where its length is 1, 3 or 4; else axis 1 where its length is 4; anything else is refused.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
LARGEST_MEMBER = 512 * 2**20  # bytes; no honest image is larger, a zip bomb is


class ImageSource(Dataset[Tensor]):
    """Images of one shape (C, H, W), by index. `name(i)` says where image i comes from, for messages."""

    shape: tuple[int, int, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def load(self, index: int) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.load(index % len(self))


class _Files(ImageSource):
    """What a folder and a zip share: named image files, decoded one at a time to uint8."""

    def __init__(self, path: Path, channels: int | None) -> None:
        self.path, self.channels = path, channels
        self.names = self._list()
        if not self.names:
            raise InputError(f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}.")
        for index in range(len(self.names)):
            with self._image(index) as (image, mode):
                shape = (1 if mode == "L" else 3, image.height, image.width)
            if index == 0:
                self.shape = shape
            elif shape != self.shape:
                raise InputError(
                    f"{self.name(index)} has shape {shape} (C, H, W), but {self.name(0)} has {self.shape}; all images "
                    "must share one shape: resize or remove the odd ones, or, if only the number of channels differs, "
                    "pass channels=1 or channels=3."
                )

    def __len__(self) -> int:
        return len(self.names)

    def _list(self) -> list[str]:
        raise NotImplementedError

    def _open(self, index: int) -> IO[bytes]:
        raise NotImplementedError

    def load(self, index: int) -> Tensor:
        with self._image(index) as (image, mode):
            pixels = np.array(image.convert(mode), dtype=np.uint8)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())

    @contextmanager
    def _image(self, index: int) -> Iterator[tuple[Image.Image, str]]:
        """One open image and the mode to convert it to; whatever fails inside is an InputError that names the file."""
        try:
            with self._open(index) as file, Image.open(file) as image:
                # PIL clips or truncates 16-bit samples silently; the raw mode in the tiles tells (RGB;16B, I;16, ...).
                if image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", "")):
                    raise InputError(
                        f"{self.name(index)} does not hold 8-bit samples; convert it to 8 bits per channel."
                    )
                grey = self.channels == 1 or (self.channels is None and image.mode in ("1", "L", "LA"))
                yield image, "L" if grey else "RGB"
        except InputError:
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... on bad data
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
            raise InputError(
                f"{self.name(index)} cannot be read as an image ({reason}); repair or remove it."
            ) from error


def _wanted(name: PurePosixPath) -> bool:
    return name.suffix.lower() in SUFFIXES and not any(part[0] == "." or part == "__MACOSX" for part in name.parts)


class FolderImages(_Files):
    """Image files below a folder, at any depth; links are followed, each real folder once."""

    def _list(self) -> list[str]:
        def refuse(error: OSError) -> None:  # os.walk would skip what it may not read
            raise InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error

        found, seen = [], set()
        for root, folders, files in os.walk(self.path, onerror=refuse, followlinks=True):
            if (real := os.path.realpath(root)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            found += [Path(root, file).relative_to(self.path).as_posix() for file in files]
        return sorted(name for name in found if _wanted(PurePosixPath(name)))

    def name(self, index: int) -> str:
        return str(self.path / self.names[index])

    def _open(self, index: int) -> IO[bytes]:
        return open(self.path / self.names[index], "rb")


class ZipImages(_Files):
    """Image files inside a zip, read in memory. Opened lazily in each process, so workers may share the source."""

    def __init__(self, path: Path, channels: int | None) -> None:
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        super().__init__(path, channels)

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked worker must not share the file position
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.path} cannot be read as a zip ({error}); make it again.") from error
        return self._opened[1]

    def _list(self) -> list[str]:
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive().infolist():
            name = PurePosixPath(member.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", str(name)):
                raise InputError(
                    f"{self.path} holds a member named {member.filename!r}, which points outside the zip; "
                    "make the zip again with plain relative names."
                )
            if member.is_dir() or not _wanted(name):
                continue
            if member.file_size > LARGEST_MEMBER:
                raise InputError(
                    f"{self.path} declares {member.file_size} bytes for {member.filename!r}; expected at most "
                    f"{LARGEST_MEMBER} bytes an image: remove that member."
                )
            self._members[member.filename] = member
        return sorted(self._members)

    def name(self, index: int) -> str:
        return f"{self.names[index]} in {self.path}"

    def _open(self, index: int) -> IO[bytes]:
        return io.BytesIO(self._archive().read(self._members[self.names[index]]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class ArrayImages(ImageSource):
    """Images in one array, uint8 or float (given as float32), in any layout of the module's rule; see there."""

    def __init__(self, path: Path, array: npt.NDArray[Any], channels: int | None) -> None:
        self.path, self.channels = path, channels
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise InputError(
                f"{path} holds {array.dtype} numbers; expected uint8 (0..255) or floats: convert it first."
            )
        shape = array.shape
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3, 4):
            array = array.transpose(0, 3, 1, 2)
        elif array.ndim != 4 or shape[1] not in (1, 3, 4):
            raise InputError(
                f"{path} holds an array of shape {shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W) with 1, 3 "
                "or 4 channels: transpose or reshape it."
            )
        if array.size == 0:
            raise InputError(f"{path} holds no images (its array has shape {shape}); expected at least one.")
        if channels is not None and array.shape[1] not in (channels, 1, 3):
            raise InputError(
                f"{path} holds {array.shape[1]} channels, which do not convert to {channels}; omit channels."
            )
        self.array = array
        self.shape = (channels or array.shape[1], array.shape[2], array.shape[3])

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def load(self, index: int) -> Tensor:
        array = self.array[index]
        image = torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32))
        if len(image) == self.shape[0]:
            return image
        if self.shape[0] == 3:
            return image.repeat(3, 1, 1)
        if image.dtype == torch.uint8:  # ITU-R 601 luma in the fixed-point arithmetic of PIL, to give the same bytes
            red, green, blue = image.to(torch.int32).unbind()
            return torch.bitwise_right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16).to(torch.uint8)[
                None
            ]
        return (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])[None]
