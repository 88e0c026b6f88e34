"""The probability flow: the ODE whose solutions have the same distribution as x_t at every level [E20].

With z = x/√(α² + σ²), a and s the α and σ of that scale (a² + s² = 1), and τ = log(σ/α) = −½ log SNR for the time,

    dz/dτ = s (ε̂ − s z),      div = s tr ∂ε̂/∂z − s² d

(score SDE, arXiv:2011.13456, eq. 13; neural ODEs, arXiv:1806.07366). z is of unit size from data to noise and the
right-hand side is bounded, so that equal steps of τ serve all the way. The trace is probed with random v of mean 0 and
covariance I (Hutchinson 1989; FFJORD, arXiv:1810.01367), s (vᵀ (∂ε̂/∂z) v − s vᵀ v), by one vector–Jacobian product;
near noise, where ε̂ is s z, that is 0 for every v. Or it is summed up over all d elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch

from ..errors import InputError
from ..models.network_run import NetworkRun
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule

Method = Literal["euler", "heun", "rk4"]
Trace = Literal["rademacher", "gaussian", "exact"]

#: Explicit Runge–Kutta methods: where in a step each stage is, which begins with the slope of the one before; weights.
TABLEAUS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((0.0,), (1.0,)),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
Velocity = Callable[[torch.Tensor, NoiseLevel], tuple[torch.Tensor, torch.Tensor]]


def flow_velocity(eps: torch.Tensor, z: torch.Tensor, s: float) -> torch.Tensor:
    """dz/dτ = s (ε̂ − s z) [E20]."""
    return s * (eps - s * z)


class ProbabilityFlow:
    """dz/dτ and its divergence for a batch.

    Args:
        run: of the network, entered.
        condition: of the batch, on the device, or None.
        probe: v, like the images, or None for the whole trace.
    """

    def __init__(self, run: NetworkRun, condition: Any, probe: torch.Tensor | None) -> None:
        self.run, self.condition, self.probe = run, condition, probe

    def __call__(self, z: torch.Tensor, level: NoiseLevel) -> tuple[torch.Tensor, torch.Tensor]:
        """(dz/dτ (B, C, *spatial), divergence (B,)), float64."""
        size = math.hypot(level.alpha, level.sigma)
        s = level.sigma / size
        with torch.enable_grad():
            inside = z.detach().requires_grad_()
            eps = self.run(size * inside, level, self.condition).eps
            if not eps.requires_grad:
                raise InputError(
                    "the network's output cannot be differentiated by its input (it is detached, or computed without "
                    "gradients), which the divergence of its flow needs; use dv.density_bound."
                )
            divergence = s * self._trace(eps, inside, s)
        return flow_velocity(eps.detach(), z, s), divergence

    def _trace(self, eps: torch.Tensor, z: torch.Tensor, s: float) -> torch.Tensor:
        """tr (∂ε̂/∂z − s I) of each image, or its probe."""
        if self.probe is not None:
            (product,) = torch.autograd.grad(eps, z, self.probe.to(eps.dtype))
            return ((product - s * self.probe) * self.probe).flatten(1).sum(1).double()
        flat = eps.flatten(1)
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), z, retain_graph=True)
            total = total + row.flatten(1)[:, i].double() - s
        return total


def integrate(
    velocity: Velocity, z: torch.Tensor, levels: Sequence[NoiseLevel], schedule: NoiseSchedule, method: Method
) -> tuple[torch.Tensor, torch.Tensor]:
    """z at the last of the levels, the noisiest, and the divergence's integral over τ, (B,), from z at the first."""
    places, weights = TABLEAUS[method]
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for level, after in pairwise(levels):
        h = 0.5 * (level.log_snr - after.log_snr)
        slope, change = torch.zeros_like(z), torch.zeros_like(z)
        for place, weight in zip(places, weights, strict=True):
            slope, divergence = velocity(z + place * h * slope, _between(level, after, place, schedule))
            change = change + weight * slope
            total = total + weight * h * divergence
        z = z + h * change
    return z, total


def _between(level: NoiseLevel, after: NoiseLevel, place: float, schedule: NoiseSchedule) -> NoiseLevel:
    """The level a part of the way, in log SNR."""
    if place in (0.0, 1.0):
        return after if place else level
    return schedule.level_at((1.0 - place) * level.log_snr + place * after.log_snr)


def prior_nats(z: torch.Tensor, level: NoiseLevel, prior_std: float) -> torch.Tensor:
    """−log of the density of z where x ~ N(0, prior_std² I), in nats, (B,) [E20]."""
    d, size = math.prod(z.shape[1:]), math.hypot(level.alpha, level.sigma)
    square = (size / prior_std * z).square().flatten(1).sum(1)
    return 0.5 * (square + d * math.log(2.0 * math.pi)) - d * math.log(size / prior_std)
