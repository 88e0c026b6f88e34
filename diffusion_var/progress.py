"""Progress bars, once for everything that takes long: on a terminal they move, a file gets a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from . import parallel
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
    options |= {"total": total, "desc": printable(title, 60), "unit": unit}
    hidden = _quiet.get() or not shown or not parallel.is_first()
    if not parallel.is_shared():
        return tqdm(disable=hidden, **options)
    return _shared_bar()(disable=hidden, **options)


def _shared_bar() -> type[tqdm[Any]]:
    """A bar in a work that processes share: the first one's shows what all of them do, and every update is a beat."""
    from tqdm import tqdm

    class SharedBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            self.team, self.seen, self.looked = parallel.team(), 0, 0.0
            super().__init__(**options)
            self.number = self.team.new_bar(self.pull) if self.team.count > 1 else None

        def update(self, n: float | None = 1) -> bool | None:
            parallel.beat(0 if self.number is None else int(n or 0))
            shown = super().update(n)
            self.pull()
            return shown

        def close(self) -> None:
            self.looked = 0.0
            self.pull()
            super().close()

        def pull(self) -> None:
            """Show what the others have done, at most twice a second."""
            if self.disable or self.number is None or time.monotonic() - self.looked < 0.5:
                return
            self.looked, others = time.monotonic(), self.team.others_done(self.number)
            super().update(max(others - self.seen, 0))
            self.seen = max(others, self.seen)

    return SharedBar


class _Lines:
    """A file that gets each state of a bar as a line, where a terminal would draw over the one before."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.encoding = file, file.encoding

    def write(self, text: str) -> None:
        if state := text.removeprefix("\x1b[A").strip():
            self._file.write(f"{state}\n")

    def flush(self) -> None:
        self._file.flush()
