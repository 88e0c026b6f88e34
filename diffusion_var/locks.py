"""Locks: an output is written by one run at a time, and whoever comes second is told by which process it is held.

A lock is a file beside the output (in it, for a folder) that is locked with flock: the system releases it when its
process dies, however it dies, also on NFS. Where a file system knows no locks, the process that the file names counts
as long as it lives (on another machine: always). The file is removed at the end; what a killed run left is taken over.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .files import beginning, lock_handle, remove_if_nobodys, sweep
from .parallel import beat
from .stopping import leaving

NAME = ".lock"  # of a folder's
_MOST_GONE = 1000  # times that a folder is found removed before it counts as one that cannot be made
_held: list[ExitStack] = []


@contextmanager
def locked(output: str | os.PathLike[str], folder: bool = False, wait: bool = False) -> Iterator[None]:
    """While entered, `output` (a file, or a `folder`, made if absent) is this process's alone.

    What killed writers of it left is removed. A folder that was made here and is still empty at the end is removed, so
    that a run that is refused leaves nothing. Raises InputError, naming the process, where another one writes there,
    unless told to `wait` for it.
    """
    path = Path(os.path.realpath(output))
    file = path / NAME if folder else path.with_name(f".{beginning(path.name)}{NAME}")
    with ExitStack() as stack:
        if folder:
            stack.callback(_remove_empty, [f for f in (path, *path.parents) if not f.exists()])
        handle = _acquire(file, Path(output), folder, wait)
        stack.callback(os.close, handle)
        stack.callback(_unlink, file)  # while it is still locked
        _held.append(stack)
        try:
            sweep(file.parent, "" if folder else path.name)
            yield
        finally:
            _held.remove(stack)


def tidy(folder: Path) -> None:
    """Remove what killed runs left in a folder in which nothing needs to be written any more."""
    sweep(folder)
    with suppress(OSError):
        remove_if_nobodys(folder / NAME)


def _release_all() -> None:
    while _held:
        _held.pop().close()


leaving.append(_release_all)


def _acquire(file: Path, output: Path, folder: bool, wait: bool) -> int:
    told, gone = False, 0
    while True:
        try:
            if folder:
                file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if folder and error.errno == errno.ENOENT and gone < _MOST_GONE:
                gone += 1  # another run has just removed the folder that it had made
                continue
            # Or no folder can be made there, and the system says it so (in /proc, on some mounts).
            raise InputError(f"could not write {output}: {error.strerror}; nothing was changed there.") from error
        mine = lock_handle(handle)
        holder = _holder(handle)
        if mine or (mine is None and not _lives(holder)):
            if _is_at(handle, file):
                _sign(handle)
                return handle
            os.close(handle)  # its last holder has removed it meanwhile
            continue
        os.close(handle)
        if not wait:
            raise InputError(
                f"the output {output} is being written by {_words(holder)}; wait for it, or choose another path."
            )
        if not told:
            print(f"waiting for {_words(holder)}, which writes {output}", flush=True)
            told = True
        beat()  # processes that share the work wait with this one
        time.sleep(0.2)


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n{platform.node()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)


def _holder(handle: int) -> list[str]:
    """Process, machine and time of day of whoever locked a file last; fewer where that is not known."""
    return os.pread(handle, 4096, 0).decode(errors="replace").split("\n")[:3]


def _words(holder: list[str]) -> str:
    if len(holder) < 3 or not holder[0].isdigit():
        return "another process"
    process, machine, since = holder
    return f"process {process} on {machine} (since {since})"


def _lives(holder: list[str]) -> bool:
    if len(holder) < 2 or not holder[0].isdigit():
        return False
    if holder[1] != platform.node():
        return True
    try:
        os.kill(int(holder[0]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _unlink(file: Path) -> None:
    with suppress(OSError):
        os.unlink(file)


def _remove_empty(folders: list[Path]) -> None:
    """Of folders, the innermost first, those that are empty."""
    with suppress(OSError):
        for folder in folders:
            os.rmdir(folder)
