"""A covariance times a number: to see what misjudging it costs."""

from __future__ import annotations

from typing import Any

from .. import checks
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from .reverse import ReverseCovariance, StructuredCovariance, check_covariance


class Scaled(ReverseCovariance):
    """`factor` Σ of another covariance."""

    def __init__(self, inner: ReverseCovariance, factor: float) -> None:
        self.inner, self.factor = check_covariance(inner), checks.positive("factor", factor)
        self.depends_on_image = inner.depends_on_image

    @property
    def name(self) -> str:
        return f"{self.inner.name} × {self.factor:g}"

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "factor": self.factor}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self.inner.check(denoiser, kernels)

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return self.inner.prepare(denoiser)

    def report(self) -> None:
        self.inner.report()

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        found = self.inner(posterior, kernel)
        return None if found is None else StructuredCovariance(found.structure, found.variance * self.factor)
