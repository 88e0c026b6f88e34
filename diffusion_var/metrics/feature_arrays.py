"""A number with its standard error, and the feature arrays that such numbers are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, in one unit; the error is nan where it cannot be known."""

    value: float
    standard_error: float

    def __float__(self) -> float:
        return self.value


def feature_array(features: npt.ArrayLike, name: str, least: int = 2) -> Features:
    """`features` as an array (N, D) of float32 or float64; `name` says in messages whose they are.

    Raises InputError where it is none, holds NaN or Inf, or has fewer than `least` rows.
    """
    try:
        array = np.asarray(features)
        if array.dtype != np.float32:
            array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the {name} features are not an array of numbers; pass one row an image.") from error
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"the {name} features have shape {array.shape}; expected (N, D): pass one row an image.")
    if len(array) < least:
        raise InputError(f"there are {len(array)} {name} features; expected at least {least}: pass more images.")
    if not np.isfinite(array).all():
        raise InputError(f"the {name} features hold NaN or Inf; expected finite numbers: look at images and network.")
    return array


def feature_pair(
    a: npt.ArrayLike, b: npt.ArrayLike, names: tuple[str, str], least: int = 2
) -> tuple[Features, Features]:
    """Two feature arrays of one dimension; raises InputError as `feature_array`, and where the dimensions differ."""
    first, second = feature_array(a, names[0], least), feature_array(b, names[1], least)
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"the {names[0]} features have dimension {first.shape[1]} and the {names[1]} ones {second.shape[1]}; "
            "compare features of one network only."
        )
    return first, second
