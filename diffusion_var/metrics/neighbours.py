"""Fidelity and variety told apart, by balls around the features that reach to their k-th neighbours.

With r_k(x) the distance of x ∈ X to its k-th nearest other member of X, and [·] = 1 if true, else 0:

    precision = mean over fakes y of  [‖y − x‖ ≤ r_k(x) for some real x]          (Kynkäänniemi et al., 1904.06991)
    recall    = mean over reals x of  [‖x − y‖ ≤ r_k(y) for some fake y]
    density   = mean over fakes y of  #{real x : ‖y − x‖ ≤ r_k(x)}/k              (Naeem et al., 2002.09797)
    coverage  = mean over reals x of  [‖y − x‖ ≤ r_k(x) for some fake y]

For M fakes drawn like the N reals the expected density is 1, and the expected coverage 1 − Π_{j=1..k}
(N − j)/(N + M − j), for M = N about 1 − 2^{-k}: compare with that, not with 1. Balls are closed: a fake that is a copy
of a real image lies in the ball of every real that has that image as k-th neighbour (`<` would leave that to rounding).

Distances come from ‖x‖² + ‖y‖² − 2 x·y in float64, after subtracting the reals' mean, in slabs of rows, so that memory
is a copy of the features and a slab. Rounding of that sum is less than about ε √D (‖x‖² + ‖y‖²); what is outside a
ball by no more is inside, so that repeated and copied images count as such.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from .feature_arrays import Features, feature_pair

Array = npt.NDArray[np.float64]

# Distances held at a time (8 bytes each; a few such arrays are alive at once).
SLAB = 1 << 23
EPSILON = float(np.finfo(np.float64).eps)


class _Points:
    """Features (N, D) with their squared norms."""

    def __init__(self, features: Features, origin: Array) -> None:
        self.values: Array = np.subtract(features, origin, dtype=np.float64)
        self.squares: Array = np.einsum("nd,nd->n", self.values, self.values)
        if not np.isfinite(self.squares).all():
            raise InputError("the features are too large for their distances; scale them down.")

    def slabs(self, others: _Points) -> Iterator[tuple[slice, Array, Array]]:
        """Slices of rows, with their squared distances to all others and the rounding of these, (rows, M) each."""
        step = max(1, SLAB // len(others.values))
        for start in range(0, len(self.values), step):
            rows = slice(start, start + step)
            total = self.squares[rows, None] + others.squares
            distances = total - 2 * (self.values[rows] @ others.values.T)
            total *= EPSILON * (8 + np.sqrt(self.values.shape[1]))
            yield rows, distances, total

    def radii(self, k: int) -> Array:
        """Squared distances to the k-th nearest other point, (N,)."""
        radii = np.empty(len(self.values))
        for rows, distances, _ in self.slabs(self):
            distances.partition(k, axis=1)  # the nearest is the point itself
            radii[rows] = distances[:, k]
        return radii


def precision_recall(real: npt.ArrayLike, fake: npt.ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features (N, D) and (M, D), both in [0, 1].

    Raises InputError for fewer than k + 1 features, other dimensions, and NaN or Inf.
    """
    reals, fakes = _points(real, fake, k, k + 1)
    held, _ = _balls(reals, fakes, reals.radii(k))
    back, _ = _balls(fakes, reals, fakes.radii(k))
    return float((held > 0).mean()), float((back > 0).mean())


def density_coverage(real: npt.ArrayLike, fake: npt.ArrayLike, k: int = 5) -> tuple[float, float]:
    """Density (≥ 0) and coverage (in [0, 1]) of features (N, D) and (M, D).

    Raises InputError for fewer than k + 1 reals or 2 fakes, other dimensions, and NaN or Inf.
    """
    reals, fakes = _points(real, fake, k, 2)
    held, reached = _balls(reals, fakes, reals.radii(k))
    return float(held.mean() / k), float(reached.mean())


def _points(real: npt.ArrayLike, fake: npt.ArrayLike, k: int, least_fakes: int) -> tuple[_Points, _Points]:
    k = checks.whole("k", k, least=1)
    reals, fakes = feature_pair(real, fake, ("real", "fake"))
    for features, name, least in ((reals, "real", k + 1), (fakes, "fake", least_fakes)):
        if len(features) < least:
            raise InputError(
                f"there are {len(features)} {name} features; k = {k} neighbours need at least {least}: "
                "pass more images or lower k."
            )
    origin = reals.mean(axis=0, dtype=np.float64)
    return _Points(reals, origin), _Points(fakes, origin)


def _balls(centres: _Points, points: _Points, radii: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """How many balls hold each point, (points,), and whether each ball holds any, (centres,)."""
    held = np.zeros(len(points.values), dtype=np.int64)
    reached = np.zeros(len(centres.values), dtype=np.bool_)
    for rows, distances, rounding in points.slabs(centres):
        inside = distances <= radii + rounding
        held[rows] = inside.sum(axis=1)
        reached |= inside.any(axis=0)
    return held, reached
