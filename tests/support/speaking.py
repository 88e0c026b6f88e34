"""Exact models in other people's clothes: networks that are shown, told and return what a convention says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import diffusion_var as dv

#: (α, σ), float64 tensors (B,), of what a network is told.
Where = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def on_grid(schedule: dv.NoiseSchedule, timestep: Any) -> Where:
    """Of a schedule whose indices 1…N are told so, interpolated between them and held at the ends."""
    told = np.asarray(timestep, dtype=np.float64)
    order = np.argsort(told)
    log_snr = schedule.log_snr[1:][order]

    def where(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        finite = np.isfinite(log_snr)
        value = np.interp(t.double().numpy(), told[order][finite], log_snr[finite])
        levels = [schedule.level_at(float(np.clip(v, log_snr[finite].min(), log_snr[finite].max()))) for v in value]
        return torch.tensor([l.alpha for l in levels]).double(), torch.tensor([l.sigma for l in levels]).double()

    return where


class Speaking:
    """A network that an exact denoiser stands behind.

    Args:
        model: an exact denoiser, in the network's own scale of the data.
        where: what it takes a timestep for.
        prediction: what it returns, times `sign`; "edm" and "edm_v" are shown c_in x_t/α (σ_d = 0.5).
        bias: added to x̂_0 before it is spoken; `shrink` multiplies it.
    """

    def __init__(
        self, model: Any, where: Where, prediction: str, sign: int = 1, *, bias: float = 0.0, shrink: float = 1.0
    ) -> None:
        self.model, self.where, self.prediction, self.sign = model, where, prediction, sign
        self.bias, self.shrink, self.evaluations = bias, shrink, 0

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.evaluations += len(x)
        alpha, sigma = (a.view(-1, *(1,) * (x.ndim - 1)) for a in self.where(timestep))
        x_t, s = x.double(), sigma / alpha
        if self.prediction in ("edm", "edm_v"):
            x_t = x_t * alpha * (s**2 + 0.25).sqrt()
        mean = self.shrink * self.model.exact_mean(x_t, alpha, sigma) + self.bias
        eps = (x_t - alpha * mean) / sigma
        out = {
            "epsilon": lambda: eps,
            "sample": lambda: mean,
            "v_prediction": lambda: alpha * eps - sigma * mean,
            "flow": lambda: eps - mean,
            "score": lambda: -eps / sigma,
            "edm": lambda: (mean - 0.25 / (s**2 + 0.25) * x_t / alpha) * (s**2 + 0.25).sqrt() / (0.5 * s),
        }
        return (self.sign * out[self.prediction]()).to(x.dtype)
