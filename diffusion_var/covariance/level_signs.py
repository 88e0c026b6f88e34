"""Probes of random signs, of their own for every level, so that their errors do not add up along a trajectory."""

from __future__ import annotations

import torch

from ..process.level import NoiseLevel
from ..randomness import generator


def level_signs(seed: int, purpose: str, level: NoiseLevel, *shape: int) -> torch.Tensor:
    """±1 of a shape, float64 on the CPU."""
    place = round((level.log_snr + 1000.0) * 1e6)
    return torch.from_numpy(2.0 * generator(seed, purpose, place).integers(0, 2, shape) - 1.0)
