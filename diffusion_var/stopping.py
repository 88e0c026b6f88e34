"""Stopped from outside: Ctrl-C (SIGINT), a scheduler (SIGTERM: SLURM, Kubernetes) and a closed terminal (SIGHUP) are
one thing, a KeyboardInterrupt in the main thread, on whose way out checkpoints are written and temporary files removed.

Nothing is changed by importing this: a program's edge enters `StopSignals`, and training `Interruption`. A signal that
is ignored stays so (nohup), and so does one that somebody else handles.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: What is done before the process ends at once, without unwinding.
leaving: list[Callable[[], None]] = []
_keeping = 0  # runs that have a state to be kept
_edges: list[StopSignals] = []


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end.

    Args:
        number: the signal's.
        together: whether all processes of a shared work end by it.
        rank: the one that was told to, if another one was.
    """

    def __init__(self, number: int, together: bool = False, rank: int | None = None) -> None:
        super().__init__(number)
        self.number, self.together, self.rank = number, together, rank


def exit_code(stop: KeyboardInterrupt) -> int:
    """As shells count: 128 and the signal's number."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def word(stop: KeyboardInterrupt) -> str:
    """How a run ended."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    said = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return said if not isinstance(stop, Stopped) or stop.rank is None else f"rank {stop.rank} was {said}"


@contextmanager
def keeping() -> Iterator[None]:
    """While there is a state that would be lost if the process ended at once."""
    global _keeping
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1


class TakenOver:
    """While entered, the signals that would end the process go to `handler`, in the main thread alone."""

    def __init__(self, handler: Callable[[int, FrameType | None], None], active: bool = True) -> None:
        self._handler, self._active = handler, active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS if self._active else []:
            if _ends_the_process(signal.getsignal(number)):
                self._before[number] = signal.signal(number, self._handler)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _ends_the_process(handler: Any) -> bool:
    ours = isinstance(getattr(handler, "__self__", None), StopSignals)
    return ours or handler in (signal.SIG_DFL, signal.default_int_handler)


class StopSignals(TakenOver):
    """At a program's edge: the first signal raises `Stopped`. A scheduler's further ones change nothing, since the
    state is being saved; a person's Ctrl-C does.

    Before `unwinding` is entered, and in an import while there is no state to keep, the process ends at once: nothing
    is lost, and extension modules do not survive an exception in the middle of their import.
    """

    def __init__(self) -> None:
        super().__init__(self._stop)
        self.stopped: Stopped | None = None
        self.begun = False

    def __enter__(self) -> Self:
        _edges.append(self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _edges.remove(self)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped is not None and number != signal.SIGINT:
            return
        importing = _imports(frame)
        if importing and _keeping:  # once it is over
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        self.stopped = Stopped(number)
        if importing or not self.begun:
            for last in leaving:
                last()
            os.write(2, f"\n{word(self.stopped)}\n".encode())
            os._exit(exit_code(self.stopped))
        raise self.stopped


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is under way."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


@contextmanager
def unwinding() -> Iterator[None]:
    """The part of a program that a stop may unwind. What libraries make of a stop on its way is the stop again."""
    edge = _edges[-1] if _edges else None
    if edge is not None:
        edge.begun = True
    try:
        yield
    except Exception as error:
        if edge is not None and edge.stopped is not None:
            raise edge.stopped from error
        raise
