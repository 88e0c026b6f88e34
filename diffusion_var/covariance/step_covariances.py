"""The covariances of a run's steps, computed once where they depend on the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from .reverse import ReverseCovariance, StructuredCovariance

_CACHE_BYTES = 256 * 1024**2


class StepCovariances:
    """One covariance per step, kept where it does not depend on the image and all of them fit into the memory.

    Args:
        covariance: the choice of covariance.
        denoiser: the model whose posteriors will be given.
        kernels: the steps; InputError if the covariance does not fit them or the model.
    """

    def __init__(self, covariance: ReverseCovariance, denoiser: Denoiser, kernels: Sequence[ReverseKernel]) -> None:
        covariance.check(denoiser, list(kernels))
        self.covariance = covariance
        self._kept: dict[tuple[int, int], StructuredCovariance | None] = {}
        self._keeps = not covariance.depends_on_image and 4 * len(kernels) * math.prod(denoiser.shape) <= _CACHE_BYTES

    def at(self, posterior: Posterior, kernel: ReverseKernel) -> StructuredCovariance | None:
        """The covariance of x_s given x_t, or None where it is exactly zero."""
        key = kernel.t, kernel.s
        if key in self._kept:
            return self._kept[key]
        covariance = self.covariance(posterior, kernel)
        if self._keeps:
            self._kept[key] = covariance
        return covariance
