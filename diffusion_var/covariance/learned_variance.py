"""The learned variance of Improved DDPM's code (its model variance type LEARNED; arXiv:2102.09672, §3.1): the second
half of a network's 2C channels is, per pixel, the log-variance of the step itself,

    log Σ = raw,

and not where between β̃ and β it lies (that is `learned_range`). A number is learned for one step: from an index to the
one before on the schedule that the network was trained on, for η = 1. Of a longer step the network says nothing;
Improved DDPM's respaced samplers take the same number there, which is too small.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.structure import Pixel
from .fixed import check_ddpm
from .inversion import inverted
from .reverse import (
    ReverseCovariance,
    StructuredCovariance,
    image_shape,
)


def learned_variance(raw: torch.Tensor) -> torch.Tensor:
    """exp(raw), the variance that a network's log-variance stands for."""
    return raw.exp()


class LearnedVariance(ReverseCovariance):
    """The variance whose logarithm a 2C-channel network returns, per pixel; for η = 1.

    Args:
        respaced: whether steps that leave out indices take the variance of the step to the index before, as Improved
            DDPM's code does; otherwise they are refused.

    Raises InputError for other η, networks of C channels, and steps that leave out indices.
    """

    depends_on_image = True

    def __init__(self, respaced: bool = False) -> None:
        wrong = not checks.is_bool(respaced)
        checks.refuse(wrong, f"respaced={checks.brief(respaced)} must be True or False.")
        self.respaced = bool(respaced)

    @property
    def name(self) -> str:
        return "learned"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "respaced": self.respaced}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        for kernel in kernels:
            self._check_step(kernel)
            known = self.respaced or denoiser.schedule.index_of(kernel.level_t) is not None
            checks.refuse(not known, f"{_LONGER} {kernel} is of another schedule than the denoiser's.")

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        self._check_step(kernel)
        if posterior is None or posterior.range is None:
            raise InputError(
                "LearnedVariance needs a network with 2C output channels (Improved DDPM's LEARNED), but this one "
                "returns C; use FixedSmall, FixedLarge or Analytic."
            )
        return StructuredCovariance(Pixel(image_shape(posterior)), learned_variance(posterior.range))

    def posterior_covariance(
        self, posterior: Posterior, level: NoiseLevel, schedule: NoiseSchedule | None = None
    ) -> StructuredCovariance:
        """Inverted: what the variance of the step to the index before leaves for x_0 [E2]."""
        return inverted(self.name, self, posterior, level, schedule)

    def _check_step(self, kernel: ReverseKernel) -> None:
        check_ddpm(kernel, "LearnedVariance", "use eta=1 or Analytic")
        longer = kernel.t is None or kernel.s != kernel.t - 1
        checks.refuse(
            longer and not self.respaced,
            f"{_LONGER} {kernel} is another one; take every index, or use Analytic, or LearnedVariance(respaced=True) "
            "for the same variance in longer steps.",
        )


_LONGER = "LearnedVariance knows the variance of the step from an index to the one before, but the step"
