"""The isotropic value with a regression that has not seen the draws it corrects, and how well its error is known [E6].

Few draws that lie far out (a rare mode, a heavy tail) pull the regression of all draws towards themselves: the value is
then biased by about one standard error, and what the controls leave looks too small. So the shards go in turn into
`FOLDS` folds, and each fold is corrected with the coefficients θ of all the others:

    ŷ = Σ_f w_f [ mean_f(y) − θ_{−f}ᵀ (mean_f(u) − m) ],        Var ŷ ≈ Σ_f w_f s_f / draws,
    s_f = (1, −θ_{−f})ᵀ C_f (1, −θ_{−f}),

with w_f the fold's share of the draws and C_f their covariance. Given θ_{−f}, a fold's draws are new ones: every term
is unbiased, of ŷ and of its variance, without any loss to make up for.

The error is an estimate too. Two things tell how good a one:

    freedom   the s_f of the folds differ, the more so the fewer draws make up the variance (the fourth moment's place):
              2 s̄² over the variance of s̄ are its degrees of freedom (Satterthwaite), between 2 and the draws'. As ±1.96
              standard errors are to hold 95 %, the error is widened to Student's t of so many.
    images    the variance of (x_0 − μ)² is the same at every index. Where an index's draws show less of it than
              all indices' do, they lack the images far out, and s is raised in proportion (`MOST_UNSEEN` at most).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from .moments import CONTROLS, FOLDS, TARGETS, Float64Array, fold_shards, regression

#: How much the variance is raised at most for images that an index's draws lack.
MOST_UNSEEN = 4.0
_LEVEL = 0.975
_IMAGES = len(TARGETS) + CONTROLS.index("data_square")


class CrossFit(NamedTuple):
    """Of the five targets, (5,) each: the value, its variance as it comes, and the variance's degrees of freedom."""

    values: Float64Array
    variances: Float64Array
    freedom: Float64Array


def cross_fit(folds: Float64Array, count: int, expected: Float64Array) -> CrossFit:
    """The value of each target at one index.

    Args:
        folds: (F, 9, 8), see `StructureMoments.folds`.
        count: draws of the index.
        expected: (3,) of the controls.
    """
    k, shards = len(TARGETS), fold_shards(count)
    means, covariances = folds[:, 0], folds[:, 1:]
    weighted = covariances * shards[:, None, None]
    values, squares = np.empty((2, FOLDS, k))
    for f in range(FOLDS):
        theta = regression((weighted.sum(0) - weighted[f]) / (shards.sum() - shards[f]))
        both = np.hstack([np.eye(k), -theta])
        values[f] = means[f, :k] - theta @ (means[f, k:] - expected)
        squares[f] = np.einsum("ti,ij,tj->t", both, covariances[f], both)
    share = (shards / shards.sum())[:, None]
    square = (share * np.maximum(squares, 0.0)).sum(0)
    spread = (share * (squares - square) ** 2).sum(0) / (FOLDS - 1)
    freedom = 2.0 * square**2 / np.maximum(spread, 1e-300)
    return CrossFit((share * values).sum(0), square / count, np.where(square > 0, np.clip(freedom, 2.0, count), count))


def unseen(covariances: Float64Array, counts: npt.NDArray[np.int64]) -> Float64Array:
    """(I,) what the variances are raised by for the images that an index's draws lack; 1: nothing.

    Args:
        covariances: (I, 8, 8) isotropic, of one draw.
        counts: (I,) draws.
    """
    seen = covariances[:, _IMAGES, _IMAGES]
    all_indices = float((seen * counts).sum() / counts.sum())
    return np.clip(all_indices / np.maximum(seen, 1e-300), 1.0, MOST_UNSEEN)


def widening(freedom: float) -> float:
    """By how much an error is widened whose variance has so many degrees of freedom: 1 for many, 2.2 for 2."""
    return float(stdtrit(freedom, _LEVEL) / stdtrit(np.inf, _LEVEL))
