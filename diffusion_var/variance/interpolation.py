"""What a table's moments say at its measured indices (the nodes), and between them.

A value at a node is the Monte Carlo mean after the control variates. Between nodes it is interpolated linearly in
log-SNR, in units in which it hardly moves: v_n in units of its linear-MMSE value l σ²/(α² l + σ²), which is known
without a network; E rδ in units of that value's square root, and E δ² as it is. For Gaussian data this is exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..process.linear import linear_mmse
from .estimators import Estimator, score_norm
from .moments import RELATIVE_FLOOR, TARGETS, adjusted_covariance, adjusted_means, control_expectations

if TYPE_CHECKING:
    from .table import VarianceTable

Float64Array = npt.NDArray[np.float64]
_TARGET_OF: dict[str, str] = {"residual": "error_square", "score_norm": "eps_square", "data_variance": "mean_square"}


class Nodes:
    """Values and errors of one table, at and between its measured indices.

    A `quantity` is an estimator's name, "error_clipping" (E rδ) or "clipping_square" (E δ²).
    """

    def __init__(self, table: VarianceTable) -> None:
        self.table = table
        self._values: dict[tuple[str, str], Float64Array] = {}

    # ---- values -----------------------------------------------------------------------------------------------

    def value(self, quantity: str, structure: str, n: int) -> Float64Array:
        """The quantity at index n, of the structure's shape, unbounded; InputError outside the measured indices."""
        low, high, weight = self._bracket(n)
        nodes = self._in_units(quantity, structure)
        value = nodes[low] if weight == 0.0 else (1.0 - weight) * nodes[low] + weight * nodes[high]
        return np.asarray(value * self._unit(quantity, structure, n))

    def linear(self, structure: str, n: int) -> Float64Array | None:
        """The linear-MMSE value of each element (pooled as the structure pools), or None without data."""
        data, schedule = self.table.data, self.table.schedule
        if data is None:
            return None
        l = data.element_variance(structure)
        return np.asarray(self.table.structure(structure).pool(linear_mmse(l, schedule.alpha[n], schedule.sigma[n])))

    def _unit(self, quantity: str, structure: str, n: int) -> Float64Array:
        """What a quantity is divided by before interpolation; 1 without data.

        Elements that (almost) never vary in the data get a floor of 1e-6 of the mean, so that the ratio stays finite.
        """
        data, schedule = self.table.data, self.table.schedule
        if data is None or quantity == "clipping_square":
            return np.ones(())
        l = data.element_variance(structure)
        floored = np.maximum(l, max(1e-6 * float(l.mean()), 1e-30))
        mmse = linear_mmse(floored, schedule.alpha[n], schedule.sigma[n])
        unit = np.asarray(self.table.structure(structure).pool(mmse))
        return np.sqrt(unit) if quantity == "error_clipping" else unit

    def _in_units(self, quantity: str, structure: str) -> Float64Array:
        """(I, *v): a quantity at the measured indices, in the units in which it is interpolated."""
        key = quantity, structure
        if key not in self._values:
            indices = [int(n) for n in self.table.indices]
            self._values[key] = np.stack(
                [self._at(i, quantity, structure) / self._unit(quantity, structure, n) for i, n in enumerate(indices)]
            )
        return self._values[key]

    def _at(self, i: int, quantity: str, structure: str) -> Float64Array:
        """(*v): a quantity at position i of the measured indices."""
        table, n = self.table, int(self.table.indices[i])
        mean = self._adjusted(i, structure)[TARGETS.index(_TARGET_OF.get(quantity, quantity))]
        if quantity == "score_norm":
            return score_norm(mean, table.schedule.alpha[n], table.schedule.sigma[n])
        if quantity == "data_variance":
            assert table.data is not None
            kind = table.structure(structure)
            return np.asarray(kind.pool(table.data.element_variance(structure)) - mean)
        return np.asarray(mean)

    def _adjusted(self, i: int, structure: str) -> Float64Array:
        """(5, *v): the targets' means at position i, after the control variates."""
        table, n = self.table, int(self.table.indices[i])
        moments = table.moments[structure]
        means = np.asarray(moments.means[i], dtype=np.float64)
        if table.data is None:
            return means[: len(TARGETS)]
        expected = control_expectations(
            table.data, table.structure(structure), table.schedule.alpha[n], table.schedule.sigma[n]
        )
        return adjusted_means(means, moments.covariances[i], expected)

    def _bracket(self, n: int) -> tuple[int, int, float]:
        """Positions of the measured indices around n, and the weight of the upper one."""
        indices, log_snr = self.table.indices, self.table.schedule.log_snr
        position = int(np.searchsorted(indices, n))
        if position < len(indices) and indices[position] == n:
            return position, position, 0.0
        if position in (0, len(indices)):
            raise InputError(
                f"index {n} is outside the measured indices {indices[0]} to {indices[-1]} of this table; "
                "estimate it again with that index included."
            )
        low, here, high = (log_snr[k] for k in (indices[position - 1], n, indices[position]))
        # Towards zero terminal SNR log-SNR is infinite: stay at the last finite value.
        weight = float((low - here) / (low - high)) if math.isfinite(high) else 0.0
        return position - 1, position, weight

    # ---- errors -----------------------------------------------------------------------------------------------

    def standard_error(self, estimator: Estimator, n: int) -> float:
        """Of the isotropic value at index n; between nodes the larger of the two neighbours', in units of the
        linear-MMSE value. nan without data."""
        low, high, _ = self._bracket(n)
        if low == high:
            return self._error_at(low, estimator)
        units = {i: float(self._unit(estimator, "isotropic", int(self.table.indices[i]))) for i in (low, high)}
        worst = max(self._error_at(i, estimator) / unit for i, unit in units.items())
        return worst * float(self._unit(estimator, "isotropic", n))

    def relative_error(self, structure: str, n: int) -> float:
        """Of the residual value at index n (no less than `RELATIVE_FLOOR` of its linear-MMSE value); between nodes the
        larger of the two neighbours'. nan without data."""
        low, high, _ = self._bracket(n)
        return max(self._relative_error_at(i, structure) for i in (low, high))

    def _variance_at(self, i: int, target: str, structure: str) -> float:
        """Variance of an adjusted mean; for elementwise structures relative to v² and averaged over elements."""
        if self.table.data is None:
            return math.nan
        k = TARGETS.index(target)
        covariance = adjusted_covariance(self.table.moments[structure].covariances[i], int(self.table.counts[i]))
        return max(float(covariance[k, k]), 0.0)

    def _error_at(self, i: int, estimator: Estimator) -> float:
        n, schedule = int(self.table.indices[i]), self.table.schedule
        error = math.sqrt(self._variance_at(i, _TARGET_OF[estimator], "isotropic"))
        if estimator != "score_norm":
            return error
        return error * (schedule.sigma[n] / schedule.alpha[n]) ** 2 if schedule.alpha[n] > 0 else math.inf

    def _relative_error_at(self, i: int, structure: str) -> float:
        error = math.sqrt(self._variance_at(i, "error_square", structure))
        if structure != "isotropic":
            return error
        floor = RELATIVE_FLOOR * float(self._unit("residual", structure, int(self.table.indices[i])))
        return error / max(float(self._at(i, "residual", structure)), floor)
