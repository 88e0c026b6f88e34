"""The systems S of one measurement: which elements it sees, and the bases that are found once for a structure."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..covariance.reverse import StructuredCovariance
from ..process.structure import Isotropic, Shape, Structure
from .decoded import USUAL, Decoded
from .diagonal import Diagonal, find_diagonal
from .linear_map import LinearMap
from .measurement import Measurement
from .solver import ConjugateGradients
from .system import System
from .whitened import Whitened, told_of


class Systems:
    """Makes S of batches.

    Args:
        measurement: y, A and the noise.
        shape: (C, *spatial) of what is denoised.
        dtype: that it is denoised in.

    Attribute `seen`: (*m), the elements of y that A sees.
    Raises InputError for an A that is not linear, and an adjoint that is not its own.
    """

    def __init__(self, measurement: Measurement, shape: Shape, dtype: torch.dtype) -> None:
        self._measurement, self._shape, self._dtype = measurement, shape, dtype
        self._found: dict[str, Diagonal | None] = {}
        self._told_of: dict[str, torch.Tensor] = {}
        self._decoded = None if measurement.decoder is None else Decoded(measurement, shape, dtype)
        self.seen = measurement.seen(shape, dtype) if self._decoded is None else self._decoded.seen
        self._fine = None if measurement.decoder is not None else measurement.fine_map_of(shape)
        #: Whether y says so much that it is worth going by way of the images. R⁻¹ is then of all elements: one that
        #: binds those that are seen to others is not that of the seen ones.
        noise, many = measurement.noise, 2 * int(self.seen.sum()) >= math.prod(shape)
        self._by_images = many and noise.least > 0.0 and (noise.structured is None or bool(self.seen.all()))

    def at_mean(self, mean: torch.Tensor) -> tuple[torch.Tensor, LinearMap]:
        """What would be measured at a mean (B, …), and the linear map that it changes by; InputError for a mean of
        float64 and an A that does not take it."""
        if self._decoded is not None:
            return self._decoded.at(mean)
        linear = self._measurement.map_of(self._shape)
        if mean.dtype == torch.float64 and self._dtype != torch.float64:
            linear = checks.given(
                self._fine,
                "x_t is in float64, but A takes float32 alone; sample in float32, or give a y and an A of float64.",
            )
        return linear.apply(mean), linear

    def of(self, covariance: Any, linear: LinearMap) -> System:
        """S for Σ of a batch."""
        closed = whitened = None
        noise = self._measurement.noise
        known = covariance if isinstance(covariance, StructuredCovariance) and covariance.diagonal else None
        if known is not None and self._decoded is None:
            structure, variance = known.structure, known.variance
            if (diagonal := self._diagonal(structure)) is not None:
                closed = diagonal, _along(variance, structure, diagonal)
            if self._fine is not None and self._by_images:
                whitened = Whitened(self._fine, known, noise, self._told(structure))
        fine = None if known is None else self._fine
        usual = ConjugateGradients() if self._decoded is None else USUAL
        return System(linear, covariance, noise, self.seen, closed, whitened, usual, fine)

    def _told(self, structure: Structure) -> torch.Tensor:
        """What y tells of each coefficient, for a preconditioner (see `whitened`)."""
        if structure.name not in self._told_of:
            linear, y = self._measurement.map_of(self._shape), self._measurement.y
            like = torch.zeros((), dtype=self._dtype, device=y.device)
            self._told_of[structure.name] = told_of(linear, structure, self._measurement.noise, like)
        return self._told_of[structure.name]

    def _diagonal(self, structure: Structure) -> Diagonal | None:
        if structure.name not in self._found:
            linear = self._measurement.map_of(self._shape)
            self._found[structure.name] = find_diagonal(self._measurement, linear, structure, self._dtype)
        return self._found[structure.name]


def _along(variance: torch.Tensor, structure: Structure, diagonal: Diagonal) -> torch.Tensor:
    """A structure's variances, with as many axes as the basis has: one number an image, of isotropic ones."""
    if not isinstance(structure, Isotropic) or variance.ndim == 0:
        return variance
    return variance.reshape(-1, *(1,) * (diagonal.gains.ndim - 1))
