"""How far the choice of the images moves a table: the variance between images, from the same draws [E17].

A draw sees y = g(x_0) + noise, where g(x_0) is the expectation of y given the image alone. The mean of g over N images
that were chosen at random from many more has variance Var g/(N − 1), and no number of draws makes it less. Two things
tell g from the noise:

    known means   given any image, ε² − 1 and e² − E[e² | x_0] have mean 0 (e: the linear denoiser's error). Regression
                  on them takes noise away and leaves g; what is left, y', has a variance U, at least Var g.
    pairs         two draws a, b of one image have g in common and no noise: E y'_a y'_b = Var g, and E y'_a² = U.

Pairs are few where images are many (M²/2N among M draws). So they decide about the ratio Var g/U alone, together with
those of the levels nearby and with sixteen more whose ratio is 1: without any, the upper bound U stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .estimators import ESTIMATORS
from .moments import CONTROLS, SHARD, TARGETS

Float64Array = npt.NDArray[np.float64]

_DRAWS = 2**16  # kept in all, 256 to 1,024 at an index: 1.5 MB at the default 64 indices
_LEAST_DRAWS = 32  # of an index, without which nothing is said
_PRIOR_PAIRS = 16.0
_REACH = 1.0  # in log SNR, over which Var g/U hardly moves
_NUM_VALUES = len(ESTIMATORS) + 2


def image_values(moments: npt.NDArray[Any], known: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(…, 5) what is kept of draws: y of each estimator, and the two of which the mean given the image is 0.

    Args:
        moments: (…, 8) of the isotropic structure.
        known: (…) E[e² | x_0] of the same draws.
    """
    of = {name: moments[..., k] for k, name in enumerate((*TARGETS, *CONTROLS))}
    estimators = (of["error_square"], of["eps_square"], of["data_square"] - of["mean_square"])
    return np.stack([*estimators, of["noise_square"] - 1.0, of["linear_error_square"] - known], -1).astype(np.float32)


class ImageDraws:
    """The first draws of every index: which images they were of, and their `image_values`.

    Attributes: `images` (I, K) int32 positions in the population, −1 where there is no draw; `values` (I, K, 5).
    """

    def __init__(self, indices: int) -> None:
        most = min(max(_DRAWS // indices, 256), 1024) // SHARD * SHARD
        self.images = np.full((indices, most), -1, dtype=np.int32)
        self.values = np.zeros((indices, most, _NUM_VALUES), dtype=np.float32)

    def add(self, i: int, shard: int, images: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Keep one shard of index position i, if there is room for it; images (16,), values (16, 5)."""
        part = slice(shard * SHARD, (shard + 1) * SHARD)
        if part.stop <= self.images.shape[1]:
            self.images[i, part], self.values[i, part] = images, values

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All state, for a checkpoint."""
        return {"images": self.images, "values": self.values}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """The state that `arrays` gave."""
        for name, mine in self.arrays().items():
            mine[...] = arrays[name]

    def beyond(self, counts: npt.NDArray[np.int64]) -> bool:
        """Whether an index has draws beyond its `counts`, (I,)."""
        return bool((self.images[np.arange(self.images.shape[1]) >= counts[:, None]] >= 0).any())

    def variance(self, log_snr: Float64Array) -> Float64Array:
        """(I, 3) Var g for each of `ESTIMATORS` (of "score_norm": of ε̂²); nan where there are too few draws."""
        return between_images(self.images, self.values, log_snr)


def between_images(images: npt.NDArray[Any], values: npt.NDArray[Any], log_snr: Float64Array) -> Float64Array:
    """(I, 3) the variance between images, Var g, of each estimator's y.

    Args:
        images: (I, K) which image each draw is of; negative: no draw.
        values: (I, K, 5), see `image_values`.
        log_snr: (I,) of the indices.
    """
    each = [_one_level(i[i >= 0], v[i >= 0].astype(np.float64)) for i, v in zip(images, values, strict=True)]
    bound, product, square = (np.stack(column) for column in zip(*each, strict=True))
    with np.errstate(invalid="ignore"):  # both at zero SNR
        apart = np.nan_to_num(np.abs(log_snr[:, None] - log_snr), nan=0.0, posinf=np.inf)
    near = np.maximum(1.0 - apart / _REACH, 0.0)
    ratio = (near @ product + _PRIOR_PAIRS) / (near @ square + _PRIOR_PAIRS)
    return np.asarray(bound * np.maximum(ratio, 0.0))


def _one_level(images: npt.NDArray[Any], values: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """(3,) each: U, and the sums over pairs of one image of y'_a y'_b and of (y'_a² + y'_b²)/2, in units of U."""
    draws, k = len(images), len(ESTIMATORS)
    if draws < _LEAST_DRAWS:
        return np.full(k, np.nan), np.zeros(k), np.zeros(k)
    centred = values - values.mean(0)
    y, known = centred[:, :k], centred[:, k:]
    known = known / np.maximum(known.std(0), 1e-150)  # near pure noise e² hardly depends on ε
    y = y - known @ np.linalg.lstsq(known, y, rcond=1e-9)[0]
    bound = y.var(0) * draws / (draws - 1 - known.shape[1])
    _, which = np.unique(images, return_inverse=True)
    times = np.bincount(which)[:, None]
    total, square = np.zeros((2, len(times), k))
    np.add.at(total, which, y)
    np.add.at(square, which, y**2)
    unit = np.maximum(bound, 1e-300)
    return bound, (total**2 - square).sum(0) / 2 / unit, ((times - 1) * square).sum(0) / 2 / unit
