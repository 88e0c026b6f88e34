"""A covariance times a number: to see what misjudging it costs."""

from __future__ import annotations

from typing import Any

from .. import checks
from .reverse import ReverseCovariance, StructuredCovariance
from .wrapping import Wrapping


class Scaled(Wrapping):
    """`factor` Σ of another covariance."""

    def __init__(self, inner: ReverseCovariance, factor: float) -> None:
        super().__init__(inner)
        self.factor = checks.positive("factor", factor)

    @property
    def name(self) -> str:
        return f"{self.inner.name} × {self.factor:g}"

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "factor": self.factor}

    def changed(self, found: StructuredCovariance) -> StructuredCovariance:
        return StructuredCovariance(found.structure, found.variance * self.factor)
