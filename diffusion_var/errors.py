"""What the package says when something is wrong.

Bad input is an `InputError`: one sentence that names the argument or file, what was found, what was
expected and what to do. The command line prints that sentence and exits with code 2, without a traceback.
"""


class InputError(ValueError):
    """Something that was passed in is unusable; the message is one complete sentence for the user."""


class NumericalError(RuntimeError):
    """A computation gave NaN or Inf; the message names the index and the batch."""


class DiffusionVarWarning(UserWarning):
    """The result is valid, but the user will want to know something about it."""
