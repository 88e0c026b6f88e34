"""The manifest of a folder: which run made its files, and the SHA-256 of each, so that only what is whole is accepted.

It is a file SHA256SUMS, as `sha256sum --check SHA256SUMS` reads it, whose comment names the run. Files are on the disk
before their lines are; a file without its line (its writer was killed), or unlike it (empty, cut, damaged, another's),
is not there, as far as the run is concerned that would make it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath

from .files import sync_folder, write_atomic, write_together

NAME = "SHA256SUMS"
_RUN = re.compile(r"# run ([0-9a-f]{64})(?: of (\d{1,9}) files)?")
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


class Manifest:
    """The manifest of `folder` for a run, whose folder is locked.

    Args:
        folder: which need not exist.
        run: the run's identity, as a SHA-256 in hex.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.path, self.run = folder, folder / NAME, run
        self._sums: dict[str, str] = {}
        self._count: int | None = None  # of files, where all were committed at once
        self.belongs = self._read()

    def _read(self) -> bool:
        """Whether the folder's manifest is this run's; then its sums are known."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return False
        first = _RUN.fullmatch(lines[0])
        if first is None or first[1] != self.run:
            return False
        self._count = None if first[2] is None else int(first[2])
        for line in lines[1:-1]:  # what follows the last newline was cut
            if (found := _LINE.fullmatch(line)) and _is_inside(found[2]):
                self._sums[found[2]] = found[1]
        return True

    def intact(self) -> set[str]:
        """The names of this run's files that are as they were written."""
        return {name for name, digest in self._sums.items() if _digest(self.folder / name) == digest}

    def is_whole(self) -> bool:
        """Whether this run has written files, and all of them are as they were written."""
        expected = len(self._sums) if self._count is None else self._count
        return bool(self._sums) and len(self.intact()) == expected

    def begin(self, kept: Collection[str] = ()) -> None:
        """From now on the folder is this run's, with those of its files that are `kept`."""
        self._sums, self._count = {name: self._sums[name] for name in sorted(kept)}, None
        self._write()

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files of a run that has begun, and their lines."""
        self.note(write_files(self.folder, contents))

    def note(self, sums: Mapping[str, str]) -> None:
        """Write the lines of files that are on the disk, with their SHA-256."""
        if not sums:
            return
        with open(self.path, "ab") as file:
            file.write("".join(map(_line, sums.items())).encode())
            file.flush()
            os.fsync(file.fileno())
        self._sums |= sums

    def settle(self) -> None:
        """The run is over: its lines stand in the order of names, whoever wrote the files and when."""
        if [*self._sums] != sorted(self._sums):
            self.begin([*self._sums])

    def end(self, names: Collection[str]) -> None:
        """Write the manifest of files that are there: a run that commits them all at once."""
        self._sums = {name: _digest(self.folder / name) or "" for name in sorted(names)}
        self._count = len(self._sums)
        self._write()

    def _write(self) -> None:
        count = "" if self._count is None else f" of {self._count} files"
        write_atomic(self.path, "".join([f"# run {self.run}{count}\n", *map(_line, self._sums.items())]).encode())

    def remove(self) -> None:
        """Before files are replaced: nothing in the folder is whole."""
        if self.path.exists():
            self.path.unlink()
            sync_folder(self.folder)


def _is_inside(name: str) -> bool:
    """Whether a name leads to a file of the folder."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def write_files(folder: Path, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Write files into a manifest's folder, for whoever has the manifest to `note`: the SHA-256 of each."""
    write_together({folder / name: content for name, content in contents.items()})
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _line(item: tuple[str, str]) -> str:
    name, digest = item
    return f"{digest}  {name}\n"


def _digest(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # a name with a null byte
        return None
