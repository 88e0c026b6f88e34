"""The variance table: raw moments at some indices, from which every reverse variance is answered.

A table keeps the means and covariances of the eight moments (see `moments`) per index and structure, what is known of
the data, and which network, schedule and conventions they belong to. Between measured indices, v_t divided by its
linear-MMSE value (known without a network) is interpolated linearly in log-SNR; outside them nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process.schedule import NoiseSchedule
from ..process.structure import STRUCTURE_NAMES, Structure, make_structure
from .bounds import ESTIMATORS, Estimator, linear_mmse, score_norm, upper_bound
from .moments import NUM_MOMENTS, TARGETS, adjusted_covariance, adjusted_means, control_expectations
from .population import DataStatistics

Float64Array = npt.NDArray[np.float64]


@dataclass
class StructureMoments:
    """The moments of one structure at the table's indices.

    Attributes:
        means: (I, 8, *v), float64 for isotropic and float32 for elementwise structures.
        covariances: (I, 8, 8) of one draw; for elementwise structures the mean over elements weighted by 1/v².
    """

    means: npt.NDArray[Any]
    covariances: Float64Array


@dataclass
class VarianceTable:
    """Measured reverse-variance moments of one network; made by `estimate`, `load` or `from_moments`.

    Attributes:
        schedule, shape, prediction, clip, data_range: the denoiser's; shape is None for published arrays.
        network: SHA-256 of the weights, or None.
        indices, counts: measured indices (ascending) and Monte Carlo draws at each.
        moments: by structure name; "isotropic" is always there.
        data: statistics of the data, or None.
        seed, tolerance, evaluations: of the run that made it.
        details: whatever else is worth keeping (versions, shortfall), JSON-serialisable.
    """

    schedule: NoiseSchedule
    indices: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    moments: dict[str, StructureMoments]
    shape: tuple[int, int, int] | None = None
    prediction: str | None = None
    clip: tuple[float, float] | None = None
    data_range: tuple[float, float] | None = None
    network: str | None = None
    data: DataStatistics | None = None
    seed: int | None = None
    tolerance: float | None = None
    evaluations: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._node_cache: dict[tuple[str, str], Float64Array] = {}
        self._structure = lru_cache(maxsize=None)(self._make_structure)

    # ---- files and other sources ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the table to one safetensors file, atomically; the same table gives the same bytes."""
        from .tablefile import write_table

        write_table(self, path)

    @classmethod
    def load(cls, path: str | Path) -> VarianceTable:
        """Read a table; InputError for a missing, damaged or newer file."""
        from .tablefile import read_table

        return read_table(path)

    @classmethod
    def from_moments(
        cls,
        schedule: NoiseSchedule,
        *,
        eps_square: npt.ArrayLike,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
    ) -> VarianceTable:
        """A table from published arrays of E‖ε̂‖²/d (Analytic-DPM's `ms_eps`): length N, or N + 1 with entry 0 unused.

        It answers the estimator "score_norm" with structure "isotropic", and knows no standard errors.
        """
        values = np.asarray(eps_square, dtype=np.float64)
        N = schedule.num_steps
        if values.ndim != 1 or len(values) not in (N, N + 1):
            raise InputError(
                f"eps_square has shape {values.shape}, but the schedule has N={N}, so length {N} or {N + 1} is expected."
            )
        values = values[-N:]
        if not np.isfinite(values).all() or (values < 0).any():
            n = int(np.nonzero(~(np.isfinite(values) & (values >= 0)))[0][0]) + 1
            raise InputError(f"eps_square at index {n} is {values[n - 1]!r}, but it must be finite and at least 0.")
        means = np.full((N, NUM_MOMENTS), np.nan)
        means[:, TARGETS.index("eps_square")] = values
        moments = {"isotropic": StructureMoments(means, np.full((N, NUM_MOMENTS, NUM_MOMENTS), np.nan))}
        return cls(schedule, np.arange(1, N + 1), np.zeros(N, dtype=np.int64), moments, data_range=data_range)

    # ---- what is asked of it ----------------------------------------------------------------------------------

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that the table holds."""
        return tuple(self.moments)

    def structure(self, name: str) -> Structure:
        """The structure called `name`, with this table's channel rotation."""
        return self._structure(name)

    def _make_structure(self, name: str) -> Structure:
        rotation = self.data.rotation if self.data is not None and name == "dct" else None
        return make_structure(name, self.shape or (1, 1, 1), rotation)

    def posterior_variance(
        self,
        n: int,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        bounded: bool | None = None,
    ) -> Any:
        """v_n, the variance of x_0 given x_n, in squared data units.

        Args:
            n: index in 0…N (0 gives 0); between measured indices it is interpolated.
            estimator: "residual", "score_norm" or "data_variance" (DESIGN §2.3).
            structure: "isotropic" gives a float, others a float64 array (C, 1, 1) or (C, H, W).
            bounded: apply the upper bounds of the exact mean (DESIGN §2.5); None: for score_norm and data_variance.
                The lower bound 0 always holds.

        Raises InputError for an unknown name, a structure that the table lacks, or an index outside the measured ones.
        """
        self._check_request(estimator, structure)
        n = self.schedule.check_index(n, lowest=0)
        if n == 0:
            return 0.0 if structure == "isotropic" else np.zeros(self.structure(structure).variance_shape)
        value = self._interpolated(estimator, structure, n) * self._scale(structure, n)
        if bounded if bounded is not None else estimator != "residual":
            value = np.minimum(value, self._upper_bound(structure, n))
        value = np.maximum(value, 0.0)
        return float(value) if structure == "isotropic" else np.asarray(value)

    def clipping_moments(self, n: int, structure: str = "isotropic") -> tuple[Any, Any, Any]:
        """(E r², E r δ, E δ²) at index n with r = x_0 − x̂_0 as used and δ = ε̂ − (x_t − α x̂_0)/σ: what the optimal
        covariance with clipping and the network's own ε̂ needs (DESIGN §2.3; see `moments`)."""
        v = self.posterior_variance(n, "residual", structure)
        if n == 0 or self.clip is None:
            return v, np.zeros_like(v), np.zeros_like(v)
        cross = self._interpolated("error_clipping", structure, n) * np.sqrt(self._scale(structure, n))
        return v, cross, np.maximum(self._interpolated("clipping_square", structure, n), 0.0)

    def standard_error(self, n: int, estimator: Estimator = "residual") -> float:
        """Standard error of the isotropic `posterior_variance(n, estimator, bounded=False)`, squared data units.

        Between measured indices: the larger relative error of the two neighbours, times the interpolated value.
        nan for tables from published arrays.
        """
        self._check_request(estimator, "isotropic")
        n = self.schedule.check_index(n)
        low, high, _ = self._bracket(n)
        relative = max(
            self._error_at(i, estimator)
            / abs(float(self._nodes(estimator, "isotropic")[i] * self._scale("isotropic", int(self.indices[i]))))
            for i in {low, high}
        )
        return relative * abs(float(self._interpolated(estimator, "isotropic", n) * self._scale("isotropic", n)))

    def relative_error(self, n: int, structure: str = "isotropic") -> float:
        """Relative standard error of the residual value at index n: of the number for isotropic, else the
        root-mean-square over elements. Between measured indices, the larger of the two neighbours'."""
        self._check_request("residual", structure)
        low, high, _ = self._bracket(self.schedule.check_index(n))
        return max(self._relative_error_at(i, structure) for i in {low, high})

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser that this table was not made for: another schedule, shape, prediction type, clipping or network."""
        mismatch = [
            f"{name}: the table has {mine}, the denoiser {theirs}"
            for name, mine, theirs in (
                ("schedule", self.schedule, denoiser.schedule),
                ("shape", self.shape, denoiser.shape),
                ("prediction type", self.prediction, denoiser.prediction),
                ("clipping", self.clip, denoiser.clip),
                (
                    "network fingerprint",
                    self.network and self.network[:12],
                    denoiser.fingerprint and denoiser.fingerprint[:12],
                ),
            )
            if mine != theirs
            and not (mine is None and name != "clipping")
            and not (name == "network fingerprint" and theirs is None)
            and not (name == "clipping" and self.prediction is None)
        ]
        if mismatch:
            raise InputError(
                f"this variance table was made for another model ({'; '.join(mismatch)}); estimate a table for this one."
            )

    def summary(self) -> str:
        """A short text: where the table comes from, and a line per tenth of the measured indices."""
        from .summary import summarise

        return summarise(self)

    # ---- how it is answered -----------------------------------------------------------------------------------

    def _check_request(self, estimator: str, structure: str) -> None:
        if estimator not in ESTIMATORS:
            raise InputError(f"estimator {estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}.")
        if structure not in STRUCTURE_NAMES:
            raise InputError(f"structure {structure!r} is not known; choose one of {', '.join(STRUCTURE_NAMES)}.")
        if structure not in self.moments:
            raise InputError(
                f"this table has no structure {structure!r} (it has {', '.join(self.moments)}); estimate it again with structures including {structure!r}."
            )
        if self.data is None and estimator != "score_norm":
            raise InputError(
                f"this table was made from published arrays and cannot give the estimator {estimator!r}; use 'score_norm', or estimate a table."
            )

    def _linear(self, structure: str, n: int) -> Float64Array | None:
        """The linear-MMSE value of each element (pooled as the structure pools), or None without data."""
        if self.data is None:
            return None
        l = self.data.element_variance(structure)
        return np.asarray(
            self.structure(structure).pool(linear_mmse(l, self.schedule.alpha[n], self.schedule.sigma[n]))
        )

    def _scale(self, structure: str, n: int) -> Float64Array:
        """What v_n is divided by before interpolation: its linear-MMSE value, or 1 without data.

        Elements that (almost) never vary in the data get a floor of 1e-6 of the mean, so that the ratio stays finite.
        """
        if self.data is None:
            return np.ones(())
        l = self.data.element_variance(structure)
        floored = np.maximum(l, max(1e-6 * float(l.mean()), 1e-30))
        return np.asarray(
            self.structure(structure).pool(linear_mmse(floored, self.schedule.alpha[n], self.schedule.sigma[n]))
        )

    def _upper_bound(self, structure: str, n: int) -> Float64Array:
        data_range = None if structure == "dct" else self.data_range
        return upper_bound(self.schedule.alpha[n], self.schedule.sigma[n], self._linear(structure, n), data_range)

    def _adjusted(self, i: int, structure: str) -> Float64Array:
        """(5, *v): the targets' means at position i, after the control variates."""
        moments, n = self.moments[structure], int(self.indices[i])
        means = np.asarray(moments.means[i], dtype=np.float64)
        if self.data is None:
            return means[: len(TARGETS)]
        expected = control_expectations(
            self.data, self.structure(structure), self.schedule.alpha[n], self.schedule.sigma[n]
        )
        return adjusted_means(means, moments.covariances[i], expected)

    def _nodes(self, quantity: str, structure: str) -> Float64Array:
        """(I, *v): a quantity at the measured indices, in the units in which it is interpolated."""
        key = quantity, structure
        if key not in self._node_cache:
            self._node_cache[key] = np.stack([self._node(i, quantity, structure) for i in range(len(self.indices))])
        return self._node_cache[key]

    def _node(self, i: int, quantity: str, structure: str) -> Float64Array:
        n = int(self.indices[i])
        value = dict(zip(TARGETS, self._adjusted(i, structure), strict=True))
        if quantity == "clipping_square":
            return np.asarray(value["clipping_square"])
        scale = self._scale(structure, n)
        if quantity == "error_clipping":
            return np.asarray(value["error_clipping"] / np.sqrt(scale))
        if quantity == "residual":
            return np.asarray(value["error_square"] / scale)
        if quantity == "score_norm":
            return score_norm(value["eps_square"], self.schedule.alpha[n], self.schedule.sigma[n]) / scale
        assert self.data is not None
        data = np.asarray(self.structure(structure).pool(self.data.element_variance(structure)))
        return np.asarray((data - value["mean_square"]) / scale)

    def _bracket(self, n: int) -> tuple[int, int, float]:
        """Positions of the measured indices around n, and the weight of the upper one."""
        position = int(np.searchsorted(self.indices, n))
        if position < len(self.indices) and self.indices[position] == n:
            return position, position, 0.0
        if position in (0, len(self.indices)):
            raise InputError(
                f"index {n} is outside the measured indices {self.indices[0]} to {self.indices[-1]} of this table; estimate it again with that index included."
            )
        low, here, high = (self.schedule.log_snr[k] for k in (self.indices[position - 1], n, self.indices[position]))
        # Towards zero terminal SNR log-SNR is infinite: stay at the last finite value.
        weight = float((low - here) / (low - high)) if math.isfinite(high) else 0.0
        return position - 1, position, weight

    def _interpolated(self, quantity: str, structure: str, n: int) -> Float64Array:
        low, high, weight = self._bracket(n)
        nodes = self._nodes(quantity, structure)
        return np.asarray(nodes[low] if weight == 0.0 else (1.0 - weight) * nodes[low] + weight * nodes[high])

    def _variance_of_targets(self, i: int, structure: str) -> Float64Array:
        if self.data is None:
            return np.full((len(TARGETS), len(TARGETS)), np.nan)
        return adjusted_covariance(self.moments[structure].covariances[i], int(self.counts[i]))

    def _error_at(self, i: int, estimator: Estimator) -> float:
        """Absolute standard error of the isotropic value at position i."""
        target = {"residual": "error_square", "score_norm": "eps_square", "data_variance": "mean_square"}[estimator]
        k, n = TARGETS.index(target), int(self.indices[i])
        error = math.sqrt(max(float(self._variance_of_targets(i, "isotropic")[k, k]), 0.0)) if self.data else math.nan
        alpha, sigma = self.schedule.alpha[n], self.schedule.sigma[n]
        return error * ((sigma / alpha) ** 2 if alpha > 0 else math.inf) if estimator == "score_norm" else error

    def _relative_error_at(self, i: int, structure: str) -> float:
        k = TARGETS.index("error_square")
        variance = max(float(self._variance_of_targets(i, structure)[k, k]), 0.0) if self.data else math.nan
        if structure != "isotropic":
            return math.sqrt(variance)
        value = self._adjusted(i, structure)[k]
        return math.sqrt(variance) / float(value) if value > 0 else (0.0 if variance == 0 else math.inf)


def merge_indices(schedule: NoiseSchedule, indices: Sequence[int]) -> list[int]:
    """Indices asked for, checked, sorted and without repeats."""
    if len(indices) == 0:
        raise InputError("indices is empty; give at least one index, or None for the default 64.")
    return sorted({schedule.check_index(n, "indices") for n in indices})
