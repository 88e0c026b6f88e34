"""Images from one array: an `.npy` file, or one member of an `.npz`, of any size and in constant memory.

*Layout.* (N, H, W) is grey. Of four axes, axis 1 is the channel where its length is 1 or 3; else the last axis where
its length is 1, 3 or 4; else axis 1 where its length is 4; anything else is refused. Five axes are videos, (N, C, F, H,
W) or (N, F, H, W, C), by the same rule.

*Memory.* From an `.npy`, and from a member that is stored uncompressed (`numpy.savez`), single images are read. A
compressed member (`numpy.savez_compressed`) is decompressed whole where that is small; a large one is decompressed as
it is read, one image at a time, so that it is read quickly from front to back, and slowly in any other order. (Arrays
in Fortran order have no such rows: they are mapped, or decompressed whole.) Damage in a member is found in each of
these ways, by the zip's checksum. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..checks import refuse
from ..errors import InputError
from ..files import regular_file
from .sources import ImageSource
from .zips import open_member

ARRAY_KEYS = ("images", "arr_0", "samples", "x")
LARGEST_IN_MEMORY = 2**28  # bytes; a compressed member that is larger is decompressed as it is read


class Rows(Protocol):
    """What is asked of an array: its type, its shape, and one row after the other."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int, /) -> Any: ...


def open_array(path: Path, key: str | None = None) -> Rows:
    """The array of images at `path` (.npy or .npz), under `key`, by default that of `ARRAY_KEYS` or the only one.

    Raises InputError for a file that cannot be read, and for a missing or ambiguous key.
    """
    regular_file(path, "array")
    with _readable(path):
        if path.suffix.lower() == ".npy":
            if key is not None:
                raise InputError(f"{path} is a single array without names; omit the key {key!r}.")
            with open(path, "rb") as file:
                shape, fortran, dtype = _header(file, path.stat().st_size)
                return _stored(path, shape, fortran, dtype, file.tell())
        with zipfile.ZipFile(path) as archive:
            return _member(path, archive, _chosen(path, names_in(archive), key))


def names_in(archive: zipfile.ZipFile) -> list[str]:
    """The names of the arrays of an .npz. Raises InputError for one that is there twice."""
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    refuse(len({*keys}) < len(keys), f"{archive.filename} holds the arrays {keys}, one name twice; write it again.")
    return keys


def whole_array(archive: zipfile.ZipFile, key: str) -> npt.NDArray[Any]:
    """One array of an .npz, in memory. Raises ValueError for one that is not as large as it declares."""
    info = archive.getinfo(f"{key}.npy")
    with open_member(archive, info) as file:
        _header(file, info.file_size)
    with open_member(archive, info) as file:
        whole: npt.NDArray[Any] = npy.read_array(file, allow_pickle=False)
        _finish(file)
    return whole


def _chosen(path: Path, keys: list[str], key: str | None) -> str:
    known = [name for name in ((key,) if key is not None else ARRAY_KEYS) if name in keys]
    known = known or keys * (len(keys) == 1 and key is None)
    if known:
        return known[0]
    advice = "; these are feature statistics, not images" if {"mu", "sigma"} <= set(keys) else ""
    wanted = f"{key!r}" if key is not None else f"one named {', '.join(ARRAY_KEYS)}, or a single array"
    raise InputError(f"{path} holds the arrays {keys}{advice}; expected {wanted}.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever fails inside is an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # numpy raises OSError, ValueError, EOFError, BadZipFile, zlib.error, ...
        raise InputError(
            f"{path} cannot be read as a numpy array ({str(error).rstrip('.')}); write it again."
        ) from error


def _member(path: Path, archive: zipfile.ZipFile, key: str) -> Rows:
    """One array, by the cheapest of the three ways of the module docstring."""
    info = archive.getinfo(f"{key}.npy")
    with open_member(archive, info) as file:
        shape, fortran, dtype = _header(file, info.file_size)
        start = file.tell()
    if info.compress_type == zipfile.ZIP_STORED:
        _verify(path, info)
        return _stored(path, shape, fortran, dtype, _offset(path, info) + start)
    if info.file_size <= LARGEST_IN_MEMORY or fortran or not shape:  # the rows of Fortran order do not come in order
        return whole_array(archive, key)
    return CompressedRows(path, info.filename, shape, dtype, start)


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array in a file of `size` bytes, left at its first number."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled")
    if any(length < 0 for length in shape) or _count(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"it declares {shape} {dtype} numbers, but has {size - file.tell()} bytes")
    return shape, fortran, dtype


def _stored(path: Path, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any], start: int) -> Rows:
    if fortran and _count(shape):
        return np.memmap(path, dtype, "r", offset=start, shape=shape, order="F")
    return StoredRows(path, shape, dtype, start)


def _count(shape: tuple[int, ...]) -> int:
    """Numbers in an array of this shape, in Python's integers, which do not overflow."""
    return math.prod(list(shape))


def _offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member is not where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)


def _verify(path: Path, info: zipfile.ZipInfo) -> None:
    """Compare a stored member with its checksum; a mapped file would never tell."""
    checksum, left = 0, info.file_size
    with open(path, "rb") as file:
        file.seek(_offset(path, info))
        while left:
            block = file.read(min(left, 2**20))
            if not block:
                raise EOFError("it ends too early")
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    if checksum != info.CRC:
        raise zipfile.BadZipFile(f"wrong checksum of {info.filename}")


def _finish(file: IO[bytes]) -> None:
    # zipfile compares the checksum when it meets the end, which reading the last byte alone need not do.
    if file.read(1):
        raise ValueError("it is longer than it says")


class StoredRows:
    """The rows that begin at byte `start` of a file.

    A memory map would do too, but count as memory, and be copied whole for every process that is spawned.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> None:
        self.path, self.shape, self.dtype, self.start = path, shape, dtype, start

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        size = _count(self.shape[1:]) * self.dtype.itemsize
        # Opened each time (10 µs), so that processes may share this.
        with _readable(self.path), open(self.path, "rb", buffering=0) as file:
            file.seek(self.start + index * size)
            return np.frombuffer(file.read(size), self.dtype).reshape(self.shape[1:])


class CompressedRows:
    """The rows of a compressed member, decompressed as they are read; going back starts again from the front."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> None:
        self.path, self.member, self.shape, self.dtype, self.start = path, name, shape, dtype, start
        self._opened: tuple[int, IO[bytes]] | None = None
        self._next = 0

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        size = _count(self.shape[1:]) * self.dtype.itemsize
        with _readable(self.path):
            # Each process opens the file for itself: a forked worker must not share the position.
            if self._opened is None or self._opened[0] != os.getpid() or index < self._next:
                archive = zipfile.ZipFile(self.path)  # closed with its member
                self._opened = os.getpid(), open_member(archive, archive.getinfo(self.member))
                self._next = 0
                self._skip(self.start)
            self._skip((index - self._next) * size)
            file = self._opened[1]
            content = file.read(size)
            if len(content) != size:
                raise EOFError("it ends too early")
            self._next = index + 1
            if self._next == self.shape[0]:
                _finish(file)
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def _skip(self, count: int) -> None:
        assert self._opened is not None
        while count > 0:
            block = self._opened[1].read(min(count, 2**20))
            if not block:
                raise EOFError("it ends too early")
            count -= len(block)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_next": 0}


class ArrayImages(ImageSource):
    """Images in one array, uint8 or float (given as float32), in any layout of the module's rule; see there."""

    def __init__(self, path: Path, array: Rows, channels: int | None) -> None:
        self.path, self.channels, self.array = path, channels, array
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise InputError(
                f"{path} holds {array.dtype} numbers; expected uint8 (0..255) or floats: convert it first."
            )
        shape = array.shape
        several = len(shape) in (4, 5)
        stored: tuple[int, ...]
        self._axes: tuple[int, ...] | None
        if len(shape) == 3:
            stored, self._axes = (1, *shape[1:]), None
        elif several and shape[1] not in (1, 3) and shape[-1] in (1, 3, 4):
            stored, self._axes = (shape[-1], *shape[1:-1]), (len(shape) - 2, *range(len(shape) - 2))
        elif several and shape[1] in (1, 3, 4):
            stored, self._axes = shape[1:], tuple(range(len(shape) - 1))
        else:
            raise InputError(
                f"{path} holds an array of shape {shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W) with 1, 3 "
                "or 4 channels, or videos (N, C, F, H, W) or (N, F, H, W, C): transpose or reshape it."
            )
        if _count(shape) == 0:
            raise InputError(f"{path} holds no images (its array has shape {shape}); expected at least one.")
        if channels is not None and stored[0] not in (channels, 1, 3):
            raise InputError(f"{path} holds {stored[0]} channels, which do not convert to {channels}; omit channels.")
        self.shape = (channels or stored[0], *stored[1:])

    def __len__(self) -> int:
        return self.array.shape[0]

    def name(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def load(self, index: int) -> Tensor:
        stored = np.asarray(self.array[index])
        stored = stored[None] if self._axes is None else stored.transpose(self._axes)
        # A copy in this machine's byte order: what was mapped or decompressed is read-only, and torch knows no other.
        image = torch.from_numpy(
            np.array(stored, dtype=np.uint8 if stored.dtype == np.uint8 else np.float32, order="C")
        )
        if len(image) == self.shape[0]:
            return image
        if self.shape[0] == 3:
            return image.repeat(3, *(1,) * (image.ndim - 1))
        if image.dtype == torch.uint8:  # ITU-R 601 luma in the fixed-point arithmetic of PIL, to give the same bytes
            red, green, blue = image.to(torch.int32).unbind()
            luma = torch.bitwise_right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)
            return luma.to(torch.uint8)[None]
        return (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])[None]
