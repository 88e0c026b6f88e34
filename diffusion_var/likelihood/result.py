"""What a likelihood bound comes to: its value, its parts, and two kinds of standard error."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..process.level import NoiseLevel
from ..process.steps import describe

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LikelihoodBound:
    """An upper bound on −log₂ p(x_0) per dimension, averaged over images.

    Attributes:
        kind: "discrete": bits/dim of quantised images; "density": bits/dim of a density (of continuous data or
            latents; it depends on their unit and may be negative: never compare the two).
        value: bits/dim.
        standard_error: of the mean over images like these: it knows the spread over images, noise and sampled steps.
            nan for one image.
        noise_error: of the mean over exactly these images: noise and sampled steps alone. nan with one draw an image.
        per_step: (K + 1,) bits/dim, the noisiest first: the prior's term, the K − 1 steps, the decoder's. Their sum is
            `value`.
        per_step_error: (K + 1,) standard error of each.
        steps: the indices, ascending, or the noise levels, the noisiest first.
        images, draws, evaluations: how many images, noise draws for each, and network evaluations.
        settings: what else it was computed with (plain data).
    """

    kind: Literal["discrete", "density"]
    value: float
    standard_error: float
    noise_error: float
    per_step: Float64Array = field(repr=False)
    per_step_error: Float64Array = field(repr=False)
    steps: tuple[int, ...] | tuple[NoiseLevel, ...]
    images: int
    draws: int
    evaluations: int
    settings: dict[str, Any] = field(repr=False)

    def __float__(self) -> float:
        return self.value

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return "bits/dim" if self.kind == "discrete" else "bits/dim of density"

    @property
    def labels(self) -> list[str]:
        """(K + 1,) what each entry of `per_step` is."""
        falling = [*self.steps] if isinstance(self.steps[0], NoiseLevel) else [*self.steps[::-1]]
        middle = [f"{t} to {s}" for t, s in itertools.pairwise(falling)]
        return [f"prior at {falling[0]}", *middle, f"decoder {falling[-1]} to 0"]

    @property
    def prior(self) -> float:
        """The prior's share, bits/dim."""
        return float(self.per_step[0])

    @property
    def decoder(self) -> float:
        """The decoder's share, bits/dim."""
        return float(self.per_step[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; nan becomes None."""
        numbers = {"value": self.value, "standard_error": self.standard_error, "noise_error": self.noise_error}
        parts = zip(self.labels, self.per_step, self.per_step_error, strict=True)
        return {
            "kind": self.kind,
            "unit": self.unit,
            **{name: _finite(number) for name, number in numbers.items()},
            "per_step": [{"term": name, "value": float(v), "standard_error": _finite(e)} for name, v, e in parts],
            "steps": describe(list(self.steps)),  # type: ignore[arg-type]
            "images": self.images,
            "draws": self.draws,
            "evaluations": self.evaluations,
            **self.settings,
        }

    def __str__(self) -> str:
        errors = [] if math.isnan(self.standard_error) else [f"standard error {self.standard_error:.2g}"]
        errors += [] if math.isnan(self.noise_error) else [f"of the noise alone {self.noise_error:.2g}"]
        middle = self.value - self.prior - self.decoder
        # A sum of sampled steps is only on average a bound.
        bound = "at most" if self.settings.get("step_samples") is None else "bound, from sampled steps:"
        return (
            f"{bound} {self.value:.4f} {self.unit} ({', '.join([f'{self.images:,} images', *errors])})\n"
            f"= prior {self.prior:.4f} + {len(self.steps) - 1} steps {middle:.4f} + decoder {self.decoder:.4f}"
        )


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
