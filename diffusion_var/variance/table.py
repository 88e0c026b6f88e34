"""The variance table: raw moments at some indices, from which every reverse variance is answered.

A table keeps the means and covariances of the eight moments (see `moments`) per index and structure, what is known of
the data, and which network, schedule and conventions they belong to. How they are turned into values at and between
the measured indices is `nodes`; outside the measured indices nothing is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process.schedule import NoiseSchedule
from ..process.structure import STRUCTURE_NAMES, Structure, make_structure
from .estimators import ESTIMATORS, Estimator, upper_bound
from .interpolation import Nodes
from .moments import NUM_MOMENTS, TARGETS
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


@dataclass(eq=False)
class VarianceTable:
    """Measured reverse-variance moments of one network; made by `estimate`, `load` or `from_moments`.

    Attributes:
        schedule, shape, prediction, clip, data_range: the denoiser's; shape is None for published arrays.
        network: SHA-256 of the weights, or None.
        guidance_scale: w of classifier-free guidance that the mean had; 1 without.
        latent_scaling: (scale, shift) of the autoencoder, for latents.
        indices, counts: measured indices (ascending) and Monte Carlo draws at each.
        moments: by structure name; "isotropic" is always there.
        data: statistics of the data, or None.
        seed, tolerance, evaluations: of the run that made it.
        details: whatever else is worth keeping (versions, shortfall), JSON-serialisable.
        nodes: what the moments say as they are, without any bound; see `posterior_variance` for what users want.
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
    guidance_scale: float = 1.0
    latent_scaling: tuple[float, float] | None = None
    data: DataStatistics | None = None
    seed: int | None = None
    tolerance: float | None = None
    evaluations: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = Nodes(self)
        self._structures: dict[str, Structure] = {}

    # ---- files and other sources ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the table to one safetensors file, atomically; the same table gives the same bytes."""
        from .table_file import write_table

        write_table(self, path)

    @classmethod
    def load(cls, path: str | Path) -> VarianceTable:
        """Read a table; InputError for a missing, damaged or newer file."""
        from .table_file import read_table

        return read_table(path)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the table and a model card that states where it comes from; see `variance.hub.push_table`."""
        from .card import push_table

        return push_table(self, repo_id, **options)

    @classmethod
    def from_hub(cls, repo_id: str | Path, **options: Any) -> VarianceTable:
        """The table of a hub repository, or of a folder written like one; see `variance.hub.fetch_table`."""
        from .card import fetch_table

        return fetch_table(repo_id, **options)

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the table; a saved table has the digest of the one that was saved."""
        from .table_file import table_digest

        return table_digest(self)

    def subset(self, structures: Sequence[str]) -> VarianceTable:
        """The table with these structures (and isotropic) only: a smaller file."""
        for name in structures:
            self._check_request(self.default_estimator, name)
        kept = {name: moments for name, moments in self.moments.items() if name in ("isotropic", *structures)}
        return replace(self, moments=kept)

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
                f"eps_square has shape {values.shape}, but the schedule has N={N}, so length {N} or {N + 1} is "
                "expected."
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

    @property
    def default_estimator(self) -> Estimator:
        """ "residual", or "score_norm" for published arrays, which know no other."""
        return "residual" if self.data is not None else "score_norm"

    def structure(self, name: str) -> Structure:
        """The structure called `name`, with this table's channel rotation."""
        if name not in self._structures:
            rotation = self.data.rotation if self.data is not None and name == "dct" else None
            self._structures[name] = make_structure(name, self.shape or (1, 1, 1), rotation)
        return self._structures[name]

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
        if bounded and self.guidance_scale != 1.0:
            raise InputError(
                f"this table was measured with guidance (scale {self.guidance_scale:g}), and the bounds hold for the "
                "exact posterior mean only; leave out bounded=True."
            )
        value = self.nodes.value(estimator, structure, n)
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
        cross = self.nodes.value("error_clipping", structure, n)
        return v, cross, np.maximum(self.nodes.value("clipping_square", structure, n), 0.0)

    def standard_error(self, n: int, estimator: Estimator = "residual") -> float:
        """Standard error of the isotropic `posterior_variance(n, estimator, bounded=False)`, squared data units.

        Between measured indices: the larger of the two neighbours', in units of the linear-MMSE value. nan for tables
        from published arrays.
        """
        self._check_request(estimator, "isotropic")
        return self.nodes.standard_error(estimator, self.schedule.check_index(n))

    def relative_error(self, n: int, structure: str = "isotropic") -> float:
        """Relative standard error of the residual value at index n: of the number for isotropic, else the
        root-mean-square over elements. Between measured indices, the larger of the two neighbours'. Values below a
        thousandth of their linear-MMSE value count as that."""
        self._check_request("residual", structure)
        return self.nodes.relative_error(structure, self.schedule.check_index(n))

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser with another schedule, shape, prediction type, clipping, guidance scale, latent scaling or
        network than the table's."""
        if mismatch := self.mismatch(denoiser):
            raise InputError(
                f"this variance table was made for another model ({mismatch}); estimate one for this model."
            )

    def mismatch(self, denoiser: Denoiser, owner: str = "the table") -> str:
        """In what a denoiser differs from the table's, in words; empty where they fit. `owner` is who has the table."""
        facts: list[tuple[str, Any, Any]] = []
        if not self.schedule.matches(denoiser.schedule):
            facts.append(("schedule", self.schedule, denoiser.schedule))
        if self.prediction is not None:  # published arrays know their schedule only
            facts += [
                ("shape", self.shape, denoiser.shape),
                ("prediction type", self.prediction, denoiser.prediction),
                ("clipping", self.clip, denoiser.clip),
                ("guidance scale", self.guidance_scale, denoiser.guidance_scale),
            ]
        if self.latent_scaling is not None and denoiser.codec is not None:
            facts.append(("latent scaling", self.latent_scaling, denoiser.codec.scaling))
        if self.network is not None and denoiser.fingerprint is not None:  # a bare function has no weights to compare
            facts.append(("network fingerprint", self.network[:12], denoiser.fingerprint[:12]))
        return "; ".join(
            f"{name}: {owner} has {mine}, the denoiser {theirs}" for name, mine, theirs in facts if mine != theirs
        )

    def summary(self) -> str:
        """A short text: where the table comes from, and a line per tenth of the measured indices."""
        from .summary import summarise

        return summarise(self)

    # ---- how it is answered -----------------------------------------------------------------------------------

    def _check_request(self, estimator: str, structure: str) -> None:
        if estimator not in ESTIMATORS:
            raise InputError(f"estimator {estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}.")
        if self.guidance_scale != 1.0 and estimator != "residual":
            raise InputError(
                f"this table was measured with guidance (scale {self.guidance_scale:g}), whose mean is not the "
                f"posterior mean that the estimator {estimator!r} takes for granted; use 'residual'."
            )
        if structure not in STRUCTURE_NAMES:
            raise InputError(f"structure {structure!r} is not known; choose one of {', '.join(STRUCTURE_NAMES)}.")
        if structure not in self.moments:
            raise InputError(
                f"this table has no structure {structure!r} (it has {', '.join(self.moments)}); "
                f"estimate it again with structures including {structure!r}."
            )
        if self.data is None and estimator != "score_norm":
            raise InputError(
                f"this table was made from published arrays and cannot give the estimator {estimator!r}; "
                "use 'score_norm', or estimate a table."
            )

    def _upper_bound(self, structure: str, n: int) -> Float64Array:
        # A DCT coefficient of data in [a, b] can reach √d times the range: the range says nothing of its variance.
        data_range = None if structure == "dct" else self.data_range
        return upper_bound(self.schedule.alpha[n], self.schedule.sigma[n], self.nodes.linear(structure, n), data_range)
