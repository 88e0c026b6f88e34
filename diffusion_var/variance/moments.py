"""The eight moments of one Monte Carlo draw, their sums over shards, and the control-variate regression.

For x_t = α x_0 + σ ε, with r = x_0 − x̂_0 (as used, clipped) and δ = ε̂ − (x_t − α x̂_0)/σ (what clipping changes in ε̂;
zero where nothing is clipped), every element of a structure's basis yields [E3, E6]

    targets    ε̂²,  (x̂_0 − μ)²,  r²,  r δ,  δ²
    controls   ε²,   (x_0 − μ)²,   e²      with known expectations  1,  l,  l σ²/(α² l + σ²)

where e is the error of the linear denoiser. All estimators, structures and clipping conventions follow from their
means. The error of a step's mean is γ r − c δ [E3], whose second moment needs no
cancelling differences in these terms.

Random draws come in shards of 16. A shard's covariance about its own mean is unbiased, so that the covariance of
the eight, pooled over elements, is kept as one 8 × 8 matrix per index and structure whatever the number of elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ..models.posterior import Posterior
from ..models.prediction import eps_of_mean
from ..process.linear import linear_gain, linear_mmse
from ..process.structure import Structure
from .population import DataStatistics

SHARD = 16
TARGETS = ("eps_square", "mean_square", "error_square", "error_clipping", "clipping_square")
CONTROLS = ("noise_square", "data_square", "linear_error_square")
NUM_MOMENTS = len(TARGETS) + len(CONTROLS)
Float64Array = npt.NDArray[np.float64]

#: Relative errors are relative to v, or to this share of its linear-MMSE value where v is less: where the mean (almost)
#: never errs, v is a rare event, and no number of draws would settle its own relative error.
RELATIVE_FLOOR = 1e-3

#: Parts of the draws, each corrected with the regression of all others (`cross_fit`); a shard's: its number mod FOLDS.
FOLDS = 8

#: An element that is hardly ever lit looks far too quiet in a few draws. For its weight, v is at least this share of
#: what its linear-MMSE value lets expect, times the ratio of the two over all elements: they hardly differ in it.
LEAST_SHARE = 0.7


@dataclass
class StructureMoments:
    """What a table keeps of one structure at its I indices.

    Attributes:
        means: (I, 8, *v), float64 for isotropic and float32 for elementwise structures.
        covariances: (I, 8, 8) of one draw; for elementwise structures the mean over elements weighted by 1/v².
        folds: (I, F, 9, 8) of the isotropic structure: in each fold, the means and below them the covariances; None for
            others, and in tables of earlier versions.
    """

    means: npt.NDArray[Any]
    covariances: Float64Array
    folds: Float64Array | None = None

    def draw_variance(self, target: str) -> Float64Array:
        """(I,) the variance of one draw of a target, before the control variates; of the isotropic moments."""
        k = TARGETS.index(target)
        return self.covariances[:, k, k]


@dataclass(frozen=True)
class DrawnBatch:
    """One batch of draws on the device: x_0, ε, x_t and the posterior, (B, C, *spatial); α, σ are (B, 1, …).

    `positions`, (B,) on the CPU, are those of the images in the population.
    """

    x_0: torch.Tensor
    eps: torch.Tensor
    x_t: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    posterior: Posterior
    clipped: bool
    positions: npt.NDArray[np.int64]


class MomentMaps:
    """Turns draws into the eight maps, in the pixel basis and, if a structure needs it, in the dct basis."""

    def __init__(self, draws: DrawnBatch, mean: torch.Tensor, variances: dict[str, torch.Tensor]) -> None:
        self.draws, self.variances = draws, variances
        posterior = draws.posterior
        shift = torch.zeros_like(draws.x_0)
        if draws.clipped:
            shift = posterior.eps - eps_of_mean(draws.x_t, posterior.mean, draws.alpha, draws.sigma)
        self.fields = (
            posterior.eps,
            posterior.mean - mean,
            draws.x_0 - posterior.mean,
            shift,
            draws.eps,
            draws.x_0 - mean,
        )

    def linear_error(self, basis: Structure, eps: torch.Tensor, centred: torch.Tensor, key: str) -> torch.Tensor:
        """(1 − κα)(x_0 − μ) − κσ ε, with κ = α l/(α² l + σ²), in coefficients of the basis."""
        alpha, sigma, l = self.draws.alpha, self.draws.sigma, self.variances[key]
        kappa: torch.Tensor = linear_gain(l, alpha, sigma)
        return (1 - kappa * alpha) * centred - kappa * sigma * eps

    def elementwise(self, structure: Structure) -> torch.Tensor:
        """(B, 8, C, *spatial): the maps in the structure's own basis."""
        eps_hat, mean, error, shift, eps, centred = (structure.forward(field) for field in self.fields)
        key = "spectrum" if structure.name == "dct" else "pixel"
        return _products(eps_hat, mean, error, shift, eps, centred, self.linear_error(structure, eps, centred, key))

    def known_linear_error(self, dct: Structure) -> torch.Tensor:
        """(B,): E[e² | x_0], the linear denoiser's error as far as the image decides it, over all elements."""
        alpha, sigma, l = self.draws.alpha, self.draws.sigma, self.variances["spectrum"]
        kappa: torch.Tensor = linear_gain(l, alpha, sigma)
        of_image = ((1 - kappa * alpha) * dct.forward(self.fields[-1])).square()
        return (of_image + (kappa * sigma).square()).mean(dct.axes, dtype=torch.float64)

    def isotropic(self, dct: Structure) -> torch.Tensor:
        """(B, 8): their means over all elements; only the linear denoiser's error needs the dct basis."""
        eps_hat, mean, error, shift, eps, centred = self.fields
        linear = self.linear_error(dct, dct.forward(eps), dct.forward(centred), "spectrum")
        return _products(eps_hat, mean, error, shift, eps, centred, linear).mean(dct.axes, dtype=torch.float64)


def _products(
    eps_hat: torch.Tensor,
    mean: torch.Tensor,
    error: torch.Tensor,
    shift: torch.Tensor,
    eps: torch.Tensor,
    centred: torch.Tensor,
    linear: torch.Tensor,
) -> torch.Tensor:
    left = torch.stack([eps_hat, mean, error, error, shift, eps, centred, linear], 1)
    right = torch.stack([eps_hat, mean, error, shift, shift, eps, centred, linear], 1)
    return left * right


def shard_sums(values: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and pooled covariances of each shard.

    Args:
        values: (S·16, 8, *v), the moments of S whole shards.
        weights: (S, *v) weight of each element in the pooled covariance, or None for ones.

    Returns:
        sums (S, 8, *v) over the shard's draws; covariances (S, 8, 8): the weighted mean over elements of the unbiased
        covariance about the shard's own mean. Both float64, on the CPU.
    """
    grouped = values.double().reshape(-1, SHARD, *values.shape[1:])
    sums = grouped.sum(1)
    centred = (grouped - sums[:, None] / SHARD).reshape(*grouped.shape[:3], -1)
    if weights is not None:
        centred = centred * weights.double().flatten(1)[:, None, None].sqrt()
    rows = centred.transpose(1, 2).flatten(2)
    elements = centred.shape[-1]
    covariances = rows @ rows.transpose(1, 2) / ((SHARD - 1) * elements)
    return sums.cpu(), covariances.cpu()


class MomentSums:
    """Running sums for one structure over all indices (float64, NumPy).

    Attributes: `sums` (I, 8, *v); `counts` (I,) draws; `covariance_sums` (I, 8, 8) and `covariance_shards` (I,);
    `weights` (I, *v), 1/v² about the latest estimate, or None for the isotropic structure; `fold_sums` (I, F, 9, 8) of
    the isotropic structure alone: the sums of each fold and below them its covariance sums.
    """

    #: What no state is below, by the names of `arrays`; of the others a mean square is not negative (`plausibility`).
    LEAST: Final = {"counts": 0, "covariance_shards": 0, "weights": 0.0}
    #: What checkpoints of earlier versions lack.
    OPTIONAL: Final = ("fold_sums",)

    def __init__(self, structure: Structure, indices: int) -> None:
        self.structure = structure
        shape = structure.variance_shape
        self.sums = np.zeros((indices, NUM_MOMENTS, *shape))
        self.counts = np.zeros(indices, dtype=np.int64)
        self.covariance_sums = np.zeros((indices, NUM_MOMENTS, NUM_MOMENTS))
        self.covariance_shards = np.zeros(indices, dtype=np.int64)
        self.weights: Float64Array | None = np.ones((indices, *shape)) if shape else None
        folds = (indices, FOLDS, NUM_MOMENTS + 1, NUM_MOMENTS)
        self.fold_sums: Float64Array | None = None if shape else np.zeros(folds)

    def add(self, i: int, sums: npt.NDArray[Any], covariance: npt.NDArray[Any]) -> None:
        """Merge the next shard of index position i."""
        if self.fold_sums is not None:
            fold = self.fold_sums[i, int(self.counts[i]) // SHARD % FOLDS]
            fold[0] += sums
            fold[1:] += covariance
        self.sums[i] += sums
        self.counts[i] += SHARD
        self.covariance_sums[i] += covariance
        self.covariance_shards[i] += 1

    def reweigh(self, i: int, linear: Float64Array) -> None:
        """Weigh the elements of index position i by 1/v², v the latest residual, for the draws to come.

        Elements that (almost) never err are weighted as if they had a hundredth of the mean standard deviation, or
        `LEAST_SHARE` of what all elements let expect of their linear-MMSE value `linear`, (*v), or `RELATIVE_FLOOR` of
        that value. What was summed with the earlier weights is made less by as much as they were too large where draws
        vary in proportion to v.
        """
        if self.weights is None:
            return
        v = self.sums[i, TARGETS.index("error_square")] / max(int(self.counts[i]), 1)
        floor = max(1e-4 * float(v.mean()), 1e-150)
        share = LEAST_SHARE * float(v.mean()) / max(float(linear.mean()), 1e-150)
        weights = 1.0 / np.maximum(np.maximum(v, floor), max(share, RELATIVE_FLOOR) * linear) ** 2
        self.covariance_sums[i] /= max(float((self.weights[i] / weights).mean()), 1.0)
        self.weights[i] = weights

    def forget_weighted_covariances(self) -> None:
        """Start the covariances of an elementwise structure anew, e.g. after the pilot's first weights."""
        if self.weights is not None:
            self.covariance_sums[...] = 0.0
            self.covariance_shards[...] = 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All state, for a checkpoint."""
        out: dict[str, npt.NDArray[Any]] = {
            "sums": self.sums,
            "counts": self.counts,
            "covariance_sums": self.covariance_sums,
            "covariance_shards": self.covariance_shards,
        }
        if self.weights is not None:
            out["weights"] = self.weights
        if self.fold_sums is not None:
            out["fold_sums"] = self.fold_sums
        return out

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """The state that `arrays` gave; those of earlier versions knew no folds, and get none."""
        if "fold_sums" not in arrays:
            self.fold_sums = None
        for name, mine in self.arrays().items():
            mine[...] = arrays[name]

    def means(self) -> Float64Array:
        """(I, 8, *v) means over the draws."""
        counts = np.maximum(self.counts, 1).reshape(-1, *[1] * (self.sums.ndim - 1))
        return np.asarray(self.sums / counts)

    def covariances(self) -> Float64Array:
        """(I, 8, 8) covariance of one draw, (weighted) mean over elements."""
        return np.asarray(self.covariance_sums / np.maximum(self.covariance_shards, 1)[:, None, None])

    def folds(self) -> Float64Array | None:
        """(I, F, 9, 8), see `StructureMoments`; None where there are none, or draws in no more than some of them."""
        if self.fold_sums is None or self.counts.min() < FOLDS * SHARD:
            return None
        shards = np.stack([fold_shards(int(count)) for count in self.counts])[..., None, None]
        return np.concatenate([self.fold_sums[:, :, :1] / (shards * SHARD), self.fold_sums[:, :, 1:] / shards], 2)


def fold_shards(count: int) -> npt.NDArray[np.int64]:
    """(F,) shards of each fold among the first `count` draws."""
    return np.asarray((count // SHARD + FOLDS - 1 - np.arange(FOLDS)) // FOLDS)


def control_expectations(data: DataStatistics, structure: Structure, alpha: float, sigma: float) -> Float64Array:
    """(3, *v): the exact expectations of ε², (x_0 − μ)² and e² for a structure [E6]."""
    l = data.element_variance(structure.name)
    maps = (np.ones_like(l), l, linear_mmse(l, alpha, sigma))
    return np.stack([np.asarray(structure.pool(m)) for m in maps])


def regression(covariance: Float64Array) -> Float64Array:
    """(5, 3): regression of the targets on the controls, from their 8 × 8 covariance.

    Collinear controls (at high noise the linear denoiser's error tends to the data itself) share their weight: a tiny
    ridge on the controls' correlations. It costs no correctness, since any fixed weights leave the mean unbiased.
    """
    k = len(TARGETS)
    scale = np.sqrt(np.diag(covariance)[k:])
    scale = np.where(scale > 0, scale, 1.0)
    correlations = covariance[k:, k:] / np.outer(scale, scale) + 1e-9 * np.eye(len(CONTROLS))
    return np.asarray(np.linalg.solve(correlations, (covariance[:k, k:] / scale).T).T / scale)


def adjusted_means(means: Float64Array, covariance: Float64Array, expected: Float64Array) -> Float64Array:
    """(5, *v): the targets' means less what the controls explain; means (8, *v), expected (3, *v)."""
    k = len(TARGETS)
    return np.asarray(means[:k] - np.tensordot(regression(covariance), means[k:] - expected, axes=1))


def adjusted_covariance(covariance: Float64Array, count: int) -> Float64Array:
    """(5, 5): covariance of the adjusted means over `count` draws, with the two losses due to the fitted regression.

    With ν = 15/16 count degrees of freedom within shards and p controls, what the controls leave unexplained is seen
    (ν − p)/ν times too small, and the noise of the fit adds the factor (ν − 1)/(ν − p − 1).
    """
    k, p, freedom = len(TARGETS), len(CONTROLS), count * (SHARD - 1) / SHARD
    left = covariance[:k, :k] - regression(covariance) @ covariance[k:, :k]
    return np.asarray(left * (freedom / (freedom - p)) * ((freedom - 1) / (freedom - p - 1)) / count)
