"""Mean and covariance of features, in one pass, constant memory and float64.

Batches are merged pairwise (Chan, Golub & LeVeque 1979): with counts n, m, means a, b, δ = b − a and centred scatter
matrices M = Σ (x − mean)(x − mean)ᵀ,

    mean = a + δ m/(n + m),      M = M_a + M_b + δ δᵀ n m/(n + m),      covariance = M/(n + m − 1).

Sums of squares are never formed, so features far from zero lose nothing, and the result does not depend on how the
images were cut into batches or on their order (to rounding).

*The file* is pytorch-fid's: an `.npz` with `mu` and `sigma` (covariance with ddof = 1, as `numpy.cov`), to which
`count` and `origin` are added (which images, features and conversions, as JSON); other programs ignore them. The files
of others are read too, where they hold `mu` and `sigma`: pytorch-fid's, EDM's, and the reference batches of ADM
(guided-diffusion), whose `mu_s`, `sigma_s` (spatial features) are left alone. They do not say how they were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .. import checks
from ..data.arrays import names_in, whole_array
from ..errors import InputError
from ..files import expanded, regular_file, write_atomic
from ..json_text import parse_json

Array = npt.NDArray[np.float64]


class FeatureStatistics:
    """Running mean (D,) and covariance (D, D) of feature vectors.

    Attributes:
        count: number of vectors; None where a file did not say it.
        origin: how they were made (see `collect`), kept in the file; None where that is not known. It describes these
            very statistics, so adding to them clears it.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise InputError(f"the feature dimension is {dimension}; expected at least 1.")
        self.dimension = int(dimension)
        self.count: int | None = 0
        self.origin: dict[str, Any] | None = None
        self._mean: Array = np.zeros(self.dimension)
        self._scatter: Array = np.zeros((self.dimension, self.dimension))  # M; the covariance itself if count is None

    def __repr__(self) -> str:
        return f"FeatureStatistics(dimension={self.dimension}, count={self.count})"

    @classmethod
    def from_moments(
        cls, mu: npt.ArrayLike, sigma: npt.ArrayLike, count: int | None = None, *, source: str = "the statistics"
    ) -> FeatureStatistics:
        """Statistics from a mean (D,) and a covariance (D, D); `source` names them in messages.

        Raises InputError for shapes that do not fit, NaN or Inf, an asymmetric covariance or a count below 2.
        """
        try:
            mean, covariance = np.array(mu, dtype=np.float64), np.array(sigma, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: mu and sigma are not arrays of numbers; compute them again.") from error
        if mean.ndim != 1 or mean.size == 0 or covariance.shape != (mean.size, mean.size):
            raise InputError(
                f"{source}: mu has shape {mean.shape} and sigma {covariance.shape}; expected (D,) and (D, D): "
                "compute them again."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError(f"{source}: mu or sigma holds NaN or Inf; compute them again from finite features.")
        # Files written from float32 are symmetric to about 1e-7 of the variances only.
        variances = np.diagonal(covariance)
        largest = np.sqrt(np.maximum(variances, 0.0))
        beyond = np.abs(covariance) > 1.001 * np.outer(largest, largest) + 1e-5 * variances.max()
        if variances.min() < 0 or np.abs(covariance - covariance.T).max() > 1e-5 * variances.max() or beyond.any():
            raise InputError(
                f"{source}: sigma is not a covariance (asymmetric, or with a negative variance or a negative "
                "eigenvalue, a covariance that its variances do not allow); compute it again."
            )
        if count is not None and count < 2:
            raise InputError(f"{source}: count is {count}; a covariance needs at least 2 images.")
        statistics = cls(mean.size)
        statistics.count, statistics._mean = count, mean
        statistics._scatter = 0.5 * (covariance + covariance.T) * (1 if count is None else count - 1)
        return statistics

    @property
    def mean(self) -> Array:
        """The mean, (D,) float64. Raises InputError where no features were seen."""
        if self.count == 0:
            raise InputError("no features were seen, so they have no mean; pass at least 2 images.")
        return self._mean.copy()

    @property
    def covariance(self) -> Array:
        """The covariance with ddof = 1, (D, D) float64. Raises InputError for fewer than 2 images."""
        if self.count is None:
            return self._scatter.copy()
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, but there are {self.count}; pass more images.")
        return self._scatter / (self.count - 1)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over the bytes of the mean and the covariance in little-endian float64."""
        digest = hashlib.sha256()
        for array in (self.mean, self.covariance):
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()

    def update(self, features: Tensor | npt.NDArray[Any]) -> FeatureStatistics:
        """Add feature vectors (B, D); returns self. Raises InputError for another dimension, or for NaN or Inf."""
        if isinstance(features, Tensor):
            features = features.detach().cpu().double().numpy()
        try:
            batch = np.asarray(features, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"features are a {type(features).__name__}, but an array (B, {self.dimension}) is expected; images go "
                "through feature_statistics."
            ) from error
        if batch.ndim != 2 or batch.shape[1] != self.dimension:
            raise InputError(f"features have shape {batch.shape}; expected (B, {self.dimension}): check the network.")
        if not np.isfinite(batch).all():
            raise InputError("features hold NaN or Inf; expected finite numbers: look at the images and the network.")
        if len(batch) == 0:
            return self
        mean = batch.mean(axis=0)
        centred = batch - mean
        return self._absorb(len(batch), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add all that `other` has seen; returns self. Raises InputError for another dimension or an unknown count."""
        if other.dimension != self.dimension:
            raise InputError(
                f"the statistics have dimensions {self.dimension} and {other.dimension}; "
                "merge those of one network only."
            )
        if other.count is None:
            raise InputError(
                "the other statistics do not say how many images they are of; compute them again to merge."
            )
        return self if other.count == 0 else self._absorb(other.count, other._mean, other._scatter)

    def _absorb(self, count: int, mean: Array, scatter: Array) -> FeatureStatistics:
        if self.count is None:
            raise InputError(
                "these statistics do not say how many images they are of; compute them again to add images."
            )
        self.origin = None
        total = self.count + count
        delta = mean - self._mean
        self._scatter += scatter  # in place: for Inception one copy is 32 MB
        self._scatter += np.outer(delta * (self.count * count / total), delta)
        self._mean = self._mean + delta * (count / total)
        self.count = total
        return self

    def sums(self) -> dict[str, Array]:
        """Mean (D,) and centred scatter (D, D), from which `from_sums` makes the very same statistics again."""
        return {"mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_sums(cls, mean: Array, scatter: Array, count: int) -> FeatureStatistics:
        """Statistics from what `sums` gave, of `count` images."""
        statistics = cls(len(mean))
        statistics.count, statistics._mean, statistics._scatter = count, mean, scatter
        return statistics

    def save(self, path: str | os.PathLike[str], *, run: str | None = None) -> None:
        """Write `mu`, `sigma` and, where known, `count` and `origin` to an `.npz`, as pytorch-fid reads it; atomic.

        `run` is kept in the file: the name of the run that made them.
        """
        if Path(path).suffix.lower() != ".npz":
            raise InputError(
                f"{path} does not end in .npz; give the file that suffix, so that it is known as statistics."
            )
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        if self.origin is not None:
            arrays["origin"] = np.array(json.dumps(self.origin))  # a text, so that no pickle is needed
        if run is not None:
            arrays["run"] = np.array(run)
        write_atomic(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureStatistics:
        """Read an `.npz` written by `save`, or by another program (then `count` and `origin` are None).

        Raises InputError where the file is missing, unreadable or incomplete, or holds no valid mean and covariance.
        """
        path = expanded(path)
        if path.exists():
            regular_file(path)
        try:
            with zipfile.ZipFile(path) as archive:
                keys = names_in(archive)
                missing = [key for key in ("mu", "sigma") if key not in keys]
                checks.refuse(bool(missing), f"it lacks {' and '.join(missing)}, and holds {keys}")
                mu, sigma = whole_array(archive, "mu"), whole_array(archive, "sigma")
                count = checks.whole("count", whole_array(archive, "count").item()) if "count" in keys else None
                origin = parse_json(str(whole_array(archive, "origin"))) if "origin" in keys else None
        except FileNotFoundError as error:
            raise InputError(f"there is no file {path}; expected feature statistics (.npz): check the path.") from error
        except Exception as error:  # numpy raises OSError, ValueError, EOFError, BadZipFile, zlib.error, ...
            reason = str(error).rstrip(".")
            raise InputError(f"{path} cannot be read as feature statistics ({reason}); compute it again.") from error
        if origin is not None and not isinstance(origin, dict):
            raise InputError(f"{path} has an origin that is no record of how it was made; compute it again.")
        statistics = cls.from_moments(mu, sigma, count, source=str(path))
        statistics.origin = origin
        return statistics
