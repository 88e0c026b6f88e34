"""A noise level: x_t = α x_0 + σ ε, and what the network is told there; on a schedule's grid or off it.

What is known of x_0 at a level depends on its signal-to-noise ratio alone, SNR = α²/σ² [E14]: two
levels of one SNR differ in units. So steps, tables and samplers speak of levels, and an index of a schedule is a
convenience for one of its levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .. import checks


@dataclass(frozen=True)
class NoiseLevel:
    """One noise level.

    Args:
        alpha, sigma: of x_t = α x_0 + σ ε; α ≥ 0, σ ≥ 0, not both 0; σ = 0 is clean data.
        timestep: what the network is told; nan for clean data, where it is not asked.
        log_snr, index: given by a schedule for the levels of its grid: 2 log(α/σ) to the bit as it has it (for others
            it is computed here; −∞ without signal, ∞ without noise), and n. Two levels are not compared by them.

    Raises InputError for numbers that make no level.
    """

    alpha: float
    sigma: float
    timestep: float = math.nan
    log_snr: float = field(default=math.nan, compare=False, kw_only=True)
    index: int | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        alpha = checks.number("alpha", self.alpha, "a finite number of at least 0", least=0.0)
        sigma = checks.number("sigma", self.sigma, "a finite number of at least 0", least=0.0)
        checks.refuse(alpha == sigma == 0.0, "alpha and sigma are both 0, so that x_t would be 0; give one of them.")
        timestep = math.nan if sigma == 0.0 else checks.number("timestep", self.timestep)
        log_snr = 2.0 * (_log(alpha) - _log(sigma)) if math.isnan(self.log_snr) else self.log_snr
        for name, value in {"alpha": alpha, "sigma": sigma, "timestep": timestep, "log_snr": log_snr}.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @classmethod
    def clean(cls) -> NoiseLevel:
        """Clean data, x_0 itself."""
        return cls(1.0, 0.0, index=0)

    @classmethod
    def flow(cls, t: float, timestep_scale: float = 1000.0) -> NoiseLevel:
        """Rectified flow (arXiv:2209.03003): α = 1 − t, σ = t, 0 ≤ t ≤ 1; the network is told timestep_scale·t."""
        t = checks.interval("t", t, 0.0, 1.0, "a flow goes from clean data, t=0, to noise, t=1")
        return cls(1.0 - t, t, timestep_scale * t)

    @classmethod
    def edm(cls, sigma: float, told: Literal["c_noise", "sigma"] = "c_noise") -> NoiseLevel:
        """EDM (arXiv:2206.00364): α = 1; the network is told c_noise = ln(σ)/4, or σ itself."""
        sigma = checks.number("sigma", sigma, "a finite number of at least 0", least=0.0)
        checks.one_of("told", told, ("c_noise", "sigma"))
        if sigma == 0.0:
            return cls(1.0, sigma)
        return cls(1.0, sigma, sigma if told == "sigma" else 0.25 * _log(sigma))

    @property
    def is_clean(self) -> bool:
        """Whether it is clean data."""
        return self.sigma == 0.0

    @property
    def name(self) -> str:
        """As messages name it alone: "index 40", or "log SNR 3.2" off the grid."""
        return str(self) if self.index is None else f"index {self.index}"

    def __str__(self) -> str:
        """As messages name it in a step: "40", or "log SNR 3.2"."""
        return f"log SNR {self.log_snr:.4g}" if self.index is None else str(self.index)


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
