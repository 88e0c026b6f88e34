"""The variance table: raw moments at some noise levels, from which every reverse variance is answered.

A table keeps the means and covariances of the eight moments (see `moments`) per index and structure, what is known of
the data, and which network, schedule and conventions they belong to. How they are turned into values at and between
the measured levels is `interpolation`; outside the measured levels nothing is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from ..models.denoiser import Denoiser, check_denoiser
from ..models.identity import ModelIdentity
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule, as_schedule
from ..process.structure import STRUCTURE_NAMES, Shape, Structure, make_structure
from .card import fetch_table_file, push_repository
from .estimators import ESTIMATORS, Estimator, upper_bound
from .interpolation import Interpolation
from .moments import NUM_MOMENTS, TARGETS, StructureMoments
from .population import DataStatistics
from .summary import summarise
from .table_file import read_table_file, table_digest, write_table_file

Float64Array = npt.NDArray[np.float64]


@dataclass(eq=False)
class VarianceTable:
    """Measured reverse-variance moments of one network; made by `estimate`, `load` or `from_moments`.

    Attributes:
        schedule, shape, prediction, clip, data_range: the denoiser's; shape is None for published arrays.
        network: digest of the weights, or None.
        network_facts: what else tells the network, see `models.identity.network_facts`; None in files made before.
        guidance_scale: w of classifier-free guidance that the mean had; 1 without.
        latent_scaling: (scale, shift) of the autoencoder, for latents; numbers, or tuples of them by channel.
        indices, counts: measured indices (ascending) and Monte Carlo draws at each.
        moments: by structure name; "isotropic" is always there.
        data: statistics of the data, or None.
        seed, tolerance, evaluations: of the run that made it.
        image_variance: (I, 3) variance between images of what one image contributes to each of `ESTIMATORS` (of
            "score_norm": to E ε̂²), see `between_images`; None where it is not known.
        details: whatever else is worth keeping (versions, shortfall), JSON-serialisable.
        interpolation: what the moments say as they are, without any bound; users want `posterior_variance`.
    """

    schedule: NoiseSchedule
    indices: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    moments: dict[str, StructureMoments]
    shape: Shape | None = None
    prediction: str | None = None
    clip: tuple[float, float] | None = None
    data_range: tuple[float, float] | None = None
    network: str | None = None
    guidance_scale: float = 1.0
    latent_scaling: tuple[Any, Any] | None = None
    data: DataStatistics | None = None
    seed: int | None = None
    tolerance: float | None = None
    evaluations: int = 0
    image_variance: Float64Array | None = None
    details: dict[str, Any] = field(default_factory=dict)
    network_facts: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._structures: dict[str, Structure] = {}
        self.interpolation = Interpolation(
            self.schedule, self.indices, self.counts, self.moments, self.data, self.structure, self.image_variance
        )

    # ---- files and other sources ------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the table to one safetensors file, atomically; the same table gives the same bytes."""
        write_table_file(self, path)

    @classmethod
    def load(cls, path: str | Path) -> VarianceTable:
        """Read a table; InputError for a missing, damaged or newer file."""
        return cls(**read_table_file(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: str | None = None,
        data: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the table, and a model card that states where it comes from, to the hub (made if absent).

        Args:
            repo_id: "owner/name".
            model: hub id of the model that was measured, for the card.
            data: name of the data set, for the card.
            license: of the table, for the card, e.g. "mit".
            private: whether a new repository is private.
            revision: branch to commit to.
            token: of the hub; None: the one that `hf auth login` stored.

        Returns: the address of the commit. Raises InputError where the hub refuses or cannot be reached.
        """
        return push_repository(self, repo_id, model, data, private, revision, token, license)

    @classmethod
    def from_hub(
        cls,
        repo_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        filename: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> VarianceTable:
        """The table of a hub repository, by way of the hub's cache, or of a folder written like one.

        Args:
            repo_id: "owner/name", or a folder.
            revision: branch, tag or commit.
            token: of the hub.
            filename: of the table in the repository; None: as `push_to_hub` calls it.
            cache_dir: of the hub's files.

        Raises InputError where it cannot be had, or is no table.
        """
        return cls.load(fetch_table_file(repo_id, revision, token, filename, cache_dir))

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the table; a saved table has the digest of the one that was saved."""
        return table_digest(self)

    def subset(self, structures: Sequence[str]) -> VarianceTable:
        """The table with these structures (and isotropic) only: a smaller file."""
        checks.instance("structures", structures, (list, tuple, set, frozenset), "a list of names")
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
        schedule, data_range = as_schedule(schedule), checks.bounds("data_range", data_range)
        try:
            values = np.asarray(eps_square, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"eps_square={checks.brief(eps_square)} must be an array of numbers.") from None
        N = schedule.num_steps
        if values.ndim != 1 or len(values) not in (N, N + 1):
            raise InputError(
                f"eps_square has shape {values.shape}, but the schedule has N={N}, so length {N} or {N + 1} is "
                "expected."
            )
        values = values[-N:]
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            n = int(bad[0]) + 1
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
        n: int | NoiseLevel,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        bounded: bool | None = None,
    ) -> Any:
        """v, the variance of x_0 given x_t, in squared data units.

        Args:
            n: index in 0…N (0 gives 0), or a noise level, of which the SNR alone counts [E14]; between measured ones it
                is interpolated.
            estimator: "residual", "score_norm" or "data_variance" [E3].
            structure: "isotropic" gives a float, others a float64 array (C, 1, …) or (C, *spatial).
            bounded: apply the upper bounds of the exact mean [E5]; None: for score_norm and data_variance. The lower
                bound 0 always holds.

        Raises InputError for an unknown name, a structure that the table lacks, or a level outside the measured ones.
        """
        self._check_request(estimator, structure)
        level = self._level(n, lowest=0)
        if level.is_clean:
            return 0.0 if structure == "isotropic" else np.zeros(self.structure(structure).variance_shape)
        if bounded and (scale := self.guided_by) is not None:
            raise InputError(
                f"this table was measured with guidance (scale {scale:g}), and the bounds hold for the "
                "exact posterior mean only; leave out bounded=True."
            )
        value = self.interpolation.value(estimator, structure, level)
        if bounded if bounded is not None else estimator != "residual":
            value = np.minimum(value, self._upper_bound(structure, level))
        value = np.maximum(value, 0.0)
        return float(value) if structure == "isotropic" else np.asarray(value)

    def clipping_moments(self, n: int | NoiseLevel, structure: str = "isotropic") -> tuple[Any, Any, Any]:
        """(E r², E r δ, E δ²) with r = x_0 − x̂_0 as used and δ = ε̂ − (x_t − α x̂_0)/σ: what the optimal covariance with
        clipping and the network's own ε̂ needs ([E3]; see `moments`)."""
        level = self._level(n, lowest=0)
        v = self.posterior_variance(level, "residual", structure)
        if level.is_clean or self.clip is None:
            return v, np.zeros_like(v), np.zeros_like(v)
        cross = self.interpolation.value("error_clipping", structure, level)
        return v, cross, np.maximum(self.interpolation.value("clipping_square", structure, level), 0.0)

    def standard_error(self, n: int | NoiseLevel, estimator: Estimator = "residual", *, images: bool = False) -> float:
        """Standard error of the isotropic `posterior_variance(n, estimator, bounded=False)`, squared data units. It is
        widened where few draws make it, so that ± 1.96 of it are nearer to 95 %; of what was hardly ever drawn it does
        not know [E6].

        Args:
            n, estimator: as in `posterior_variance`.
            images: False: of the value for the table's own images, uncertain for the noise alone; True: of the value
                for the many images of which the table's are taken for a random sample, uncertain for the choice of the
                images too [E17].

        Between measured levels: the larger of the two neighbours', in units of the linear-MMSE value. nan for tables
        from published arrays, and with `images` for tables of earlier versions, which do not know it.
        """
        self._check_request(estimator, "isotropic")
        return self.interpolation.standard_error(estimator, self._level(n), images)

    def relative_error(self, n: int | NoiseLevel, structure: str = "isotropic", *, images: bool = False) -> float:
        """Relative standard error of the residual value: of the number for isotropic, else the root-mean-square over
        elements. Between measured levels, the larger of the two neighbours'. Values below a thousandth of their
        linear-MMSE value count as that. `images`, for isotropic alone: as in `standard_error`."""
        self._check_request("residual", structure)
        elementwise = images and structure != "isotropic"
        checks.refuse(
            elementwise, f"the error with images=True is known for structure 'isotropic' alone, but got {structure!r}."
        )
        return self.interpolation.relative_error(structure, self._level(n), images)

    def covers(self, n: int | NoiseLevel) -> bool:
        """Whether a level lies between the least and the greatest measured one, both included."""
        log_snr = self._level(n).log_snr
        return bool(self.schedule.log_snr[self.indices[-1]] <= log_snr <= self.schedule.log_snr[self.indices[0]])

    @property
    def guided_by(self) -> float | None:
        """The scale of guidance that made the mean another than the posterior's: classifier-free, or by a classifier;
        None without."""
        facts = self.network_facts or {}
        if facts.get("evaluations_an_image", 1) > 1:  # of a pipeline, whose scale 1 may be guided
            return self.guidance_scale
        by_classifier = float(facts.get("classifier_scale", 1.0))
        return next((scale for scale in (self.guidance_scale, by_classifier) if scale != 1.0), None)

    # ---- whose it is ------------------------------------------------------------------------------------------

    def identity(self) -> ModelIdentity:
        """What is known of the model that was measured; of published arrays the schedule alone."""
        facts: dict[str, Any] = {}
        if self.prediction is not None:
            facts = {"shape": self.shape, "prediction": self.prediction, "clip": self.clip}
            facts["guidance_scale"] = self.guidance_scale
        if self.latent_scaling is not None:
            facts["latent_scaling"] = self.latent_scaling
        if self.network is not None:
            facts["network"] = self.network
        facts |= self.network_facts or {}
        return ModelIdentity(self.schedule, facts)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser with another schedule, shape, prediction type, clipping, guidance scale, latent scaling or
        network than the table's."""
        check_denoiser(denoiser)
        mine = self.identity()
        if mismatch := mine.mismatch(denoiser.identity(beside=mine), "the table", "the denoiser"):
            raise InputError(
                f"this variance table was made for another model ({mismatch}); estimate one for this model."
            )

    def summary(self) -> str:
        """A short text: where the table comes from, and a line per tenth of the measured indices."""
        return summarise(self)

    # ---- how it is answered -----------------------------------------------------------------------------------

    def _check_request(self, estimator: str, structure: str) -> None:
        wrong = estimator not in ESTIMATORS
        checks.refuse(wrong, f"estimator {estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}.")
        if (scale := self.guided_by) is not None and estimator != "residual":
            raise InputError(
                f"this table was measured with guidance (scale {scale:g}), whose mean is not the "
                f"posterior mean that the estimator {estimator!r} takes for granted; use 'residual'."
            )
        wrong = structure not in STRUCTURE_NAMES
        checks.refuse(wrong, f"structure {structure!r} is not known; choose one of {', '.join(STRUCTURE_NAMES)}.")
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

    def _level(self, n: int | NoiseLevel, lowest: int = 1) -> NoiseLevel:
        return n if isinstance(n, NoiseLevel) else self.schedule.level(self.schedule.check_index(n, lowest=lowest))

    def _upper_bound(self, structure: str, level: NoiseLevel) -> Float64Array:
        # A DCT coefficient of data in [a, b] can reach √d times the range: the range says nothing of its variance.
        data_range = None if structure == "dct" else self.data_range
        return upper_bound(level.alpha, level.sigma, self.interpolation.linear(structure, level), data_range)
