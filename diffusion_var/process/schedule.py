"""The noise schedule: x_t = α_t x_0 + σ_t ε at indices n = 0…N, in float64.

n = 0 is clean data (α_0 = 1, σ_0 = 0) and n = 1…N are noise levels of falling SNR = α²/σ². A diffusers timestep is
n − 1; `timestep[n]` is what the network is told at index n and `timestep[0]` is nan. For variance-preserving
schedules α² = ᾱ and σ² = 1 − ᾱ, computed from sums of log(1 − β) with expm1: as `1 - alphas_cumprod` in float32 the
second loses 1.7e-4 of its value at n = 1.

Sources: DDPM (arXiv:2006.11239, linear β), Improved DDPM (arXiv:2102.09672, cosine), latent diffusion
(arXiv:2112.10752, scaled linear), score SDE (arXiv:2011.13456, VP-SDE), rectified flow (arXiv:2209.03003), EDM
(arXiv:2206.00364).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Float64Array = npt.NDArray[np.float64]


class NoiseSchedule:
    """The functions α, σ and the network's timestep on the grid n = 0…N.

    Args:
        alpha, sigma: length N + 1; alpha[0] = 1, sigma[0] = 0, sigma > 0 and SNR strictly falling after that.
            alpha[N] = 0 (zero terminal SNR) is allowed.
        timestep: length N + 1; what the network is told at each index; timestep[0] is ignored (kept as nan).
        prior_std: standard deviation of x_N's prior; None: 1, or sigma[N] where that is larger (EDM).

    Two schedules are equal when their arrays are; `digest` is a SHA-256 of them.
    Raises InputError, naming the first offending index.
    """

    alpha: Float64Array
    sigma: Float64Array
    timestep: Float64Array
    prior_std: float

    def __init__(
        self,
        alpha: npt.ArrayLike,
        sigma: npt.ArrayLike,
        timestep: npt.ArrayLike,
        prior_std: float | None = None,
    ) -> None:
        self.alpha = _vector("alpha", alpha)
        self.sigma = _vector("sigma", sigma) + 0.0  # -0.0 becomes 0.0: equal arrays have equal bytes
        self.timestep = _vector("timestep", timestep)
        self.timestep[0] = np.nan
        self._validate()
        with np.errstate(divide="ignore"):
            self.log_snr: Float64Array = 2.0 * (np.log(self.alpha) - np.log(self.sigma))
        rise = np.flatnonzero(~(self.log_snr[1:] < self.log_snr[:-1]))
        if rise.size:
            n = int(rise[0]) + 1
            raise InputError(
                f"the schedule's signal-to-noise ratio must fall at every index, but log SNR is "
                f"{self.log_snr[n - 1]:.6g} at n={n - 1} and {self.log_snr[n]:.6g} at n={n}; check alpha and sigma."
            )
        self.prior_std = max(1.0, float(self.sigma[-1])) if prior_std is None else float(prior_std)
        if not (math.isfinite(self.prior_std) and self.prior_std > 0):
            raise InputError(f"prior_std={prior_std!r} must be finite and positive, or None.")
        for array in (self.alpha, self.sigma, self.timestep, self.log_snr):
            array.setflags(write=False)

    def _validate(self) -> None:
        if not len(self.alpha) == len(self.sigma) == len(self.timestep) or len(self.alpha) < 2:
            raise InputError(
                "a schedule needs alpha, sigma and timestep of one length N + 1 of at least 2, but they have lengths "
                f"{len(self.alpha)}, {len(self.sigma)} and {len(self.timestep)}."
            )
        if self.alpha[0] != 1.0 or self.sigma[0] != 0.0:
            raise InputError(
                f"index 0 of a schedule is clean data, so alpha[0] must be 1 and sigma[0] must be 0, but they are "
                f"{self.alpha[0]} and {self.sigma[0]}; prepend the clean index."
            )
        for name, array, in_range, expected in (
            ("alpha", self.alpha, self.alpha >= 0, "finite and at least 0"),
            ("sigma", self.sigma, self.sigma > 0, "finite and positive"),
            ("timestep", self.timestep, True, "finite"),
        ):
            bad = np.flatnonzero(~(np.isfinite(array) & in_range)[1:])
            if bad.size:
                n = int(bad[0]) + 1
                raise InputError(f"{name}[{n}] is {array[n]}, but after index 0 {name} must be {expected}.")

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """N, the index of the noisiest level."""
        return len(self.alpha) - 1

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_N holds no signal at all (then ε-prediction says nothing about x_0 at N)."""
        return bool(self.alpha[-1] == 0.0)

    @property
    def digest(self) -> str:
        """SHA-256 over the three arrays and the prior's standard deviation."""
        content = hashlib.sha256()
        for array in (self.alpha, self.sigma, self.timestep[1:], np.array([self.prior_std])):
            content.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and self.digest == other.digest

    def matches(self, other: NoiseSchedule) -> bool:
        """Whether the two are one schedule but for rounding, in which machines differ (relative 1e-9)."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("alpha", "sigma", "timestep", "prior_std")]
        return self.num_steps == other.num_steps and all(
            np.allclose(mine, theirs, rtol=1e-9, atol=0.0, equal_nan=True) for mine, theirs in pairs
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"NoiseSchedule(N={self.num_steps}, log SNR {self.log_snr[1]:.3g} to {self.log_snr[-1]:.3g}, "
            f"digest {self.digest[:12]})"
        )

    def check_index(self, n: int, name: str = "n", lowest: int = 1) -> int:
        """`n` as an int, refused unless lowest ≤ n ≤ N."""
        if not is_whole(n) or not lowest <= n <= self.num_steps:
            raise InputError(
                f"{name}={n} is not an index of this schedule; expected an integer from {lowest} to {self.num_steps}."
            )
        return int(n)

    # ---- where it comes from ----------------------------------------------------------------------------------

    @classmethod
    def from_betas(cls, betas: npt.ArrayLike) -> NoiseSchedule:
        """A variance-preserving schedule from β_1…β_N (each in (0, 1]; only the last may be 1)."""
        beta = _vector("betas", betas)
        bad = ~((beta > 0) & (beta < 1))
        bad[-1] = not 0 < beta[-1] <= 1
        if bad.any():
            n = int(np.nonzero(bad)[0][0])
            raise InputError(f"betas[{n}] is {beta[n]}, but every beta must lie in (0, 1) (the last may be 1).")
        with np.errstate(divide="ignore"):
            log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))])
        return cls._variance_preserving(log_alpha_bar, np.arange(-1.0, len(beta)))

    @classmethod
    def _variance_preserving(cls, log_alpha_bar: Float64Array, timestep: Float64Array) -> NoiseSchedule:
        return cls(np.exp(0.5 * log_alpha_bar), np.sqrt(-np.expm1(log_alpha_bar)), timestep)

    @classmethod
    def linear(cls, N: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """β linear in n (DDPM). The end points are taken as they are, also for N other than 1000."""
        return cls.from_betas(np.linspace(beta_start, beta_end, _count(N)))

    @classmethod
    def scaled_linear(cls, N: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """√β linear in n (latent diffusion)."""
        return cls.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, _count(N)) ** 2)

    @classmethod
    def cosine(cls, N: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """ᾱ(u) ∝ cos²((u + offset)/(1 + offset) π/2) with β clipped at `max_beta` (Improved DDPM, eq. 17)."""
        angle = (np.arange(_count(N) + 1) / N + offset) / (1 + offset) * (math.pi / 2)
        # 1 - cos²(b)/cos²(a) = sin(b - a) sin(b + a)/cos²(a): no cancellation at small n.
        before, after = angle[:-1], angle[1:]
        betas = np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2
        return cls.from_betas(np.minimum(betas, max_beta))

    @classmethod
    def vp_sde(cls, N: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
        """The VP-SDE sampled at t = n/N: log ᾱ = −(β_min t + (β_max − β_min) t²/2); the network is told 999 t."""
        t = np.arange(_count(N) + 1) / N
        return cls._variance_preserving(-(beta_min * t + 0.5 * (beta_max - beta_min) * t**2), 999.0 * t)

    @classmethod
    def flow(cls, N: int = 1000, shift: float = 1.0, timestep_scale: float = 1000.0) -> NoiseSchedule:
        """Rectified flow: α = 1 − t, σ = t at t = n/N, moved to shift·t/(1 + (shift − 1) t) (Stable Diffusion 3,
        arXiv:2403.03206, eq. 23); the network is told timestep_scale·t. x_N holds no signal."""
        if not (math.isfinite(shift) and shift > 0):
            raise InputError(f"shift={shift} must be a positive number.")
        n = np.arange(_count(N) + 1, dtype=np.float64)
        # 1 − t as a quotient of its own: no cancellation near t = 1.
        whole = N + (shift - 1.0) * n
        t = shift * n / whole
        return cls((N - n) / whole, t, timestep_scale * t)

    @classmethod
    def edm(cls, N: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
        """EDM (arXiv:2206.00364, eq. 5): α = 1, σ^(1/ρ) even from sigma_min to sigma_max (`rho=math.inf`: log σ even);
        the network is told ln(σ)/4, and x_N's prior has the standard deviation sigma_max."""
        if not (0 < sigma_min < sigma_max < math.inf and rho > 0):
            raise InputError(
                f"sigma_min={sigma_min}, sigma_max={sigma_max} and rho={rho} must be positive, with "
                "sigma_min < sigma_max."
            )
        N = _count(N)
        ramp = np.linspace(0.0, 1.0, N) if N > 1 else np.ones(1)
        if math.isinf(rho):
            levels = np.exp(math.log(sigma_min) + ramp * math.log(sigma_max / sigma_min))
        else:
            low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
            levels = (low + ramp * (high - low)) ** rho
        sigma = np.concatenate([[0.0], levels])
        return cls(np.ones(N + 1), sigma, np.concatenate([[0.0], np.log(levels) / 4]), prior_std=float(levels[-1]))

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """√ᾱ moved and stretched so that it ends at 0 and starts where it did (arXiv:2305.08891, algorithm 1); for
        variance-preserving schedules."""
        a = self.alpha[1:]
        if len(a) < 2 or not a[-1] > 0 or not np.allclose(a**2 + self.sigma[1:] ** 2, 1.0):
            raise InputError(
                "zero terminal SNR is for variance-preserving schedules of at least two levels that do not have it yet."
            )
        # log of (a − a_N) a_1/(a_1 − a_N), from log1p so that 1 − ᾱ keeps its digits at n = 1.
        with np.errstate(divide="ignore"):
            stretch = np.log1p(-a[-1] / a)
            log_alpha = np.log(a) + (stretch - stretch[0])  # in this order: exactly log a_1 at n = 1
        return type(self)._variance_preserving(np.concatenate([[0.0], 2.0 * log_alpha]), self.timestep)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler, of its config, or of the config as a plain dict; see
        `process.foreign.schedule_of` for the supported ones."""
        from .diffusers_configs import schedule_of

        return schedule_of(scheduler)


def is_whole(n: Any) -> bool:
    """Whether `n` is a whole number (of any type: 3, 3.0, numpy's)."""
    try:
        return bool(int(n) == n)
    except (TypeError, ValueError, OverflowError):
        return False


def _vector(name: str, values: npt.ArrayLike) -> Float64Array:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must be a non-empty one-dimensional array, but its shape is {array.shape}.")
    return array


def _count(N: int) -> int:
    if not is_whole(N) or N < 1:
        raise InputError(f"N={N} is not a number of noise levels; expected an integer of at least 1.")
    return int(N)
