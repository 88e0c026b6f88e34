"""Pixels as features: the image itself, flattened, its data range taken to [−1, 1].

The Fréchet distance of pixels is that of two Gaussians in image space. It sees means, colours and spectra, and nothing
that takes more than two pixels at a time to see; but it needs no network, and of data whose mean and covariance are
known (a fitted mixture's `moments()`) it has an exact reference. Floats are taken as they are, neither rounded nor
clamped: clamping would change the moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from .weights import file_hash

_MOST = 4096  # numbers an image: a covariance of 128 MiB


class PixelFeatures:
    """A feature network that gives (B, C, H, W) back as (B, C·H·W); uint8 u as u/127.5 − 1, floats of [−1, 1] as given.

    Raises InputError for images of more than 4,096 numbers.
    """

    name = "pixels"
    resize = "none"
    number_format = "pixels in [-1, 1], floats neither rounded nor clamped"
    #: Floats are given to it as they are, once their data range is [−1, 1].
    takes_floats = True

    def __init__(self) -> None:
        self.dimension = 0  # not known before the first images
        self.fingerprint = file_hash(self.number_format.encode())

    def __call__(self, images: Tensor) -> Tensor:
        found = images[0].numel()
        checks.refuse(
            found > _MOST,
            f"images of shape {tuple(images.shape[1:])} are {found} numbers, too many for a covariance of pixels (at "
            f"most {_MOST}); use the features of a network, such as inception.",
        )
        self.dimension = found
        pixels = images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images.float()
        return pixels.flatten(1)


def to_unit(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """Floats of a data range as ones of [−1, 1]; uint8 as they are."""
    if images.dtype == torch.uint8 or data_range == (-1.0, 1.0):
        return images
    low, high = data_range
    return (images - low) * (2.0 / (high - low)) - 1.0
