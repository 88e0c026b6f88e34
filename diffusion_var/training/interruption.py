"""Ctrl-C during training: the step under way is finished, so that what is computed can be kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """While entered, Ctrl-C sets `asked` instead of stopping in the middle of a step; a second one stops at once.

    Does nothing where `deferred` is false (processes that wait for each other cannot stop at different steps), outside
    the main thread, or where somebody else handles the signal.
    """

    def __init__(self, deferred: bool = True) -> None:
        self.asked = False
        self._deferred = deferred
        self._before: Any = None

    def __enter__(self) -> Self:
        ours = threading.current_thread() is threading.main_thread()
        if self._deferred and ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
