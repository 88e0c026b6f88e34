"""Atomic writing: a file is either the old one or the whole new one, never half of it.

Write to a temporary file beside the target, flush and fsync it, then rename it over the target. The temporary
file is removed on any failure, a full disk included, so that nothing is written and nothing is lost.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from .errors import InputError


def write_atomic(
    path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], None], durable: bool = True
) -> None:
    """Write `content` (bytes, or a function that writes to an open binary file) to `path` atomically.

    The new file gets the permissions that `open` would give (0666 less the umask). `durable=False` leaves out the
    fsync (milliseconds a file): still all or nothing for every program, but a power failure may cost the file.
    Raises InputError, with the reason, where the operating system refuses (no folder, no permission, no space).
    """
    target = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, new_file_mode())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"could not write {target}: {reason}; nothing was changed there.") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def new_file_mode() -> int:
    """The permissions that `open` would give a new file: 0666 less the umask."""
    # The umask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def require_empty_folder(path: str | os.PathLike[str], overwrite: bool, ignore: Collection[str] = ()) -> Path:
    """The folder `path`, which need not exist; refused if it holds anything but `ignore`, unless `overwrite`."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file, but a folder is needed; choose another path.")
    # A process that was killed while it wrote leaves a temporary file, which is nobody's.
    found = [e.name for e in folder.iterdir() if not fnmatch(e.name, ".*.tmp")] if folder.is_dir() else []
    if not overwrite and any(name not in ignore for name in found):
        raise InputError(f"the output folder {folder} is not empty; choose another one or pass --overwrite.")
    return folder


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder, and those above it, if absent; InputError where the operating system refuses."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"could not make the output folder {folder}: {error.strerror}; choose another path."
        ) from error
    return folder


def require_writable_folder(path: str | os.PathLike[str]) -> None:
    """Refuse, before long work, a folder that is missing or cannot be written to."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"the folder {folder} of the output does not exist; make it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} of the output cannot be written to; choose another path.")


def require_new_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a file that exists (unless `overwrite`), and a path whose folder is missing."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"the output {target} is a folder, but a file is needed; add a file name.")
    if target.exists() and not overwrite:
        raise InputError(f"the output {target} exists already; choose another name or pass --overwrite.")
    require_writable_folder(target.parent)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with the home folder in the place of a leading ~ (or ~user), as shells have it where it is not quoted."""
    return Path(os.path.expanduser(path))


def regular_file(path: str | os.PathLike[str], name: str = "file") -> Path:
    """`path`, or an InputError unless a regular file, or a link to one, is there; `name` says what is expected in it.

    To open a pipe waits for a writer, and a device need never end: neither is opened to find out.
    """
    file = Path(path)
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no {name} {file}; check the path.") from error
    except (OSError, ValueError) as error:  # of a folder without permission, a loop of links, a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the {name} {str(file)!r} cannot be looked at ({reason}); check the path.") from error
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "no file")
        raise InputError(f"the {name} {file} is {found}, but a regular file is needed; choose another path.")
    return file
