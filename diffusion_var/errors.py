"""What the package says when something is wrong.

Bad input is an `InputError`: one sentence that names the argument or file, what was found, what was
expected and what to do. The command line prints that sentence and exits with code 2, without a traceback.
"""

from __future__ import annotations

import sys
import warnings

# Not the user's own code: a warning is laid at the door of whoever called through these.
_PASSED_OVER = frozenset({"diffusion_var", "torch", "contextlib", "diffusers", "accelerate"})


class InputError(ValueError):
    """Something that was passed in is unusable; the message is one complete sentence for the user."""


class NumericalError(RuntimeError):
    """A computation gave NaN or Inf; the message names the index and the batch."""


class DiffusionVarWarning(UserWarning):
    """The result is valid, but the user will want to know something about it."""


def warn(sentence: str) -> None:
    """Issue a `DiffusionVarWarning` at the line of the user's code that called into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, DiffusionVarWarning, stacklevel=level)
