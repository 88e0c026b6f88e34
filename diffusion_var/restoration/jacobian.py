"""The network's own Jacobian as Cov[x_0|x_t] = (σ²/α) J, J = ∂x̂_0/∂x_t: what Tweedie's second formula says, and MMPS
(arXiv:2405.13712) solves with. A product costs a backward pass; a network's J is neither quite symmetric nor positive,
so that S's eigenvalues in the Krylov space are raised to the noise's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import checks
from ..process.level import NoiseLevel


@dataclass(frozen=True)
class NetworkJacobian:
    """In a covariance's place for `ConditionedDenoiser`.

    Args:
        iterations: products with S, each a backward pass, of which one more is type I's own.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        checks.whole("iterations", self.iterations, least=1)

    @property
    def name(self) -> str:
        """A short name for tables and plots."""
        return f"jacobian-{self.iterations}"

    def identity(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"name": self.name}


class NetworkCovariance:
    """Σ = (σ²/α) J of a batch, by products: `mean` with its graph from `x`. Its symmetric half is not taken: Jᵀ is."""

    def __init__(self, mean: torch.Tensor, x: torch.Tensor, level: NoiseLevel) -> None:
        checks.refuse(
            not mean.requires_grad,
            "the network cannot be differentiated (its output has no gradient), which its Jacobian needs; take a "
            "covariance from a table.",
        )
        silent = level.alpha == 0.0
        checks.refuse(silent, f"the Jacobian says nothing at {level.name}, where x_t holds no signal; start below it.")
        self._mean, self._x, self._scale = mean, x, level.sigma**2 / level.alpha

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        """(σ²/α) Jᵀ x, (B, C, *spatial)."""
        return self._scale * torch.autograd.grad(self._mean, self._x, x, retain_graph=True)[0].detach()
