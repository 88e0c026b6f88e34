"""The Gaussians of a mixture, all of one kind: isotropic ones (many, as of a finite set of images), or with full
covariances (few). What is asked of them takes images (B, d) and levels as columns (B or 1, 1), all float64.

`coordinates(x, α)` is what the rest is computed from: x itself, or Q_jᵀ (x − α m_j) of every component.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from weakref import WeakKeyDictionary

import torch

from .. import checks
from ..process.linear import linear_gain, linear_mmse
from ..process.structure import Structure

_SYMMETRIC = 1e-6  # of the largest entry: covariances of float32 are no better


def _gain(variance: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    gain: torch.Tensor = linear_gain(variance, alpha, sigma)
    return gain


def _mmse(variance: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    error: torch.Tensor = linear_mmse(variance, alpha, sigma)
    return error


class Components(ABC):
    """J Gaussians in d dimensions."""

    def __init__(self, means: torch.Tensor) -> None:
        self.means = means

    @property
    @abstractmethod
    def is_flat(self) -> bool:
        """Whether one has no volume."""

    @abstractmethod
    def coordinates(self, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """What the others take as y."""

    @abstractmethod
    def log_densities(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """log N(x; α m_j, α² C_j + σ² I), (B, J)."""

    @abstractmethod
    def combined(self, r: torch.Tensor, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Σ_j r_j x̂_j, (B, d), for r (B, J)."""

    @abstractmethod
    def each_mean(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x̂_j, (B, J, d)."""

    @abstractmethod
    def within(self, structure: Structure, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The diagonal, in the structure's basis, of each one's covariance of x_0 given x_t at one level, (J, d)."""

    @abstractmethod
    def within_dense(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """That covariance, (J, d, d); of α = 0 the data's own."""

    @abstractmethod
    def eigen(self, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Its eigenvalues (J, d) and eigenvectors (J, d, d), columns."""

    @abstractmethod
    def coloured(self, j: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """C_j^{1/2} noise on the CPU, for j (B,) and noise (B, d)."""


class IsotropicComponents(Components):
    """N(m_j, l_j I), variances (J,)."""

    def __init__(self, means: torch.Tensor, variances: torch.Tensor) -> None:
        super().__init__(means)
        self.variances = variances

    @property
    def is_flat(self) -> bool:
        return bool((self.variances == 0).any())

    def coordinates(self, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return x

    def log_densities(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        total = alpha**2 * self.variances + sigma**2
        # ‖x − α m‖² expanded: memory B × J instead of B × J × d
        m = self.means
        distance = y.square().sum(1, keepdim=True) - 2 * alpha * (y @ m.T) + alpha**2 * m.square().sum(1)
        return -0.5 * (distance / total + y.shape[1] * (total.log() + math.log(2 * math.pi)))

    def combined(self, r: torch.Tensor, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        k = _gain(self.variances, alpha, sigma)
        # Σ_j r_j (m_j + k_j (x_t − α m_j))
        return (r * (1 - k * alpha)) @ self.means + (r * k).sum(1, keepdim=True) * y

    def each_mean(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        k = _gain(self.variances, alpha, sigma)[..., None]
        return self.means + k * (y[:, None] - alpha[..., None] * self.means)

    def within(self, structure: Structure, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._within(alpha, sigma)[:, None].expand_as(self.means)

    def within_dense(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.diag_embed(self._within(alpha, sigma)[:, None].expand_as(self.means))

    def eigen(self, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count, d = self.means.shape
        values = self._within(alpha, sigma)[:, None].expand_as(self.means)
        return values, torch.eye(d, dtype=torch.float64, device=self.means.device).expand(count, d, d)

    def _within(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return _mmse(self.variances, alpha, sigma)[0]

    def coloured(self, j: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.variances.cpu()[j, None].sqrt() * noise


class DenseComponents(Components):
    """N(m_j, C_j), covariances (J, d, d), kept as their eigenbases."""

    def __init__(self, means: torch.Tensor, covariances: torch.Tensor) -> None:
        super().__init__(means)
        largest = covariances.abs().amax()
        lopsided = (covariances - covariances.mT).abs().amax() > _SYMMETRIC * largest
        checks.refuse(bool(lopsided), "covariances must be symmetric; give (C + Cᵀ)/2 of each.")
        # One after the other: the batched solver is slower, and needs memory for all.
        eigen = [torch.linalg.eigh(covariance) for covariance in covariances]
        values, self.bases = (torch.stack(part) for part in zip(*eigen, strict=True))
        least = float(values.min())
        checks.refuse(
            least < -_SYMMETRIC * float(largest),
            f"covariances must have no negative eigenvalue, but one has {least:.3g}; compute them again.",
        )
        self.values = values.clamp_min(0.0)
        count, d = means.shape
        self._forward = self.bases.permute(1, 0, 2).reshape(d, count * d)  # x @ this is Q_jᵀ x of all
        self._backward = self.bases.mT.reshape(count * d, d)
        self._own = torch.einsum("jd,jde->je", means, self.bases)  # Q_jᵀ m_j
        self._squares: WeakKeyDictionary[Structure, torch.Tensor] = WeakKeyDictionary()

    @property
    def is_flat(self) -> bool:
        return bool((self.values == 0).any())

    def coordinates(self, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return (x @ self._forward).view(len(x), *self.means.shape) - alpha[..., None] * self._own

    def log_densities(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        total = alpha[..., None] ** 2 * self.values + sigma[..., None] ** 2
        constant = total.log().sum(2) + y.shape[2] * math.log(2 * math.pi)
        return -0.5 * ((y.square() / total).sum(2) + constant)

    def combined(self, r: torch.Tensor, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        k = _gain(self.values, alpha[..., None], sigma[..., None])
        return r @ self.means + (r[..., None] * k * y).flatten(1) @ self._backward

    def each_mean(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        k = _gain(self.values, alpha[..., None], sigma[..., None])
        return self.means + torch.einsum("bje,jde->bjd", k * y, self.bases)

    def within(self, structure: Structure, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.einsum("jde,je->jd", self._squared(structure), self._within(alpha, sigma))

    def _squared(self, structure: Structure) -> torch.Tensor:
        """(B Q_j)² element by element, (J, d, d), kept for each structure."""
        if structure not in self._squares:
            columns = self.bases.mT.reshape(-1, *structure.shape)
            self._squares[structure] = structure.forward(columns).reshape(self.bases.shape).mT.square()
        return self._squares[structure]

    def within_dense(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (self.bases * self._within(alpha, sigma)[:, None]) @ self.bases.mT

    def eigen(self, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._within(alpha, sigma), self.bases

    def _within(self, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return _mmse(self.values, alpha, sigma)

    def coloured(self, j: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        coloured = torch.empty_like(noise)
        for k, (basis, values) in enumerate(zip(self.bases.cpu(), self.values.cpu(), strict=True)):
            coloured[j == k] = (noise[j == k] * values.sqrt()) @ basis.T
        return coloured
