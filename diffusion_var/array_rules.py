"""What the arrays of a file must be like: a table of rules, one for each array, and one function that checks them.

A checksum says that a file is as it was written, and not that it makes sense: whoever signs a senseless file anew gets
a valid checksum. So everything that is read is held against its rules before anybody computes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import listing
from .errors import InputError


@dataclass(frozen=True)
class ArrayRule:
    """What one array must be like.

    Attributes:
        dtype: NumPy's name of its type.
        shape: its sizes; a name stands for one size in all arrays of a file. None: any shape.
        least, most: of every number, both included.
        finite: NaN and infinity are refused.
        rising: strictly, along its only axis.
        optional: it may be absent.
    """

    dtype: str
    shape: tuple[int | str, ...] | None
    least: float | None = None
    most: float | None = None
    finite: bool = True
    rising: bool = False
    optional: bool = False


Rules = Mapping[str, ArrayRule]


def require_arrays(arrays: Mapping[str, npt.NDArray[Any]], rules: Rules) -> None:
    """Refuse arrays that break their rules, that are missing, or that no rule knows."""
    if unknown := sorted(set(arrays) - set(rules)):
        raise InputError(f"it holds arrays that do not belong there ({listing(unknown, 3)})")
    sizes: dict[str, int] = {}
    for name, rule in rules.items():
        if name in arrays:
            if wrong := _wrong(arrays[name], rule, sizes):
                raise InputError(f"its array {name} {wrong}")
        elif not rule.optional:
            raise InputError(f"its array {name} is missing")


def _wrong(array: npt.NDArray[Any], rule: ArrayRule, sizes: dict[str, int]) -> str:
    """What is wrong with an array, in words; empty where nothing is. `sizes` learns what the names in shapes are."""
    if array.dtype != np.dtype(rule.dtype):
        return f"is {array.dtype}, but {rule.dtype} is expected"
    if rule.shape is not None:
        if len(array.shape) == len(rule.shape):
            for size, expected in zip(array.shape, rule.shape, strict=True):
                if isinstance(expected, str):
                    sizes.setdefault(expected, size)
        shape = tuple(sizes.get(size, 0) if isinstance(size, str) else size for size in rule.shape)
        if array.shape != shape:
            return f"has shape {array.shape}, but {shape} is expected"
    if rule.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        return "holds NaN or infinity"
    if rule.least is not None and bool((array < rule.least).any()):
        return f"holds {array.min()}, but at least {rule.least:g} is expected"
    if rule.most is not None and bool((array > rule.most).any()):
        return f"holds {array.max()}, but at most {rule.most:g} is expected"
    if rule.rising and bool((np.diff(array) <= 0).any()):
        return "does not rise from each number to the next"
    return ""
