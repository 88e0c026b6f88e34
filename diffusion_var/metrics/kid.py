"""The kernel distance (KID; Bińkowski et al., 1801.01401): the squared maximum mean discrepancy of two feature sets.

With k(x, y) = (x·y/D + 1)³ and samples x_1…x_n, y_1…y_m, the unbiased estimate is

    MMD² = Σ_{i≠j} k(x_i, x_j)/(n(n − 1)) + Σ_{i≠j} k(y_i, y_j)/(m(m − 1)) − 2 Σ_{ij} k(x_i, y_j)/(nm).

Its expectation does not depend on n and m (FID's does), and it may be slightly negative. As published it is the mean
over blocks of equal size on both sides, drawn from the two sets without replacement within a block.

*Standard error.* Blocks share images, so the scatter of their values over √blocks is only the error left by drawing
the blocks; that of having these images, not others, would not be seen. Both are counted. With the influences

    h_i = Σ_{j≠i} k(x_i, x_j)/(n − 1) − Σ_j k(x_i, y_j)/m        (likewise for y),

of which MMD² depends on x_i through 2 h_i/n to first order (Hoeffding), and N, M images on the two sides,

    standard error² = 4 ⟨Var h⟩/N + 4 ⟨Var h'⟩/M + Var(blocks)/blocks,

⟨⟩ the mean over blocks. A row mean's own noise adds a little to Var h, so it errs to the large side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from ..randomness import generator
from .feature_arrays import Estimate, Features, feature_pair

Array = npt.NDArray[np.float64]

# Rows of the kernel matrix held at a time.
ROWS = 1024


class _Discrepancy(NamedTuple):
    value: float
    variance_a: float  # of the influences 2 h
    variance_b: float


def kernel_distance(
    a: npt.ArrayLike, b: npt.ArrayLike, *, blocks: int = 100, block_size: int = 1000, seed: int = 0
) -> Estimate:
    """The KID of two sets of features (N, D) and (M, D), not multiplied by anything, with its standard error.

    `block_size` is lowered to the smaller set. Where that is all of both sets there is one block, in the given order.
    Raises InputError for fewer than 2 features, other dimensions, NaN or Inf, or no blocks.
    """
    first, second = feature_pair(a, b, ("first", "second"))
    blocks, size = checks.whole("blocks", blocks, least=1), checks.whole("block_size", block_size, least=2)
    size = min(size, len(first), len(second))
    if size == len(first) == len(second):
        blocks = 1
    parts = []
    for index in range(blocks):
        random = generator(seed, "kernel distance", index)
        with np.errstate(over="ignore", invalid="ignore"):  # said below
            parts.append(_discrepancy(_draw(first, size, random), _draw(second, size, random)))
    values, variances_a, variances_b = np.array(parts).T
    if not np.isfinite(values).all():
        raise InputError("the features are too large for the kernel (x·y/D + 1)³; scale them down.")
    drawing = values.var(ddof=1) / blocks if blocks > 1 else 0.0
    error = np.sqrt(variances_a.mean() / len(first) + variances_b.mean() / len(second) + drawing)
    return Estimate(float(values.mean()), float(error))


def _draw(features: Features, size: int, random: np.random.Generator) -> Array:
    if size == len(features):
        return features.astype(np.float64)
    return features[np.sort(random.choice(len(features), size, replace=False))].astype(np.float64)


def _discrepancy(x: Array, y: Array) -> _Discrepancy:
    """MMD² of equally many x and y, and the variances of the two sides' influences."""
    n = len(x)
    across_rows, across_columns = np.zeros(n), np.zeros(n)
    within_x, within_y = np.zeros(n), np.zeros(n)
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        cross = _kernel(x[rows], y)
        across_rows[rows] = cross.sum(axis=1)
        across_columns += cross.sum(axis=0)
        within_x[rows] = _kernel(x[rows], x).sum(axis=1)
        within_y[rows] = _kernel(y[rows], y).sum(axis=1)
    within_x -= _kernel_diagonal(x)
    within_y -= _kernel_diagonal(y)
    value = (within_x.sum() + within_y.sum()) / (n * (n - 1)) - 2 * across_rows.sum() / n**2
    influence_x = within_x / (n - 1) - across_rows / n
    influence_y = within_y / (n - 1) - across_columns / n
    return _Discrepancy(value, 4 * influence_x.var(ddof=1), 4 * influence_y.var(ddof=1))


def _kernel(x: Array, y: Array) -> Array:
    inner = x @ y.T
    inner /= x.shape[1]
    inner += 1.0
    return inner * inner * inner


def _kernel_diagonal(x: Array) -> Array:
    return np.asarray((np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3)
