"""Estimators of the posterior variance v_t from its moments, and the bounds that v_t must obey.

Estimators [E3], each the same expectation for one number or element by element:

    score_norm     (σ²/α²)(1 − E ε̂²)            Analytic-DPM, arXiv:2201.06503; exact if the mean is exact
    data_variance  E (x_0 − μ)² − E (x̂_0 − μ)²  exact if the mean is exact
    residual       E (x_0 − x̂_0)²               right for the mean that is really used (arXiv:2206.07309)

Bounds under the exact mean (Analytic-DPM, Theorem 2) [E5]:

    0 ≤ v_t ≤ σ²/α²,   v_t ≤ ((b − a)/2)² for data in [a, b],   v_t ≤ mean over k of l_k σ²/(α² l_k + σ²).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Estimator = Literal["residual", "score_norm", "data_variance"]
ESTIMATORS: tuple[Estimator, ...] = ("residual", "score_norm", "data_variance")
Float64Array = npt.NDArray[np.float64]


def score_norm(eps_square: npt.ArrayLike, alpha: float, sigma: float) -> Float64Array:
    """(σ²/α²)(1 − E ε̂²); inf where α = 0 (the ε̂ of pure noise says nothing)."""
    missing = 1.0 - np.asarray(eps_square, dtype=np.float64)
    return missing * (sigma / alpha) ** 2 if alpha > 0 else np.full_like(missing, np.inf)


def range_variance(data_range: tuple[float, float] | None) -> float:
    """((b − a)/2)², the largest variance that a number in [a, b] can have, at one x_t too; inf without a range [E5]."""
    return math.inf if data_range is None else ((data_range[1] - data_range[0]) / 2) ** 2


def upper_bound(
    alpha: float,
    sigma: float,
    linear: npt.ArrayLike | None,
    data_range: tuple[float, float] | None,
) -> Float64Array:
    """The least of the upper bounds that apply to the average of v over x_t; at one x_t only `range_variance` does.

    Args:
        linear: the linear-MMSE value(s), or None where the data's variance is unknown.
        data_range: (a, b), or None for unbounded data and for DCT coefficients.
    """
    bound = np.asarray((sigma / alpha) ** 2 if alpha > 0 else np.inf)
    bound = np.minimum(bound, range_variance(data_range))
    return bound if linear is None else np.asarray(np.minimum(bound, np.asarray(linear)))
