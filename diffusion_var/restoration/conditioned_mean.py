"""E[x_0|x_t, y] from what is known without y: the equations of E15, each once."""

from __future__ import annotations

from typing import Protocol

import torch

from ..process.per_image import dot


class Covariance(Protocol):
    """What is asked of Σ = Cov[x_0|x_t] of a batch."""

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x, (B, C, *spatial)."""
        ...


def conditioned_mean_1(mean: torch.Tensor, moved: torch.Tensor, length: torch.Tensor | float = 1.0) -> torch.Tensor:
    """x̂_0 + f (σ_t²/α_t) Jᵀ Aᵀ u, with `moved` (σ_t²/α_t) Jᵀ Aᵀ u and `length` f: type I [E15]."""
    return mean + length * moved


def step_length(r: torch.Tensor, u: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """f = ⟨u, r⟩/⟨u, S_J u⟩ of each image (B,), at most 1, with `product` S_J u: the length of a step along u towards
    S_J⁻¹ r, S_J = A (σ_t²/α_t) Jᵀ Aᵀ + R [E15]. 1 where S_J is not positive along u."""
    along, curved = (dot(u, other) for other in (r, product))
    return torch.where(curved > 0, (along / curved).clamp(0.0, 1.0), 1.0)


def conditioned_mean_2(mean: torch.Tensor, covariance: Covariance, back: torch.Tensor) -> torch.Tensor:
    """x̂_0 + Σ Aᵀ u, with `back` Aᵀ u: type II [E15]."""
    return mean + covariance.matvec(back)
