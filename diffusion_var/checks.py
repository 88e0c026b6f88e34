"""What arguments are refused, and in which words: one line a check, at the public edge.

Each function returns the value in its own type, or raises an `InputError` that names the argument, what was found and
what was expected. Booleans are not numbers here, and a whole number may come in any type (3, 3.0, NumPy's).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from .errors import InputError, printable

T = TypeVar("T")
Range = tuple[float, float]


def refuse(wrong: bool, sentence: str) -> None:
    """Raise an InputError with this sentence where something is wrong; for what has no word of its own below."""
    if wrong:
        raise InputError(sentence)


def given(value: T | None, sentence: str) -> T:
    """`value`, refused with this sentence where it is None."""
    if value is None:
        raise InputError(sentence)
    return value


def is_whole(value: Any) -> bool:
    """Whether `value` is one whole number, of any type but bool."""
    try:
        return not _is_array_or_bool(value) and bool(int(value) == value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def is_number(value: Any) -> bool:
    """Whether `value` is one real number (NaN and infinity are), of any type but bool."""
    try:
        return not (_is_array_or_bool(value) or isinstance(value, str | bytes)) and isinstance(float(value), float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def is_bool(value: Any) -> bool:
    """Whether `value` is a boolean of Python, NumPy or PyTorch."""
    return (
        isinstance(value, bool) or type(value).__name__ == "bool_" or str(getattr(value, "dtype", "")).endswith("bool")
    )


def whole(name: str, value: Any, least: int | None = None, most: int | None = None, hint: str = "") -> int:
    """A whole number within [least, most]; `hint` is added to the sentence."""
    fits = is_whole(value) and (least is None or value >= least) and (most is None or value <= most)
    if not fits:
        between = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        raise InputError(f"{name}={brief(value)} must be a whole number{between}{_ended(hint)}")
    return int(value)


def number(
    name: str, value: Any, expected: str = "a finite number", least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number within [least, most]; `expected` says so in words."""
    if not (is_number(value) and math.isfinite(value) and least <= float(value) <= most):
        raise InputError(f"{name}={brief(value)} must be {expected}.")
    return float(value)


def positive(name: str, value: Any, expected: str = "a positive number") -> float:
    """A positive, finite number."""
    if not (is_number(value) and math.isfinite(value) and float(value) > 0.0):
        raise InputError(f"{name}={brief(value)} must be {expected}.")
    return float(value)


def interval(name: str, value: Any, low: float, high: float, hint: str) -> float:
    """A number within [low, high]."""
    if not (is_number(value) and low <= float(value) <= high):
        raise InputError(f"{name}={brief(value)} is outside [{low:g}, {high:g}]; {hint}.")
    return float(value)


def one_of(name: str, value: Any, choices: Collection[str], hint: str = "") -> Any:
    """One of some names."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}={brief(value)} is not known; use one of {', '.join(choices)}{_ended(hint)}")
    return value


def instance(name: str, value: Any, kinds: type[T] | tuple[type[Any], ...], expected: str) -> T:
    """An instance of a class, and not the class itself; `expected` says what is wanted, and what to do."""
    if not isinstance(value, kinds):
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise InputError(f"{name} must be {expected}, but got {found}.")
    found_value: T = value
    return found_value


def shape(name: str, value: Any, axes: str = "(C, *spatial)", most_axes: int = 4) -> tuple[int, ...]:
    """The shape of one image: positive whole numbers, channels first, with at most three spatial axes."""
    try:
        sizes = tuple(value)
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= most_axes or any(not is_whole(n) or n < 1 for n in sizes):
        raise InputError(
            f"{name} must be {axes} with positive integers and at most {most_axes - 1} spatial axes, but it is "
            f"{sizes or brief(value)}."
        )
    return tuple(int(n) for n in sizes)


def bounds(name: str, value: Any) -> Range | None:
    """A pair of finite numbers, the lower one first, or None."""
    if value is None:
        return None
    try:
        low, high = (float(end) if is_number(end) else math.nan for end in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{name}={brief(value)} must be a pair of finite numbers, low < high, or None.")
    return low, high


def seed(value: Any) -> int:
    """A seed: a whole number, of any sign."""
    return whole("seed", value)


def index(name: str, value: Any) -> int:
    """The index of an image: an integer of any type (not 3.0, which may be a rounded one)."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} {brief(value)} is not an integer; give indices such as range(64).") from None


def brief(value: Any, most: int = 8) -> str:
    """A value as messages show it: of long lists the first few, of long texts the beginning."""
    if isinstance(value, list | tuple | range):
        shown = ", ".join(brief(item) for item in value[:most]) + (", …" if len(value) > most else "")
        return f"[{shown}]" if not isinstance(value, tuple) else f"({shown}{',' if len(value) == 1 else ''})"
    try:
        text = repr(value)
    except Exception:  # of a number of thousands of digits, or of an object that is broken
        text = f"a {type(value).__name__}"
    return printable(text, 200)


def listing(names: Sequence[Any], most: int = 8) -> str:
    """Some names for a message: the first few, and how many more there are."""
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(printable(str(name), 200) for name in names[:most]) + more


def _is_array_or_bool(value: Any) -> bool:
    return is_bool(value) or getattr(value, "ndim", 0) > 0


def _ended(hint: str) -> str:
    return f"; {hint}." if hint else "."
