"""Small networks on the trunk's last features (arXiv:2206.07309, §5): from features to numbers of every pixel.

    simple    group norm, SiLU, convolution of width 3: a few thousand parameters
    residual  the same behind a residual block that is told the time

Features are normalised in groups of three channels or more (`groups_of`): a group of one has the mean over its pixels
taken away, and with it the level of a feature and what the block was told of the time.

Tokens (B, T, F) of a transformer are laid out as the grid they are; features of a lower resolution than the image's
give one number per pixel of each patch. Vectors have no grid: there the convolution is a linear layer. What the numbers
mean is the target's business (`covariance.head_targets`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from .. import checks
from ..errors import InputError

HeadKind = Literal["simple", "residual"]
_TIME_WIDTH = 128
_TIME_UNITS = 1000.0  # the sinusoidal embedding is made for timesteps of this order
_MOST_GROUPS, _LEAST_CHANNELS = 32, 3


def groups_of(width: int) -> int:
    """Groups in which so many features are normalised: a power of two up to 32, of three channels or more each (one
    group where there is no such)."""
    groups = math.gcd(width, _MOST_GROUPS)
    while groups > 1 and width // groups < _LEAST_CHANNELS:
        groups //= 2
    return groups


def first_groups_of(width: int) -> int:
    """Groups of the heads whose files do not say: as many as there can be, were each a single channel."""
    return math.gcd(width, _MOST_GROUPS)


class HeadNetwork(nn.Module):
    """A head: features (B, F, *grid) or (B, T, F), and the time in [0, 1], to (B, C, *spatial).

    Args:
        kind: "simple" or "residual".
        features: of one image, (F, *grid) or (T, F).
        shape: (C, *spatial) of one image; or of another number of channels, where each pixel has as many numbers.
        zero: start with an output of zero; otherwise with PyTorch's random weights.
        groups: of the normalisations, or what gives them for so many features.

    Raises InputError for an unknown kind, for features that do not divide the image into square patches, and for
    groups that do not divide the features.
    """

    def __init__(
        self,
        kind: HeadKind,
        features: Sequence[int],
        shape: Sequence[int],
        zero: bool = True,
        groups: int | Callable[[int], int] = groups_of,
    ) -> None:
        super().__init__()
        known = get_args(HeadKind)
        checks.refuse(kind not in known, f"head {kind!r} is not known; choose one of {', '.join(known)}.")
        self.features, self.shape = tuple(features), tuple(shape)
        width, self.grid, self.patch, self.tokens = feature_layout(self.features, self.shape)
        spatial_axes = len(self.grid)
        self.groups = groups if isinstance(groups, int) else groups(width)
        uneven = self.groups < 1 or bool(width % self.groups)
        checks.refuse(uneven, f"{width} features can't be normalised in {self.groups} equal groups.")
        self.block: nn.Module | None = None
        if kind == "residual":
            from diffusers.models.embeddings import TimestepEmbedding, Timesteps

            self.time = Timesteps(_TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.embed = TimestepEmbedding(_TIME_WIDTH, _TIME_WIDTH)
            self.block = _block(width, self.groups, spatial_axes)
        self.norm = nn.GroupNorm(self.groups, width, eps=1e-5)
        self.out = _convolution(width, self.shape[0] * self.patch**spatial_axes, spatial_axes)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    @property
    def stated_groups(self) -> int | None:
        """Groups that a file has to state: None where they are those of files that do not."""
        width = self.norm.num_channels
        return None if self.groups == first_groups_of(width) else self.groups

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        if self.tokens:
            features = features.transpose(1, 2).reshape(len(features), -1, *self.grid)
        if self.block is not None:
            features = self.block(features, self.embed(self.time(_TIME_UNITS * time)))
        raw: Tensor = self.out(nn.functional.silu(self.norm(features)))
        return self._unfolded(raw)

    def _unfolded(self, raw: Tensor) -> Tensor:
        """(B, C p^k, *grid) as (B, C, *spatial): every pixel of a patch from a channel of its own."""
        if self.patch == 1:
            return raw
        count = len(self.grid)
        parts = raw.reshape(len(raw), self.shape[0], *(self.patch,) * count, *self.grid)
        order = [place for axis in range(count) for place in (2 + count + axis, 2 + axis)]
        return parts.permute(0, 1, *order).reshape(len(raw), *self.shape)


class _Block(nn.Module):
    """The residual block of diffusers' ResnetBlock2D, for data that are no images."""

    def __init__(self, width: int, groups: int, spatial_axes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width, eps=1e-5) for _ in range(2))
        self.layers = nn.ModuleList(_convolution(width, width, spatial_axes) for _ in range(2))
        self.told = nn.Linear(_TIME_WIDTH, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.layers[0](nn.functional.silu(self.norms[0](x)))
        told = self.told(nn.functional.silu(time))
        h = h + told.view(*told.shape, *(1,) * (x.ndim - 2))
        changed: Tensor = self.layers[1](nn.functional.silu(self.norms[1](h)))
        return x + changed


def _block(width: int, groups: int, spatial_axes: int) -> nn.Module:
    if spatial_axes != 2:
        return _Block(width, groups, spatial_axes)
    from diffusers.models.resnet import ResnetBlock2D

    block: nn.Module = ResnetBlock2D(in_channels=width, temb_channels=_TIME_WIDTH, groups=groups, eps=1e-5)
    return block


def _convolution(inside: int, outside: int, spatial_axes: int) -> Any:
    if spatial_axes == 0:
        return nn.Linear(inside, outside)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_axes - 1](inside, outside, 3, padding=1)


def feature_layout(features: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int, bool]:
    """Number of features, the grid that they lie on, the side of the patch that each covers, and whether they are
    tokens (T, F)."""
    spatial = shape[1:]
    if not spatial:
        checks.refuse(len(features) != 1, f"features of shape {features} are none of vectors {shape}, which are (F,).")
        return features[0], (), 1, False
    # Of a signal both have two axes: tokens are what does not divide its length.
    tokens = len(features) != len(shape) or (len(spatial) == 1 and bool(spatial[0] % features[1]))
    checks.refuse(
        tokens and len(features) != 2, f"features of shape {features} are neither (F, *grid) nor tokens (T, F)."
    )
    count, grid = (features[1], _grid_of(features[0], spatial)) if tokens else (features[0], features[1:])
    patch = spatial[0] // grid[0] if grid and grid[0] else 0
    if patch < 1 or tuple(patch * n for n in grid) != spatial:
        raise InputError(
            f"features of shape {features} do not lie on a grid of square patches of images {shape}; name a module "
            "whose input does (features=)."
        )
    return count, grid, patch, tokens


def _grid_of(tokens: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of so many square patches; empty where there is none."""
    patch = round(max(1.0, math.prod(spatial) / tokens) ** (1 / len(spatial)))
    grid = tuple(n // patch for n in spatial)
    return grid if math.prod(grid) == tokens else ()
