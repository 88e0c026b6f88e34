"""The learned range of Improved DDPM (arXiv:2102.09672, eq. 15): a network with 2C channels says, per pixel, where
between β̃ and β the variance of a step lies,

    log Σ = f log β_{t|s} + (1 − f) log β̃_{t|s},      f = (raw + 1)/2,

with β and β̃ of the steps really taken (respacing), for η = 1. β̃ vanishes in the step to s = 0; there Improved DDPM uses
that of the step before, i.e. from the second index to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel, reverse_kernels
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.steps import describe, resolve
from ..process.structure import Pixel
from .fixed import check_ddpm
from .inversion import inverted
from .reverse import (
    ReverseCovariance,
    StructuredCovariance,
    image_shape,
)


def learned_range_variance(
    raw: torch.Tensor, beta: float | torch.Tensor, beta_tilde: float | torch.Tensor
) -> torch.Tensor:
    """exp(f log β + (1 − f) log β̃) with f = (raw + 1)/2 (Improved DDPM eq. 15); like `raw`, to which β, β̃ broadcast."""
    low, high = (end.log() if isinstance(end, torch.Tensor) else np.log(end) for end in (beta_tilde, beta))
    variance: torch.Tensor = ((raw + 1) * (0.5 * (high - low)) + low).exp()
    return variance


class LearnedRange(ReverseCovariance):
    """The variance that a 2C-channel network gives itself, per pixel; for η = 1.

    Args:
        steps: the sampler's steps (their number or the list), which only the step to s = 0 needs: its β̃ is that from
            the second index to the first. None: the full process, 2 → 1.
    """

    depends_on_image = True

    def __init__(self, steps: int | Sequence[int] | Sequence[NoiseLevel] | None = None) -> None:
        self.steps = steps

    @property
    def name(self) -> str:
        return "learned_range"

    def identity(self) -> dict[str, Any]:
        listed = None if self.steps is None or isinstance(self.steps, int) else describe(list(self.steps))  # type: ignore[arg-type]
        return {"name": self.name, "steps": self.steps if listed is None else listed}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        for kernel in kernels:
            check_ddpm(kernel, *_DDPM)

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        check_ddpm(kernel, *_DDPM)
        if posterior is None or posterior.range is None:
            raise InputError(
                "LearnedRange needs a network with 2C output channels (Improved DDPM, DiT), but this one returns C; "
                "use FixedSmall, FixedLarge or Analytic."
            )
        variance = learned_range_variance(posterior.range, kernel.beta, self._beta_tilde(kernel))
        return StructuredCovariance(Pixel(image_shape(posterior)), variance)

    def posterior_covariance(
        self, posterior: Posterior, level: NoiseLevel, schedule: NoiseSchedule | None = None
    ) -> StructuredCovariance:
        """Inverted: what the variance of the step to the index before leaves for x_0 [E2]."""
        return inverted(self.name, LearnedRange(), posterior, level, schedule)

    def _beta_tilde(self, kernel: ReverseKernel) -> float:
        if not kernel.last:
            return kernel.beta_tilde
        wanted: Any = [1, 2] if self.steps is None else self.steps
        if kernel.schedule is None and not isinstance(wanted, list | tuple):
            raise InputError(
                "LearnedRange needs the sampler's levels for its last step; pass them: LearnedRange(levels)."
            )
        kernels = reverse_kernels(kernel.schedule, resolve(kernel.schedule, wanted))  # type: ignore[arg-type]
        if kernels[-1].level_t != kernel.level_t:
            raise InputError(
                f"the last step of LearnedRange goes from index {kernel.level_t} to 0, but its steps begin with "
                f"{kernels[-1].level_t}; pass the sampler's steps: LearnedRange(steps)."
            )
        # A single step has none before it: nothing but β is left.
        return kernel.beta if len(kernels) == 1 else kernels[-2].beta_tilde


_DDPM = "LearnedRange", "use eta=1 or Analytic"
