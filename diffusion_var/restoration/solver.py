"""Solving S u = r for a batch of images, S symmetric and positive as a rule: by products with S alone.

    conjugate gradients   (Hestenes and Stiefel, 1952), preconditioned, each image stopping by itself
    cut Lanczos           for an S that may not be positive (a network's Jacobian): the same Krylov space, in which the
                          eigenvalues of S are raised to what the noise leaves of them

What did not converge, or met a direction in which S is not positive, is said of every image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .. import checks
from ..process.per_image import dot, each

Product = Callable[[torch.Tensor], torch.Tensor]


class Solution(NamedTuple):
    """`u`, (B, *m); and of each image, (B,): whether it `converged`, whether S was `positive` wherever it was looked
    at, and how many `products` with S it took."""

    u: torch.Tensor
    converged: torch.Tensor
    positive: torch.Tensor
    products: torch.Tensor


@dataclass(frozen=True)
class ConjugateGradients:
    """How S u = r is solved where there is no closed form.

    Args:
        tolerance: the norm of the residual r − S u over that of r, both in the preconditioner's metric where there is
            one, at which an image is done; float32 knows no less than about 1e-6. Where it is solved by way of the
            images (`whitened`), a hundredth of it, of their system's.
        iterations: products with S, or with the images' matrix, at most; an image that needs more is counted as not
            converged.
    """

    tolerance: float = 1e-4
    iterations: int = 300

    def __post_init__(self) -> None:
        checks.positive("tolerance", self.tolerance)
        checks.whole("iterations", self.iterations, least=1)

    def __call__(self, product: Product, r: torch.Tensor, precondition: Product | None = None) -> Solution:
        """u of S u = r, (B, *m)."""
        return conjugate_gradients(product, r, precondition, self.tolerance, self.iterations)


@dataclass(frozen=True)
class CutLanczos:
    """How S u = r is solved where S may not be positive: by `cut_lanczos`, no eigenvalue below `least`."""

    steps: int
    least: float

    def __call__(self, product: Product, r: torch.Tensor, precondition: Product | None = None) -> Solution:
        """u of S u = r, (B, *m); a preconditioner has no meaning here."""
        return cut_lanczos(product, r, self.steps, self.least)


Solver = ConjugateGradients | CutLanczos


def conjugate_gradients(
    product: Product, r: torch.Tensor, precondition: Product | None, tolerance: float, iterations: int
) -> Solution:
    """u of S u = r, (B, *m); `product` gives S u and `precondition` an approximation of S⁻¹ u.

    An image at whose direction p is pᵀ S p ≤ 0 stops there, with the u that it has.
    """
    inverse = precondition or (lambda x: x)
    u, left = torch.zeros_like(r), r
    z = inverse(left)
    p, rho = z, dot(left, z)
    enough = tolerance**2 * rho
    active, positive = rho > 0, torch.ones_like(rho, dtype=torch.bool)
    converged, products = ~active, torch.zeros_like(rho, dtype=torch.int64)
    for _ in range(iterations):
        if not bool(active.any()):
            break
        s_p = product(p)
        curvature = dot(p, s_p)
        products += active
        positive &= ~active | (curvature > 0)
        unknown = active & ~torch.isfinite(curvature)  # S has no finite product: u is to say so
        active &= curvature > 0
        step = torch.where(active | unknown, rho / curvature, 0.0)
        u, left = u + each(step, u) * p, left - each(step, u) * s_p
        z = inverse(left)
        before, rho = rho, dot(left, z)
        done = active & (rho <= enough)
        converged, active = converged | done, active & ~done
        p = z + each(torch.where(active, rho / before, 0.0), u) * p
    return Solution(u, converged, positive, products)


def cut_lanczos(product: Product, r: torch.Tensor, steps: int, least: float) -> Solution:
    """u of S u = r, (B, *m), in the Krylov space of so many steps, with S's eigenvalues there raised to `least`.

    Lanczos's basis V of r, S r, … turns S into a tridiagonal T (made symmetric); u = ‖r‖ V f(T) e_1 with
    f(θ) = 1/max(θ, least), or 0 where both are not positive. Where T needs no raising it is conjugate gradients' u.
    """
    size = dot(r, r).sqrt()
    basis = [r / each(size.clamp_min(_TINY), r)]
    diagonal: list[torch.Tensor] = []
    beside: list[torch.Tensor] = []
    spent = torch.zeros_like(size, dtype=torch.bool)  # the Krylov space: what comes after is rounding
    for _ in range(steps):
        s_v = product(basis[-1])
        norm = dot(s_v, s_v).sqrt()
        # A spent space goes on as its first direction does, apart from the others, so that it adds no eigenvalue.
        diagonal.append(torch.where(spent, diagonal[0] if diagonal else 0.0, dot(basis[-1], s_v)))
        for v in (*basis, *basis):  # twice: once leaves what rounding brings back
            s_v = s_v - each(dot(v, s_v), v) * v
        left = dot(s_v, s_v).sqrt()
        spent = spent | (left <= 10.0 * torch.finfo(r.dtype).eps * norm)
        beside.append(torch.where(spent, 0.0, left))
        basis.append(s_v * each(torch.where(spent, 0.0, 1.0 / left), s_v))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
    if steps > 1:
        off = torch.stack(beside[:-1], 1)
        tridiagonal = tridiagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    broken = ~torch.isfinite(tridiagonal).all(2).all(1)  # S has no finite product: u is to say so
    values, vectors = torch.linalg.eigh(torch.where(broken[:, None, None], 0.0, tridiagonal))
    raised = values.clamp_min(least)
    weights = (vectors * torch.where(raised > 0, 1.0 / raised, 0.0)[:, None] * vectors[:, :1]).sum(-1) * size[:, None]
    weights = torch.where(broken[:, None], torch.nan, weights)
    u = sum((each(weights[:, k], r) * basis[k] for k in range(steps)), torch.zeros_like(r))
    near = (beside[-1] * weights[:, -1].abs()) <= _CUT_TOLERANCE * size
    products = torch.full_like(size, steps, dtype=torch.int64)
    positive = (values > least - _ROUNDING * values.abs().amax(1, keepdim=True)).all(1) | (size == 0)
    return Solution(u, near | (size == 0), positive, products)


#: Numbers below which a norm is none; what rounding makes of an eigenvalue; ‖r − S u‖/‖r‖ of few steps that are enough.
_TINY, _ROUNDING, _CUT_TOLERANCE = 1e-30, 1e-5, 1e-2
