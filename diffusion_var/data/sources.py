"""Where images come from: a folder of image files at any depth, a pattern, or a zip. (One array: see `arrays.py`.)

Every source is a map-style `Dataset` of (C, H, W) tensors of one shape. The shapes of files are checked when the
source is opened (from the files' headers, without decoding them), so that one odd file is found before an hour of work
and not after it. Nothing is ever unpacked to disk. How a file becomes pixels is in `decoding.py`.

*Order.* Files are sorted by their path relative to the source, as text, so an index means the same image everywhere.

*What is left out.* Hidden files and folders (a leading dot) and `__MACOSX` are skipped, and so are texts beside the
images, like the `dataset.json` of EDM's zips. Every other file that is not read is counted by its suffix in a warning,
and so are the frames of animations and the pages after the first: a file is one image.

*Corrupt files.* A truncated image shows only when it is decoded. Where corrupt files are to be skipped, every file is
therefore decoded once when the source is opened: its length and its indices are then final. Which were skipped is
warned of and kept in `skipped`. A file that is whole but unusable (16 bits, another shape) is refused all the same.
"""

from __future__ import annotations

import glob
import io
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from .. import checks
from ..errors import InputError, warn
from ..files import regular_file
from .decoding import frames_of, open_image, pixels_of, shape_of, suffixes
from .zips import read_member

# No honest zip of images holds larger ones, or more; a bomb does.
LARGEST_MEMBER = 512 * 2**20  # bytes
MOST_MEMBERS = 2**25
# What lies beside images and is none: notes, records and lists.
_TEXTS = frozenset(
    (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".xml", ".yaml", ".yml", ".toml", ".html", ".log")
) | {".ini", ".db"}
_TEXT_NAMES = frozenset({"readme", "license", "licence", "copying", "notice", "sha256sums"})


class ImageSource(Dataset[Tensor]):
    """Images (C, H, W), or videos (C, F, H, W), of one shape, by index. `name(i)` says where image i is from.

    `skipped` names the corrupt files that were left out, if that was asked for; `left_out` counts the files that are
    no images by their suffix, and so were never tried.
    """

    path: Path
    shape: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    left_out: int = 0

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
        self.names = self._chosen(self._list())
        if skip_corrupt:
            self._skip()
        several = {}
        for index in range(len(self.names)):
            with self._image(index) as image:
                shape, frames = shape_of(image, self.channels), frames_of(image)
            if index == 0:
                self.shape = shape
            self._require_shape(index, shape)
            if frames > 1:
                several[self.names[index]] = frames
        if several:
            shown = checks.listing([f"{name}: {frames}" for name, frames in several.items()], most=5)
            others = sum(several.values()) - len(several)
            warn(
                f"{len(several)} files of {path} hold several pages or frames ({shown}); the first of each is read, "
                f"and {others} are left out: save those that are wanted as files of their own."
            )

    def _chosen(self, found: Iterable[str]) -> list[str]:
        """The image files, in order; what else there is, is counted in a warning."""
        names, left_out = [], Counter[str]()
        for name in map(PurePosixPath, found):
            if any(part[0] == "." or part == "__MACOSX" for part in name.parts):
                continue
            suffix = name.suffix.lower()
            if suffix in suffixes():
                names.append(str(name))
            elif suffix not in _TEXTS and name.stem.lower() not in _TEXT_NAMES:
                left_out[suffix or "without a suffix"] += 1
        self.left_out = left_out.total()
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in left_out.most_common(8))
        if not names:
            raise InputError(
                f"{self.path} holds no images{f' but {counts}' * bool(counts)}; expected files ending in "
                f"{', '.join(sorted(suffixes()))}."
            )
        if left_out:
            warn(f"{self.left_out} files of {self.path} are left out: {counts}; {len(names)} images are read.")
        return sorted(names)

    def _require_shape(self, index: int, shape: tuple[int, int, int]) -> None:
        if shape != self.shape:
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
                self._decode(index)
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
        pixels = self._decode(index)
        self._require_shape(index, (pixels.shape[0], pixels.shape[1], pixels.shape[2]))
        return pixels

    def _decode(self, index: int) -> Tensor:
        with self._image(index) as image:
            return pixels_of(image, self.name(index), self.channels)

    @contextmanager
    def _image(self, index: int) -> Iterator[Image.Image]:
        """One open image; whatever fails inside is an InputError that names the file."""
        try:
            with warnings.catch_warnings(), self._open(index) as file:
                warnings.simplefilter("ignore")  # PIL's own, of sizes (checked already) and odd palettes
                yield open_image(file, self.name(index))
        except InputError:
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... on bad data
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
            raise _Corrupt(
                f"{self.name(index)} cannot be read as an image ({reason}); repair or remove it, or skip such files "
                "with skip_corrupt=True."
            ) from error


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
        return found

    def name(self, index: int) -> str:
        return str(self.path / self.names[index])

    def _open(self, index: int) -> IO[bytes]:
        return _opened(self.path / self.names[index])


def _opened(path: Path) -> IO[bytes]:
    # A broken link is a corrupt file; a pipe or a device would be waited for.
    return open(regular_file(path, "image") if path.exists() else path, "rb")


class PatternImages(_Files):
    """The image files that a pattern matches, as a shell would: `*`, `?`, `[…]`, and `**` for folders at any depth."""

    def _list(self) -> list[str]:
        parts = self.path.parts
        fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
        self._base = Path(*parts[:fixed])
        found = [Path(match) for match in glob.glob(str(self.path), recursive=True)]
        return [match.relative_to(self._base).as_posix() for match in found if not match.is_dir()]

    def name(self, index: int) -> str:
        return str(self._base / self.names[index])

    def _open(self, index: int) -> IO[bytes]:
        return _opened(self._base / self.names[index])


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
            if member.is_dir():
                continue
            if name.suffix.lower() in suffixes() and member.file_size > LARGEST_MEMBER:
                raise InputError(
                    f"{self.path} declares {member.file_size} bytes for {member.filename!r}; expected at most "
                    f"{LARGEST_MEMBER} bytes an image: remove that member."
                )
            wrong = name.suffix.lower() in suffixes() and str(name) in self._members
            checks.refuse(wrong, f"{self.path} holds two members named {str(name)!r}; make the zip again.")
            self._members[str(name)] = member
        return [*self._members]

    def name(self, index: int) -> str:
        return f"{self.names[index]} in {self.path}"

    def _open(self, index: int) -> IO[bytes]:
        return io.BytesIO(read_member(self._archive(), self._members[self.names[index]]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
