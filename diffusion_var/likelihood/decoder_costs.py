"""What the decoder costs from every index, and which variance it should have: the first term of a path [E18].

The bound's last step, from the first index t of a path to the image, has a Gaussian of any variance w. Measured, its
cost at t is E[−log P(x_0 | x_t)] over images and noise, and the best of some variances is taken: an isotropic one on
a grid, the table's pixel variances times factors, or, without a table, shares of σ_t²/α_t². What a table alone lets
expect is `expected_decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks, parallel
from ..covariance.fixed import FixedLarge
from ..covariance.reverse import StepCovariances
from ..data.fixed_images import FixedImages
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..process.kernel import ReverseKernel
from ..process.schedule import NoiseSchedule
from ..process.steps import explicit, log_snr
from ..variance.table import VarianceTable
from .bound import common_range, finish, level_check
from .decoder import Decoder, Range, decoder_of, rounding_variance
from .decoder_variance import candidate
from .run import BoundRun
from .running_moments import RunningMoments
from .terms import BoundTerms, Evaluation

Float64Array = npt.NDArray[np.float64]

#: How many indices are measured by default.
INDICES = 64
#: The variances that are tried: with a table, factors √2 apart of its isotropic variance, and some of its pixel
#: variance; without, of σ²/α², down to where a good mean leaves little.
_OF_TABLE = tuple(("isotropic", 2.0 ** (k / 2)) for k in range(-3, 9)) + tuple(("pixel", 2.0**k) for k in range(-1, 4))
_OF_LEVEL = tuple(("sigma2", 2.0 ** (-k / 2)) for k in range(-2, 17))


@dataclass(frozen=True, eq=False)
class DecoderCosts:
    """Measured E[−log p(x_0|x_t)] of decoders from some indices, for several variances each.

    Attributes:
        schedule: the model's.
        indices: (I,) the indices, ascending.
        choices: (M,) what was tried: (name, factor), e.g. ("isotropic", 2.0) for twice the table's.
        values: (I, M) nats/dim.
        standard_errors: (I, M) of them, over images and noise.
        images: how many.
        levels, data_range: the grid of values of the images; None of densities.
        table: whose variances were tried.
    """

    schedule: NoiseSchedule
    indices: npt.NDArray[np.int64] = field(repr=False)
    choices: tuple[tuple[str, float], ...] = field(repr=False)
    values: Float64Array = field(repr=False)
    standard_errors: Float64Array = field(repr=False)
    images: int
    levels: int | None
    data_range: Range | None
    table: VarianceTable | None = field(repr=False)

    def best(self, n: int) -> tuple[float, float]:
        """The least measured cost from an index, nats/dim, and its standard error."""
        i, m = self._best(n)
        return float(self.values[i, m]), float(self.standard_errors[i, m])

    def variance(self, n: int) -> float | Float64Array:
        """The variance of the least measured cost from an index: a number, or one for each pixel."""
        name, factor = self.choices[self._best(n)[1]]
        found = candidate(name, factor, self.schedule.level(n), self.table, self._least)
        return float(found) if np.ndim(found) == 0 else np.asarray(found)

    def label(self, n: int) -> str:
        """What that variance is, in words."""
        return choice_label(*self.choices[self._best(n)[1]])

    def costs(self, nodes: Sequence[int]) -> Float64Array:
        """The least measured cost from each of some indices, nats/dim; inf where none was measured."""
        known = {int(n) for n in self.indices}
        return np.array([self.best(n)[0] if n in known else math.inf for n in nodes])

    @property
    def _least(self) -> float:
        return rounding_variance(self.levels, self.data_range)

    def _best(self, n: int) -> tuple[int, int]:
        found = np.flatnonzero(self.indices == n)
        checks.refuse(
            not len(found), f"no decoder was measured at index {n}, only at {checks.listing(self.indices.tolist())}."
        )
        return int(found[0]), int(np.argmin(self.values[found[0]]))


def decoder_costs(
    denoiser: Denoiser,
    images: Any,
    table: VarianceTable | None = None,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    *,
    levels: int | None = 256,
    data_range: Range | None = None,
    draws: int = 1,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> DecoderCosts:
    """Measure what the decoder costs from every index, for `steps.optimal` to choose where a path begins.

    Args:
        images: (C, *spatial) each; not those that the likelihood is then reported on. A few hundred do.
        table: of the model: its variances are tried, and without one shares of σ²/α².
        indices: ascending; None: 64, evenly spaced in log-SNR, 1 and N among them.
        levels: number of values a pixel can have; None, and for a denoiser without a data range: a density's.

    Other arguments and errors as in `bits_per_dim`. One evaluation an image, draw and index.
    """
    check_denoiser(denoiser, "decoder_costs")
    grid = common_range(denoiser, data_range)
    levels = None if levels is None or grid is None else checks.whole("levels", levels, 2)
    schedule = denoiser.schedule
    chosen = log_snr(schedule, min(INDICES, schedule.num_steps)) if indices is None else explicit(schedule, indices)
    tried = DecoderTrial(denoiser, table, levels, grid, schedule, chosen)
    evaluations = [
        Evaluation(schedule.level(n), decoders=decoders)
        for n, decoders in reversed([*zip(chosen, tried.decoders, strict=True)])
    ]
    source = FixedImages(images, denoiser.shape, grid)
    run = BoundRun(
        BoundTerms(denoiser, evaluations, StepCovariances(FixedLarge())),
        source,
        as_conditions(conditions, len(source)),
        columns=tried.columns,
        prior=None,
        seed=checks.seed(seed),
        draws=checks.whole("draws", draws, least=1),
        batch_size=checks.whole("batch_size", batch_size, least=1),
    )
    settings: dict[str, Any] = {"decoders_from": chosen, "seed": run.seed, "draws": run.draws, **tried.settings}
    settings["data_range"] = None if grid is None else list(grid)
    with parallel.sharing("decoder_costs"):
        finish(run, source.scan(level_check(levels, grid)), settings, checkpoint, progress)
    return tried.costs(run.moments)


class DecoderTrial:
    """Decoders from some indices with each of the variances that are tried, and their columns in a run.

    Args:
        levels, data_range: of the images; either None: of a density.
        column: the first one.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        table: VarianceTable | None,
        levels: int | None,
        data_range: Range | None,
        schedule: NoiseSchedule,
        indices: Sequence[int],
        column: int = 0,
    ) -> None:
        if table is not None:
            checks.instance("table", table, VarianceTable, "a variance table, or None").check(denoiser)
        self.table, self.levels, self.data_range = table, levels, data_range if levels else None
        self.schedule, self.indices, self.shape, self._column = schedule, indices, denoiser.shape, column
        self.names = _OF_LEVEL if table is None else tuple(pair for pair in _OF_TABLE if pair[0] in table.structures)
        self.decoders = [self._from(n, column + i * len(self.names)) for i, n in enumerate(indices)]

    def _from(self, n: int, column: int) -> tuple[tuple[int, ReverseKernel, Decoder], ...]:
        kernel, least = ReverseKernel(self.schedule, n, 0), rounding_variance(self.levels, self.data_range)
        variances = [candidate(*pair, kernel.level_t, self.table, least) for pair in self.names]
        made = [
            decoder_of(self.shape, variance, self.levels, self.data_range, choice_label(*pair))
            for pair, variance in zip(self.names, variances, strict=True)
        ]
        return tuple((column + m, kernel, decoder) for m, decoder in enumerate(made))

    @property
    def columns(self) -> int:
        """How many columns of the run are theirs."""
        return len(self.indices) * len(self.names)

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        return {"decoder_table": None if self.table is None else self.table.digest, "decoder_levels": self.levels}

    def costs(self, moments: RunningMoments) -> DecoderCosts:
        """What was measured, of a run's sums."""
        part, d = slice(self._column, self._column + self.columns), math.prod(self.shape)
        mean, error = (sums[part].reshape(len(self.indices), -1) / d for sums in (moments.mean, moments.standard_error))
        indices = np.array(self.indices, dtype=np.int64)
        grid = self.levels, self.data_range
        return DecoderCosts(self.schedule, indices, self.names, mean, error, moments.count, *grid, self.table)


def choice_label(name: str, factor: float) -> str:
    """Such as "2 × isotropic"."""
    return name if factor == 1.0 else f"{factor:.3g} × {name}"
