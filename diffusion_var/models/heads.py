"""Small networks on the trunk's last features (arXiv:2206.07309, §5): from features to one number per pixel.

    simple    group norm, SiLU, 3×3 convolution: a few thousand parameters
    residual  the same behind a residual block that is told the time

Tokens (B, T, F) of a transformer are laid out as the grid they are; features of a lower resolution than the image's
give one number per pixel of each patch. What the numbers mean is the target's business (`variance.targets`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from ..errors import InputError

HeadKind = Literal["simple", "residual"]
_TIME_WIDTH = 128
_TIME_UNITS = 1000.0  # the sinusoidal embedding is made for timesteps of this order


class HeadNetwork(nn.Module):
    """A head: features (B, F, h, w) or (B, T, F), and the time in [0, 1], to (B, C, H, W).

    Args:
        kind: "simple" or "residual".
        features: of one image, (F, h, w) or (T, F).
        shape: (C, H, W) of one image.
        zero: start with an output of zero; otherwise with PyTorch's random weights.

    Raises InputError for an unknown kind, and for features that do not divide the image into square patches.
    """

    def __init__(self, kind: HeadKind, features: Sequence[int], shape: Sequence[int], zero: bool = True) -> None:
        super().__init__()
        if kind not in get_args(HeadKind):
            raise InputError(f"head {kind!r} is not known; choose one of {', '.join(get_args(HeadKind))}.")
        self.features, self.shape = tuple(features), tuple(shape)
        width, self.grid, self.patch = _layout(self.features, self.shape)
        groups = math.gcd(width, 32)
        self.block: nn.Module | None = None
        if kind == "residual":
            from diffusers.models.embeddings import TimestepEmbedding, Timesteps
            from diffusers.models.resnet import ResnetBlock2D

            self.time = Timesteps(_TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.embed = TimestepEmbedding(_TIME_WIDTH, _TIME_WIDTH)
            self.block = ResnetBlock2D(in_channels=width, temb_channels=_TIME_WIDTH, groups=groups, eps=1e-5)
        self.norm = nn.GroupNorm(groups, width, eps=1e-5)
        self.out = nn.Conv2d(width, self.shape[0] * self.patch**2, 3, padding=1)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        if features.ndim == 3:
            features = features.transpose(1, 2).reshape(len(features), -1, *self.grid)
        if self.block is not None:
            features = self.block(features, self.embed(self.time(_TIME_UNITS * time)))
        raw: Tensor = self.out(nn.functional.silu(self.norm(features)))
        return nn.functional.pixel_shuffle(raw, self.patch)


def _layout(features: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, tuple[int, int], int]:
    """Number of features, the grid (h, w) that they lie on, and the side of the patch that each covers."""
    height, width = shape[1:]
    if len(features) == 3:
        count, grid = features[0], (features[1], features[2])
    else:
        count = features[1]
        patch = math.isqrt(max(1, height * width // features[0]))
        grid = (height // patch, width // patch)
        if math.prod(grid) != features[0]:
            grid = (0, 0)
    patch = height // grid[0] if grid[0] else 0
    if patch < 1 or (patch * grid[0], patch * grid[1]) != (height, width):
        raise InputError(
            f"features of shape {features} do not lie on a grid of square patches of images {shape}; name a module "
            "whose input does (features=)."
        )
    return count, grid, patch
