"""Trying conventions on images: the residual of x̂_0 under each, and the best linear denoiser's for the same draws.

Conventions are compared where they are equally hard, at the same signal-to-noise ratio of the data: α² Var(x_0)/σ²
in the network's own scale. There E[x_0|x_t] is equally uncertain under all of them, so that the least residual is the
best reading. Images and noise are shared, x̂_0 is cut to the range of the images' values, and errors are in the
images' own units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import checks
from ..data.fixed_images import FixedImages
from ..errors import NumericalError
from ..models.conditions import Conditions, as_conditions, rows_of
from ..models.denoiser import Denoiser
from ..process.linear import linear_gain
from ..process.schedule import Float64Array
from ..process.structure import make_structure
from ..randomness import generator
from ..variance.population import Population
from .conventions import Convention

#: log of α² Var(x_0)/σ² where conventions are tried: from where almost nothing is known of x_0 to where little is not.
LEVELS = (-4.0, -2.5, -1.0, 0.5, 2.0, 3.5, 5.0)
_OFF = 0.75  # in log SNR: a schedule without an index so near has no such level
_MOST_NUMBERS = 50_000_000  # of the images that means and variances are taken of
_LEAST, _MOST = 1e-3, 1e3  # a ratio beyond says no more


@dataclass(frozen=True)
class Place:
    """Where a convention is tried: an index of its schedule, and which noise is used there."""

    n: int
    noise: int


@dataclass(frozen=True)
class Tried:
    """One convention on images.

    Attributes:
        convention: what was tried.
        residual, linear: (P, B) mean squared error per dimension of each image at each place, squared data units; nan
            where the schedule has no such level, or the network failed.
    """

    convention: Convention
    residual: Float64Array
    linear: Float64Array

    @property
    def ratio(self) -> Float64Array:
        """(P,) residual over the linear denoiser's error."""
        return np.asarray(self.residual.mean(1) / self.linear.mean(1))

    @property
    def score(self) -> float:
        """Mean log of the ratio over places; those that are lacking count as the linear denoiser's own."""
        ratio = np.where(np.isnan(self.residual.mean(1)), 1.0, self.ratio)
        lost = bool(np.isnan(self.residual).all())
        return math.inf if lost else float(np.log(np.clip(ratio, _LEAST, _MOST)).mean())


def gain_of(other: Tried, declared: Tried) -> tuple[float, float]:
    """By how much `other` is better than `declared`, as the mean log ratio of their residuals over the places that
    both have; and the standard error over images, of the same images and noise."""
    a, b = _shared(declared, other)
    if not len(a):
        return 0.0, 0.0
    mean = float(np.mean(np.log(a.mean(1)) - np.log(b.mean(1))))
    each = (a / a.mean(1, keepdims=True) - b / b.mean(1, keepdims=True)).mean(0)
    return mean, float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0


def least_gain(other: Tried, declared: Tried) -> float:
    """The same at the place where it is least."""
    a, b = _shared(declared, other)
    return float(np.min(np.log(a.mean(1)) - np.log(b.mean(1)))) if len(a) else 0.0


def _shared(first: Tried, second: Tried) -> tuple[Float64Array, Float64Array]:
    """The residuals of two at the places that both have, none of them 0."""
    both = ~(np.isnan(first.residual).any(1) | np.isnan(second.residual).any(1))
    return np.maximum(first.residual[both], 1e-30), np.maximum(second.residual[both], 1e-30)


def has_embedding(network: Any) -> bool:
    """Whether a network looks something up in a table: its timestep, perhaps."""
    return isinstance(network, torch.nn.Module) and any(isinstance(m, torch.nn.Embedding) for m in network.modules())


class Trial:
    """Evaluates conventions, and counts evaluations.

    Args:
        denoiser: the network, as declared.
        images: as `estimate` takes them; at most so many as have 50 million numbers are used.
        conditions: as `estimate` takes them.
        seed: of the choice of images and of the noise.
        batch_size: network evaluations at once.
    """

    def __init__(self, denoiser: Denoiser, images: Any, conditions: Any, seed: int, batch_size: int) -> None:
        whole = FixedImages(images, denoiser.shape, denoiser.data_range)
        most = max(1, min(len(whole), _MOST_NUMBERS // math.prod(denoiser.shape)))
        order = generator(seed, "doctor images").permutation(len(whole))[:most]
        self.denoiser, self.seed, self.batch_size = denoiser, seed, batch_size
        self.images = whole.take(order)
        given: Conditions | None = as_conditions(conditions, len(whole))
        self._conditions = None
        if given is not None:
            given.check(denoiser.classes)
            self._conditions = given.take(given.pick(order, generator(seed, "doctor conditions")), denoiser.device)
        data = Population(self.images, denoiser.shape, denoiser.data_range).statistics
        self.evaluations = 0
        self._basis = make_structure("dct", denoiser.shape, data.rotation)
        self._mean, self._spectrum = torch.from_numpy(data.mean).float(), torch.from_numpy(data.spectrum).float()
        self.variance = float(data.pixel_variance.mean())
        checks.refuse(
            self.variance == 0.0, "images are all the same, of which nothing can be told; give different ones."
        )
        self.centre = float(data.mean.mean())
        #: Of all values together: the scale that a network's data may have been brought to.
        self.deviation = float(self.images.double().std(correction=0))
        self.bounds = float(self.images.min()), float(self.images.max())

    # ---- where -----------------------------------------------------------------------------------------------

    def places(self, convention: Convention, levels: Sequence[float]) -> list[Place | None]:
        """The indices of a convention's schedule at these levels; None where it has none near."""
        log_snr = convention.schedule.log_snr[1:]
        wanted = np.array(levels) - math.log(self.variance * convention.data.scale**2)
        nearest = np.abs(log_snr[None] - wanted[:, None]).argmin(1)
        out: list[Place | None] = []
        for k, (level, i) in enumerate(zip(wanted, nearest, strict=True)):
            near = np.isfinite(log_snr[i]) and abs(log_snr[i] - level) <= _OFF
            out.append(Place(int(i) + 1, LEVELS.index(levels[k])) if near else None)
        return out

    # ---- what -------------------------------------------------------------------------------------------------

    def declared(self, convention: Convention, places: Sequence[Place | None], count: int) -> Tried:
        """The denoiser as it is (exact denoisers have no output to be read), on the first `count` images."""
        found = [self._place(convention, place, count, [convention], as_it_is=True) for place in places]
        return Tried(convention, np.stack([r[0] for r, _ in found]), np.stack([l for _, l in found]))

    def read(self, convention: Convention, places: Sequence[Place | None], count: int) -> list[Tried]:
        """One convention's question, its output read in every way, on the first `count` images."""
        readings = [convention.read_as(*reading) for reading in convention.readings]
        found = [self._place(convention, place, count, readings) for place in places]
        linear = np.stack([l for _, l in found])
        return [Tried(reading, np.stack([r[k] for r, _ in found]), linear) for k, reading in enumerate(readings)]

    def _place(
        self,
        convention: Convention,
        place: Place | None,
        count: int,
        readings: list[Convention],
        as_it_is: bool = False,
    ) -> tuple[Float64Array, Float64Array]:
        """(readings, B) residuals and (B,) errors of the linear denoiser at one place; nan where there is none."""
        count = min(count, len(self.images))
        lacking = np.full((len(readings), count), np.nan), np.full(count, np.nan)
        if place is None or not self._may_ask(convention, place.n):
            return lacking
        noise = generator(self.seed, "doctor noise", place.noise).standard_normal((count, *self.denoiser.shape))
        eps = torch.from_numpy(noise.astype(np.float32))
        parts = [slice(k, min(k + self.batch_size, count)) for k in range(0, count, self.batch_size)]
        try:
            found = [self._batch(convention, place.n, part, eps[part], readings, as_it_is) for part in parts]
        except Exception:  # a network that is asked in another convention raises what it likes
            if as_it_is:
                raise
            return lacking  # the network takes no such timestep, or gives no numbers there
        residuals, errors = zip(*found, strict=True)
        return np.concatenate(residuals, axis=-1), np.concatenate(errors)

    def _may_ask(self, convention: Convention, n: int) -> bool:
        """Whether a timestep can do no harm. On a GPU a place that an embedding table lacks is an error that no later
        call survives: then only whole timesteps up to the declared ones are asked."""
        network = self.denoiser.network
        if self.denoiser.device.type == "cpu" or not has_embedding(network):
            return True
        told, known = convention.timestep(n), self.denoiser.schedule.timestep[1:]
        return bool(told == round(told) and known.min() <= told <= known.max())

    @torch.no_grad()
    def _batch(
        self, convention: Convention, n: int, part: slice, eps: torch.Tensor, readings: list[Convention], as_it_is: bool
    ) -> tuple[Float64Array, Float64Array]:
        x_0, data, device = self.images[part], convention.data, self.denoiser.device
        alpha, sigma = float(convention.schedule.alpha[n]), float(convention.schedule.sigma[n])
        x_t = alpha * (data.scale * x_0 + data.shift) + sigma * eps
        condition = None if self._conditions is None else rows_of(self._conditions, part)
        self.evaluations += len(x_0)
        if as_it_is:
            means = [self.denoiser(x_t.to(device), n, condition).mean.cpu()]
        else:
            output = self._output(convention, x_t.to(device), n, condition).cpu()
            means = [reading.mean(output, x_t, n, self.denoiser.sigma_data) for reading in readings]
        own = [((mean - data.shift) / data.scale).clamp(*self.bounds) for mean in means]
        residual = np.stack([(mean - x_0).double().square().flatten(1).mean(1).numpy() for mean in own])
        if not np.isfinite(residual).all():
            raise NumericalError(f"the network gave NaN or infinite values at index n={n}; check its weights.")
        return residual, self._linear_error(x_0, eps, alpha * data.scale, sigma)

    def _output(self, convention: Convention, x_t: torch.Tensor, n: int, condition: Any) -> torch.Tensor:
        dtype = torch.int64 if convention.whole else torch.float32
        timestep = torch.full((len(x_t),), convention.timestep(n), device=x_t.device).to(dtype)
        shown = convention.input(x_t, n, self.denoiser.sigma_data)
        with self.denoiser.use.evaluating(self.denoiser.network):
            return self.denoiser.raw_output(shown, timestep, condition)[0]

    def _linear_error(self, x_0: torch.Tensor, eps: torch.Tensor, alpha: float, sigma: float) -> Float64Array:
        """Of the best linear denoiser in the dct basis, for the same draws."""
        gain = linear_gain(self._spectrum, alpha, sigma)
        centred = self._basis.forward(x_0 - self._mean)
        found = gain * (alpha * centred + sigma * self._basis.forward(eps))
        return np.asarray((found - centred).double().square().flatten(1).mean(1).numpy())
