"""The Fréchet distance between two Gaussians (Dowson & Landau 1982; its use on features: Heusel et al., 1706.08500).

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^{1/2}

The matrix square root is never formed. With any factors Σ_a = A Aᵀ and Σ_b = B Bᵀ,

    tr (Σ_a Σ_b)^{1/2} = Σ_i s_i(P),        P = Aᵀ B,   s_i: singular values,

as the eigenvalues of Σ_a Σ_b are those of P Pᵀ.

*Which values.* Singular values of P are accurate to ε‖P‖ each. The eigenvalues λ_i = s_i² of the symmetric P Pᵀ cost a
fifth of the time but are wrong by up to about δ = ε λ_max each, which in their roots becomes δ/(2√λ_i), and √δ where
λ_i ≈ 0. Rounding errors have no common sign, so the sum of the roots is wrong by about

    e = (Σ_i δ²/max(λ_i, δ))^{1/2} ≤ √d ε √(κ_a κ_b) ‖P‖        for covariances of condition numbers κ_a, κ_b

at most: over spectra i^{-p} and exponential ones, in equal and other bases and units, the error was measured below e/10
wherever it was above the 1e-15 (tr Σ_a + tr Σ_b) of any method. e is known once the λ_i are. Where e ≤ 1e-9 d² the
eigenvalues are taken; else (nearly singular covariances, features in wildly different units, nearly equal statistics)
the singular values, as for small matrices always. `scipy.linalg.sqrtm` of Σ_a Σ_b and the roots of its eigenvalues, the
usual ways, have the same weakness without the remedy, and imaginary parts besides.

*Which factor.* Rounding perturbs an entry of a covariance by about ε √(Σ_ii Σ_jj), so "numerically singular" is a
property of the correlation matrix C = D^{-1/2} Σ D^{-1/2}, D = diag Σ, and not of the units of single features. Where C
is well conditioned (by LAPACK's estimate from its Cholesky factor L; the pivots of L alone do not tell), A = D^{1/2} L.
Else (fewer images than features, constant or repeated features) Cholesky with pivoting, stopped where no pivot is above
the rounding level d ε, gives as many columns as the rank. It is taken where that rank is clear: no kept pivot is near
that level, and C is reproduced to rounding. Else (smoothly decaying spectra, files in float32) C = V Λ Vᵀ; eigenvalues
at or below d ε λ_max are set to 0, for their roots would be noise of size √ε; and A = D^{1/2} V Λ^{1/2} keeps the other
columns. Few columns make P small, so the distance from few images is cheap.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .statistics import Array, FeatureStatistics

# The reciprocal condition number above which Cholesky is taken; rounding is below 1e-12 even for 2,048 features.
WELL_CONDITIONED = 1e-10
# Below this many rows the singular values take milliseconds, and nothing is gained.
SMALL = 256
# What the roots of eigenvalues may lose, relative to the distance; see the module docstring.
ALLOWED_LOSS = 1e-9
EPSILON = float(np.finfo(np.float64).eps)

Moments = FeatureStatistics | tuple[npt.ArrayLike, npt.ArrayLike]


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance, as published FIDs are, of two FeatureStatistics or (mu (D,), sigma (D, D)) pairs.

    Symmetric, never negative, 0 for equal statistics; in the features' units squared. Raises InputError for dimensions
    that differ, for invalid moments, and for a covariance with negative eigenvalues.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = moments(a, "the first"), moments(b, "the second")
    if mean_a.shape != mean_b.shape:
        raise InputError(
            f"the two statistics have dimensions {mean_a.size} and {mean_b.size}; compare features of one network only."
        )
    means = float(np.square(mean_a - mean_b).sum())
    if np.array_equal(covariance_a, covariance_b):
        return means
    traces = float(np.trace(covariance_a) + np.trace(covariance_b))
    return _distance(means, traces, factor(covariance_a).T @ factor(covariance_b))


def frechet_of_rows(a: Array, b: Array) -> float:
    """The same of two samples of features (M, D) and (R, D), whose covariances have their centred rows as factors: for
    few images of many features, at a cost of M R D. Nothing is checked."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    rows_a, rows_b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    traces = float(np.square(rows_a).sum() + np.square(rows_b).sum())
    return _distance(float(np.square(mean_a - mean_b).sum()), traces, rows_a @ rows_b.T)


def _distance(means: float, traces: float, product: Array) -> float:
    """d² of ‖μ_a − μ_b‖², tr Σ_a + tr Σ_b, and P."""
    constant = means + traces
    return max(0.0, constant - 2 * _overlap(product, constant))


def _overlap(product: Array, constant: float) -> float:
    """The sum of the singular values of P, for a distance of `constant` less twice that."""
    from scipy.linalg import eigvalsh, svdvals

    if min(product.shape) >= SMALL:
        small = product if product.shape[0] <= product.shape[1] else product.T
        values = eigvalsh(small @ small.T, overwrite_a=True, check_finite=False)
        rounding = EPSILON * values[-1]
        overlap = float(np.sqrt(np.maximum(values, 0.0)).sum())
        loss = rounding * float(np.sqrt((1 / np.maximum(values, rounding)).sum())) if rounding > 0 else 0.0
        if loss <= ALLOWED_LOSS * (constant - 2 * overlap):
            return overlap
    return float(svdvals(product, overwrite_a=True, check_finite=False).sum()) if product.size else 0.0


def factor(covariance: Array) -> Array:
    """A (D, r) with A Aᵀ = Σ (D, D), r the numerical rank; see the module docstring."""
    scale = np.sqrt(np.diagonal(covariance))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    correlation = covariance * inverse * inverse[:, None]
    root = _cholesky(correlation)
    if root is None:
        root = _pivoted_cholesky(correlation)
    if root is None:
        root = _eigenvectors(correlation)
    return np.asarray(scale[:, None] * root)


def _cholesky(correlation: Array) -> Array | None:
    """The Cholesky factor of a well conditioned matrix, else None."""
    from scipy.linalg import LinAlgError, cholesky
    from scipy.linalg.lapack import dpocon

    try:
        lower: Array = cholesky(correlation, lower=True, check_finite=False)
    except LinAlgError:
        return None
    condition, _ = dpocon(lower, np.abs(correlation).sum(axis=0).max(), uplo="L")
    return lower if condition > WELL_CONDITIONED else None


def _pivoted_cholesky(correlation: Array) -> Array | None:
    """A factor with as many columns as the rank, or None where there is no clear rank."""
    from scipy.linalg.lapack import dpstrf

    rounding = len(correlation) * EPSILON
    content, order, rank, _ = dpstrf(correlation, lower=1, tol=rounding)
    if rank == 0 or np.diagonal(content)[rank - 1] ** 2 < WELL_CONDITIONED:  # pivots fall: the last kept is the least
        return None
    root = np.zeros((len(correlation), rank))
    root[order - 1] = np.tril(content)[:, :rank]
    return root if np.abs(root @ root.T - correlation).max() <= rounding else None


def _eigenvectors(correlation: Array) -> Array:
    """The factor V Λ^{1/2} without the eigenvalues that are rounding. Raises InputError for truly negative ones."""
    from scipy.linalg import eigh

    values, vectors = eigh(correlation)
    # Files in float32 have eigenvalues of about -1e-7; anything much larger is no rounding.
    if values[0] < -1e-4 * max(values[-1], 1.0):
        raise InputError(
            f"a covariance has a negative eigenvalue ({values[0]:.3g} after scaling to unit variances); expected a "
            "positive semi-definite one: compute the statistics again."
        )
    keep = values > len(values) * EPSILON * values[-1]
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))


def moments(statistics: Moments, which: str) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D); `which` names them in messages. Raises InputError where they are invalid."""
    if not isinstance(statistics, FeatureStatistics):
        mu, sigma = statistics
        statistics = FeatureStatistics.from_moments(mu, sigma, source=f"{which} statistics")
    return statistics.mean, statistics.covariance
