"""What reaches a terminal: printable lines, in whatever encoding it has, and no noise when it goes away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LONGEST, InputError, NetworkError, NumericalError, RankError, printable
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


def sentence_of(error: BaseException) -> str | None:
    """What is said of an error; None for what only a fault of the package raises, which is shown whole."""
    if isinstance(error, NetworkError):
        return f"{error} Where in the network it was, --debug shows."
    if isinstance(error, InputError | NumericalError | RankError):
        return str(error)
    # torch.OutOfMemoryError is a RuntimeError, and torch is not to be imported for its sake
    no_memory = "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return "out of memory; lower --batch-size."
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({printable(str(error.filename))})" if error.filename else ""
        return f"the operating system refused{where}: {error.strerror}."
    return None
