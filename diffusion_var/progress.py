"""Progress bars, once for everything that takes long: on a terminal they move, a file gets a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from .errors import printable

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 10.0  # between two lines of a file
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Inside, no progress is shown if that is wanted, or was outside."""
    token = _quiet.set(wanted or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def progress_bar(total: float | None, title: str, unit: str, shown: bool = True, **options: Any) -> tqdm[Any]:
    """A bar on stderr, to be used as a context; `update(n)` moves it.

    Args:
        total: how many units the work has, if that is known.
        title: what is done; names of files and methods in it are made printable.
        shown: whether it is wanted at all.
        options: more of tqdm's.
    """
    from tqdm import tqdm

    if not sys.stderr.isatty():
        options |= {"file": _Lines(sys.stderr), "mininterval": SECONDS, "maxinterval": SECONDS, "leave": True}
    return tqdm(total=total, desc=printable(title, 60), unit=unit, disable=_quiet.get() or not shown, **options)


class _Lines:
    """A file that gets each state of a bar as a line, where a terminal would draw over the one before."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.encoding = file, file.encoding

    def write(self, text: str) -> None:
        if state := text.removeprefix("\x1b[A").strip():
            self._file.write(f"{state}\n")

    def flush(self) -> None:
        self._file.flush()
