"""Mean and standard error of what comes in chunks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


class RunningMoments:
    """Mean and sum of squared deviations of rows that come in chunks (Chan et al. 1979); float64, constant memory."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)

    def add(self, rows: Float64Array) -> None:
        """Merge rows (M, width)."""
        mean = rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        count, shift = self.count + len(rows), mean - self.mean
        self.squares += squares + shift**2 * (self.count * len(rows) / count)
        self.mean += shift * (len(rows) / count)
        self.count = count

    @property
    def standard_error(self) -> Float64Array:
        """(width,) of the mean; nan for fewer than two rows."""
        if self.count < 2:
            return np.full_like(self.mean, math.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))
