"""Where images come from: a folder of image files at any depth, or a zip of them. (One array: see `arrays.py`.)

Every source is a map-style `Dataset` of (C, H, W) tensors of one shape. The shapes in a folder or zip are checked
when the source is opened (from the files' headers, without decoding them), so that one odd file is found before an
hour of work and not after it. Nothing is ever unpacked to disk.

*Order.* Files are sorted by their path relative to the source, as text, so an index means the same image everywhere.
Hidden files and folders (a leading dot) and `__MACOSX` are skipped, and so is what is no image, like the
`dataset.json` of EDM's zips.

*Corrupt files.* A truncated image shows only when it is decoded. Where corrupt files are to be skipped, every file is
therefore decoded once when the source is opened: its length and its indices are then final. Which were skipped is
warned of and kept in `skipped`. A file that is whole but unusable (16 bits, another shape) is refused all the same.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, warn

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
# No honest image or zip is larger, a bomb is.
LARGEST_MEMBER = 512 * 2**20  # bytes
LARGEST_PIXELS = 2**26
MOST_MEMBERS = 2**25


class ImageSource(Dataset[Tensor]):
    """Images of one shape (C, H, W), by index. `name(i)` says where image i comes from, for messages.

    `skipped` names the corrupt files that were left out, if that was asked for.
    """

    path: Path
    shape: tuple[int, int, int]
    skipped: tuple[str, ...] = ()

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


class _Corrupt(InputError):
    """A file that cannot be decoded; what `skip_corrupt` skips."""


class _Files(ImageSource):
    """What a folder and a zip share: named image files, decoded one at a time to uint8."""

    def __init__(self, path: Path, channels: int | None, skip_corrupt: bool = False) -> None:
        self.path, self.channels = path, channels
        self.names = self._list()
        if not self.names:
            raise InputError(f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}.")
        if skip_corrupt:
            self._skip()
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

    def _skip(self) -> None:
        """Decode every file and leave out those that cannot be."""
        whole = []
        for index in range(len(self.names)):
            try:
                self.load(index)
                whole.append(index)
            except _Corrupt:
                pass
        if not whole:
            raise InputError(f"none of the {len(self.names)} images in {self.path} can be decoded; make them again.")
        self.skipped = tuple(self.names[index] for index in sorted({*range(len(self.names))} - {*whole}))
        self.names = [self.names[index] for index in whole]
        if self.skipped:
            shown = ", ".join(self.skipped[:5]) + (", …" if len(self.skipped) > 5 else "")
            warn(f"{len(self.skipped)} corrupt images of {self.path} are skipped ({shown}); {len(whole)} are left.")

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
            with warnings.catch_warnings(), self._open(index) as file:
                warnings.simplefilter("ignore")  # PIL's own, of sizes (checked below) and odd palettes
                image = Image.open(file)
                if image.width * image.height > LARGEST_PIXELS:
                    raise InputError(self._too_large(index, f"{image.width}x{image.height}"))
                # PIL clips or truncates 16-bit samples silently; the raw mode in the tiles tells (RGB;16B, I;16, ...).
                if image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", "")):
                    raise InputError(
                        f"{self.name(index)} does not hold 8-bit samples; convert it to 8 bits per channel."
                    )
                grey = self.channels == 1 or (self.channels is None and image.mode in ("1", "L", "LA"))
                yield image, "L" if grey else "RGB"
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(self._too_large(index, "far too many")) from error
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... on bad data
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
            raise _Corrupt(
                f"{self.name(index)} cannot be read as an image ({reason}); repair or remove it, or skip such files "
                "with skip_corrupt=True (--skip-corrupt)."
            ) from error

    def _too_large(self, index: int, pixels: str) -> str:
        return f"{self.name(index)} declares {pixels} pixels; expected at most {LARGEST_PIXELS}: remove or shrink it."


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

    def __init__(self, path: Path, channels: int | None, skip_corrupt: bool = False) -> None:
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        super().__init__(path, channels, skip_corrupt)

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked worker must not share the file position
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.path} cannot be read as a zip ({error}); make it again.") from error
        return self._opened[1]

    def _list(self) -> list[str]:
        self._members: dict[str, zipfile.ZipInfo] = {}
        members = self._archive().infolist()
        packed = sum(member.compress_size for member in members)
        if len(members) > MOST_MEMBERS or packed > self.path.stat().st_size:
            raise InputError(
                f"{self.path} declares {len(members)} members of {packed} packed bytes, which such a file cannot "
                f"honestly hold (at most {MOST_MEMBERS} are read); make it again."
            )
        for member in members:
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
