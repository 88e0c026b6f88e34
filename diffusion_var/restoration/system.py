"""S = A Σ Aᵀ + R, the covariance of what a measurement y is off A x̂_0 by, and S⁻¹: the heart of E15.

In closed form where Σ and A share a basis (`diagonal`), by conjugate gradients on the images where Σ has a structure,
there is noise, and y has half as many elements as an image or more (`whitened`), on S itself elsewhere, and by a cut
Lanczos where Σ is a network's Jacobian.
"""

from __future__ import annotations

import torch

from .conditioned_mean import Covariance
from .diagonal import Diagonal
from .linear_map import LinearMap
from .noise import MeasurementNoise
from .solver import ConjugateGradients, Solution, Solver
from .whitened import Whitened


class System:
    """S of a batch of images at one level.

    Args:
        linear: A and Aᵀ.
        covariance: Σ.
        noise: R.
        seen: (*m), the elements of y that A sees; of others S is the identity.
        closed: the basis that S is diagonal in for Σ's own structure, with Σ's variances; None: there is none.
        whitened: solves it by way of the images; None: on S itself.
        usual: how it is solved where nothing else is asked for.
        fine: A and Aᵀ in float64, which S is solved in where eigenvalues of all sizes leave float32 nothing to say;
            None: in the images' own precision.
    """

    def __init__(
        self,
        linear: LinearMap,
        covariance: Covariance,
        noise: MeasurementNoise,
        seen: torch.Tensor,
        closed: tuple[Diagonal, torch.Tensor] | None = None,
        whitened: Whitened | None = None,
        usual: ConjugateGradients = ConjugateGradients(),  # noqa: B008 (frozen)
        fine: LinearMap | None = None,
    ) -> None:
        self.linear, self.covariance, self.noise, self.seen = linear, covariance, noise, seen
        self._closed, self._whitened, self._usual, self._fine = closed, whitened, usual, fine

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """S u, (B, *m)."""
        linear = self._fine if self._fine is not None and u.dtype == torch.float64 else self.linear
        found = linear.apply(self.covariance.matvec(linear.adjoint(u))) + self.noise.times(u)
        return torch.where(self.seen, found, u)

    def solve(self, r: torch.Tensor, by: Solver | None) -> Solution:
        """S⁻¹ r, (B, *m), 0 where nothing is seen, whatever r is there; `by` None: in closed form if there is one,
        else as usual."""
        r = torch.where(self.seen, r, 0.0)
        if by is None and self._closed is not None:
            diagonal, variance = self._closed
            fine = torch.ones(len(r), dtype=torch.bool, device=r.device)
            u = diagonal.solve(variance, self._white, r)
            return Solution(torch.where(self.seen, u, 0.0), fine, fine, torch.zeros_like(fine, dtype=torch.int64))
        by, wanted = by or self._usual, r if self._fine is None else r.double()
        if self._whitened is not None and isinstance(by, ConjugateGradients):
            found = self._whitened.solve(wanted, by)
        else:
            found = by(self.product, wanted)
        return found._replace(u=torch.where(self.seen, found.u, 0.0).to(r.dtype))

    def dense(self, r: torch.Tensor) -> torch.Tensor:
        """S of each image, (B, m, m) float64, of the m elements that are seen; for small y. `r`: any (B, *m)."""
        places = self.seen.flatten().nonzero()[:, 0]
        columns, r = [], r if self._fine is None else r.double()
        for place in places.tolist():
            unit = r.new_zeros(r.shape).flatten(1)
            unit[:, place] = 1.0
            columns.append(self.product(unit.view_as(r)).flatten(1)[:, places].double())
        return torch.stack(columns, -1)

    @property
    def _white(self) -> torch.Tensor:
        assert self.noise.variance is not None
        return self.noise.variance
