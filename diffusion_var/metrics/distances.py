"""The Fréchet distance between two Gaussians (Dowson & Landau 1982; its use on features: Heusel et al., 1706.08500).

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^{1/2}

The matrix square root is never formed. With any factors Σ_a = A Aᵀ and Σ_b = B Bᵀ,

    tr (Σ_a Σ_b)^{1/2} = Σ_i s_i(Aᵀ B),        s_i: singular values,

as the eigenvalues of Σ_a Σ_b are those of (Aᵀ B)(Aᵀ B)ᵀ. Singular values are used, not roots of eigenvalues of that
product: they are accurate to ε‖A‖‖B‖, whereas rounding of size ε in an eigenvalue near 0 becomes √ε ≈ 1e-8 in its
root, once for each such direction. `scipy.linalg.sqrtm` of Σ_a Σ_b, the usual way, has the same weakness, and an
imaginary part besides.

*Which factor.* Rounding perturbs an entry of a covariance by about ε √(Σ_ii Σ_jj), so "numerically singular" is a
property of the correlation matrix C = D^{-1/2} Σ D^{-1/2}, D = diag Σ, and not of the units of single features. Where C
is well conditioned (by LAPACK's estimate from its Cholesky factor L; the pivots of L alone do not tell), A = D^{1/2} L.
Else (fewer images than features, constant or repeated features) C = V Λ Vᵀ; eigenvalues at or below the rounding level
d ε λ_max are set to 0, for their roots would be noise of size √ε; and A = D^{1/2} V Λ^{1/2} keeps the other columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .statistics import Array, FeatureStatistics

# The reciprocal condition number above which Cholesky is taken; rounding is below 1e-12 even for 2,048 features.
WELL_CONDITIONED = 1e-10

Moments = FeatureStatistics | tuple[npt.ArrayLike, npt.ArrayLike]


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance, as published FIDs are, of two FeatureStatistics or (mu (D,), sigma (D, D)) pairs.

    Symmetric, never negative, 0 for equal statistics; in the features' units squared. Raises InputError for dimensions
    that differ, for invalid moments, and for a covariance with negative eigenvalues.
    """
    from scipy.linalg import svdvals

    (mean_a, covariance_a), (mean_b, covariance_b) = _moments(a, "the first"), _moments(b, "the second")
    if mean_a.shape != mean_b.shape:
        raise InputError(
            f"the two statistics have dimensions {mean_a.size} and {mean_b.size}; compare features of one network only."
        )
    means = float(np.square(mean_a - mean_b).sum())
    if np.array_equal(covariance_a, covariance_b):
        return means
    product = factor(covariance_a).T @ factor(covariance_b)
    overlap = float(svdvals(product).sum()) if product.size else 0.0
    return max(0.0, means + float(np.trace(covariance_a) + np.trace(covariance_b)) - 2 * overlap)


def factor(covariance: Array) -> Array:
    """A (D, r) with A Aᵀ = Σ (D, D), r the numerical rank; see the module docstring."""
    from scipy.linalg import LinAlgError, cholesky, eigh
    from scipy.linalg.lapack import dpocon

    scale = np.sqrt(np.diagonal(covariance))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    correlation = covariance * inverse * inverse[:, None]
    try:
        lower: Array = cholesky(correlation, lower=True)
        condition, _ = dpocon(lower, np.abs(correlation).sum(axis=0).max(), uplo="L")
        if condition > WELL_CONDITIONED:
            return scale[:, None] * lower
    except LinAlgError:
        pass
    values, vectors = eigh(correlation)
    # Files in float32 have eigenvalues of about -1e-7; anything much larger is no rounding.
    if values[0] < -1e-4 * max(values[-1], 1.0):
        raise InputError(
            f"a covariance has a negative eigenvalue ({values[0]:.3g} after scaling to unit variances); expected a "
            "positive semi-definite one: compute the statistics again."
        )
    keep = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return np.asarray(scale[:, None] * vectors[:, keep] * np.sqrt(values[keep]))


def _moments(statistics: Moments, which: str) -> tuple[Array, Array]:
    if not isinstance(statistics, FeatureStatistics):
        mu, sigma = statistics
        statistics = FeatureStatistics.from_moments(mu, sigma, source=f"{which} statistics")
    return statistics.mean, statistics.covariance
