"""A head of a few numbers an image, from the averages of the trunk's features over its pixels.

    raw = W₂ silu(W₁ [z; cos kπt, sin kπt, k = 1 … 4])

z are the averages, t is the time in [0, 1]. Each of z is less the mean and over the standard deviation that it has
over noisy images of all levels, measured once before training: features of a trunk differ in size by orders of
magnitude, and a normalisation over those of one image, as in `heads.HeadNetwork`, takes away what they have in common:
the level of noise, and how much there is of everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .heads import feature_layout

_HIDDEN = 64
_WAVES = 4
#: What varies by less than this part of its root mean square is constant, but for rounding.
_CONSTANT = 1e-4


class PooledHead(nn.Module):
    """From features (B, F, *grid) or (B, T, F), and the time in [0, 1], to (B, L); zeros until it is trained.

    Args:
        features: of one image, (F, *grid) or (T, F).
        shape: (C, *spatial) of one image.
        count: L.

    Raises InputError for features that do not divide the image into square patches.
    """

    #: It has no groups that a file has to state (see `HeadNetwork`).
    stated_groups: int | None = None

    def __init__(self, features: Sequence[int], shape: Sequence[int], count: int) -> None:
        super().__init__()
        self.features = tuple(features)
        width, _, _, self.tokens = feature_layout(self.features, tuple(shape))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.hidden = nn.Linear(width + 2 * _WAVES, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, count)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def pooled(self, features: Tensor) -> Tensor:
        """Averages over the pixels or tokens, (B, F)."""
        if self.tokens:
            return features.mean(1)
        return features.flatten(2).mean(-1) if features.ndim > 2 else features

    def standardise(self, pooled: Tensor) -> None:
        """Take mean and standard deviation from what `pooled` gave of many images, (n, F)."""
        centre, scale = pooled.double().mean(0), pooled.double().std(0)
        size = pooled.double().square().mean(0).sqrt()
        self.get_buffer("centre").copy_(centre)
        self.get_buffer("scale").copy_(torch.where(scale > _CONSTANT * size, scale, 1.0))

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        known = (self.pooled(features) - self.get_buffer("centre")) / self.get_buffer("scale")
        angle = math.pi * time[:, None] * torch.arange(1, _WAVES + 1, device=time.device)
        told = torch.cat([known, angle.cos(), angle.sin()], 1)
        raw: Tensor = self.out(nn.functional.silu(self.hidden(told)))
        return raw
