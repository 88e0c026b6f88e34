"""What a variance table alone lets one expect of the decoder from an index [E18]: the cost of an error N(0, v_t).

It takes errors for normal, and no pixel for one at an end of the range, where an interval is infinite and costs a bit
at most. Where many pixels are there (black, white), or errors have heavy tails, a decoder far from the data is cheaper
than this says: `decoder_costs` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..process.divergence import gaussian_nats
from ..process.kernel import ReverseKernel
from ..process.schedule import NoiseSchedule
from .decoder import Range, log_normal_interval, rounding_variance
from .decoder_variance import given_variance, relative_noise, table_structure

Float64Array = npt.NDArray[np.float64]

_OF_TABLE = ("table", "isotropic", "pixel")
_CHOICES = (*_OF_TABLE, "sigma2", "beta_tilde")
#: Of the quadrature over the error; and of the interpolation over the variances of many elements.
_NODES, _GRID = 48, 256


def expected_decoder_nats(v: npt.ArrayLike, w: npt.ArrayLike, distance: float | None) -> Float64Array:
    """E[−log P] in nats of a decoder of variance w whose error is N(0, v), per element [E18]; v and w broadcast.

    Args:
        distance: of two levels, of a pixel that is not at an end of its range; None: of a density.
    """
    v, w = np.broadcast_arrays(np.asarray(v, dtype=np.float64), np.asarray(w, dtype=np.float64))
    if distance is None:
        return np.asarray(gaussian_nats(np.log(w), v / w, 1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    error, std = np.sqrt(v)[..., None] * nodes, np.sqrt(w)[..., None]
    low, high = (torch.from_numpy((error + side * distance / 2) / std) for side in (-1, 1))
    return np.asarray(-(log_normal_interval(low, high).numpy() @ (weights / weights.sum())))


def mean_decoder_nats(v: Float64Array, w: npt.ArrayLike | None, least: float, distance: float | None) -> float:
    """The mean of `expected_decoder_nats` over elements; w None: the elements' own variances, at least `least`.

    For many elements and one w it is interpolated, to 2e-4: with w = v it is nearly linear in log v, with one w in v.
    """

    def cost(v: Float64Array) -> Float64Array:
        return expected_decoder_nats(v, np.maximum(v, max(least, 1e-300)) if w is None else w, distance)

    if v.size <= _GRID or distance is None or np.ndim(0.0 if w is None else w):
        return float(cost(v).mean())
    low = 1e-6 * least  # an error of less is none
    used = np.maximum(v.ravel(), low)
    grid = np.geomspace(used.min(), used.max() * (1 + 1e-9), _GRID)
    used, places = (np.log(used), np.log(grid)) if w is None else (used, grid)
    return float(np.interp(used, places, cost(grid)).mean())


class ExpectedDecoder:
    """The decoder from every index, as a table lets expect it.

    Args:
        choice: a `decoder_variance` that a table and a schedule give: "table", "isotropic", "pixel", "sigma2",
            "beta_tilde", a number or an array.
        structure: that the table's variances are taken in.
        variances: (n, structure) to v of that index, float64.
        levels, data_range: of the images; either None: of a density.
    """

    def __init__(
        self,
        choice: Any,
        structure: str,
        schedule: NoiseSchedule,
        variances: Callable[[int, str], npt.ArrayLike],
        levels: int | None,
        data_range: Range | None,
    ) -> None:
        self.given: Any = None
        if isinstance(choice, str):
            checks.one_of("decoder_variance", choice, _CHOICES, _HINT)
        else:
            self.given, choice = given_variance(choice, None), "as given"
        self.choice: str = choice
        self.structure = table_structure(choice if choice in _OF_TABLE else "table", structure)
        self.schedule, self._variances = schedule, variances
        self._least = rounding_variance(levels, data_range)
        self._distance = math.sqrt(12 * self._least) or None

    def variance(self, n: int) -> float | Float64Array:
        """The variance from index n: a number, or one for each channel or pixel."""
        if self.choice == "sigma2":
            return relative_noise(self.schedule.level(n))
        if self.choice == "beta_tilde":
            return ReverseKernel(self.schedule, t=2, s=1).beta_tilde
        if self.choice not in _OF_TABLE:
            found: float | Float64Array = self.given
            return found
        own = np.maximum(self._variances(n, self.structure), self._least)
        return float(own) if own.ndim == 0 else np.asarray(own)

    def label(self, n: int) -> str:
        """What that is, in words."""
        return self.structure if self.choice in _OF_TABLE else self.choice

    def nats(self, n: int) -> float:
        """The expected cost from index n in nats/dim; inf where the table has no variance, or the level no signal."""
        v = np.asarray(self._variances(n, self.structure), dtype=np.float64)
        silent = self.choice == "sigma2" and self.schedule.level(n).alpha == 0.0
        if silent or not (v > 0.0).any():
            return math.inf
        fixed = None if self.choice in _OF_TABLE else self.variance(n)
        return mean_decoder_nats(v, fixed, self._least, self._distance)


_HINT = "or a number, an array, or what dv.decoder_costs measured"
