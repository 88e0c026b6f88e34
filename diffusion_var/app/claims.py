"""What a command writes: it is locked while the command runs, and carries the identity of the run that made it.

The identity is that of the request: the command, the options that decide its result, and the files that they name. So
the same command, given again, finds its result and ends well; another one is refused, as any existing output is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import require_empty_folder, require_new_file, require_writable_folder
from ..locks import locked
from ..manifest import Manifest
from ..parallel import team
from .outputs import require_writable
from .terminal import say

#: Options that do not decide what is written.
_ASIDE = frozenset({"out", "plot", "checkpoint", "latents", "device", "overwrite", "download", "json", "quiet"})
_ASIDE |= {"report_to", "save_table", "processes"}
#: Options that came later: where they are left out, a request is the one that it was before.
_LATER = frozenset(
    {"license", "call", "weights_dtype", "bands", "probes", "krylov_steps", "derivative", "product_cost", "multistep"}
)
#: What they were, where they were left out, in older versions.
_OLD_DEFAULTS = {"guidance_scale": 1.0}
_SMALL = 1 << 24  # bytes of a file that is read for its identity; of a larger one its size and time count


def run_identity(command: str, options: Any) -> str:
    """SHA-256, in hex, of a request: its command, its options, and the files that they name."""
    given = recorded(options).items()
    counted = {name: value for name, value in given if name not in _ASIDE and not (name in _LATER and value is None)}
    chosen = {name: _told(value) for name, value in counted.items()}
    return hashlib.sha256(json.dumps([command, chosen], sort_keys=True, default=str).encode()).hexdigest()


def recorded(options: Any) -> dict[str, Any]:
    """Options as plain data, in the way that outputs keep them: what is left out is as older versions had it, and that
    very value, given, is told from it, since it may mean something else (of networks that are told their guidance)."""
    found = asdict(options)
    for name, default in _OLD_DEFAULTS.items():
        if name in found and found[name] in (None, default):
            found[name] = default if found[name] is None else f"{default:g}, as given"
    return found


def named_path(value: str | Path) -> Path | None:
    """The path that an option's value names, if something lies there: FILE, or of images by name FILE.npz:KEY[A:B]."""
    base = str(value).partition("[")[0]
    names = (str(value), base, base.rpartition(":")[0])
    return next((Path(name) for name in names if name and os.path.exists(name)), None)


def content_of(path: Path) -> str:
    """What lies under a path, in words that are the same for its copies."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = [[str(file.relative_to(path)), file.stat().st_size] for file in files]
        return f"{len(files)} files, {hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]}"
    size = path.stat().st_size
    if not path.is_file() or size > _SMALL:
        return f"{size} bytes"
    return f"{size} bytes, {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _told(value: Any) -> Any:
    """An option's value, with what lies under the path that it names, if it names one."""
    if isinstance(value, dict):
        return {str(key): _told(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_told(inner) for inner in value]
    if not isinstance(value, str | Path):
        return value
    path = named_path(value)
    return str(value) if path is None else [str(value), _under(path)]


def _under(path: Path) -> Any:
    """A file's content; a folder's names, sizes and times, as `make` tells whether something is new."""
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file())
        return [[str(file.relative_to(path)), *_size_and_time(file)] for file in found]
    if path.is_file() and path.stat().st_size <= _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _size_and_time(path)


def _size_and_time(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


@contextmanager
def claimed_file(
    path: Path,
    run: str,
    read_run: Callable[[Path], Any],
    overwrite: bool,
    checkpoint: Path | None = None,
    aloud: bool = True,
) -> Iterator[bool]:
    """An output file, locked; whether this very run has finished it (then there is nothing to do, and it is said).

    Of processes that share the work, the first one has it, and all know what it found.

    Args:
        run: `run_identity` of the request, which the file is to carry.
        read_run: what a file carries; it may raise InputError for one that is damaged.
        overwrite: whether a file of another run is to be replaced.
        checkpoint: which a finished run needs no more.
        aloud: whether to print that there is nothing to do.
    """

    def claimed(held: ExitStack) -> bool:
        if path.is_dir():
            require_new_file(path, overwrite)
        require_writable_folder(path.parent)
        held.enter_context(locked(path))
        finished = not overwrite and path.is_file() and _carries(path, run, read_run)
        if finished:
            _leave_finished(path, checkpoint, aloud)
        else:
            require_new_file(path, overwrite)
        return finished

    with ExitStack() as held:
        yield team().first_alone(lambda: claimed(held))


def run_of_npz(path: Path) -> str | None:
    """The run that an npz carries, if every array in it is as it was written."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}  # reading compares checksums
        return str(arrays["run"])
    except Exception:  # numpy raises OSError, ValueError, EOFError, BadZipFile, zlib.error, ...
        return None


def _carries(path: Path, run: str, read_run: Callable[[Path], Any]) -> bool:
    try:
        return bool(read_run(path) == run)
    except InputError:
        return False


@contextmanager
def claimed_folder(folder: Path, run: str, overwrite: bool, checkpoint: str) -> Iterator[bool]:
    """An output folder, locked by the first process; whether this very run has finished it, which its manifest says.

    A folder with anything else in it is refused, unless `overwrite` or the file `checkpoint` of an interrupted run is
    there.
    """

    def claimed(held: ExitStack) -> bool:
        require_empty_folder(folder, overwrite=True)  # a file is no folder
        held.enter_context(locked(folder, folder=True))
        finished = not overwrite and Manifest(folder, run).is_whole()
        if finished:
            _leave_finished(folder, folder / checkpoint)
        else:
            require_empty_folder(folder, overwrite or (folder / checkpoint).is_file())
        return finished

    with ExitStack() as held:
        yield team().first_alone(lambda: claimed(held))


def _leave_finished(path: Path, checkpoint: Path | None, aloud: bool = True) -> None:
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)  # of a run that was killed after its last file
    if aloud:
        say(f"already finished: {path} was written by this very command; pass --overwrite to make it again.")


def train_into_folder(command: str, options: Any, checkpoint: str, train: Callable[[str], None]) -> None:
    """Call `train` with the run's identity, in every process; the first one holds the output folder."""
    require_writable(options.out)
    this = run_identity(command, options)
    with claimed_folder(options.out, this, options.overwrite, checkpoint) as finished:
        if not finished:
            train(this)
