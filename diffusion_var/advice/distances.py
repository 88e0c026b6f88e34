"""The Fréchet distance between two small samples, and whether two samples' distances differ.

With centred rows A = (X − X̄)/√(M − 1) and B, Σ_a = Aᵀ A and the singular values of A Bᵀ (M × R) are those that
tr (Σ_a Σ_b)^{1/2} sums (see `metrics.frechet`), so that it costs M R D, whatever the dimension D. From few images it is
biased upwards, alike for all; what is asked for is a difference, whose standard error is the jackknife's over groups
of images: both samples without group g, for every g.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..process.schedule import Float64Array


def frechet(first: Float64Array, second: Float64Array) -> float:
    """The squared Fréchet distance between the Gaussians of two samples (M, D) and (R, D)."""
    (mean_a, a), (mean_b, b) = _centred(first), _centred(second)
    overlap = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return max(0.0, float(np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum()) - 2 * overlap)


def _centred(sample: Float64Array) -> tuple[Float64Array, Float64Array]:
    mean = sample.mean(0)
    return mean, (sample - mean) / math.sqrt(len(sample) - 1)


@dataclass(frozen=True)
class Distances:
    """The distance of one sample, and without each of its G groups.

    Attributes: value; without (G,).
    """

    value: float
    without: Float64Array

    @property
    def error(self) -> float:
        """The jackknife's standard error of the value."""
        return jackknife_error(self.without)


def distances(sample: Float64Array, reference: Float64Array, groups: int) -> Distances:
    """Of a sample (M, D) from a reference; group g are the images g, g + groups, …."""
    group = np.arange(len(sample)) % groups
    without = [frechet(sample[group != g], reference) for g in range(groups)]
    return Distances(frechet(sample, reference), np.array(without))


def jackknife_error(without: Sequence[float] | Float64Array) -> float:
    """√((G − 1)/G Σ (θ_g − θ̄)²) of an estimate's values without each group (Tukey 1958)."""
    values = np.asarray(without)
    return float(np.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum()))


@dataclass(frozen=True)
class Difference:
    """How much two numbers differ, and whether that is told apart from chance.

    Attributes:
        value, error: the difference, and its standard error.
        p: two-sided, by Student's t.
    """

    value: float
    error: float
    p: float

    def told_apart(self, of: int = 1) -> bool:
        """At 5 %, shared by so many comparisons (Bonferroni)."""
        return self.p < 0.05 / of


def difference(value: float, error: float, freedom: int) -> Difference:
    """A difference with a standard error of so many degrees of freedom."""
    from scipy.stats import t

    p = 1.0 if error == 0.0 == value else 0.0 if error == 0.0 else 2.0 * float(t.sf(abs(value) / error, freedom))
    return Difference(value, error, p)


def paired(first: Distances, second: Distances) -> Difference:
    """first − second, of samples whose groups share their noise."""
    return difference(
        first.value - second.value, jackknife_error(first.without - second.without), len(first.without) - 1
    )
