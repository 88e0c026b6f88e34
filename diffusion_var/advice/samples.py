"""Short sampling experiments: whether a measured variance gives better samples than none, and which.

What a table says does not decide it (docs/advise.md), so images are drawn with each choice, from the same noise, and
compared with the held-out ones by the Fréchet distance in some features: a quarter of them with every choice, all of
them with DDIM, DDPM, and the best choice with a table at η = 0 and at η = 1. A choice is told apart from another by the
jackknife over ten groups of images, at 5 % shared by all choices with a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ..covariance.analytic import Analytic
from ..covariance.fixed import FixedSmall
from ..covariance.reverse import ReverseCovariance
from ..metrics.networks import FeatureNetwork, load_features
from ..metrics.sample import collect
from ..models.conditions import rows_of
from ..models.denoiser import Denoiser
from ..process import steps as step_lists
from ..process.schedule import Float64Array
from ..randomness import generator
from ..sampling.sampler import Sampler
from ..variance.table import VarianceTable
from .distances import Difference, Distances, distances, paired
from .kept import Kept

GROUPS = 10
_IN_FULL = 4  # choices: two without a table, two with
Spacing = Literal["linspace", "quadratic", "log_snr"]
SPACINGS: tuple[Spacing, ...] = ("linspace", "quadratic", "log_snr")


@dataclass(frozen=True)
class Choice:
    """A way to sample: `structure` None is DDPM's β̃ (η = 1) or DDIM (η = 0), which need no table."""

    structure: str | None = None
    eta: float = 0.0
    final_noise_cap: float | None = None
    spacing: Spacing = "linspace"

    @property
    def measured(self) -> bool:
        """Whether it needs a table."""
        return self.structure is not None

    @property
    def name(self) -> str:
        """As comparisons call it."""
        cap = "" if self.final_noise_cap is None else f", cap {self.final_noise_cap:g}"
        spacing = "" if self.spacing == "linspace" else f", {self.spacing} steps"
        if self.structure is None:
            return ("DDPM β̃" if self.eta else "DDIM") + spacing
        return f"Analytic-{'DDPM' if self.eta else 'DDIM'} {self.structure}{cap}{spacing}"

    def covariance(self, table: VarianceTable) -> ReverseCovariance:
        """Its reverse covariance."""
        return FixedSmall() if self.structure is None else Analytic(table, structure=self.structure)

    def sampler(self, denoiser: Denoiser, table: VarianceTable, steps: int) -> Sampler:
        """A sampler of so many steps."""
        spread = {"linspace": step_lists.linspace, "quadratic": step_lists.quadratic, "log_snr": step_lists.log_snr}
        path = spread[self.spacing](denoiser.schedule, steps)
        return Sampler(denoiser, self.covariance(table), path, eta=self.eta, final_noise_cap=self.final_noise_cap)

    def code(self, steps: int) -> str:
        """The line of Python that makes it."""
        covariance = (
            "dv.FixedSmall()" if self.structure is None else f'dv.Analytic(table, structure="{self.structure}")'
        )
        cap = "" if self.final_noise_cap is None else f", final_noise_cap={self.final_noise_cap:g}"
        path = str(steps) if self.spacing == "linspace" else f"dv.steps.{self.spacing}(denoiser, {steps})"
        return f"dv.Sampler(denoiser, {covariance}, steps={path}, eta={self.eta:g}{cap})"


def choices(capped: bool) -> list[Choice]:
    """What is tried: the two without a table first. A cap needs a data range."""
    caps = (None, 1.0) if capped else (None,)
    return [
        Choice(eta=1.0),
        Choice(eta=0.0),
        *(Choice("dct", eta, cap) for eta in (0.0, 1.0) for cap in caps),
        Choice("isotropic", 0.0, caps[-1]),
    ]


@dataclass(frozen=True)
class Tested:
    """What was found at one number of steps.

    Attributes:
        steps: K.
        distances: (choice's name, distance, standard error) of the choices that were drawn in full, in even steps; the
            floor is in `Samples`.
        first_look: the same of every choice, of the first quarter of the images: larger, for they are fewer.
        rival, best: the best choice without a table, and the best with one, by their distances.
        gain: the rival's distance less the best's.
        comparisons: how many choices with a table were compared, which share the 5 %.
        spacing: of what is advised: even steps, unless others were told apart as better.
        spacing_gain: what these gain; None where they were not tried.
        leaning: whether the measured variance is taken though it is not told apart, for it is at another number of
            steps, and has the lower distance here, too.
    """

    steps: int
    distances: tuple[tuple[str, float, float], ...]
    first_look: tuple[tuple[str, float, float], ...]
    rival: Choice
    best: Choice
    gain: Difference
    comparisons: int
    spacing: Spacing = "linspace"
    spacing_gain: Difference | None = None
    leaning: bool = False

    @property
    def verdict(self) -> Literal["yes", "no", "not told apart"]:
        """Whether the measured variance gives better samples here."""
        if not self.gain.told_apart(self.comparisons):
            return "not told apart"
        return "yes" if self.gain.value > 0 else "no"

    @property
    def advised(self) -> Choice:
        """The best choice with a table where it is better beyond doubt (or leaning), else the best without."""
        chosen = self.best if self.verdict == "yes" or self.leaning else self.rival
        return replace(chosen, spacing=self.spacing)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        spacing = self.spacing_gain
        return {
            "steps": self.steps,
            "verdict": self.verdict,
            "leaning": self.leaning,
            "advised": self.advised.name,
            "code": self.advised.code(self.steps),
            "rival": self.rival.name,
            "best": self.best.name,
            "gain": self.gain.value,
            "gain_error": self.gain.error,
            "p": self.gain.p,
            "distances": [{"method": m, "value": v, "standard_error": e} for m, v, e in self.distances],
            "first_look": [{"method": m, "value": v, "standard_error": e} for m, v, e in self.first_look],
            "spacing": self.spacing,
            "spacing_gain": None if spacing is None else spacing.value,
            "spacing_p": None if spacing is None else spacing.p,
        }


@dataclass(frozen=True)
class Samples:
    """What sampling experiments found.

    Attributes:
        tested: for every number of steps.
        features: what the distance is measured in.
        count: images drawn with each of the best choices.
        reference: held-out images compared with.
        floor: the distance of as many other real images, where there are some; None where there are too few.
    """

    tested: tuple[Tested, ...]
    features: str
    count: int
    reference: int
    floor: float | None = field(default=None)

    @property
    def worth_it(self) -> bool:
        """Whether the measured variance gives better samples at any number of steps."""
        return any(tested.verdict == "yes" for tested in self.tested)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        named = {"features": self.features, "count": self.count, "reference": self.reference, "floor": self.floor}
        return {"worth_it": self.worth_it, **named, "tested": [tested.to_dict() for tested in self.tested]}


def leaning(tested: Sequence[Tested]) -> tuple[Tested, ...]:
    """With what is told apart at one number of steps taken at others, too, where its distance is lower."""
    if not any(t.verdict == "yes" for t in tested):
        return tuple(tested)
    doubtful = [t.verdict == "not told apart" and t.gain.value > 0 for t in tested]
    return tuple(
        replace(t, leaning=True, spacing="linspace", spacing_gain=None) if doubt else t
        for t, doubt in zip(tested, doubtful, strict=True)
    )


class Features:
    """From images in the data range to features: the values themselves ("pixels"), or those of a feature network."""

    def __init__(self, features: str | FeatureNetwork, data_range: tuple[float, float] | None, codec: Any) -> None:
        self.network = None if isinstance(features, str) and features == "pixels" else load_features(features)
        self.name = "pixels" if self.network is None else self.network.name
        self._range, self._codec = data_range, codec

    def __call__(self, images: torch.Tensor) -> Float64Array:
        """(M, D) of images (M, C, *spatial)."""
        data_range = self._range
        if self.network is None:
            return np.asarray(images.double().flatten(1).numpy())
        if self._codec is not None:
            images, data_range = self._codec.decode(images), (-1.0, 1.0)
        data_range = data_range or (-1.0, 1.0)
        found = collect(images.clamp(*data_range), self.network, keep=True, data_range=data_range, name="samples")
        return np.asarray(found.features, dtype=np.float64)


class SampleTrial:
    """Draws images with choices, and compares them.

    Args:
        denoiser, table: the model and its table.
        reference: (R, D) features of held-out images.
        features: how features are made of samples.
        count: images with each choice, a multiple of `GROUPS`.
        conditions: the conditions of these, or None.
        seed, batch_size: of sampling.
        kept: where features of samples are kept.
        told: is given the evaluations of each experiment.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        table: VarianceTable,
        reference: Float64Array,
        features: Features,
        count: int,
        conditions: Any,
        seed: int,
        batch_size: int,
        kept: Kept,
        told: Callable[[int], object],
    ) -> None:
        self.denoiser, self.table, self.reference, self.features = denoiser, table, reference, features
        self.count, self.conditions, self.seed, self.batch_size = count, conditions, seed, batch_size
        self.kept, self.told = kept, told

    def test(self, steps: int, spacings: bool) -> Tested:
        """A look at all choices in even steps, the best of them in full, then other steps for what is advised."""
        tried = choices(self.denoiser.data_range is not None)
        look = {choice: self._distances(choice, steps, first_look(self.count)) for choice in tried}
        measured = [
            min((c for c in tried if c.measured and c.eta == eta), key=lambda choice: look[choice].value)
            for eta in (0.0, 1.0)
        ]
        fixed = [choice for choice in tried if not choice.measured]
        found = {choice: self._distances(choice, steps, self.count) for choice in (*fixed, *measured)}
        rival = min(fixed, key=lambda choice: found[choice].value)
        best = min(measured, key=lambda choice: found[choice].value)
        tested = Tested(
            steps,
            tuple((choice.name, d.value, d.error) for choice, d in found.items()),
            tuple((choice.name, d.value, d.error) for choice, d in look.items()),
            rival,
            best,
            paired(found[rival], found[best]),
            sum(choice.measured for choice in tried),
        )
        return self._spaced(tested, found[tested.advised]) if spacings else tested

    def _spaced(self, tested: Tested, even: Distances) -> Tested:
        """Whether other spacings are better for what is advised."""
        others = {
            s: self._distances(replace(tested.advised, spacing=s), tested.steps, self.count) for s in SPACINGS[1:]
        }
        best = min(others, key=lambda s: others[s].value)
        gain = paired(even, others[best])
        better = gain.value > 0 and gain.told_apart(len(others))
        return replace(tested, spacing=best if better else "linspace", spacing_gain=gain)

    def _distances(self, choice: Choice, steps: int, count: int) -> Distances:
        """Of the first `count` images of a choice, drawn in two parts."""
        name = "".join(c if c.isalnum() else "_" for c in f"{choice.name} {steps}".replace("β̃", "beta_tilde"))
        look, width = first_look(self.count), self.reference.shape[1]
        parts = [range(look)] + ([range(look, count)] if count > look else [])
        drawn = [
            self.kept.get(f"{name}_{p.start}_{p.stop}", (len(p), width), partial(self._draw, choice, steps, p))
            for p in parts
        ]
        return distances(np.concatenate(drawn), self.reference, GROUPS)

    def _draw(self, choice: Choice, steps: int, part: range) -> Float64Array:
        sampler = choice.sampler(self.denoiser, self.table, steps)
        conditions = None if self.conditions is None else rows_of(self.conditions, slice(part.start, part.stop))
        images = torch.cat([*sampler.stream(part, self.seed, self.batch_size, conditions)])
        self.told(len(part) * len(sampler.kernels))
        return self.features(images)


def first_look(count: int) -> int:
    """Of how many images every choice is drawn: a quarter of them, in whole groups, and no fewer than 40."""
    return min(max(count // 4, 4 * GROUPS) // GROUPS * GROUPS, count)


def drawn_images(count: int, tried: int, spacings: bool) -> int:
    """How many images are drawn for one number of steps, so many choices being tried."""
    return tried * first_look(count) + _IN_FULL * (count - first_look(count)) + (len(SPACINGS) - 1) * count * spacings


def conditions_of(given: Any, count: int, seed: int) -> Any:
    """Conditions for `count` samples, as the images have them; None without any."""
    if given is None:
        return None
    stream = generator(seed, "advice conditions")
    images = stream.integers(len(given.of_image), size=count) if given.of_image is not None else np.arange(count)
    return given.take(given.pick(images, stream))
