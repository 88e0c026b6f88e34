"""The noise schedule: x_t = α_t x_0 + σ_t ε at indices n = 0…N, in float64.

n = 0 is clean data (α_0 = 1, σ_0 = 0) and n = 1…N are noise levels of falling SNR = α²/σ². A diffusers timestep is
n − 1; `timestep[n]` is what the network is told at index n and `timestep[0]` is nan. For variance-preserving
schedules α² = ᾱ and σ² = 1 − ᾱ, computed from sums of log(1 − β) with expm1: as `1 - alphas_cumprod` in float32 the
second loses 1.7e-4 of its value at n = 1. Between its indices a schedule answers by log SNR (`level_at`).

Sources: DDPM (arXiv:2006.11239, linear β), Improved DDPM (arXiv:2102.09672, cosine), latent diffusion
(arXiv:2112.10752, scaled linear), score SDE (arXiv:2011.13456, VP-SDE), rectified flow (arXiv:2209.03003), EDM
(arXiv:2206.00364).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..errors import InputError
from .level import NoiseLevel

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
        _check_arrays(self.alpha, self.sigma, self.timestep)
        with np.errstate(divide="ignore"):
            self.log_snr: Float64Array = 2.0 * (np.log(self.alpha) - np.log(self.sigma))
        _check_falling(self.log_snr)
        largest = max(1.0, float(self.sigma[-1]))
        self.prior_std = largest if prior_std is None else checks.positive("prior_std", prior_std, _PRIOR)
        self._whole_timesteps = bool(np.array_equal(self.timestep[1:], self.timestep[1:].round()))
        for array in (self.alpha, self.sigma, self.timestep, self.log_snr):
            array.setflags(write=False)

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """N, the index of the noisiest level."""
        return len(self.alpha) - 1

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_N holds no signal at all (then ε-prediction says nothing about x_0 at N)."""
        return bool(self.alpha[-1] == 0.0)

    def prior_std_at(self, level: NoiseLevel) -> float:
        """The standard deviation of the noise that a run starting at this level begins with: `prior_std` at N, and
        elsewhere in the proportion of √(α² + σ²), which data of unit variance have."""
        there, here = math.hypot(self.alpha[-1], self.sigma[-1]), math.hypot(level.alpha, level.sigma)
        return self.prior_std * (here / there)

    def index_of(self, level: NoiseLevel) -> int | None:
        """The index n at which this schedule has this very level (to the bit); None off its grid."""
        n = level.index
        if n is None or not 0 <= n <= self.num_steps:
            return None
        return n if (self.alpha[n], self.sigma[n]) == (level.alpha, level.sigma) else None

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

    def check_index(self, n: Any, name: str = "n", lowest: int = 1) -> int:
        """`n` as an int, refused unless lowest ≤ n ≤ N."""
        if not checks.is_whole(n) or not lowest <= n <= self.num_steps:
            raise InputError(
                f"{name}={n} is not an index of this schedule; expected an integer from {lowest} to {self.num_steps}."
            )
        return int(n)

    # ---- levels -----------------------------------------------------------------------------------------------

    def level(self, n: int) -> NoiseLevel:
        """The noise level at index n in 0…N."""
        n = self.check_index(n, lowest=0)
        alpha, sigma, timestep, log_snr = (float(a[n]) for a in (self.alpha, self.sigma, self.timestep, self.log_snr))
        return NoiseLevel(alpha, sigma, timestep, log_snr=log_snr, index=n)

    def level_at(self, log_snr: float) -> NoiseLevel:
        """The level of this log SNR: between two indices, or that of the index that has it (to 1e-9).

        α and σ keep the schedule's own scale where it has one of three (α² + σ² = 1, α + σ = 1, α = 1), else log α is
        interpolated linearly in log SNR; so is the timestep, unless it is a multiple of σ.
        Raises InputError outside the log SNR of the indices 1 to N.
        """
        grid = self.log_snr[1:]
        known = checks.is_number(log_snr)
        near = int(np.argmin(np.abs(grid - log_snr))) if known else 0
        if known and (grid[near] == log_snr or abs(grid[near] - log_snr) <= 1e-9):
            return self.level(near + 1)
        hint = "expected one between those of the indices N and 1"
        log_snr = checks.interval("log_snr", log_snr, float(grid[-1]), float(grid[0]), hint)
        n = int(np.searchsorted(-grid, -log_snr)) + 1  # it lies between the indices n − 1 and n
        weight = (self.log_snr[n - 1] - log_snr) / (self.log_snr[n - 1] - self.log_snr[n])
        alpha = self._alpha_at(log_snr, n, weight)
        sigma = alpha * math.exp(-0.5 * log_snr)
        told = self.timestep[1:] / self.sigma[1:]
        if np.allclose(told, told[-1], rtol=1e-9, atol=0.0):
            timestep = float(told[-1]) * sigma
        else:
            timestep = float((1.0 - weight) * self.timestep[n - 1] + weight * self.timestep[n])
        return NoiseLevel(alpha, sigma, timestep, log_snr=log_snr)

    def position(self, level: NoiseLevel) -> float:
        """Where a level lies among the indices, linearly in log SNR between two of them: n itself on the grid."""
        grid = self.log_snr[1:]
        finite = np.isfinite(grid)
        return float(np.interp(-level.log_snr, -grid[finite], np.arange(1, self.num_steps + 1)[finite]))

    def _alpha_at(self, log_snr: float, n: int, weight: float) -> float:
        """α at a log SNR between the indices n − 1 and n."""
        ratio = math.exp(-0.5 * log_snr)  # σ/α
        for scale, alpha in (
            (self.alpha**2 + self.sigma**2, 1.0 / math.hypot(1.0, ratio)),
            (self.alpha + self.sigma, 1.0 / (1.0 + ratio)),
            (self.alpha, 1.0),
        ):
            if np.allclose(scale, 1.0, rtol=1e-9, atol=0.0):
                return alpha
        low, high = np.log(self.alpha[n - 1]), np.log(self.alpha[n])
        return math.exp((1.0 - weight) * low + weight * high)

    def coefficients(self, n: Any, like: torch.Tensor) -> tuple[Any, Any]:
        """(α, σ) to multiply images with: floats for one index or `NoiseLevel`, tensors (B, 1, …) like `like`, (B, …),
        for a tensor (B,) of indices or a list of B levels; float64 until this cast."""
        if isinstance(n, NoiseLevel):
            return n.alpha, n.sigma
        if isinstance(n, torch.Tensor):
            indices = self.check_indices(n, len(like))
            arrays = self.alpha[indices], self.sigma[indices]
        elif isinstance(n, list):
            arrays = np.array([level.alpha for level in n]), np.array([level.sigma for level in n])
        else:
            n = self.check_index(n)
            return float(self.alpha[n]), float(self.sigma[n])
        alpha, sigma = (
            torch.from_numpy(array).to(like.device, like.dtype).view(-1, *(1,) * (like.ndim - 1)) for array in arrays
        )
        return alpha, sigma

    def levels(self, n: Any, batch: int) -> list[NoiseLevel]:
        """The noise level of each image of a batch, or one for all: of an index or `NoiseLevel`, a tensor (B,) of
        indices or a list of B levels."""
        if isinstance(n, NoiseLevel):
            return [n]
        if isinstance(n, list):
            checks.refuse(len(n) != batch, f"there are {len(n)} levels for {batch} images; give one for each.")
            return n
        if isinstance(n, torch.Tensor) and n.ndim:
            return [self.level(int(k)) for k in self.check_indices(n, batch)]
        return [self.level(self.check_index(int(n)))]

    def timesteps(self, n: Any, batch: int, device: torch.device | str | None = None) -> torch.Tensor:
        """What the network is told of a batch at one index or `NoiseLevel`, at a tensor (B,) of indices or a list of B
        levels: (B,), int64 where it is whole (networks with an embedding table want integers, all others take them as
        well)."""
        if isinstance(n, torch.Tensor):
            told = torch.from_numpy(self.timestep[self.check_indices(n, batch)])
            return told.to(device, torch.int64 if self._whole_timesteps else torch.float32)
        if isinstance(n, list):
            told = torch.tensor([level.timestep for level in n], dtype=torch.float64)
            whole = self._whole_timesteps and bool((told == told.round()).all())
            return told.to(device, torch.int64 if whole else torch.float32)
        one = n.timestep if isinstance(n, NoiseLevel) else float(self.timestep[self.check_index(n)])
        dtype = torch.int64 if self._whole_timesteps and one.is_integer() else torch.float32
        return torch.full((batch,), one, device=device).to(dtype)

    def check_indices(self, n: torch.Tensor, batch: int) -> npt.NDArray[np.int64]:
        """A tensor of one index for each of a batch, as an array; InputError for any other."""
        indices: npt.NDArray[np.int64] = n.cpu().numpy()
        fits = indices.shape == (batch,) and indices.dtype.kind in "iu"
        if not fits or (indices < 1).any() or (indices > self.num_steps).any():
            raise InputError(
                f"n must be an integer or a ({batch},) tensor of integers from 1 to {self.num_steps}, but it is {n}."
            )
        return indices

    # ---- where it comes from ----------------------------------------------------------------------------------

    @classmethod
    def from_levels(
        cls,
        alpha: npt.ArrayLike,
        sigma: npt.ArrayLike,
        timestep: npt.ArrayLike,
        prior_std: float | None = None,
    ) -> NoiseSchedule:
        """The schedule of noise levels as other codes list them: the clean index 0 is put before them.

        Args:
            alpha, sigma, timestep: (N,) arrays or tensors, of rising noise or of falling; what the network is told at
                each.
            prior_std: as of the class.
        """
        arrays = [_vector(*given) for given in (("alpha", alpha), ("sigma", sigma), ("timestep", timestep))]
        a, s = arrays[:2]
        if len(a) == len(s) > 1 and a[0] * s[-1] < a[-1] * s[0]:  # SNR rises
            arrays = [array[::-1] for array in arrays]
        a, s, told = (np.concatenate([[clean], array]) for clean, array in zip((1.0, 0.0, 0.0), arrays, strict=True))
        return cls(a, s, told, prior_std)

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
        start, end = checks.number("beta_start", beta_start), checks.number("beta_end", beta_end)
        return cls.from_betas(np.linspace(start, end, _count(N)))

    @classmethod
    def scaled_linear(cls, N: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """√β linear in n (latent diffusion)."""
        given, expected = {"beta_start": beta_start, "beta_end": beta_end}, "a finite number of at least 0"
        start, end = (checks.number(name, beta, expected, least=0.0) ** 0.5 for name, beta in given.items())
        return cls.from_betas(np.linspace(start, end, _count(N)) ** 2)

    @classmethod
    def cosine(cls, N: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """ᾱ(u) ∝ cos²((u + offset)/(1 + offset) π/2) with β clipped at `max_beta` (Improved DDPM, eq. 17)."""
        offset = checks.number("offset", offset)
        max_beta = checks.number("max_beta", max_beta, "a number from 0 to 1", least=0.0, most=1.0)
        angle = (np.arange(_count(N) + 1) / N + offset) / (1 + offset) * (math.pi / 2)
        # 1 - cos²(b)/cos²(a) = sin(b - a) sin(b + a)/cos²(a): no cancellation at small n.
        before, after = angle[:-1], angle[1:]
        betas = np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2
        return cls.from_betas(np.minimum(betas, max_beta))

    @classmethod
    def vp_sde(cls, N: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
        """The VP-SDE sampled at t = n/N: log ᾱ = −(β_min t + (β_max − β_min) t²/2); the network is told 999 t."""
        t = np.arange(_count(N) + 1) / N
        beta_min, beta_max = checks.number("beta_min", beta_min), checks.number("beta_max", beta_max)
        return cls._variance_preserving(-(beta_min * t + 0.5 * (beta_max - beta_min) * t**2), 999.0 * t)

    @classmethod
    def flow(cls, N: int = 1000, shift: float = 1.0, timestep_scale: float = 1000.0) -> NoiseSchedule:
        """Rectified flow: α = 1 − t, σ = t at t = n/N, moved to shift·t/(1 + (shift − 1) t) (Stable Diffusion 3,
        arXiv:2403.03206, eq. 23); the network is told timestep_scale·t. x_N holds no signal."""
        shift, known = checks.positive("shift", shift), checks.is_number(timestep_scale)
        checks.refuse(not known, f"timestep_scale={checks.brief(timestep_scale)} must be a number.")
        n = np.arange(_count(N) + 1, dtype=np.float64)
        # 1 − t as a quotient of its own: no cancellation near t = 1.
        whole = N + (shift - 1.0) * n
        t = shift * n / whole
        return cls((N - n) / whole, t, timestep_scale * t)

    @classmethod
    def edm(
        cls,
        N: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        told: Literal["c_noise", "sigma"] = "c_noise",
    ) -> NoiseSchedule:
        """EDM (arXiv:2206.00364, eq. 5): α = 1, σ^(1/ρ) even from sigma_min to sigma_max (`rho=math.inf`: log σ even);
        x_N's prior has the standard deviation sigma_max.

        Args:
            told: what the network is told, c_noise = ln(σ)/4 (the bare network F of EDM) or σ itself (EDM's and
                k-diffusion's wrappers, which return x̂_0, networks of ε or the score that take σ).
        """
        checks.one_of("told", told, ("c_noise", "sigma"))
        numbers = all(map(checks.is_number, (sigma_min, sigma_max, rho)))
        if not (numbers and 0 < sigma_min < sigma_max < math.inf and rho > 0):
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
        return cls.from_levels(np.ones(N), levels, levels if told == "sigma" else np.log(levels) / 4, levels[-1])

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
        `process.diffusers_configs.schedule_of` for the supported ones."""
        from .diffusers_configs import schedule_of  # which makes schedules: one of the two circles that stay

        return schedule_of(scheduler)


def as_schedule(value: Any, name: str = "schedule") -> NoiseSchedule:
    """A schedule itself, or that of a diffusers scheduler or of its config; InputError for anything else."""
    if isinstance(value, NoiseSchedule):
        return value
    config = value if isinstance(value, Mapping) else getattr(value, "config", None)
    if isinstance(config, Mapping) and not isinstance(value, type):
        return NoiseSchedule.from_diffusers(value)
    return checks.instance(name, value, NoiseSchedule, "a dv.NoiseSchedule, or a diffusers scheduler or its config")


# ---- what is refused ------------------------------------------------------------------------------------------

_PRIOR = "finite and positive, or None"


def _vector(name: str, values: npt.ArrayLike) -> Float64Array:
    try:
        held = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
        array = np.array(held, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}={checks.brief(values)} must be an array of numbers.") from None
    wrong = array.ndim != 1 or array.size == 0
    checks.refuse(wrong, f"{name} must be a non-empty one-dimensional array, but its shape is {array.shape}.")
    return array


def _check_arrays(alpha: Float64Array, sigma: Float64Array, timestep: Float64Array) -> None:
    lengths = len(alpha), len(sigma), len(timestep)
    if len({*lengths}) > 1 or len(alpha) < 2:
        raise InputError(
            "a schedule needs alpha, sigma and timestep of one length N + 1 of at least 2, but they have lengths "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}."
        )
    if alpha[0] != 1.0 or sigma[0] != 0.0:
        raise InputError(
            f"index 0 of a schedule is clean data, so alpha[0] must be 1 and sigma[0] must be 0, but they are "
            f"{alpha[0]} and {sigma[0]}; prepend the clean index."
        )
    for name, array, in_range, expected in (
        ("alpha", alpha, alpha >= 0, "finite and at least 0"),
        ("sigma", sigma, sigma > 0, "finite and positive"),
        ("timestep", timestep, True, "finite"),
    ):
        bad = np.flatnonzero(~(np.isfinite(array) & in_range)[1:])
        if bad.size:
            n = int(bad[0]) + 1
            raise InputError(f"{name}[{n}] is {array[n]}, but after index 0 {name} must be {expected}.")


def _check_falling(log_snr: Float64Array) -> None:
    rise = np.flatnonzero(~(log_snr[1:] < log_snr[:-1]))
    if rise.size:
        n = int(rise[0]) + 1
        raise InputError(
            f"the schedule's signal-to-noise ratio must fall at every index, but log SNR is "
            f"{log_snr[n - 1]:.6g} at n={n - 1} and {log_snr[n]:.6g} at n={n}; check alpha and sigma."
        )


def _count(N: Any) -> int:
    wrong = not checks.is_whole(N) or N < 1
    checks.refuse(wrong, f"N={N} is not a number of noise levels; expected an integer of at least 1.")
    return int(N)
