"""Functions of a matrix that is known by its products, times one vector, for a batch of images: Krylov spaces.

    M = G + P,    G diagonal and known,    P = the symmetric half of what products P̂ v are of

Arnoldi's process makes an orthonormal V of b, M b, M² b, … (one product a column), in which M is a small matrix,

    T = Vᵀ G V + (Vᵀ P V)₊,        f(M) b ≈ ‖b‖ V f(T) e_1,        bᵀ f(M) b ≈ ‖b‖² e_1ᵀ f(T) e_1        [E16]

(Lanczos 1950; the second is Gauss's quadrature, Golub and Welsch 1969). Vᵀ P V is the exact restriction of the
symmetric half, wherever P̂ is not symmetric: vᵀ P̂ᵀ v is vᵀ P̂ v. With (·)₊ its negative eigenvalues are cut to 0.

*What is cut.* P = γ² L⁻¹ S L⁻¹ with S a covariance, or what should be one. yᵀ Vᵀ P V y = γ² xᵀ S x at x = L⁻¹ V y: the
negative eigenvalues of Vᵀ P V are as many as S has negative directions on the space L⁻¹ V, whatever L is (Sylvester),
and L says in which metric what replaces them is nearest. Cut there, T is nowhere below Vᵀ G V, the noise λ² that a step
has of its own; cut in T, a negative S would first eat that up. Where λ = 0 there is no G, the two are the same, and T
may be singular: a draw has nothing in such a direction, and no density.

*What is drawn towards what is expected.* A covariance is symmetric and positive. How far Vᵀ P̂ V is from both is how far
it errs: τ² = ν² + 2 ‖A‖²/(k (k − 1)), with −ν its least eigenvalue and A its antisymmetric half (of an error with
independent entries, A has as much as every entry of the symmetric half). One column shows no asymmetry; there τ² is
ν² + 2 ‖P̂ v − v vᵀ P̂ v‖²/d, the variance of a form in a random direction. Where P is expected to be E, a diagonal that
the user's table knows, and of the size p = tr(Vᵀ E V)/k, so may be the differences between images, and

    Vᵀ P V → Vᵀ E V + p²/(p² + τ²) (Vᵀ P V − Vᵀ E V)

before it is cut: all of it where P̂ is symmetric and positive, and nearly E where a network's derivative is no
covariance, as next to pure noise, where (σ²/α²) multiplies its errors.

Orthogonalisation is in full and twice; ten or sixty columns cost little beside a network. An image whose space is spent
before the others' (its M b is in the space already) goes on with columns of 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..process.per_image import dot, each

Product = Callable[[torch.Tensor], torch.Tensor]
Function = Callable[[torch.Tensor], torch.Tensor]

#: What the rounding of float32 products leaves of an eigenvalue of P, relative to the greatest.
ROUNDING = 1e-4
_SPENT = 10.0  # roundings of a column's length that are no direction any more


class KrylovSpace:
    """The spaces of a batch, of as many columns as they have `grown`.

    Args:
        start: b, (B, C, *spatial).
        known: G's diagonal, at least 0, that broadcasts to it.
        product: P̂ v of such a v.
        most: T's eigenvalues are cut above it; None: at none.
        expected: E's diagonal, that P is drawn towards; None: P is as the products say.

    Attributes: `columns`, how many products with P̂ it has taken; `size`, ‖b‖, (B,); `weight`, p²/(p² + τ²), (B,).
    """

    def __init__(
        self,
        start: torch.Tensor,
        known: torch.Tensor,
        product: Product,
        most: float | None = None,
        expected: torch.Tensor | None = None,
    ) -> None:
        self.size = dot(start, start).sqrt()
        self._known, self._product, self._most, self._expected = known, product, most, expected
        alive = self.size > 0
        self._alive = [alive]
        self._basis = [start * each(torch.where(alive, 1.0 / self.size, 0.0), start)]
        self._images: list[torch.Tensor] = []
        self._left = self.size
        self._values = self._vectors = self._negative = torch.empty(0)
        self.weight = torch.ones_like(self.size)

    @property
    def columns(self) -> int:
        return len(self._images)

    def grow(self, columns: int) -> KrylovSpace:
        """So many columns more; itself."""
        for _ in range(columns):
            self._add()
        self._solve()
        return self

    def _add(self) -> None:
        v = self._basis[-1]
        image = self._product(v)
        self._images.append(image)
        left = self._known * v + image
        whole = dot(left, left).sqrt()
        for u in (*self._basis, *self._basis):  # twice: once leaves what rounding brings back
            left = left - each(dot(u, left), left) * u
        self._left = dot(left, left).sqrt()
        # A length that is not a number is not short: what the product was, is to be seen in the end.
        alive = self._alive[-1] & ~(self._left <= _SPENT * torch.finfo(left.dtype).eps * whole)
        self._alive.append(alive)
        self._basis.append(torch.where(each(alive, left) > 0, left * each(1.0 / self._left, left), 0.0))

    def _solve(self) -> None:
        """T's eigenvalues and eigenvectors, (B, k) and (B, k, k)."""
        k = self.columns
        basis = torch.stack(self._basis[:k], 1).double()
        columns, dead = basis.flatten(2), ~torch.stack(self._alive[:k], 1)
        own = (self._known.double() * basis).flatten(2) @ columns.mT
        moved = columns @ torch.stack(self._images, 1).flatten(2).double().mT
        unknown = ~torch.isfinite(moved).flatten(1).all(1)[:, None, None]
        moved = torch.where(unknown, 0.0, moved)
        values, vectors = _eigh(0.5 * (moved + moved.mT))
        self._negative = values < -ROUNDING * values.abs().amax(1, keepdim=True)
        if self._expected is not None:
            expected = (self._expected.double() * basis).flatten(2) @ columns.mT
            values, vectors = _eigh(self._drawn(moved, values, expected))
        cut = (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT
        # A column of 0 has the eigenvalue 1, of which b has no share.
        whole = torch.where(unknown, 0.0, own + cut) + torch.diag_embed(dead.double())
        self._values, self._vectors = _eigh(whole)
        self._values = torch.where(unknown[..., 0], torch.nan, self._values.clamp(0.0, self._most))

    def _drawn(self, moved: torch.Tensor, values: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Vᵀ P V towards Vᵀ E V, from Vᵀ P̂ V and the eigenvalues of its symmetric half."""
        k, d = self.columns, self._basis[0][0].numel()
        size = expected.diagonal(dim1=1, dim2=2).mean(1).square()
        uneven = (0.5 * (moved - moved.mT)).square().sum((1, 2)) / (k * (k - 1)) if k > 1 else self._left**2 / d
        off = values[:, 0].clamp(max=0.0).square() + 2.0 * uneven.nan_to_num(0.0)
        self.weight = torch.where(off > 0, size / (size + off), 1.0)
        return expected + self.weight[:, None, None] * (0.5 * (moved + moved.mT) - expected)

    # ---- what it says ---------------------------------------------------------------------------------------------

    @property
    def cut(self) -> torch.Tensor:
        """How many eigenvalues of Vᵀ P V were negative by more than rounding, (B,)."""
        return self._negative.sum(1)

    @property
    def counted(self) -> torch.Tensor:
        """Of how many, (B,)."""
        return torch.stack(self._alive[: self.columns], 1).sum(1)

    def times(self, f: Function) -> torch.Tensor:
        """f(M) b, (B, C, *spatial)."""
        weights = self.size[:, None] * self._weights(f)
        first, *others = (each(weights[:, k], v) * v for k, v in enumerate(self._basis[: self.columns]))
        return sum(others, first)

    def form(self, f: Function) -> torch.Tensor:
        """bᵀ f(M) b, (B,) float64."""
        return self.size.square() * self._weights(f)[:, 0]

    def open(self, tolerance: float) -> torch.Tensor:
        """Whose M x = b is not solved yet to a residual of `tolerance`, relative to b, (B,) bool."""
        last = self._left * self._weights(torch.reciprocal)[:, -1].abs()
        return self._alive[self.columns] & ~(last <= tolerance) & torch.isfinite(last)

    def _weights(self, f: Function) -> torch.Tensor:
        """f(T) e_1, (B, k)."""
        return (self._vectors * (f(self._values) * self._vectors[:, 0])[:, None]).sum(-1)


def _eigh(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors
