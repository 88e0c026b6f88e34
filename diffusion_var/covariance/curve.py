"""Posterior variances as a curve over log SNR: of all levels between two ends, in as few numbers as a config holds.

What a table says of x_0 is a function of log SNR alone [E14]: a flow model's serves every shift and every list of σ.
The curve keeps v in units of l σ²/(α² l + σ²), the linear-MMSE value of the data's mean variance l, at some log SNR,
and is linear between them. They are chosen so that it has the table's own values to a few parts in ten thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.linear import linear_mmse
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .analytic import optimal_variance
from .lists import STRUCTURES, listed_covariance
from .reverse import ReverseCovariance, StructuredCovariance

Float64Array = npt.NDArray[np.float64]
#: How far the curve may be from the table in the middle of a piece, relative; and how often a piece is halved at most.
_CLOSE, _HALVINGS = 1e-4, 10
_WIDEST = 0.5  # of a piece, in log SNR
_NO_SIGNAL = -40.0  # a log SNR at which the unit is l to rounding


class VarianceCurve(ReverseCovariance):
    """The optimal covariance from a curve.

    Args:
        log_snr: K ≥ 1 numbers, rising.
        ratio: K numbers v over its unit, or K lists of C (channel structure), at least 0.
        data_variance: l, a number or C of them, in squared data units.
        without_signal: the ratio where x_t holds no signal (log SNR −∞): a number, or C; None: not measured there.

    Raises InputError for lists of unlike shapes and for numbers that are none.
    """

    def __init__(
        self, log_snr: Sequence[float], ratio: Sequence[Any], data_variance: Any, without_signal: Any = None
    ) -> None:
        self.log_snr = _array("log_snr", log_snr, 1)
        self.ratio = _array("ratio", ratio, 1, 2)
        self.data_variance = _array("data_variance", data_variance, 0, 1)
        self.without_signal = None if without_signal is None else _array("without_signal", without_signal, 0, 1)
        one = self.ratio.shape[1:]
        fits = len(self.ratio) == len(self.log_snr) > 0 and self.data_variance.shape == one
        fits &= self.without_signal is None or self.without_signal.shape == one
        checks.refuse(
            not fits,
            f"log_snr has shape {self.log_snr.shape}, ratio {self.ratio.shape} and data_variance "
            f"{self.data_variance.shape}, but (K,), (K,) and (), or (K,), (K, C) and (C,), are expected.",
        )
        checks.refuse(bool((np.diff(self.log_snr) <= 0).any()), "log_snr must rise strictly; sort it and drop repeats.")
        least = min(float(self.ratio.min()), float(self.data_variance.min()))
        checks.refuse(least < 0, f"a curve holds {least:g}, but variances are at least 0.")

    @classmethod
    def from_table(
        cls, table: VarianceTable, estimator: Estimator = "residual", structure: str = "isotropic"
    ) -> VarianceCurve:
        """The table's answers between its measured levels; arguments as in `Analytic`."""
        if structure not in STRUCTURES:
            raise InputError(
                f"the structure {structure!r} has a variance per element, too many for a curve; expected one of "
                f"{', '.join(STRUCTURES)}."
            )
        l = np.ones(()) if table.data is None else _pooled(table, structure)

        def ratio(log_snr: float) -> Float64Array:
            level = level_of(log_snr)
            v = np.asarray(table.posterior_variance(level, estimator, structure))
            return np.asarray(v.reshape(l.shape) / linear_mmse(l, level.alpha, level.sigma))

        measured = np.sort(table.schedule.log_snr[table.indices])
        finite = [float(place) for place in measured[np.isfinite(measured)]]
        silent = bool(np.isneginf(measured[0]))
        # Below the last finite level the table stays at its value, in units that still change a little.
        ends = [_NO_SIGNAL] if silent and (not finite or finite[0] > _NO_SIGNAL) else []
        places, values = adaptive(ratio, [*ends, *finite])
        end = ratio(-math.inf).tolist() if silent else None
        return cls(places, values, l.tolist(), end)

    def lists(self) -> dict[str, Any]:
        """The arguments that make this object again, as JSON has them."""
        end = None if self.without_signal is None else self.without_signal.tolist()
        curve = {"log_snr": self.log_snr.tolist(), "ratio": self.ratio.tolist()}
        return {**curve, "data_variance": self.data_variance.tolist(), "without_signal": end}

    @property
    def name(self) -> str:
        return f"analytic-{STRUCTURES[self.ratio.ndim - 1]}"

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest log SNR that it knows."""
        return (-math.inf if self.without_signal is not None else float(self.log_snr[0])), float(self.log_snr[-1])

    def posterior_variance(self, level: NoiseLevel) -> Float64Array:
        """v at a level, float64, () or (C,); InputError outside the ends."""
        place, (low, high) = level.log_snr, self.ends
        checks.refuse(
            not low <= place <= high,
            f"the noise level's log SNR {place:.6g} is outside the measured range {low:.6g} to {high:.6g}; estimate "
            "the table again with indices around that level, or choose levels within the range.",
        )
        if place == -math.inf:
            assert self.without_signal is not None
            ratio = self.without_signal
        else:
            k = int(np.clip(np.searchsorted(self.log_snr, place), 1, max(len(self.log_snr) - 1, 1)))
            before, after = self.log_snr[k - 1], self.log_snr[min(k, len(self.log_snr) - 1)]
            weight = float(np.clip((place - before) / (after - before), 0.0, 1.0)) if after > before else 0.0
            ratio = (1.0 - weight) * self.ratio[k - 1] + weight * self.ratio[min(k, len(self.ratio) - 1)]
        return np.asarray(ratio * linear_mmse(self.data_variance, level.alpha, level.sigma))

    def variance(self, kernel: ReverseKernel) -> Float64Array:
        """Σ's variances for a step, float64: () or (C,)."""
        return np.asarray(optimal_variance(kernel, self.posterior_variance(kernel.level_t), 0.0, 0.0))

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        return listed_covariance(self.variance(kernel), posterior)


def level_of(log_snr: float) -> NoiseLevel:
    """The level of a flow that has this log SNR."""
    odds = math.exp(-0.5 * abs(log_snr))  # the smaller of α and σ over the larger
    small, large = odds / (1.0 + odds), 1.0 / (1.0 + odds)
    alpha, sigma = (large, small) if log_snr > 0 else (small, large)
    return NoiseLevel(alpha, sigma, 1000.0 * sigma, log_snr=log_snr)


def adaptive(function: Callable[[float], Float64Array], places: Sequence[float]) -> tuple[list[float], list[Any]]:
    """Places (rising, those given among them) and the function's values there, so that it is nearly linear between."""
    found: list[tuple[float, Float64Array]] = [(places[0], function(places[0]))]
    for place in places[1:]:
        before, value = found[-1], function(place)
        pieces = max(math.ceil((place - before[0]) / _WIDEST), 1)
        between = [before[0] + (place - before[0]) * k / pieces for k in range(1, pieces)]
        for node in [*((x, function(x)) for x in between), (place, value)]:
            found += [*_halved(function, found[-1], node, _HALVINGS), node]
    return [place for place, _ in found], [value.tolist() for _, value in found]


def _halved(function: Callable[[float], Float64Array], a: Any, b: Any, left: int) -> list[tuple[float, Float64Array]]:
    """The places between two that are needed."""
    middle = 0.5 * (a[0] + b[0])
    value = function(middle)
    off = np.abs(value - 0.5 * (a[1] + b[1]))
    if left == 0 or bool((off <= _CLOSE * np.maximum(np.abs(value), 1e-9)).all()):
        return []
    node = middle, value
    return [*_halved(function, a, node, left - 1), node, *_halved(function, node, b, left - 1)]


def _pooled(table: VarianceTable, structure: str) -> Float64Array:
    """The data's mean variance, () or (C,), and a floor for channels that never vary."""
    assert table.data is not None
    elements = table.data.element_variance(structure)
    pooled = np.asarray(table.structure(structure).pool(elements))
    pooled = pooled.ravel() if structure == "channel" else pooled
    return np.asarray(np.maximum(pooled, max(1e-6 * float(elements.mean()), 1e-30)))


def _array(name: str, values: Any, *axes: int) -> Float64Array:
    """Finite numbers with one of these numbers of axes."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}={checks.brief(values)} must hold numbers alone.") from None
    found = f"{name} has shape {array.shape}" if array.ndim not in axes or array.size == 0 else f"{name} holds NaN"
    wrong = array.ndim not in axes or array.size == 0 or not np.isfinite(array).all()
    checks.refuse(wrong, f"{found}, but finite numbers with {' or '.join(map(str, axes))} axes are expected.")
    return array
