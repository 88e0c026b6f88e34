"""A covariance below a noise level, and ΠGDM's constant above it, as arXiv:2402.02149 uses its own (σ/α below 0.2)."""

from __future__ import annotations

from typing import Any

from ..covariance.pigdm import PiGDM
from ..covariance.reverse import ReverseCovariance, StructuredCovariance
from ..models.posterior import Posterior
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule


class ConstantAbove:
    """Cov[x_0|x_t] of `covariance` where σ/α is below `below`, of `PiGDM` elsewhere."""

    def __init__(self, covariance: ReverseCovariance, below: float) -> None:
        self._covariance, self._below, self._constant = covariance, below, PiGDM()

    def posterior_covariance(
        self, posterior: Posterior, level: NoiseLevel, schedule: NoiseSchedule | None = None
    ) -> StructuredCovariance:
        """See `ReverseCovariance`."""
        chosen: Any = self._covariance if level.sigma < self._below * level.alpha else self._constant
        found: StructuredCovariance = chosen.posterior_covariance(posterior, level, schedule)
        return found
