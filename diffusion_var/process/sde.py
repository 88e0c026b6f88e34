"""The stochastic differential equation that a schedule's levels are points of [E19].

With the index n as time, x_t = α x_0 + σ ε has at every n the distribution of

    dx = f x dn + g dw,      f = d log α/dn,      g² = dσ²/dn − 2 f σ²

(score SDE, arXiv:2011.13456). A schedule has α and σ at whole n alone; their derivatives are differences of second
order over neighbouring indices, of log α (exact where it is a parabola, as the VP-SDE's) and, where α + σ = 1, of α
(exact for flows).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import checks
from .level import NoiseLevel
from .schedule import Float64Array, NoiseSchedule


@dataclass(frozen=True)
class ScheduleSde:
    """f and g² at the indices 1 to N, per index, float64; see `sde_of`."""

    schedule: NoiseSchedule
    drift: Float64Array
    diffusion2: Float64Array

    def at(self, level: NoiseLevel) -> tuple[float, float, float]:
        """(n, f, g²) of a level; between two indices linearly, n by log SNR (see `NoiseSchedule.position`)."""
        n = self.schedule.index_of(level)
        place = self.schedule.position(level) if n is None else float(n)
        grid = np.arange(1.0, self.schedule.num_steps + 1)
        drift, diffusion2 = (float(np.interp(place, grid, values)) for values in (self.drift, self.diffusion2))
        return place, drift, diffusion2


def sde_of(schedule: NoiseSchedule) -> ScheduleSde:
    """The equation of a schedule; −∞ and ∞ at an N without signal. InputError for fewer than three indices."""
    wrong = schedule.num_steps < 3
    checks.refuse(
        wrong,
        f"a schedule of {schedule.num_steps} indices has no derivatives to speak of, which the reverse SDE needs; use "
        "one of at least 3.",
    )
    alpha, sigma = schedule.alpha[1:], schedule.sigma[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        if np.allclose(alpha + sigma, 1.0, rtol=1e-9, atol=0.0):
            drift = _derivative(alpha) / alpha
        else:
            silent = int(schedule.zero_terminal_snr)
            drift = _derivative(np.log(alpha[: len(alpha) - silent]))
            drift = np.append(drift, [-np.inf] * silent)
        preserving = np.allclose(alpha**2 + sigma**2, 1.0, rtol=1e-9, atol=0.0)
        diffusion2 = -2.0 * drift if preserving else _derivative(sigma**2) - 2.0 * drift * sigma**2
    return ScheduleSde(schedule, drift, np.maximum(diffusion2, 0.0))


def _derivative(values: Float64Array) -> Float64Array:
    """By central differences, at the ends by three points: exact for parabolas."""
    return np.asarray(np.gradient(values, edge_order=2 if len(values) > 2 else 1))
