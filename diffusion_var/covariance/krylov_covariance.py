"""A covariance of each image of a batch, known by products: draws, determinants and solves of Σ = λ² I + γ² S.

S is the symmetric half of what products are given of. With L = Bᵀ diag(√l) B of any variances l,

    M = L⁻¹ Σ L⁻¹ = λ² L⁻² + γ² L⁻¹ S L⁻¹

and few Krylov steps (`krylov`) know functions of M where L² is near to Σ:

    a draw          L M^{1/2} z        from the space of z itself: of one step it is L z, scaled by what Σ has of it,
                                       and each more bends it towards Σ
    xᵀ Σ⁻¹ x        bᵀ M⁻¹ b,  b = L⁻¹ x
    log det Σ       2 log det L + tr log M,  the trace by probes of random signs (stochastic Lanczos quadrature,
                                       Ubaru, Chen and Saad 2017)
    tr Σ⁻¹          tr L⁻² + tr L⁻² (M⁻¹ − I),  with the same probes and spaces

For a symmetric M a draw's coordinates along M's eigenvectors are uncorrelated after any number of steps (each is odd in
z's own coordinate, and even in the others), so that what few steps err in are the eigenvalues alone. The sums go on
until they are right, to a residual of 10⁻³, or for 64 products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..errors import NumericalError
from ..process.kernel import ReverseKernel
from ..process.structure import Isotropic
from .krylov import KrylovSpace, Product
from .krylov_counts import KrylovCounts
from .reverse import StructuredCovariance

#: The residual that solves go to, relative to the start, in so many products at most, and so many between two looks.
TOLERANCE, MOST_PRODUCTS, _AT_ONCE = 1e-3, 64, 4


@dataclass(frozen=True)
class KrylovCovariance(StructuredCovariance):
    """λ² I + γ² S of a batch, by products; `structure` and `variance` are those of L² alone.

    Attributes:
        kernel: the step.
        times: S's products, (σ²/α) J x of (B, C, *spatial).
        steps: products that a draw takes.
        clamp: whether negative directions of S are cut, else refused.
        signs: probes of log det Σ, (P, B, C, *spatial) coefficients of ±1.
        counts: where what was cut is counted.
        expected: whether L² is what Σ is expected to be, which it is drawn towards (`krylov`), and not a scale alone.
        most: no variance is above it; then L is a number.
    """

    diagonal = False

    kernel: ReverseKernel
    times: Product
    steps: int
    clamp: bool
    signs: Callable[[], torch.Tensor]
    counts: KrylovCounts
    expected: bool = False
    most: float | None = None

    def colour(self, noise: torch.Tensor) -> torch.Tensor:
        """About Σ^{1/2} noise: L M^{1/2} noise, in `steps` products."""
        space = self._space(self.structure.forward(noise)).grow(self.steps)
        self.counts.of_space(self._sound(space))
        return self.structure.inverse(self.variance.sqrt() * space.times(torch.sqrt))

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x, with (σ²/α) J itself for S: a product with one vector can be neither made symmetric nor cut."""
        return self.kernel.lambda2 * x + self.kernel.gain**2 * self.times(x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """Σ⁻¹ x, (B, C, *spatial)."""
        space = self._solved(self.structure.forward(x) / self.variance.sqrt())
        return self.structure.inverse(space.times(torch.reciprocal) / self.variance.sqrt())

    def quadratic(self, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image, (B,) float64."""
        return self._solved(self.structure.forward(x) / self.variance.sqrt()).form(torch.reciprocal)

    def log_det(self) -> torch.Tensor:
        """log det Σ in nats, (B,) float64, about as well as `log_det_error` says."""
        found, error, _ = self._traces
        self.counts.of_log_det(error, self.structure.d)
        return found

    @property
    def log_det_error(self) -> torch.Tensor:
        """The standard error of `log_det` of each image, (B,) nats, from the spread of its probes; nan of one probe."""
        return self._traces[1]

    def inverse_trace(self) -> torch.Tensor:
        """tr Σ⁻¹, (B,) float64, by the probes of `log_det`."""
        return self._traces[2]

    def capped(self, limit: float) -> StructuredCovariance:
        """No eigenvalue above `limit`, and so no pixel's variance: by spaces without the table, in which M is Σ."""
        one = self.variance.new_tensor(limit)
        return replace(self, structure=Isotropic(self.structure.shape), variance=one, expected=False, most=1.0)

    # ---- M's spaces -----------------------------------------------------------------------------------------------

    def _space(self, start: torch.Tensor) -> KrylovSpace:
        """That of coefficients, (B, C, *spatial)."""
        root = self.variance.sqrt()

        def product(v: torch.Tensor) -> torch.Tensor:
            return self.kernel.gain**2 * self.structure.forward(self.times(self.structure.inverse(v / root))) / root

        known = self.kernel.lambda2 / self.variance
        return KrylovSpace(start, known, product, self.most, (1.0 - known).clamp_min(0.0) if self.expected else None)

    def _solved(self, start: torch.Tensor) -> KrylovSpace:
        """One in which M x = start is solved."""
        space, room = self._space(start), min(MOST_PRODUCTS, self.structure.d)
        while space.columns < room:
            space.grow(min(_AT_ONCE, room - space.columns))
            if not bool(space.open(TOLERANCE).any()):
                break
        self.counts.of_solve(self._sound(space), TOLERANCE)
        return space

    @cached_property
    def _traces(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log det Σ, its standard error, and tr Σ⁻¹, (B,) float64 each."""
        logs, traces, inverse = [], [], 1.0 / self.variance.double()
        for z in self.signs():
            space = self._solved(z)
            logs.append(space.form(torch.log))
            more = space.times(torch.reciprocal).double() - z
            traces.append((z * inverse * more).flatten(1).sum(1))
        found, count = torch.stack(logs), len(logs)
        error = found.std(0) / math.sqrt(count) if count > 1 else torch.full_like(found[0], math.nan)
        log_det = self.structure.log_det(self.variance) + found.mean(0)
        return log_det, error, self.structure.inverse_trace(self.variance) + torch.stack(traces).mean(0)

    def _sound(self, space: KrylovSpace) -> KrylovSpace:
        """A space, refused if something had to be cut and nothing may be."""
        if not self.clamp and bool((space.cut > 0).any()):
            raise NumericalError(
                f"(σ²/α) J has negative directions in the step {self.kernel}, in {int((space.cut > 0).sum())} of "
                f"{len(space.size)} images, so that it is no covariance there; take clamp=True, which cuts them at 0."
            )
        return space
