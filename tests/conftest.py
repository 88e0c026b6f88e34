"""One thread (small tensors; threads that wait for a busy core cost more than they give), and parameters that say what
they are where pytest would number them."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

PLAIN = (str, bytes, int, float, complex, bool, type(None))


def pytest_make_parametrize_id(config: Any, val: Any, argname: str) -> str | None:
    """A short text for dicts, sequences and named functions; None leaves the choice to pytest."""
    return None if isinstance(val, PLAIN) else spoken(val)


def spoken(value: Any) -> str | None:
    """What a value is, in at most 60 characters; the same in every process; None where it cannot be told."""
    if isinstance(value, PLAIN):
        text = str(value)
    elif isinstance(value, dict):
        parts = [f"{key}={spoken(inner) or type(inner).__name__}" for key, inner in value.items()]
        text = ",".join(parts) or "none"
    elif isinstance(value, list | tuple | set | frozenset | range):
        members = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
        text = "(" + ",".join(spoken(inner) or type(inner).__name__ for inner in members[:6]) + ")"
    elif isinstance(value, type) or (callable(value) and getattr(value, "__name__", "<lambda>") != "<lambda>"):
        text = str(value.__name__)
    elif isinstance(value, BaseException):
        text = type(value).__name__
    elif type(value).__name__ == "dtype":
        text = str(value).removeprefix("torch.")
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        text = f"{type(value).__name__}{tuple(value.shape)}".replace(" ", "")
    elif type(value).__module__.startswith("diffusion_var"):
        text = str(getattr(value, "name", type(value).__name__))
    else:
        return None
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 60 else f"{printable[:57]}..."


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The signals that end a process as Python has them, also where the tests run under nohup or in the background."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in usual.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
