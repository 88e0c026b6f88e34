"""What every step t → s of a set of indices costs in the bound, measured: the input of objective="bound" trajectories.

The terms of all steps from one t share one network evaluation (Watson et al., arXiv:2106.03802), so that I indices cost
I evaluations an image, not I²/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..covariance.reverse import ReverseCovariance
from ..covariance.step_covariances import StepCovariances
from ..data.fixed_images import FixedImages
from ..errors import InputError
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser
from ..process.kernel import ClippedEps, ReverseKernel, check_clipped_eps, check_eta
from ..process.schedule import NoiseSchedule
from ..process.steps import explicit, log_snr
from .bound import check_choice, check_count, check_seed, common_range
from .run import BoundRun, run_identity
from .terms import BoundTerms, Node, refuse_point_mass

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
    """

    schedule: NoiseSchedule
    indices: npt.NDArray[np.int64] = field(repr=False)
    values: npt.NDArray[np.float64] = field(repr=False)
    standard_errors: npt.NDArray[np.float64] = field(repr=False)
    images: int


def step_costs(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    images: Any,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    *,
    data_range: tuple[float, float] | None = None,
    eta: float = 1.0,
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

    Other arguments and errors as in `bits_per_dim`.
    """
    check_choice(denoiser, covariance)
    check_eta(eta)
    refuse_point_mass(eta)
    check_clipped_eps(clipped_eps)
    denoiser = covariance.prepare(denoiser)
    schedule, seed = denoiser.schedule, check_seed(seed)
    chosen = (
        log_snr(schedule, min(INDICES, schedule.num_steps)) if indices is None else check_indices(schedule, indices)
    )
    if len(chosen) < 2:
        raise InputError(f"indices={chosen} has no step between its indices; give at least two.")
    pairs = [(i, j) for j in range(1, len(chosen)) for i in range(j)]
    column = {pair: k for k, pair in enumerate(pairs)}
    nodes = [
        Node(
            t,
            tuple((column[i, j], ReverseKernel(schedule, t, chosen[i], eta, clipped_eps)) for i in range(j)),
        )
        for j, t in enumerate(chosen)
        if j > 0
    ][::-1]
    covariances = StepCovariances(covariance, denoiser, [kernel for node in nodes for _, kernel in node.steps])
    source = FixedImages(images, denoiser.shape, common_range(denoiser, data_range))
    run = BoundRun(
        BoundTerms(denoiser, nodes, covariances, None),
        source,
        as_conditions(conditions, len(source)),
        columns=len(pairs),
        prior=None,
        seed=seed,
        draws=check_count("draws", draws),
        batch_size=check_count("batch_size", batch_size),
    )
    settings = {"indices": chosen, "eta": float(eta), "clipped_eps": clipped_eps, "seed": seed, "draws": run.draws}
    settings["data_range"] = None if source.data_range is None else list(source.data_range)
    settings["covariance"] = covariance.identity()
    run.finish(checkpoint, run_identity(run, source.scan(), settings), progress)
    covariance.report()
    values = np.full((len(chosen), len(chosen)), math.inf)
    errors = np.full_like(values, math.nan)
    d, standard_error = math.prod(denoiser.shape), run.moments.standard_error
    for (i, j), k in column.items():
        values[i, j], errors[i, j] = run.moments.mean[k] / d, standard_error[k] / d
    return StepCosts(schedule, np.array(chosen, dtype=np.int64), values, errors, run.moments.count)


def check_indices(schedule: NoiseSchedule, indices: Any) -> list[int]:
    """Ascending indices, checked."""
    if not isinstance(indices, Iterable):
        raise InputError(f"indices={indices!r} must be a list of indices.")
    return explicit(schedule, list(indices))
