"""Stopped during training (Ctrl-C, SIGTERM, SIGHUP): the step under way is finished, so that nothing is lost."""

from __future__ import annotations

import signal
from types import FrameType

from ..stopping import Stopped, TakenOver


class Interruption(TakenOver):
    """While entered, a stop is noted in `stop` instead of happening in the middle of a step; a second Ctrl-C happens.

    Does nothing outside the main thread, or where somebody else handles the signal: a work that processes share does.
    """

    def __init__(self) -> None:
        super().__init__(self._note)
        self.stop: Stopped | None = None

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.stop is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stop is None:
            self.stop = Stopped(number)
        elif number == signal.SIGINT:  # a scheduler repeats itself; a person means it
            raise Stopped(number)
