"""One reverse step t → s of the DDPM/DDIM family: the equations, each written once, and the step that uses them.

With x_t = α_t x_0 + σ_t ε, the family of reverse kernels given x_0 is (DDIM, arXiv:2010.02502) [E1]

    q(x_s | x_t, x_0) = N( α_s x_0 + c (x_t − α_t x_0)/σ_t , λ² I ),      c = √(σ_s² − λ²)

and the Gaussian in x_s | x_t that is nearest to it has (Analytic-DPM, arXiv:2201.06503, Theorem 1) [E2]

    mean = that at x̂_0 = E[x_0|x_t],      covariance = λ² I + γ² Cov[x_0|x_t],      γ = α_s − c α_t/σ_t.

How much noise a step adds is chosen by η, λ² = η² β̃_{t|s} (η = 1 is DDPM and η = 0 is DDIM), or by τ,
λ² = σ_s² (1 − exp(τ²Δ)) [E12], which goes on beyond DDPM (τ = 1) to re-noising (τ = ∞). Written with
Δ = logSNR_t − logSNR_s nothing cancels, neither for neighbouring steps nor for s = 0 (Δ = −∞) nor without signal at t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..errors import InputError
from .level import NoiseLevel
from .schedule import NoiseSchedule, as_schedule

ClippedEps = Literal["network", "rederived"]
FloatOrArray = TypeVar("FloatOrArray", float, npt.NDArray[np.float64])


def beta(sigma_t: float, log_snr_t: float, log_snr_s: float) -> float:
    """β_{t|s} = σ_t² − (α_t/α_s)² σ_s² = −σ_t² expm1(Δ) [E1]."""
    return -(sigma_t**2) * math.expm1(log_snr_t - log_snr_s)


def beta_tilde(beta: float, sigma_t: float, sigma_s: float) -> float:
    """β̃_{t|s} = β_{t|s} σ_s²/σ_t²: the variance of q(x_s | x_t, x_0) for DDPM [E1]."""
    return beta * (sigma_s / sigma_t) ** 2


def lambda2(beta_tilde: float, eta: float) -> float:
    """λ² = η² β̃: the variance of the chosen forward process [E1] (DDIM eq. 16)."""
    return eta**2 * beta_tilde


def eps_gain(sigma_s: float, log_snr_t: float, log_snr_s: float, eta: float) -> float:
    """c = √(σ_s² − λ²) [E1], as σ_s √(1 − η² + η² exp Δ): no cancellation at η = 1."""
    return sigma_s * math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * math.exp(log_snr_t - log_snr_s))


def lambda2_of_tau(sigma_s: float, log_snr_t: float, log_snr_s: float, tau: float) -> float:
    """λ² = σ_s² (1 − exp(τ²Δ)) [E12]."""
    return -(sigma_s**2) * math.expm1(_exponent(log_snr_t, log_snr_s, tau))


def eps_gain_of_tau(sigma_s: float, log_snr_t: float, log_snr_s: float, tau: float) -> float:
    """c = σ_s exp(τ²Δ/2) [E12]."""
    return sigma_s * math.exp(0.5 * _exponent(log_snr_t, log_snr_s, tau))


def _exponent(log_snr_t: float, log_snr_s: float, tau: float) -> float:
    """τ²Δ; 0 at τ = 0, also where Δ = −∞."""
    return 0.0 if tau == 0.0 else tau**2 * (log_snr_t - log_snr_s)


def gain(alpha_t: float, sigma_t: float, alpha_s: float, c: float, beta: float, lambda2: float) -> float:
    """γ = α_s − c α_t/σ_t for every λ² [E2], as (α_s² β + α_t² λ²)/(σ_t (α_s σ_t + α_t c)): no cancellation."""
    return (alpha_s**2 * beta + alpha_t**2 * lambda2) / (sigma_t * (alpha_s * sigma_t + alpha_t * c))


def noise_floor(log_snr_t: FloatOrArray, log_snr_s: FloatOrArray) -> FloatOrArray:
    """λ²/γ² at η = 1, = (σ_s²/α_s²)/(1 − exp Δ): a variance of x_0 that a step from t to s cannot tell from its own
    noise (from [E2])."""
    found: FloatOrArray = np.exp(-log_snr_s) / -np.expm1(log_snr_t - log_snr_s)
    return found


class MeanAndEps(Protocol):
    """What a step needs of a posterior: the estimate of E[x_0|x_t] and the network's ε̂, both (B, C, H, W)."""

    @property
    def mean(self) -> torch.Tensor: ...
    @property
    def eps(self) -> torch.Tensor: ...


@dataclass(frozen=True, init=False, repr=False)
class ReverseKernel:
    """The step from a noise level t to a lower one s, clean data included; immutable.

        ReverseKernel(schedule, t=500, s=400, eta=1.0)           between two indices of a schedule, s = 0: clean data
        ReverseKernel.between(level_t, level_s, tau=1.5)         between two levels, `level_s` None: clean data

    Args:
        eta: 0 ≤ η ≤ 1; None: 1, unless τ is given.
        tau: τ ≥ 0, infinity allowed, instead of η [E12].
        clipped_eps: which ε̂ [E1] uses where x̂_0 is clipped: the network's own ("network": DDIM's and Analytic-DPM's
            code) or re-derived from the clipped mean ("rederived": DDPM's code). None: re-derived at η = 1 (or τ = 1)
            and the network's own otherwise. Without clipping the two are the same.

    Attributes: `level_t`, `level_s`, and their indices `t`, `s` (None off a schedule's grid); `alpha_t`, `sigma_t`,
    `alpha_s`, `sigma_s`; `beta`, `beta_tilde`, `lambda2`, `gain` (γ) and `eps_gain` (c), floats.
    Raises InputError for indices, levels, η or τ out of range.
    """

    level_t: NoiseLevel
    level_s: NoiseLevel
    eta: float | None
    tau: float | None
    clipped_eps: ClippedEps | None
    schedule: NoiseSchedule | None = field(compare=False)
    beta: float = field(compare=False)
    beta_tilde: float = field(compare=False)
    lambda2: float = field(compare=False)
    eps_gain: float = field(compare=False)
    gain: float = field(compare=False)

    def __init__(
        self,
        schedule: NoiseSchedule,
        t: int,
        s: int,
        eta: float | None = None,
        clipped_eps: ClippedEps | None = None,
        *,
        tau: float | None = None,
    ) -> None:
        schedule = as_schedule(schedule)
        t, s = schedule.check_index(t, "t"), schedule.check_index(s, "s", lowest=0)
        checks.refuse(s >= t, f"a reverse step goes from t to s < t, but t={t} and s={s}; swap them.")
        self._set(schedule, schedule.level(t), schedule.level(s), eta, tau, clipped_eps)

    @classmethod
    def between(
        cls,
        level_t: NoiseLevel,
        level_s: NoiseLevel | None = None,
        eta: float | None = None,
        tau: float | None = None,
        clipped_eps: ClippedEps | None = None,
    ) -> ReverseKernel:
        """The step between two levels; `level_s` None: to clean data."""
        level_s = NoiseLevel.clean() if level_s is None else level_s
        check_levels([level_t, level_s])
        made = cls.__new__(cls)  # past __init__, which takes indices
        made._set(None, level_t, level_s, eta, tau, clipped_eps)
        return made

    def _set(
        self,
        schedule: NoiseSchedule | None,
        level_t: NoiseLevel,
        level_s: NoiseLevel,
        eta: float | None,
        tau: float | None,
        clipped_eps: ClippedEps | None,
    ) -> None:
        eta, tau = check_noise(eta, tau)
        check_clipped_eps(clipped_eps)
        sigma, log_snr = (level_t.sigma, level_s.sigma), (level_t.log_snr, level_s.log_snr)
        beta_ts = beta(sigma[0], *log_snr)
        beta_tilde_ts = beta_tilde(beta_ts, *sigma)
        if tau is None:
            assert eta is not None
            l2, c = lambda2(beta_tilde_ts, eta), eps_gain(sigma[1], *log_snr, eta)
        else:
            l2, c = lambda2_of_tau(sigma[1], *log_snr, tau), eps_gain_of_tau(sigma[1], *log_snr, tau)
        gamma = gain(level_t.alpha, sigma[0], level_s.alpha, c, beta_ts, l2)
        values: dict[str, Any] = {"schedule": schedule, "level_t": level_t, "level_s": level_s}
        values |= {"eta": eta, "tau": tau, "clipped_eps": clipped_eps, "lambda2": l2, "eps_gain": c, "gain": gamma}
        values |= {"beta": beta_ts, "beta_tilde": beta_tilde_ts}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the class is frozen

    def __repr__(self) -> str:
        noise = f"eta={self.eta}" if self.tau is None else f"tau={self.tau}"
        return f"ReverseKernel({self}, {noise}, clipped_eps={self.clipped_eps!r})"

    def __str__(self) -> str:
        """As messages name the step: "40 to 12"."""
        return f"{self.level_t} to {self.level_s}"

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def t(self) -> int | None:
        """The index of the level that it starts from, None off a schedule's grid."""
        return self.level_t.index

    @property
    def s(self) -> int | None:
        """The index of the level that it goes to; 0 is clean data."""
        return self.level_s.index

    @property
    def last(self) -> bool:
        """Whether it is the step to clean data, which adds no noise."""
        return self.level_s.is_clean

    @property
    def alpha_t(self) -> float:
        """α_t."""
        return self.level_t.alpha

    @property
    def sigma_t(self) -> float:
        """σ_t."""
        return self.level_t.sigma

    @property
    def alpha_s(self) -> float:
        """α_s."""
        return self.level_s.alpha

    @property
    def sigma_s(self) -> float:
        """σ_s."""
        return self.level_s.sigma

    @property
    def rederives_eps(self) -> bool:
        """Whether ε̂ is computed anew from the (clipped) mean."""
        return self.is_ddpm if self.clipped_eps is None else self.clipped_eps == "rederived"

    @property
    def is_ddpm(self) -> bool:
        """Whether it is DDPM's step, η = 1 or τ = 1."""
        return self.eta == 1.0 or self.tau == 1.0

    @property
    def b(self) -> float:
        """b = c α_t/σ_t: how far x_s moves against x_0 through ε; γ = α_s − b [E2]."""
        return self.eps_gain * self.alpha_t / self.sigma_t

    def mean(self, x_t: torch.Tensor, posterior: MeanAndEps) -> torch.Tensor:
        """The mean of x_s: [E1] at the posterior's x̂_0, shape of x_t. At s = 0 it is x̂_0 itself."""
        if self.rederives_eps:
            # α_s x̂_0 + c (x_t − α_t x̂_0)/σ_t = γ x̂_0 + (c/σ_t) x_t
            return self.gain * posterior.mean + (self.eps_gain / self.sigma_t) * x_t
        return self.alpha_s * posterior.mean + self.eps_gain * posterior.eps

    def mean_error(self, x_0: torch.Tensor, eps: torch.Tensor, posterior: MeanAndEps) -> torch.Tensor:
        """How far the mean of x_s given x_0 is from `mean`: [E1] at (x_0, ε) less [E1] at the posterior.

        α_s (x_0 − x̂_0) + c (ε − ε̂), which is γ (x_0 − x̂_0) where ε̂ is re-derived from x̂_0.
        """
        if self.rederives_eps:
            return self.gain * (x_0 - posterior.mean)
        return self.alpha_s * (x_0 - posterior.mean) + self.eps_gain * (eps - posterior.eps)


def reverse_kernels(
    schedule: NoiseSchedule,
    steps: Sequence[int] | Sequence[NoiseLevel],
    eta: float | None = None,
    clipped_eps: ClippedEps | None = None,
    tau: float | None = None,
) -> list[ReverseKernel]:
    """The steps between the members of a step list (see `steps.resolve`) and the one to clean data, the noisiest first.

    A list of indices ascends, one of levels falls in noise.
    """
    levels = [n for n in steps if isinstance(n, NoiseLevel)]
    if levels:
        places = pairwise([*levels, NoiseLevel.clean()])
        return [ReverseKernel.between(t, s, eta, tau, clipped_eps) for t, s in places]
    indices = [n for n in steps if not isinstance(n, NoiseLevel)]
    return [ReverseKernel(schedule, t, s, eta, clipped_eps, tau=tau) for t, s in pairwise([*indices[::-1], 0])]


# ---- what is refused ------------------------------------------------------------------------------------------


def check_noise(eta: float | None, tau: float | None) -> tuple[float | None, float | None]:
    """(η, τ), one of them None: η = 1 where neither is given. Refuses both together, and those out of range."""
    checks.refuse(
        eta is not None and tau is not None,
        f"eta={eta} and tau={tau} both say how much noise a step adds; give one of them.",
    )
    if tau is not None:
        wrong = not checks.is_number(tau) or not float(tau) >= 0.0
        checks.refuse(wrong, f"tau={tau!r} must be at least 0; use 1 for DDPM, 0 for the ODE's step.")
        return None, float(tau)
    return checks.interval("eta", 1.0 if eta is None else eta, 0.0, 1.0, _ETA), None


_ETA = "use 1 for DDPM, 0 for DDIM, or a value between"


def check_clipped_eps(clipped_eps: str | None) -> None:
    """Refuse anything but "network", "rederived" and None."""
    wrong = clipped_eps not in (None, "network", "rederived")
    checks.refuse(wrong, f"clipped_eps={clipped_eps!r} is not known; use 'network', 'rederived' or None.")


def check_levels(levels: Sequence[NoiseLevel]) -> None:
    """Refuse levels that do not fall from more noise to less, and what is no level."""
    for level in levels:
        checks.instance("a noise level", level, NoiseLevel, "a dv.NoiseLevel, such as schedule.level(500)")
    for k in range(1, len(levels)):
        before, after = levels[k - 1].log_snr, levels[k].log_snr
        if not before < after:
            raise InputError(
                f"noise levels must fall, from more noise to less, but log SNR is {before:.6g} at position {k - 1} and "
                f"{after:.6g} at position {k}; sort them, the noisiest first, and drop repeats."
            )
