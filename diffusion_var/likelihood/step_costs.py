"""What every step t → s of a set of indices costs in the bound, measured: the input of objective="bound" trajectories.

The terms of all steps from one t, and of the decoders from there, share one network evaluation (Watson et al.,
arXiv:2106.03802), so that I indices cost I evaluations an image, not I²/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks, parallel
from ..covariance.analytic import Analytic
from ..covariance.reverse import ReverseCovariance, StepCovariances, check_covariance
from ..data.fixed_images import FixedImages
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..process.kernel import ClippedEps, ReverseKernel
from ..process.schedule import NoiseSchedule
from ..process.steps import explicit, log_snr
from ..variance.table import VarianceTable
from .bound import common_range, finish, level_check, noise_settings
from .decoder_costs import DecoderCosts, DecoderTrial
from .run import BoundRun
from .terms import BoundTerms, Evaluation, check_noise_of_bound

#: How many indices are measured by default.
INDICES = 64


@dataclass(frozen=True, eq=False)
class StepCosts:
    """Measured E KL(q(x_s|x_t,x_0) ‖ p(x_s|x_t)) of every step between some indices.

    Attributes:
        schedule: the model's.
        indices: the I indices, ascending.
        values: (I, I) nats/dim; [i, j] is the step from indices[j] down to indices[i], inf for i ≥ j.
        standard_errors: (I, I) of them, over images and noise.
        images: how many.
        decoder: what decoders from the indices cost, for a path that begins at any of them; None: not measured.
    """

    schedule: NoiseSchedule
    indices: npt.NDArray[np.int64] = field(repr=False)
    values: npt.NDArray[np.float64] = field(repr=False)
    standard_errors: npt.NDArray[np.float64] = field(repr=False)
    images: int
    decoder: DecoderCosts | None = field(default=None, repr=False)


def step_costs(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    images: Any,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    *,
    table: VarianceTable | None = None,
    levels: int | None = 256,
    data_range: checks.Range | None = None,
    eta: float | None = None,
    tau: float | None = None,
    draws: int = 1,
    clipped_eps: ClippedEps | None = None,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> StepCosts:
    """Measure the bound's terms for all steps between some indices.

    Args:
        covariance: the one that the likelihood will be computed with.
        images: not those that the likelihood is then reported on.
        indices: ascending; None: 64, evenly spaced in log-SNR, 1 and N among them.
        table: whose variances are tried for the decoder; None: that of an `Analytic` covariance, else shares of σ²/α².
        levels: number of values a pixel can have; None, and for a denoiser without a data range: a density's decoder.

    Other arguments and errors as in `bits_per_dim`.
    """
    check_denoiser(denoiser, "step_costs")
    denoiser = check_covariance(covariance).prepare(denoiser)
    schedule, grid = denoiser.schedule, common_range(denoiser, data_range)
    chosen = default_indices(schedule) if indices is None else check_indices(schedule, indices)
    checks.refuse(len(chosen) < 2, f"indices={chosen} has no step between its indices; give at least two.")
    pairs = [(i, j) for j in range(1, len(chosen)) for i in range(j)]
    kernels = {(i, j): ReverseKernel(schedule, chosen[j], chosen[i], eta, clipped_eps, tau=tau) for i, j in pairs}
    column = {pair: k for k, pair in enumerate(pairs)}
    levels = None if levels is None or grid is None else checks.whole("levels", levels, 2)
    table = covariance.table if table is None and isinstance(covariance, Analytic) else table
    tried = DecoderTrial(denoiser, table, levels, grid, schedule, chosen, column=len(pairs))
    evaluations = [
        Evaluation(schedule.level(chosen[j]), tuple((column[i, j], kernels[i, j]) for i in range(j)), tried.decoders[j])
        for j in reversed(range(len(chosen)))
    ]
    check_noise_of_bound([*kernels.values()])
    covariance.check(denoiser, [kernel for evaluation in evaluations for _, kernel in evaluation.steps])
    source = FixedImages(images, denoiser.shape, grid)
    run = BoundRun(
        BoundTerms(denoiser, evaluations, StepCovariances(covariance)),
        source,
        as_conditions(conditions, len(source)),
        columns=len(pairs) + tried.columns,
        prior=None,
        seed=checks.seed(seed),
        draws=checks.whole("draws", draws, least=1),
        batch_size=checks.whole("batch_size", batch_size, least=1),
    )
    first = kernels[pairs[0]]
    settings: dict[str, Any] = {"indices": chosen, **noise_settings(first.eta, first.tau), "clipped_eps": clipped_eps}
    settings |= {"seed": run.seed, "draws": run.draws, "data_range": None if grid is None else list(grid)}
    settings |= {"covariance": covariance.identity(), **tried.settings}
    with parallel.sharing("step_costs"):
        finish(run, source.scan(level_check(levels, grid)), settings, checkpoint, progress)
    values = np.full((len(chosen), len(chosen)), math.inf)
    errors = np.full_like(values, math.nan)
    d, standard_error = math.prod(denoiser.shape), run.moments.standard_error
    for (i, j), k in column.items():
        values[i, j], errors[i, j] = run.moments.mean[k] / d, standard_error[k] / d
    return StepCosts(
        schedule, np.array(chosen, dtype=np.int64), values, errors, run.moments.count, tried.costs(run.moments)
    )


def default_indices(schedule: NoiseSchedule) -> list[int]:
    """64 indices (or all N) evenly spaced in log-SNR, 1 and N among them."""
    return log_snr(schedule, min(INDICES, schedule.num_steps))


def check_indices(schedule: NoiseSchedule, indices: Any) -> list[int]:
    """Ascending indices, checked."""
    checks.refuse(not isinstance(indices, Iterable), f"indices={indices!r} must be a list of indices.")
    return explicit(schedule, list(indices))
