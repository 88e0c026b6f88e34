"""A command in the many processes that torchrun, `accelerate launch` or srun started: who works, what all agree on, and
how each of them ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from .. import launch, parallel
from ..errors import InputError, RankError, is_said_elsewhere, leave_unsaid, warn
from .claims import content_of, named_path
from .processes import speaks_for_all
from .terminal import complain, sentence_of
from .words import words_of

T = TypeVar("T")
#: Options that may differ, since each process has a device of its own.
_APART = frozenset({"device"})
#: Options that name what is written.
_WRITTEN = frozenset({"out", "plot", "checkpoint", "latents", "save_table"})


@contextmanager
def together(name: str, read: Callable[[], T], options: Collection[str], shared: bool = True) -> Iterator[T]:
    """The options of a command, in every process that works on it.

    Args:
        name: the command's.
        read: makes the options; a mistake in them is raised where all hear of it.
        options: their names; sentences are put into the words of a command that has them.
        shared: whether processes share the command's work; else the first does it alone, and the others end here.
    """
    if not shared and launch.expected() > 1:
        _leave_to_the_first(name)
        with parallel.alone(), words_of(options):
            yield read()
        return
    found, wrong = _tried(read)
    _join(on_cpu=str(getattr(found, "device", None)).partition(":")[0] == "cpu")
    with _deaf_at_a_bad_end(), parallel.sharing(name, guard=True), words_of(options), _in_a_sentence():
        if wrong is not None:
            raise wrong
        with parallel.sharing(name, lambda: facts(found)):
            yield found  # type: ignore[misc]


def facts(options: Any) -> dict[str, Any]:
    """What all processes of a command must agree on: each option, and what lies under the paths that they name."""
    given = {name: value for name, value in asdict(options).items() if name not in _APART}
    named = {path: None for name, value in given.items() if name not in _WRITTEN for path in _paths(value)}
    found = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    return found | {f"content of {path}": content_of(path) for path in named}


def end(error: BaseException) -> int:
    """The exit code for what ended a command, once that is said."""
    if isinstance(error, RankError):
        complain(f"error: {error}")
        return error.code
    if (said := sentence_of(error)) is None:
        traceback.print_exception(error)
        return 1
    if speaks_for_all() or not is_said_elsewhere(error):
        complain(f"error: {_named()}{said}")
    return 2


def leave(code: int) -> None:
    """End this process, if it is one of several: well, so that nobody waits for it; or at once, since an exchange that
    broke would wait for processes that are gone."""
    if code and launch.is_joined():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
    launch.leave()


def _named() -> str:
    if not launch.is_joined() or speaks_for_all():
        return ""
    from torch import distributed

    return f"(rank {distributed.get_rank()} of {distributed.get_world_size()}) "


def _leave_to_the_first(name: str) -> None:
    """The first process stays, and says so once."""
    if launch.rank() > 0:
        sys.exit(0)
    warn(f"{name} is the work of one process; {launch.expected()} were started: the first does it, and no other.")


def _tried(read: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return read(), None
    except Exception as error:
        return None, error


def _join(on_cpu: bool) -> None:
    try:
        launch.join(on_cpu)
    except InputError as error:  # all processes of this machine find it, but for others that are not there
        if launch.local_rank()[0] > 0 and error.__cause__ is None:
            leave_unsaid(error)
        raise


@contextmanager
def _deaf_at_a_bad_end() -> Iterator[None]:
    """A launcher that sees one process end tells the others to, which are about to: they have said why."""
    try:
        yield
    except BaseException:
        if launch.is_joined():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """What other processes are told of an error is what is said here."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        ours = type(error).__module__.startswith("diffusion_var")
        said = None if ours or isinstance(error, BrokenPipeError) else sentence_of(error)
        if said is None:
            raise
        raise InputError(said) from error


def _paths(value: Any) -> Iterator[Path]:
    """The paths in an option's value that something lies under here."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str | Path) and (path := named_path(value)) is not None:
        yield path
