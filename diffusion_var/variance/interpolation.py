"""What a table's moments say at its measured noise levels, and between them.

A value at a measured level is the Monte Carlo mean after the control variates. Between two of them it is interpolated
linearly in log SNR [E14], in units in which it hardly moves: v in units of its linear-MMSE value l σ²/(α² l + σ²),
which is known without a network; E rδ in units of that value's square root, and E δ² as it is. For Gaussian data this
is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..process.level import NoiseLevel
from ..process.linear import linear_mmse
from ..process.schedule import NoiseSchedule
from ..process.structure import Structure
from .cross_fit import CrossFit, cross_fit, unseen, widening
from .estimators import ESTIMATORS, Estimator, score_norm
from .moments import (
    RELATIVE_FLOOR,
    TARGETS,
    StructureMoments,
    adjusted_covariance,
    adjusted_means,
    control_expectations,
)
from .population import DataStatistics

Float64Array = npt.NDArray[np.float64]
_TARGET_OF: dict[str, str] = {"residual": "error_square", "score_norm": "eps_square", "data_variance": "mean_square"}


class Interpolation:
    """Values and errors of a table's moments, at and between its measured levels; unbounded.

    A `quantity` is an estimator's name, "error_clipping" (E rδ) or "clipping_square" (E δ²).

    Args:
        schedule, indices: which levels were measured, ascending.
        counts: (I,) draws at each.
        moments: by structure name.
        data: statistics of the data, or None.
        structure: from a name to the structure.
        image_variance: (I, 3) of `ESTIMATORS`, see `between_images`, or None.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        indices: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        moments: dict[str, StructureMoments],
        data: DataStatistics | None,
        structure: Callable[[str], Structure],
        image_variance: Float64Array | None,
    ) -> None:
        self._indices, self._counts, self._moments, self._data = indices, counts, moments, data
        self._structure, self._image_variance = structure, image_variance
        self._levels = [schedule.level(int(n)) for n in indices]
        self._log_snr = schedule.log_snr[indices]
        self._values: dict[tuple[str, str], Float64Array] = {}
        self._cross_fits: dict[int, CrossFit] = {}

    # ---- values -----------------------------------------------------------------------------------------------

    def value(self, quantity: str, structure: str, level: NoiseLevel) -> Float64Array:
        """The quantity at a level, of the structure's shape; InputError outside the measured levels."""
        low, high, weight = self._bracket(level)
        nodes = self._in_units(quantity, structure)
        value = nodes[low] if weight == 0.0 else (1.0 - weight) * nodes[low] + weight * nodes[high]
        return np.asarray(value * self._unit(quantity, structure, level))

    def linear(self, structure: str, level: NoiseLevel) -> Float64Array | None:
        """The linear-MMSE value of each element (pooled as the structure pools), or None without data."""
        if self._data is None:
            return None
        mmse = linear_mmse(self._data.element_variance(structure), level.alpha, level.sigma)
        return np.asarray(self._structure(structure).pool(mmse))

    def _unit(self, quantity: str, structure: str, level: NoiseLevel) -> Float64Array:
        """What a quantity is divided by before interpolation; 1 without data.

        Elements that (almost) never vary in the data get a floor of 1e-6 of the mean, so that the ratio stays finite.
        """
        if self._data is None or quantity == "clipping_square":
            return np.ones(())
        l = self._data.element_variance(structure)
        floored = np.maximum(l, max(1e-6 * float(l.mean()), 1e-30))
        unit = np.asarray(self._structure(structure).pool(linear_mmse(floored, level.alpha, level.sigma)))
        return np.sqrt(unit) if quantity == "error_clipping" else unit

    def _in_units(self, quantity: str, structure: str) -> Float64Array:
        """(I, *v): a quantity at the measured levels, in the units in which it is interpolated."""
        key = quantity, structure
        if key not in self._values:
            units = (self._unit(quantity, structure, level) for level in self._levels)
            self._values[key] = np.stack([self._at(i, quantity, structure) / unit for i, unit in enumerate(units)])
        return self._values[key]

    def _at(self, i: int, quantity: str, structure: str) -> Float64Array:
        """(*v): a quantity at position i of the measured levels."""
        level = self._levels[i]
        mean = self._adjusted(i, structure)[TARGETS.index(_TARGET_OF.get(quantity, quantity))]
        if quantity == "score_norm":
            return score_norm(mean, level.alpha, level.sigma)
        if quantity == "data_variance":
            assert self._data is not None
            return np.asarray(self._structure(structure).pool(self._data.element_variance(structure)) - mean)
        return np.asarray(mean)

    def _adjusted(self, i: int, structure: str) -> Float64Array:
        """(5, *v): the targets' means at position i, after the control variates."""
        moments, level = self._moments[structure], self._levels[i]
        means = np.asarray(moments.means[i], dtype=np.float64)
        if self._data is None:
            return means[: len(TARGETS)]
        if moments.folds is not None:
            return self._cross_fit(i, structure).values
        expected = control_expectations(self._data, self._structure(structure), level.alpha, level.sigma)
        return adjusted_means(means, moments.covariances[i], expected)

    def _cross_fit(self, i: int, structure: str) -> CrossFit:
        """The isotropic values at position i, with the regressions of folds."""
        if i not in self._cross_fits:
            folds, level = self._moments[structure].folds, self._levels[i]
            assert folds is not None
            assert self._data is not None
            expected = control_expectations(self._data, self._structure(structure), level.alpha, level.sigma)
            self._cross_fits[i] = cross_fit(folds[i], int(self._counts[i]), expected)
        return self._cross_fits[i]

    def _bracket(self, level: NoiseLevel) -> tuple[int, int, float]:
        """Positions of the measured levels around one, and the weight of the noisier of the two."""
        position = int(np.searchsorted(-self._log_snr, -level.log_snr))
        if position < len(self._log_snr) and self._log_snr[position] == level.log_snr:
            return position, position, 0.0
        if position in (0, len(self._log_snr)):
            raise self._outside(level)
        low, high = self._log_snr[position - 1], self._log_snr[position]
        # Towards zero terminal SNR log-SNR is infinite: stay at the last finite value.
        weight = float((low - level.log_snr) / (low - high)) if math.isfinite(high) else 0.0
        return position - 1, position, weight

    def _outside(self, level: NoiseLevel) -> InputError:
        if level.index is not None:
            return InputError(
                f"index {level.index} is outside the measured indices {self._indices[0]} to {self._indices[-1]} of "
                "this table; estimate it again with that index included."
            )
        return InputError(
            f"the noise level's log SNR {level.log_snr:.6g} is outside the measured range {self._log_snr[-1]:.6g} to "
            f"{self._log_snr[0]:.6g} of this table (indices {self._indices[-1]} to {self._indices[0]}); estimate it "
            "again with indices around that level, or choose levels within the range."
        )

    # ---- errors -----------------------------------------------------------------------------------------------

    def standard_error(self, estimator: Estimator, level: NoiseLevel, images: bool) -> float:
        """Of the isotropic value at a level, with or without the choice of `images`; between measured ones the larger
        of the two neighbours', in units of the linear-MMSE value. nan where it is not known."""
        low, high, _ = self._bracket(level)
        if low == high:
            return self._error_at(low, estimator, images)
        units = {i: float(self._unit(estimator, "isotropic", self._levels[i])) for i in (low, high)}
        worst = max(self._error_at(i, estimator, images) / unit for i, unit in units.items())
        return worst * float(self._unit(estimator, "isotropic", level))

    def relative_error(self, structure: str, level: NoiseLevel, images: bool) -> float:
        """Of the residual value at a level (no less than `RELATIVE_FLOOR` of its linear-MMSE value); between measured
        ones the larger of the two neighbours'. nan without data."""
        low, high, _ = self._bracket(level)
        return max(self._relative_error_at(i, structure, images) for i in (low, high))

    def freedom(self, i: int) -> float:
        """Degrees of freedom of the error of the isotropic residual at position i, fewer where draws of images far out
        are lacking; inf where they are not known."""
        if self._moments["isotropic"].folds is None:
            return math.inf
        freedom = float(self._cross_fit(i, "isotropic").freedom[TARGETS.index("error_square")])
        return freedom / float(self._unseen[i]) ** 2

    @cached_property
    def _unseen(self) -> Float64Array:
        """(I,) see `unseen`."""
        return unseen(self._moments["isotropic"].covariances, self._counts)

    def _variance_at(self, i: int, target: str, structure: str) -> float:
        """Variance of an adjusted mean; for elementwise structures relative to v² and averaged over elements."""
        if self._data is None:
            return math.nan
        k, moments = TARGETS.index(target), self._moments[structure]
        if moments.folds is not None:
            fit = self._cross_fit(i, structure)
            return float(fit.variances[k]) * float(self._unseen[i]) * widening(float(fit.freedom[k])) ** 2
        covariance = adjusted_covariance(moments.covariances[i], int(self._counts[i]))
        return max(float(covariance[k, k]), 0.0)

    def _image_variance_at(self, i: int, estimator: Estimator) -> float:
        """Variance of the mean over the images, had others been chosen: Var g/(N − 1) [E17]."""
        if self._data is None or self._image_variance is None:
            return math.nan
        between = float(self._image_variance[i, ESTIMATORS.index(estimator)])
        return between / (self._data.count - 1) if self._data.count > 1 else math.inf

    def _error_at(self, i: int, estimator: Estimator, images: bool) -> float:
        level = self._levels[i]
        variance = self._variance_at(i, _TARGET_OF[estimator], "isotropic")
        error = math.sqrt(variance + (self._image_variance_at(i, estimator) if images else 0.0))
        if estimator != "score_norm":
            return error
        return error * (level.sigma / level.alpha) ** 2 if level.alpha > 0 else math.inf

    def _relative_error_at(self, i: int, structure: str, images: bool) -> float:
        if structure != "isotropic":
            return math.sqrt(self._variance_at(i, "error_square", structure))
        error = self._error_at(i, "residual", images)
        floor = RELATIVE_FLOOR * float(self._unit("residual", structure, self._levels[i]))
        return error / max(float(self._at(i, "residual", structure)), floor)
