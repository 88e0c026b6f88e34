"""The forward process as diffusers' pipelines and training loops ask a scheduler for it."""

from __future__ import annotations

from typing import Any

import torch

from ..process.schedule import NoiseSchedule


class ForwardProcess:
    """x_t = α_t x_0 + σ_t ε by timestep, for a class with a `schedule`."""

    schedule: NoiseSchedule

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """α_t x_0 + σ_t ε at each image's timestep."""
        alpha, sigma = self._coefficients(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """v = α_t ε − σ_t x_0 at each image's timestep."""
        alpha, sigma = self._coefficients(timesteps, sample)
        return alpha * noise - sigma * sample

    def _coefficients(self, timesteps: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        indices = torch.as_tensor(timesteps).cpu().long().reshape(-1) + 1
        alpha, sigma = (
            torch.from_numpy(array.copy())[indices].to(like).view(-1, *(1,) * (like.ndim - 1))
            for array in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha, sigma

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ of every timestep, (N,) float32, as diffusers' schedulers have it."""
        return torch.from_numpy(self.schedule.alpha[1:] ** 2).float()
