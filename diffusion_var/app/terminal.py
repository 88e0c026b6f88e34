"""What reaches a terminal: printable lines, in whatever encoding it has, and no noise when it goes away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LONGEST, printable
from ..parallel import is_first


@contextmanager
def streams_for_people() -> Iterator[None]:
    """Inside, what a stream's encoding lacks is shown as its escape, and a reader who leaves (`| head`) is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be flushed when Python ends has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def say(text: str) -> None:
    """Print one printable line; of processes that share the work, the first one does."""
    if is_first():
        print(printable(text, None), flush=True)


def say_lines(*texts: str) -> None:
    """Print texts of several lines, each line printable."""
    for text in texts:
        for line in text.split("\n"):
            say(line)


def complain(text: str, most: int | None = LONGEST) -> None:
    """The same on stderr, for errors and warnings, each line of at most `most` characters (None: of any number)."""
    print("\n".join(printable(line, most) for line in text.split("\n")), file=sys.stderr, flush=True)
