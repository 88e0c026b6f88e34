"""What the package says when something is wrong.

Bad input is an `InputError`: one sentence that names the argument or file, what was found, what was
expected and what to do. The command line prints that sentence and exits with code 2, without a traceback.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# Not the user's own code: a warning is laid at the door of whoever called through these.
_PASSED_OVER = frozenset({"diffusion_var", "torch", "contextlib", "diffusers", "accelerate"})
# Characters of a sentence and of one word of it (paths are): more is a quotation that nobody reads.
LONGEST, _LONGEST_WORD = 1000, 240


def printable(text: str, most: int | None = LONGEST) -> str:
    """A name or sentence as one line that any terminal or page may show.

    What does not print (control characters, so line breaks and escape sequences; characters that turn the direction
    of text; bytes of file names that are no text) is shown as Python's escape of it. Of more than `most` characters,
    and of very long words, the middle is left out (what was wrong stands at the beginning, what to do at the end);
    None: of nothing.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if most is None:
        return text
    if len(text) > _LONGEST_WORD:
        text = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: _cut(word[0], _LONGEST_WORD), text)
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[len(text) - most // 3 + 1 :]}"


class InputError(ValueError):
    """Something that was passed in is unusable; the message is one complete sentence for the user.

    Args:
        sentence: what was found, what was expected and what to do; shown as one printable line.
        problems: where there are several, each a printable line of its own below the sentence.
    """

    def __init__(self, sentence: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join(map(printable, (sentence, *problems))))


class NumericalError(RuntimeError):
    """A computation gave NaN or Inf; the message names the index and the batch."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class NetworkError(RuntimeError):
    """A network raised an error of its own, which is the `__cause__`; the message is one sentence for the user.

    Args:
        where: noise level and batch, e.g. "at index n=500, in a batch of 64".
        reason: what it raised, and what to do.
        who: which network, in words.

    Attributes `after` (how far the run had come) and `kept` (where its results so far are) are added to the sentence by
    those who know.
    """

    def __init__(self, where: str, reason: str, who: str = "the network") -> None:
        super().__init__(where, reason, who)
        self.after, self.kept = "", ""

    def __str__(self) -> str:
        where, reason, who = self.args
        return printable(f"{who} failed {where}{self.after}: {reason}{self.kept}.")


class RankError(RuntimeError):
    """Another process of a shared work failed, hangs, or is gone, and so the work has ended in all of them.

    Attributes: `rank`, which process, and `count`, of how many; `said`, what happened to it; `code`, its exit code.
    """

    def __init__(self, rank: int, count: int, said: str, code: int = 1) -> None:
        super().__init__(rank, count, said, code)
        self.rank, self.count, self.said, self.code = rank, count, said, code

    def __str__(self) -> str:
        return printable(f"rank {self.rank} of {self.count} {self.said.rstrip('.')}.")


def leave_unsaid(error: BaseException) -> None:
    """Of several processes that found the same mistake, another one says it."""
    error.__dict__["_unsaid"] = True


def is_said_elsewhere(error: BaseException) -> bool:
    """Whether another process says this error."""
    return bool(getattr(error, "_unsaid", False))


class DiffusionVarWarning(UserWarning):
    """The result is valid, but the user will want to know something about it."""


_heard: list[Callable[[str], None]] = []  # who collects warnings instead of issuing them


@contextmanager
def hear_warnings(hear: Callable[[str], None]) -> Iterator[None]:
    """Inside, warnings are handed to `hear`: those of a process for which another one speaks."""
    _heard.append(hear)
    try:
        yield
    finally:
        _heard.remove(hear)


def warn(sentence: str) -> None:
    """Issue a `DiffusionVarWarning` at the line of the user's code that called into the package."""
    if _heard:
        _heard[-1](sentence)
    else:
        issue(sentence)


def issue(sentence: str) -> None:
    """Issue a warning, whoever hears them."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(sentence), DiffusionVarWarning, stacklevel=level)
