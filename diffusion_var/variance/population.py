"""The data as a fixed population of images, and what is known of it without any network.

The control variates of the estimator have known expectations only if x_0 is drawn from a fixed population whose mean
and variances are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.fixed_images import FixedImages
from ..process.structure import channel_rotation, make_structure
from .order import order_warning

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DataStatistics:
    """What a table remembers of its data; float64 arrays.

    Attributes:
        mean, pixel_variance: (C, *spatial), per pixel.
        spectrum: (C, *spatial), variance per coefficient of the dct basis with `rotation`.
        rotation: (C, C) channel rotation of the dct basis.
        count, fingerprint: number of images and SHA-256 of their bytes.
    """

    mean: Float64Array
    pixel_variance: Float64Array
    spectrum: Float64Array
    rotation: Float64Array
    count: int
    fingerprint: str

    def element_variance(self, structure: str) -> Float64Array:
        """l_k in the basis whose linear denoiser serves the structure: dct for isotropic and dct, else pixels."""
        return self.spectrum if structure in ("isotropic", "dct") else self.pixel_variance


class Population(FixedImages):
    """Images that x_0 is drawn from; see `FixedImages` for the arguments and errors.

    Attributes: their `statistics`; `order`, a sentence about the order that they are in, or None (see `order`).
    """

    def __init__(self, images: Any, shape: Sequence[int], data_range: tuple[float, float] | None) -> None:
        super().__init__(images, shape, data_range)
        self.order: str | None = None
        self.statistics = self._statistics()

    def _statistics(self) -> DataStatistics:
        """Two passes: mean, fingerprint and range; then the variances about the mean, in both bases."""
        total = torch.zeros(self.shape, dtype=torch.float64)

        def add(x: torch.Tensor) -> None:
            total.add_(x.double().sum(0))

        fingerprint = self.scan(add)
        mean = total / self._count
        pixel = torch.zeros_like(total)
        channel = torch.zeros(self.shape[0], self.shape[0], dtype=torch.float64)
        facts = []
        for _, raw in self.chunks():
            centred = self.to_float(raw).double() - mean
            pixel += centred.square().sum(0)
            rows = centred.transpose(0, 1).flatten(1)
            channel += rows @ rows.T
            contrast = centred.square().flatten(1).mean(1, keepdim=True)
            facts.append(torch.cat([centred.reshape(len(raw), self.shape[0], -1).mean(2), contrast], 1))
        self.order = order_warning(torch.cat(facts).numpy())
        covariance = channel / (self._count * math.prod(self.shape[1:]))
        rotation = channel_rotation(covariance.numpy(), len(self.shape) - 1)
        basis = make_structure("dct", self.shape, rotation)
        spectrum = torch.zeros_like(total)
        for _, raw in self.chunks():
            spectrum += basis.forward(self.to_float(raw).double() - mean).square().sum(0)
        return DataStatistics(
            mean.numpy(),
            (pixel / self._count).numpy(),
            (spectrum / self._count).numpy(),
            rotation,
            self._count,
            fingerprint,
        )
