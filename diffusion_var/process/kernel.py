"""One reverse step t → s of the DDPM/DDIM family: the equations, each written once, and the step that uses them.

With x_t = α_t x_0 + σ_t ε, the family of reverse kernels given x_0 is (DDIM, arXiv:2010.02502)

    q(x_s | x_t, x_0) = N( α_s x_0 + c (x_t − α_t x_0)/σ_t , λ² I ),      c = √(σ_s² − λ²)                       (1)

and the Gaussian in x_s | x_t that is nearest to it has (Analytic-DPM, arXiv:2201.06503, Theorem 1)

    mean = (1) at x̂_0 = E[x_0|x_t],      covariance = λ² I + γ² Cov[x_0|x_t],      γ = α_s − c α_t/σ_t.          (2)

λ² = η² β̃_{t|s}: η = 1 is DDPM and η = 0 is DDIM. Written with Δ = logSNR_t − logSNR_s nothing cancels, neither for
neighbouring steps nor for s = 0 (Δ = −∞) nor for zero terminal SNR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .schedule import NoiseSchedule

ClippedEps = Literal["network", "rederived"]
FloatOrArray = TypeVar("FloatOrArray", float, npt.NDArray[np.float64])


def beta(sigma_t: float, log_snr_t: float, log_snr_s: float) -> float:
    """β_{t|s} = σ_t² − (α_t/α_s)² σ_s² = −σ_t² expm1(logSNR_t − logSNR_s) (DESIGN §1)."""
    return -(sigma_t**2) * math.expm1(log_snr_t - log_snr_s)


def beta_tilde(beta: float, sigma_t: float, sigma_s: float) -> float:
    """β̃_{t|s} = β_{t|s} σ_s²/σ_t²: the variance of q(x_s | x_t, x_0) for DDPM (DESIGN §1)."""
    return beta * (sigma_s / sigma_t) ** 2


def lambda2(beta_tilde: float, eta: float) -> float:
    """λ² = η² β̃: the variance of the chosen forward process (DESIGN §1; DDIM eq. 16)."""
    return eta**2 * beta_tilde


def eps_gain(sigma_s: float, log_snr_t: float, log_snr_s: float, eta: float) -> float:
    """c = √(σ_s² − λ²) of eq. (1), as σ_s √(1 − η² + η² exp Δ): no cancellation at η = 1."""
    return sigma_s * math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * math.exp(log_snr_t - log_snr_s))


def gain(alpha_t: float, sigma_t: float, alpha_s: float, c: float, beta: float, lambda2: float) -> float:
    """γ of eq. (2) for every η, as (α_s² β + α_t² λ²)/(σ_t (α_s σ_t + α_t c)): no cancellation."""
    return (alpha_s**2 * beta + alpha_t**2 * lambda2) / (sigma_t * (alpha_s * sigma_t + alpha_t * c))


def noise_floor(log_snr_t: FloatOrArray, log_snr_s: FloatOrArray) -> FloatOrArray:
    """λ²/γ² at η = 1, = (σ_s²/α_s²)/(1 − exp(logSNR_t − logSNR_s)): a variance of x_0 that a step from t to s cannot
    tell from its own noise (from eq. 2)."""
    found: FloatOrArray = np.exp(-log_snr_s) / -np.expm1(log_snr_t - log_snr_s)
    return found


class MeanAndEps(Protocol):
    """What a step needs of a posterior: the estimate of E[x_0|x_t] and the network's ε̂, both (B, C, H, W)."""

    @property
    def mean(self) -> torch.Tensor: ...
    @property
    def eps(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class ReverseKernel:
    """The step from index t to index s < t (s = 0 included) with 0 ≤ η ≤ 1.

    Args:
        clipped_eps: which ε̂ eq. (1) uses where x̂_0 is clipped: the network's own ("network": DDIM's and
            Analytic-DPM's code) or re-derived from the clipped mean ("rederived": DDPM's code). None: re-derived at
            η = 1 and the network's own otherwise. Without clipping the two are the same.

    Attributes: `alpha_t`, `sigma_t`, `alpha_s`, `sigma_s`; `beta`, `beta_tilde`, `lambda2`, `gain` (γ) and
    `eps_gain` (c), floats. Raises InputError for indices or η out of range.
    """

    schedule: NoiseSchedule = field(repr=False)
    t: int
    s: int
    eta: float = 1.0
    clipped_eps: ClippedEps | None = None
    alpha_t: float = field(init=False)
    sigma_t: float = field(init=False)
    alpha_s: float = field(init=False)
    sigma_s: float = field(init=False)
    beta: float = field(init=False)
    beta_tilde: float = field(init=False)
    lambda2: float = field(init=False)
    eps_gain: float = field(init=False)
    gain: float = field(init=False)

    def __post_init__(self) -> None:
        t, s = self.schedule.check_index(self.t, "t"), self.schedule.check_index(self.s, "s", lowest=0)
        if s >= t:
            raise InputError(f"a reverse step goes from t to s < t, but t={t} and s={s}; swap them.")
        check_eta(self.eta)
        check_clipped_eps(self.clipped_eps)
        alpha, sigma, log_snr = (
            (float(array[t]), float(array[s]))
            for array in (self.schedule.alpha, self.schedule.sigma, self.schedule.log_snr)
        )
        beta_ts = beta(sigma[0], *log_snr)
        beta_tilde_ts = beta_tilde(beta_ts, *sigma)
        l2, c = lambda2(beta_tilde_ts, self.eta), eps_gain(sigma[1], *log_snr, self.eta)
        values = {
            "t": t,
            "s": s,
            "alpha_t": alpha[0],
            "sigma_t": sigma[0],
            "alpha_s": alpha[1],
            "sigma_s": sigma[1],
            "beta": beta_ts,
            "beta_tilde": beta_tilde_ts,
            "lambda2": l2,
            "eps_gain": c,
            "gain": gain(alpha[0], sigma[0], alpha[1], c, beta_ts, l2),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def rederives_eps(self) -> bool:
        """Whether ε̂ is computed anew from the (clipped) mean."""
        return self.eta == 1.0 if self.clipped_eps is None else self.clipped_eps == "rederived"

    @property
    def b(self) -> float:
        """b = c α_t/σ_t: how far x_s moves against x_0 through ε; γ = α_s − b (DESIGN §2.2)."""
        return self.eps_gain * self.alpha_t / self.sigma_t

    def mean(self, x_t: torch.Tensor, posterior: MeanAndEps) -> torch.Tensor:
        """The mean of x_s: eq. (1) at the posterior's x̂_0, shape of x_t. At s = 0 it is x̂_0 itself."""
        if self.rederives_eps:
            # α_s x̂_0 + c (x_t − α_t x̂_0)/σ_t = γ x̂_0 + (c/σ_t) x_t
            return self.gain * posterior.mean + (self.eps_gain / self.sigma_t) * x_t
        return self.alpha_s * posterior.mean + self.eps_gain * posterior.eps

    def mean_error(self, x_0: torch.Tensor, eps: torch.Tensor, posterior: MeanAndEps) -> torch.Tensor:
        """How far the mean of x_s given x_0 is from `mean`: eq. (1) at (x_0, ε) less eq. (1) at the posterior.

        α_s (x_0 − x̂_0) + c (ε − ε̂), which is γ (x_0 − x̂_0) where ε̂ is re-derived from x̂_0.
        """
        if self.rederives_eps:
            return self.gain * (x_0 - posterior.mean)
        return self.alpha_s * (x_0 - posterior.mean) + self.eps_gain * (eps - posterior.eps)


def reverse_kernels(
    schedule: NoiseSchedule, steps: Sequence[int], eta: float = 1.0, clipped_eps: ClippedEps | None = None
) -> list[ReverseKernel]:
    """The steps between ascending indices and the one to 0, the noisiest first."""
    pairs = zip([0, *steps[:-1]], steps, strict=True)
    return [ReverseKernel(schedule, t, s, eta, clipped_eps) for s, t in pairs][::-1]


def check_eta(eta: float) -> None:
    """Refuse an η outside [0, 1]."""
    if not isinstance(eta, (int, float, np.number)) or not 0.0 <= eta <= 1.0:
        raise InputError(f"eta={eta!r} is outside [0, 1]; use 1 for DDPM, 0 for DDIM, or a value between.")


def check_clipped_eps(clipped_eps: str | None) -> None:
    """Refuse anything but "network", "rederived" and None."""
    if clipped_eps not in (None, "network", "rederived"):
        raise InputError(f"clipped_eps={clipped_eps!r} is not known; use 'network', 'rederived' or None.")
