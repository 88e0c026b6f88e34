"""Bases in which S = A Σ Aᵀ + R is diagonal, found by trying them.

A structure's Σ = Bᵀ diag(v) B and a map A share a basis if B A Bᵀ is diagonal (a mask and pixels, a symmetric blur and
the DCT): then S = Bᵀ diag(a² v + σ²) B. Of an isotropic Σ = v I it is enough that some basis W of the measurements
makes A Aᵀ diagonal (a mask, a decimation, whatever deepinv knows the singular vectors of): S = Wᵀ diag(v g + σ²) W.

A linear map M is diagonal where M z = (M 1) ⊙ z for one z of random numbers, but for sets of z of probability 0. So
nothing need be declared: two products say it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..errors import InputError
from ..process.structure import Dct, Full, Isotropic, Shape, Structure
from ..randomness import generator, normal
from .linear_map import LinearMap, Map
from .measurement import Measurement

_CLOSE = 1e-4  # relative: what float32 leaves of an equality


class Diagonal(NamedTuple):
    """A Σ Aᵀ = W' diag(gains ⊙ v) W, with v the structure's variances; `forward`: W, `inverse`: W', `gains` (*…)."""

    forward: Map
    inverse: Map
    gains: torch.Tensor

    def solve(self, variance: torch.Tensor, noise: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """S⁻¹ r for S = W' diag(gains ⊙ v + noise) W; what is 0 there (no noise, nothing seen) is left out."""
        diagonal = self.gains * variance.to(self.gains) + noise.to(self.gains)
        inverse = torch.where(diagonal > 0, 1.0 / diagonal, 0.0)
        return self.inverse(inverse.to(r.dtype) * self.forward(r))


def find_diagonal(
    measurement: Measurement, linear: LinearMap, structure: Structure, dtype: torch.dtype
) -> Diagonal | None:
    """The basis of S for a structure's Σ, or None where none of those that are tried is one."""
    if isinstance(structure, Full):
        return None  # a basis of each image's own
    of_pixels = (_same, _same)
    # Variances of R's own are along the elements of y.
    white = measurement.noise.is_white
    if measurement.noise.variance is None:
        return None
    probe = _Probe(measurement, structure.shape, dtype)
    if isinstance(structure, Isotropic):
        bases = [of_pixels, *([*_dct(measurement.shape), *measurement.bases] if white else [])]
        return next((found for basis in bases if (found := probe.of_gram(linear, basis)) is not None), None)
    own = (structure.forward, structure.inverse)
    if measurement.shape != structure.shape or not (white or structure.forward(probe.one) is probe.one):
        return None
    return probe.of_map(linear, own)


class _Probe:
    """Ones, and numbers of a normal distribution, in the shape of y."""

    def __init__(self, measurement: Measurement, image_shape: Shape, dtype: torch.dtype) -> None:
        self.one = torch.ones((1, *measurement.shape), dtype=dtype, device=measurement.y.device)

    def _random(self, k: int) -> torch.Tensor:
        return normal(generator(0, "probe of a basis", k), *self.one.shape).to(self.one)

    def of_gram(self, linear: LinearMap, basis: tuple[Map, Map]) -> Diagonal | None:
        """For Σ = v I: W of which W A Aᵀ Wᵀ is diagonal, and Wᵀ W = I on y."""
        forward, inverse = basis
        y = self._random(0)
        try:
            # Of real y's: their coefficients may be bound to each other (Fourier's come in conjugate pairs).
            z, *known = [forward(other) for other in (y, self._random(1), self._random(2))]
            there = _far(inverse(z), y) < _CLOSE
            known.append(forward(inverse(torch.ones_like(z))))
            found = [forward(linear.apply(linear.adjoint(inverse(c)))) for c in (*known, z)]
        except (RuntimeError, ValueError, InputError):
            return None
        # Of several, so that none is divided by a coefficient that happens to be small.
        size = sum((c.square() for c in known), torch.zeros_like(z))
        along = sum((c * other for c, other in zip(known, found, strict=False)), torch.zeros_like(z))
        gains = torch.where(size > _CLOSE, along / size, 0.0)
        return _diagonal(basis, gains) if there and _far(gains * z, found[-1]) < _CLOSE else None

    def of_map(self, linear: LinearMap, basis: tuple[Map, Map]) -> Diagonal | None:
        """For Σ = Bᵀ diag(v) B: whether B A Bᵀ is diagonal."""
        forward, inverse = basis
        z = self._random(0)
        a = forward(linear.apply(inverse(self.one)))
        found = forward(linear.apply(inverse(z)))
        return _diagonal(basis, a.square()) if _far(a * z, found) < _CLOSE else None


def _diagonal(basis: tuple[Map, Map], gains: torch.Tensor) -> Diagonal:
    """With 0 for gains that are rounding: without noise they are divided by."""
    least = 10.0 * torch.finfo(gains.dtype).eps * float(gains.abs().max())
    return Diagonal(*basis, torch.where(gains > least, gains, 0.0))


def _dct(shape: Shape) -> list[tuple[Map, Map]]:
    """The DCT of measurements that look like images of 1 or 3 channels."""
    if len(shape) < 2 or len(shape) > 4 or shape[0] not in (1, 3):
        return []
    structure = Dct(shape)
    return [(structure.forward, structure.inverse)]


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm()) / max(float(b.norm()), 1e-30)
