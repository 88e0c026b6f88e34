"""Atomic writing: a file is either the old one or the whole new one, never half of it, and stays so after a power cut.

Write to a temporary file beside the target, flush and fsync it, rename it over the target, fsync the folder. The
temporary file is removed on any failure, a full disk included, so that nothing is written and nothing is lost. Only a
writer that was killed leaves it; its name is the target's, and it is locked while its writer lives, so that the next
writer of the same target knows it for nobody's and removes it (`sweep`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from . import checks
from .errors import InputError

if sys.platform != "win32":
    import fcntl

Content = bytes | Callable[[IO[bytes]], object]
_AT_ONCE = 64  # files that wait for the disk together


def write_atomic(path: str | os.PathLike[str], content: Content) -> None:
    """Write `content` (bytes, or a function that writes to an open binary file) to `path` atomically and durably.

    A new file gets the permissions that `open` would give (0666 less the umask); one that is replaced hands on its own,
    and its owner where that is allowed. A symbolic link stays: the file that it leads to is written. Another name (hard
    link) of a file that is replaced keeps the old content.
    Raises InputError, with the reason, where the operating system refuses (no folder, no permission, no space), and for
    a pipe or a device.
    """
    write_together({expanded(path): content})
    target = _followed(expanded(path))
    sweep(target.parent, target.name)


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files, each as `write_atomic` does; they wait for the disk together, which for small ones costs
    little more than not to wait."""
    files = list(contents.items())
    for start in range(0, len(files), _AT_ONCE):
        _write_batch(dict(files[start : start + _AT_ONCE]))


def _write_batch(contents: Mapping[Path, Content]) -> None:
    with ExitStack() as stack:
        made = []
        for path, content in contents.items():
            target = _followed(path)
            stack.enter_context(_told(path))
            temporary, file = stack.enter_context(_aside(target))
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            made.append((target, temporary, file.fileno()))
        _to_disk([handle for *_, handle in made])
        for target, temporary, handle in made:
            _hand_on(target, handle)
            os.replace(temporary, target)
        for folder in {target.parent for target, *_ in made}:
            sync_folder(folder)


def _followed(path: Path) -> Path:
    """The file to write: where `path` is a link, what it leads to."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with suppress(OSError):
        kind = stat.S_IFMT(target.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # a folder: the system refuses it in its own words
            raise InputError(
                f"the output {path} is {_KINDS.get(kind, 'no file')}, which is not replaced; give the path of a file."
            )
    return target


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """What the operating system refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"could not write {target}: {reason}; nothing was changed there.") from error


@contextmanager
def _aside(target: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """A temporary file beside the target, locked while it is open; gone at the end, unless it was renamed."""
    while True:
        handle, temporary = tempfile.mkstemp(prefix=f".{beginning(target.name)}.", suffix=".tmp", dir=target.parent)
        lock_handle(handle)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # swept between the two lines above
    try:
        with os.fdopen(handle, "wb") as file:
            yield temporary, file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _to_disk(handles: list[int]) -> None:
    if len(handles) == 1:
        os.fsync(handles[0])
        return
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(os.fsync, handles):
            pass


def _hand_on(target: Path, handle: int) -> None:
    """The permissions and the owner of the file that is replaced, or a new file's, to the open file."""
    try:
        old = target.stat()
    except FileNotFoundError:
        os.fchmod(handle, new_file_mode())
        return
    with suppress(OSError):
        os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))


def new_file_mode() -> int:
    """The permissions that `open` would give a new file: 0666 less the umask."""
    # The umask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Names in a folder to the disk, where its file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock_handle(handle: int) -> bool | None:
    """Lock an open file for as long as it is open, without waiting: whether nobody else holds it; None where this file
    system cannot tell. The system takes a lock from a process that dies."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def beginning(name: str) -> str:
    """As much of a file's name as leaves room for more in another one's: systems allow 255 bytes."""
    return os.fsencode(name)[:200].decode(errors="ignore")


def sweep(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed writers left in a folder: those of the target `name`, or of any."""
    start = f".{beginning(name)}." if name else "."
    left: list[os.DirEntry[str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        left = [e for e in entries if e.name.startswith(start) and fnmatch(e.name, ".*.tmp")]
    for entry in left:
        with suppress(OSError):
            remove_if_nobodys(entry.path, entry.is_dir(follow_symlinks=False))


def remove_if_nobodys(path: str | os.PathLike[str], folder: bool = False) -> None:
    """Remove a temporary file, a folder of them, or a lock, unless its writer lives and so holds it locked."""
    handle = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if folder else os.O_RDWR))
    try:
        if lock_handle(handle):
            shutil.rmtree(path, ignore_errors=True) if folder else os.unlink(path)
    finally:
        os.close(handle)


def write_folder(folder: Path, fill: Callable[[Path], object], last: str) -> list[str]:
    """Commit files of several parts together: `fill` writes them into a folder of its own, from which they are moved
    once they are on the disk. The file `last`, without which the others are nothing, is removed first and comes last.

    Returns the files' names, relative to `folder`, which must exist.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{last}.", suffix=".tmp", dir=folder))
    handle = os.open(aside, os.O_RDONLY)
    try:
        lock_handle(handle)
        fill(aside)
        names = sorted(str(file.relative_to(aside)) for file in aside.rglob("*") if file.is_file())
        for name in names:
            _settle(aside / name)
        (folder / last).unlink(missing_ok=True)
        for name in [*(name for name in names if name != last), last]:
            target = folder / name
            make_folder(target.parent)
            os.replace(aside / name, target)
            sync_folder(target.parent)
        return names
    except OSError as error:
        raise InputError(f"could not write in {folder}: {error.strerror or error}; make room there.") from error
    finally:
        os.close(handle)
        shutil.rmtree(aside, ignore_errors=True)


def _settle(file: Path) -> None:
    """A file that another library wrote: with the permissions of a new file, and on the disk."""
    file.chmod(new_file_mode())
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


def _is_passing(name: str) -> bool:
    """Whether a file of this name is a writer's, temporary or a lock, of which a killed one leaves it behind."""
    return fnmatch(name, ".*.tmp") or (name.startswith(".") and name.endswith(".lock"))


def require_empty_folder(path: str | os.PathLike[str], overwrite: bool, ignore: Collection[str] = ()) -> Path:
    """The folder `path`, which need not exist; refused if it holds anything but `ignore`, unless `overwrite`."""
    folder = expanded(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file, but a folder is needed; choose another path.")
    found = [e.name for e in folder.iterdir() if not _is_passing(e.name)] if folder.is_dir() else []
    if not overwrite and any(name not in ignore for name in found):
        raise InputError(f"the output folder {folder} is not empty; choose another one or pass --overwrite.")
    return folder


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder, and those above it, if absent; InputError where the operating system refuses."""
    folder = expanded(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"could not make the output folder {folder}: {error.strerror}; choose another path."
        ) from error
    return folder


def require_writable_folder(path: str | os.PathLike[str]) -> None:
    """Refuse, before long work, a folder that is missing or cannot be written to."""
    folder = expanded(path)
    if not folder.is_dir():
        raise InputError(f"the folder {folder} of the output does not exist; make it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} of the output cannot be written to; choose another path.")


def require_new_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a file that exists (unless `overwrite`), and a path whose folder is missing."""
    target = expanded(path)
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
    """`path` with the home folder in the place of a leading ~ (or ~user), as shells have it where it is not quoted.

    Raises InputError for what no path can be: one that is longer than the system allows, or holds a null byte.
    """
    checks.instance("a path", path, (str, os.PathLike), "text or a pathlib.Path")
    found = Path(os.path.expanduser(path))
    try:
        os.lstat(found)
    except ValueError as error:
        raise InputError(f"the path {checks.brief(str(found))} cannot be one ({error}); check it.") from error
    except OSError as error:  # what else is wrong is seen, and said, where the file is used
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"the path {checks.brief(str(found))} is longer than this system allows; choose a shorter one."
            ) from error
    return found


def regular_file(path: str | os.PathLike[str], name: str = "file") -> Path:
    """`path`, or an InputError unless a regular file, or a link to one, is there; `name` says what is expected in it.

    To open a pipe waits for a writer, and a device need never end: neither is opened to find out.
    """
    file = expanded(path)
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no {name} {file}; check the path.") from error
    except (OSError, ValueError) as error:  # of a folder without permission, a loop of links, a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the {name} {str(file)!r} cannot be looked at ({reason}); check the path.") from error
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "no file")
        raise InputError(
            f"the {name} {file} cannot be read: it is {found}, but a regular file is needed; choose another path."
        )
    return file
