"""What a variance that is learned for a step says of x_0: λ² + γ² v, solved for v [E2].

Improved DDPM's networks give the variance of the step from an index of their schedule to the one before, η = 1. Of
λ² + γ² v v is a small part in so short a step, so that the numbers are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from .. import checks
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from .reverse import StructuredCovariance


def unseen_variance(kernel: ReverseKernel, variance: torch.Tensor) -> torch.Tensor:
    """v of variances λ² + γ² v of a step [E2]; below λ² it is 0."""
    return (variance - kernel.lambda2).clamp_min(0.0) / kernel.gain**2


def inverted(
    name: str,
    of_step: Callable[[Posterior, ReverseKernel], StructuredCovariance],
    posterior: Posterior,
    level: NoiseLevel,
    schedule: NoiseSchedule | None,
) -> StructuredCovariance:
    """Cov[x_0|x_t] at an index of a schedule, from what `of_step`, called `name`, says of the step to the index before.

    Raises InputError off the schedule's grid, or without a schedule.
    """
    n = None if schedule is None else schedule.index_of(level)
    off_grid = (
        f"{name} says what Cov[x_0|x_t] is at the indices of a schedule alone, by the variance of the step to the "
        f"index before, but the level {level} is of none; take indices of the denoiser's schedule as steps."
    )
    n = checks.given(n, off_grid)
    assert schedule is not None
    kernel = ReverseKernel(schedule, n, n - 1)
    raw = None if posterior.range is None else posterior.range.double()
    found = of_step(replace(posterior, range=raw), kernel)
    return StructuredCovariance(found.structure, unseen_variance(kernel, found.variance).to(posterior.mean))
