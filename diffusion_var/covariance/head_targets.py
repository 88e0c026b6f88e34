"""What a head learns: the state-dependent variance of x_0 given x_t, as a multiple ρ of the table's v_t [E9].

With g = (α²/σ²) v_t, the table's variance in units of the noise, the regression targets y, E[y|x_t] = g ρ(x_t), are

    NPR   y = (α²/σ²)(x_0 − x̂_0)²,  which is (ε − ε̂)² where nothing is clipped     (arXiv:2206.07309, eq. 15)
    SN    y = ε² − ε̂²                                                               (arXiv:2206.07309, eq. 12)
    OCM   y = 1 − σ r ⊙ ∂(ε̂·r)/∂x_t,  r = ±1 at random                              (arXiv:2406.10808, eq. 11)

element by element. SN and OCM take ε̂ for the posterior mean of ε; NPR is right for the mean in use, whatever it is.
Per image and band b of coefficients, `BandTarget` learns how much of a structure's variances v_k there is:

    factor  ρ_b(x_t) ≈ E[ mean over k in b of (B (x_0 − x̂_0))_k² / v_k | x_t ],   b a (rotated) channel as a whole
    bands   the same, b a band of frequencies of a rotated channel (`process.bands`)

Every loss has E[y|x_t] as its minimum, and differs in what it lets count ("weighting"):

    papers       g² (y/g − ρ)², the published ones: the few indices with the largest g are all that counts.
    table        (y/g − ρ)² over the mean square error that y/g has about ρ = 1, which the table tells: 2, the variance
                 of a squared Gaussian; for SN (4 ε̂² + 2 g)/g ≈ (4 (1 − g) + 2 g)/g, since there ε̂² is taken out in
                 the mean only; and for SN and OCM besides the square of what the table's estimators disagree by
                 (`Prior.gap`): near pure noise, where g is small, an imperfect mean leaves those two nothing to learn
                 from.
    likelihood   the bound's own terms (`step_loss`), of steps from t to an index s drawn at random: each index and
                 pixel counts for what it costs in bits. For NPR and bands; SN's and OCM's y may be negative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import InputError
from ..models.posterior import Posterior
from ..process.bands import Bands

Weighting = Literal["table", "likelihood", "papers"]
TINY = 1e-12
#: Least floor of `step_loss` in units of the mean variance: elements that are always exact (a plain border, clipped)
#: would otherwise gain without end.
LEAST_FLOOR = 1e-3
#: Elements with less than this part of the mean variance say nothing of a band: their (·)²/v would drown the rest.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class HeadDraw:
    """Noisy images and what is known of them.

    Attributes:
        x_0, eps: (B, C, *spatial).
        posterior: at x_t, without a graph.
        sigma: (B, 1, …).
        g: (B, 1, …): (α²/σ²) times the table's isotropic v_t.
        gap: (B, 1, …): by how much the table's estimators disagree, in units of v (see `Prior.gap`).
        v: (B, 1, …) isotropic v_t; for `BandTarget` the structure's, (B, C, *spatial).
        floor: (B, 1, …): λ²/γ² of a step from t to a random s (`noise_floor`).
        probe: (B, C, *spatial) of ±1 and its vector-Jacobian product ∂(ε̂·r)/∂x_t, where a target needs them.
    """

    x_0: torch.Tensor
    eps: torch.Tensor
    posterior: Posterior
    sigma: torch.Tensor
    g: torch.Tensor
    gap: torch.Tensor
    v: torch.Tensor
    floor: torch.Tensor
    probe: tuple[torch.Tensor, torch.Tensor] | None = None


class Target(ABC):
    """A regression target in units of the table's variance; see the module docstring."""

    name: str
    #: Whether it is right for any mean, or takes the network's for the posterior's.
    any_mean = False
    #: Whether a draw needs a vector-Jacobian product of the trunk.
    needs_probe = False

    @abstractmethod
    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        """y/g of each element, like x_0; of each band, (B, L) float64."""

    def error_square(self, g: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        """About the mean square of y/g − ρ, where ρ = 1; like g."""
        return torch.full_like(g, 2.0)

    def loss(self, predicted: torch.Tensor, draw: HeadDraw, weighting: Weighting) -> torch.Tensor:
        """The loss of predicted ρ, averaged over the batch and its elements; ()."""
        if weighting == "likelihood":
            return self.likelihood_loss(predicted, draw)
        weight = draw.g**2 if weighting == "papers" else 1.0 / self.error_square(draw.g, draw.gap)
        return (weight * (self.ratio(draw) - predicted).square()).mean()

    def likelihood_loss(self, predicted: torch.Tensor, draw: HeadDraw) -> torch.Tensor:
        """The bound's own terms; InputError for targets that are no squares."""
        raise no_likelihood(self.name)

    @abstractmethod
    def published(self, raw: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        """g ρ from what the papers' heads say: y plus whatever their target leaves in it."""


def no_likelihood(target: str) -> InputError:
    """What is said of a target that the weighting "likelihood" has no sense for."""
    return InputError(f"the target {target!r} may be negative, so that it has no likelihood; use weighting='table'.")


def step_loss(
    square: torch.Tensor, v: torch.Tensor, ratio: torch.Tensor, floor: torch.Tensor, least: float | torch.Tensor
) -> torch.Tensor:
    """What a step of the bound costs with variance ρ v instead of v, in nats an element ([E10] over γ²):

        ½ [ log((F + ρ v)/(F + v)) + (F + (x_0 − x̂_0)²)/(F + ρ v) − 1 ],     F = λ²/γ².

    Args: (x_0 − x̂_0)², v, ρ, F (broadcast), and the least F.
    """
    floor = torch.maximum(floor, torch.as_tensor(least, dtype=floor.dtype, device=floor.device))
    variance = floor + ratio * v
    return 0.5 * ((variance / (floor + v)).log() + (floor + square) / variance - 1.0)


class NprTarget(Target):
    """Noise prediction residual: the squared error of the mean that is used."""

    name, any_mean = "npr", True

    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        return (draw.x_0 - draw.posterior.mean).square() / draw.v

    def likelihood_loss(self, predicted: torch.Tensor, draw: HeadDraw) -> torch.Tensor:
        square = (draw.x_0 - draw.posterior.mean).square()
        return step_loss(square, draw.v, predicted, draw.floor, LEAST_FLOOR * draw.v).mean()

    def published(self, raw: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        return raw


class NoiseResidualTarget(NprTarget):
    """NPR to the letter of its paper: the residual of ε̂ as the network gives it, also where x̂_0 is clipped."""

    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        return (draw.eps - draw.posterior.eps).square() / draw.g.clamp(min=TINY)


class SnTarget(Target):
    """Squared noise: E[ε²|x_t] less the square of the mean. Right if the mean is exact."""

    name = "sn"

    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        return (draw.eps.square() - draw.posterior.eps.square()) / draw.g.clamp(min=TINY)

    def error_square(self, g: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        return (4.0 * (1.0 - g).clamp(min=0.0) + 2.0 * g) / g.clamp(min=TINY) + gap.square()

    def published(self, raw: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        return raw - posterior.eps.square()


class OcmTarget(Target):
    """Optimal covariance matching: the diagonal of the network's Jacobian, probed. Right if the mean is exact."""

    name, needs_probe = "ocm", True

    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        assert draw.probe is not None
        probe, product = draw.probe
        return (1.0 - draw.sigma * probe * product) / draw.g.clamp(min=TINY)

    def error_square(self, g: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        return 2.0 + gap.square()

    def published(self, raw: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        return 1.0 + raw


class BandTarget(Target):
    """How much of a structure's variances there is, per image and band; right for any mean.

    Args:
        name: "factor", of one band for each channel, or "bands".
        forward: B of the structure, images to coefficients.
        bands: of these coefficients.
    """

    any_mean = True

    def __init__(self, name: str, forward: Callable[[torch.Tensor], torch.Tensor], bands: Bands) -> None:
        self.name, self.forward, self.bands = name, forward, bands

    def ratio(self, draw: HeadDraw) -> torch.Tensor:
        square = self.forward(draw.x_0 - draw.posterior.mean).square()
        counts = draw.v >= NEGLIGIBLE * _image_mean(draw.v)
        share = self.bands.sum(torch.where(counts, square / draw.v.clamp(min=TINY**2), 0.0))
        # A band without any counted element stays what the table says.
        number = self.bands.sum(counts)
        return torch.where(number > 0, share / number.clamp(min=1), 1.0)

    def loss(self, predicted: torch.Tensor, draw: HeadDraw, weighting: Weighting) -> torch.Tensor:
        if weighting == "likelihood":
            return self.likelihood_loss(predicted, draw)
        # Its noise is the same at every index already, and the less the more elements a band has.
        sizes = self.bands.sizes.to(predicted.device)
        return (0.5 * (sizes / sizes.mean()) * (self.ratio(draw) - predicted).square()).mean()

    def likelihood_loss(self, predicted: torch.Tensor, draw: HeadDraw) -> torch.Tensor:
        square = self.forward(draw.x_0 - draw.posterior.mean).square()
        least = LEAST_FLOOR * _image_mean(draw.v)
        return step_loss(square, draw.v, self.bands.spread(predicted), draw.floor, least).mean()

    def published(self, raw: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        raise InputError(f"the target {self.name!r} is not one of the papers'; use output='ratio'.")


def _image_mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean(dim=tuple(range(1, values.ndim)), keepdim=True)


PIXEL_TARGETS: dict[str, Callable[[], Target]] = {"npr": NprTarget, "sn": SnTarget, "ocm": OcmTarget}
#: As their papers have them, which say nothing of clipping.
PUBLISHED_TARGETS: dict[str, Callable[[], Target]] = {**PIXEL_TARGETS, "npr": NoiseResidualTarget}
#: Of a multiple for each band, of a pixel or dct structure's variances.
BAND_TARGETS = ("factor", "bands")
TARGET_NAMES = (*PIXEL_TARGETS, *BAND_TARGETS)


def positive_ratio(raw: torch.Tensor) -> torch.Tensor:
    """ρ = softplus(raw + log(e − 1)): 1 where raw is 0, positive everywhere; linear for large ρ, so that the squared
    error keeps its expectation as minimum, and exponential for small ones, so that a variance can all but vanish."""
    return torch.nn.functional.softplus(raw + math.log(math.e - 1.0))
