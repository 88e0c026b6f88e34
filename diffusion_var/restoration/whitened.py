"""S⁻¹ r by way of the images: few products where A Σ Aᵀ + R has eigenvalues of all sizes.

With Σ = Bᵀ diag(v) B and x_0 = x̂_0 + Bᵀ √v t, t ~ N(0, I) before anything is measured,

    (I + √v B Aᵀ R⁻¹ A Bᵀ √v) t = √v B Aᵀ R⁻¹ r,        S⁻¹ r = R⁻¹ (r − A Bᵀ √v t)

(Woodbury's identity, without an inverse of v). Conjugate gradients take 1 + v h for the matrix, h the diagonal of
B Aᵀ R⁻¹ A Bᵀ, for a preconditioner: what A measures of low frequencies is nearly the same of each, and of high ones
there is little to know. S itself has eigenvalues from σ_y² to the greatest v, 10⁵ apart, and no such neighbour; but of
few measurements it is the smaller matrix, and needs fewer digits: this way u is the small difference of large numbers,
and float64 is wanted.
"""

from __future__ import annotations

import torch

from ..covariance.reverse import StructuredCovariance
from ..process.structure import Full, Shape, Structure
from ..randomness import generator, normal
from .linear_map import LinearMap
from .noise import MeasurementNoise
from .solver import ConjugateGradients, Solution

_PROBES = 16  # for h, which need not be exact
#: The tolerance of t's system over that of u, which is the difference of r and of what t explains of it; and what a
#: type's rounding leaves.
_FINER, _FLOOR = 1e-2, {torch.float64: 1e-14, torch.float32: 3e-6}


class Whitened:
    """Solves S u = r for a batch of images at one level.

    Args:
        linear: A and Aᵀ, in the precision of what is solved.
        covariance: Σ, with its structure.
        noise: R, with no variance of 0, and none that binds elements that A sees to others.
        told: h, from `told_of`.
    """

    def __init__(
        self, linear: LinearMap, covariance: StructuredCovariance, noise: MeasurementNoise, told: torch.Tensor
    ) -> None:
        self._linear, self._noise = linear, noise
        self._structure, self._variance, self._told = covariance.structure, covariance.variance, told

    def solve(self, r: torch.Tensor, by: ConjugateGradients) -> Solution:
        """S⁻¹ r, (B, *m), for an r that is 0 where A sees nothing; its `products` are those with the images' matrix."""
        variance = self._variance.to(r.dtype).clamp_min(0.0)
        root, precondition = variance.sqrt(), 1.0 / (1.0 + variance * self._told.to(r))

        def colour(t: torch.Tensor) -> torch.Tensor:
            return self._structure.inverse(root * t)

        def back(u: torch.Tensor) -> torch.Tensor:
            return root * self._structure.forward(self._linear.adjoint(self._noise.solve(u)))

        finer = ConjugateGradients(max(_FINER * by.tolerance, _FLOOR.get(r.dtype, 1e-5)), by.iterations)
        found = finer(lambda t: t + back(self._linear.apply(colour(t))), back(r), lambda t: precondition * t)
        return found._replace(u=self._noise.solve(r - self._linear.apply(colour(found.u))))


def told_of(linear: LinearMap, structure: Structure, noise: MeasurementNoise, like: torch.Tensor) -> torch.Tensor:
    """h, the diagonal of B Aᵀ R⁻¹ A Bᵀ, about: (C, *spatial), or () for a structure whose basis is each image's own."""
    shape: Shape = structure.shape
    z = normal(generator(0, "probe of what is told"), _PROBES, *shape).sign().to(like)
    own = isinstance(structure, Full)
    measured = linear.apply(z if own else structure.inverse(z))
    if own:
        return (measured * noise.solve(measured)).sum() / z.numel()
    back = structure.forward(linear.adjoint(noise.solve(measured)))
    found: torch.Tensor = structure.pool((z * back).mean(0)).clamp_min(0.0)
    return found
