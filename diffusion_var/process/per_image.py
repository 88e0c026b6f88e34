"""Numbers of each image of a batch, (B,)."""

from __future__ import annotations

import torch


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """aᵀ b of each image, (B,) float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def each(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) numbers to multiply images with, (B, 1, …) in their dtype."""
    return numbers.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
