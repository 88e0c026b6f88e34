"""A covariance made of another one: what it asks of denoiser and steps is what the other asks."""

from __future__ import annotations

from abc import abstractmethod

from .. import checks
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from .reverse import ReverseCovariance, StructuredCovariance, check_covariance


class Wrapping(ReverseCovariance):
    """Base of covariances that change what an inner one gives."""

    def __init__(self, inner: ReverseCovariance) -> None:
        self.inner = check_covariance(inner)
        checks.refuse(
            not inner.diagonal,
            f"{type(self).__name__} changes variances, but {inner.name} is known by products alone; wrap one that has "
            "variances, such as dv.Analytic(table, structure='dct').",
        )
        self.depends_on_image, self.knows_x_0 = inner.depends_on_image, inner.knows_x_0
        self.products, self.products_with_mean = inner.products, inner.products_with_mean

    @abstractmethod
    def changed(self, found: StructuredCovariance) -> StructuredCovariance:
        """What is made of a covariance of the inner one's."""

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        found = self.inner(posterior, kernel)
        return None if found is None else self.changed(found)

    def posterior_covariance(
        self, posterior: Posterior, level: NoiseLevel, schedule: NoiseSchedule | None = None
    ) -> StructuredCovariance:
        return self.changed(self.inner.posterior_covariance(posterior, level, schedule))

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self.inner.check(denoiser, kernels)

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return self.inner.prepare(denoiser)

    def report(self) -> None:
        self.inner.report()

    def counts(self) -> list[int]:
        return self.inner.counts()

    def add_counts(self, counts: list[int]) -> None:
        self.inner.add_counts(counts)
