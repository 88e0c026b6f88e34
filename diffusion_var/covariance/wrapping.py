"""A covariance made of another one: what it asks of denoiser and steps is what the other asks."""

from __future__ import annotations

from ..models.denoiser import Denoiser
from ..process.kernel import ReverseKernel
from .reverse import ReverseCovariance, check_covariance


class Wrapping(ReverseCovariance):
    """Base of covariances that change what an inner one gives."""

    def __init__(self, inner: ReverseCovariance) -> None:
        self.inner = check_covariance(inner)
        self.depends_on_image = inner.depends_on_image

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
