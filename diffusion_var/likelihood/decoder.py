"""The decoder, the last term of the likelihood bound: how probable the image itself is, given the least noisy x_t.

For 8-bit images it is a Gaussian N(x̂_0, v) per pixel, discretised: with levels y_k evenly spaced over the data range
and h half of their distance,

    P(k) = Φ((y_k + h − x̂_0)/√v) − Φ((y_k − h − x̂_0)/√v),      the two outermost intervals reaching to ∓∞

(DDPM, arXiv:2006.11239, eq. 13), computed in log space without cancellation, so that no tail becomes log 0. For
continuous data it is the Gaussian's own density, there with any structure.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.reverse import ReverseCovariance, StructuredCovariance, variance_tensor
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.divergence import gaussian_nats
from ..process.kernel import ReverseKernel
from ..process.structure import Isotropic, Pixel, Shape
from .decoder_variance import PIXEL_DIAGONAL, DecoderVariance, fixed_variance

Range = checks.Range

#: How far, in levels, a float may lie from a level and still be it; and that of float32 itself, in data ranges.
_ROUNDING, _FLOAT32 = 1e-3, 3e-7


def log_normal_interval(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """log(Φ(high) − Φ(low)) for float64 tensors with low < high, ∓∞ allowed; finite wherever the result can be.

    So are its gradients (not at ∓∞ itself).
    """
    # In the upper tail both Φ are nearly 1: mirrored, they are nearly 0 and their logarithms differ.
    mirrored = low > 0
    a, b = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    # Where the interval holds 0, the two terms of the difference have opposite signs, and nothing cancels.
    holds_0 = (a < 0) & (b > 0)
    # Each formula gets harmless arguments where it is not used: a gradient of 0 times an infinite one would be nan.
    log_a, log_b = (torch.special.log_ndtr(end.masked_fill(holds_0, away)) for end, away in ((a, -2.0), (b, -1.0)))
    tail = log_b + torch.log(-torch.expm1(log_a - log_b))
    erf_a, erf_b = (torch.erf(end.masked_fill(~holds_0, away) / math.sqrt(2)) for end, away in ((a, -1.0), (b, 1.0)))
    return torch.where(holds_0, torch.log(0.5 * (erf_b - erf_a)), tail)


def discretised_log_prob(
    level: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, levels: int, data_range: Range
) -> torch.Tensor:
    """log P of each pixel's level under the discretised Gaussian (module docstring), in nats; float64.

    Args:
        level: whole numbers 0…levels − 1, any shape.
        mean: of the Gaussian, in data units, like `level`.
        variance: > 0, broadcastable to them, in squared data units.
    """
    low, high = data_range
    step = (high - low) / (levels - 1)
    std = variance.double().sqrt()
    # Neighbours share the very same edge, so that the probabilities sum to 1 for any variance.
    lower = torch.where(level == 0, -math.inf, (low + (level.double() - 0.5) * step - mean.double()) / std)
    upper = torch.where(level == levels - 1, math.inf, (low + (level.double() + 0.5) * step - mean.double()) / std)
    return log_normal_interval(lower, upper)


def levels_of(x: torch.Tensor, levels: int, data_range: Range, first: int = 0) -> torch.Tensor:
    """The level of each pixel, int64; x (B, C, *spatial) in the data range. `first` is the number of the first image.

    Raises InputError, naming the image, for values that are none of the levels.
    """
    low, high = data_range
    position = (x.double() - low) * ((levels - 1) / (high - low))
    level = position.round()
    wrong = ((position - level).abs() > max(_ROUNDING, _FLOAT32 * levels)) | (level < 0) | (level > levels - 1)
    if wrong.any():
        i = int(wrong.flatten(1).any(1).nonzero()[0])
        value = float(x[i][wrong[i]][0])
        raise InputError(
            f"image {first + i} holds {value:.6g}, which is none of {levels} levels from {low:g} to {high:g}: the "
            "images are not quantised so (resized, noisy, or in half precision?); pass images of that many levels "
            "(uint8 have 256), or use dv.density_bound for continuous data."
        )
    return level.long()


class Decoder(ABC):
    """−log p(x_0 | x_t) at the smallest index."""

    @abstractmethod
    def nats(self, x_0: torch.Tensor, posterior: Posterior, kernel: ReverseKernel) -> torch.Tensor:
        """(B,) float64, for images x_0 (B, C, *spatial)."""


class DiscreteDecoder(Decoder):
    """The discretised Gaussian of quantised images.

    Args:
        variance: broadcastable to (C, *spatial), > 0, squared data units; or what gives one, with or without a batch in
            front, from the posterior and the last step.
        levels, data_range: the grid of values that the images have.
    """

    def __init__(
        self,
        variance: npt.ArrayLike | Callable[[Posterior, ReverseKernel], torch.Tensor],
        levels: int,
        data_range: Range,
    ) -> None:
        self._of = variance if callable(variance) else _Constant(variance)
        self.levels, self.data_range = levels, data_range

    def nats(self, x_0: torch.Tensor, posterior: Posterior, kernel: ReverseKernel) -> torch.Tensor:
        level = levels_of(x_0, self.levels, self.data_range)
        variance = self._of(posterior, kernel)
        log_prob = discretised_log_prob(level, posterior.mean, variance, self.levels, self.data_range)
        return -log_prob.sum(dim=tuple(range(1, log_prob.ndim)))


class DensityDecoder(Decoder):
    """The Gaussian density of continuous data.

    Args:
        name: of the choice of variance, for messages.
        covariance: of x_0 given x_t, from the posterior and the last step; None where it is exactly zero.
    """

    def __init__(
        self, name: str, covariance: Callable[[Posterior, ReverseKernel], StructuredCovariance | None]
    ) -> None:
        self.name, self.covariance = name, covariance

    def nats(self, x_0: torch.Tensor, posterior: Posterior, kernel: ReverseKernel) -> torch.Tensor:
        found = self.covariance(posterior, kernel)
        if found is None or bool((found.variance <= 0).any()):  # NaN is found in the term
            raise InputError(
                f"the decoder's variance ({self.name}, step {kernel}) is zero somewhere, so that the density "
                "of x_0 is not defined; choose another decoder_variance."
            )
        return gaussian_nats(found.log_det(), found.quadratic(x_0 - posterior.mean), math.prod(x_0.shape[1:]))


def make_decoder(
    denoiser: Denoiser,
    covariance: ReverseCovariance,
    kernels: Sequence[ReverseKernel],
    choice: DecoderVariance | float | npt.ArrayLike,
    levels: int | None,
    data_range: Range | None,
) -> Decoder:
    """The decoder from the least noisy level of some steps, for a `decoder_variance`; levels None: a density."""
    discrete = levels is not None and data_range is not None
    if isinstance(choice, str) and choice == "covariance":
        if isinstance(covariance, Analytic):  # a level that the table does not cover is found now
            level = kernels[-1].level_t
            covariance.table.posterior_variance(level, covariance.estimator, covariance.structure, covariance.bounded)
        if discrete:
            own = _OwnVariance(covariance)
            if not covariance.depends_on_image:  # what cannot be is told now
                own(None, kernels[-1])
            return DiscreteDecoder(own, levels, data_range)  # type: ignore[arg-type]
        return DensityDecoder(covariance.name, covariance)
    least = rounding_variance(levels, data_range)
    variance = fixed_variance(choice, covariance, denoiser.schedule, kernels, denoiser.shape, least)
    return decoder_of(denoiser.shape, variance, levels, data_range, choice if isinstance(choice, str) else "as given")


def decoder_of(
    shape: Shape, variance: npt.ArrayLike, levels: int | None, data_range: Range | None, name: str
) -> Decoder:
    """The decoder with a variance in numbers, that broadcasts to an image of `shape`; `name` is for messages."""
    variance = np.asarray(variance, dtype=np.float64)
    if levels is not None and data_range is not None:
        return DiscreteDecoder(variance, levels, data_range)
    variance = np.broadcast_to(variance, shape) if variance.ndim else variance
    structure = (Pixel if variance.ndim else Isotropic)(shape)
    return DensityDecoder(
        name, lambda posterior, _: StructuredCovariance(structure, variance_tensor(variance, posterior))
    )


def rounding_variance(levels: int | None, data_range: Range | None) -> float:
    """(distance)²/12 of the levels; 0 for continuous data."""
    if levels is None or data_range is None:
        return 0.0
    return ((data_range[1] - data_range[0]) / (levels - 1)) ** 2 / 12


class _Constant:
    """The same for every image, float64."""

    def __init__(self, variance: npt.ArrayLike) -> None:
        self.variance = torch.from_numpy(np.array(variance, dtype=np.float64))

    def __call__(self, posterior: Posterior, kernel: ReverseKernel) -> torch.Tensor:
        return self.variance.to(posterior.mean.device)


class _OwnVariance:
    """The pixel-diagonal variances of a reverse covariance in the step to clean data."""

    def __init__(self, covariance: ReverseCovariance) -> None:
        self.covariance = covariance

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> torch.Tensor:
        found = self.covariance(posterior, kernel)
        if found is None or bool((found.variance <= 0).any()):
            raise InputError(
                f"the decoder's variance ({self.covariance.name}, step {kernel}) is zero somewhere, so that the image "
                "has no probability; choose another decoder_variance."
            )
        if not found.diagonal or found.structure.name not in PIXEL_DIAGONAL:
            structure = found.structure.name if found.diagonal else "full"
            raise InputError(
                f"decoder_variance='covariance' has the structure {structure!r}, but the discretised "
                "decoder is diagonal in pixels; use 'beta_tilde', 'table', 'isotropic', 'pixel' or a number "
                "(density_bound takes any structure)."
            )
        return found.variance.double()
