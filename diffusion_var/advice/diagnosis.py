"""What the doctor found, as plain data and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..process.schedule import Float64Array
from .trial import Tried

Verdict = Literal["fits", "poor", "another", "none"]


@dataclass(frozen=True)
class Fit:
    """How well one convention fits.

    Attributes:
        convention: which, in words and as arguments (plain data).
        differences: from what is declared, a phrase each; empty for the declared one.
        residual: (L,) mean squared error of x̂_0 per dimension at each level, squared data units; nan where the
            convention's schedule has no such level.
        linear: (L,) that of the best linear denoiser for the same draws.
        gain: by how much its residuals are smaller than the declared one's: mean log ratio over levels.
        gain_error: standard error of that, over images.
    """

    convention: dict[str, Any]
    differences: tuple[str, ...]
    residual: Float64Array = field(repr=False)
    linear: Float64Array = field(repr=False)
    gain: float
    gain_error: float

    @property
    def ratio(self) -> Float64Array:
        """(L,) residual over the linear denoiser's error: above 1, a linear denoiser would do better."""
        return self.residual / self.linear

    @property
    def name(self) -> str:
        """Of the convention, in words."""
        return ", ".join(self.differences) if self.differences else "what is declared"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; nan becomes None."""
        numbers = {name: _plain(getattr(self, name)) for name in ("residual", "linear", "ratio")}
        fit = {"gain": self.gain, "gain_error": self.gain_error}
        return {"convention": self.convention, "differences": [*self.differences], **numbers, **fit}


@dataclass(frozen=True)
class Diagnosis:
    """Whether a network does what is declared of it.

    Attributes:
        verdict: "fits": all is well; "poor": no convention fits better, and at some level the mean is worse than a
            linear denoiser's; "another": another convention fits better, `best`; "none": at most levels the mean is
            more than twice as wrong as a linear denoiser's, whatever it is taken for.
        declared, best: how well the declared convention fits, and the best one (the same, unless "another" or "none").
        others: the next best, best first.
        levels: (L,) log of α² Var(x_0)/σ², where they were tried.
        indices: (L,) those of the declared schedule there; 0 where it has none.
        tried: how many conventions.
        images, evaluations: how many images, and network evaluations.
    """

    verdict: Verdict
    declared: Fit
    best: Fit
    others: tuple[Fit, ...] = field(repr=False)
    levels: tuple[float, ...]
    indices: tuple[int, ...]
    tried: int
    images: int
    evaluations: int

    @property
    def ok(self) -> bool:
        """Whether nothing better than what is declared was found."""
        return self.verdict in ("fits", "poor")

    @property
    def worse_than_linear(self) -> tuple[int, ...]:
        """The declared indices at which the mean is worse than the best linear denoiser's, by more than a tenth."""
        pairs = zip(self.indices, self.declared.ratio, strict=True)
        return tuple(sorted(n for n, ratio in pairs if ratio > WORSE))

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        low, high = np.nanmin(self.declared.ratio), np.nanmax(self.declared.ratio)
        range_ = f"{low:.2g} to {high:.2g} times the best linear denoiser's at {len(self.levels)} noise levels"
        if self.verdict == "fits":
            others = f", and no other of {self.tried} conventions fits better" if self.tried > 1 else ""
            return f"all is well: as declared, the mean's squared error is {range_}{others}."
        if self.verdict == "poor":
            where = ", ".join(map(str, self.worse_than_linear))
            return (
                f"declared rightly, as far as can be told: none of {self.tried} conventions fits better; but the mean "
                f"is imperfect, and worse than the best linear denoiser's at n={where} (its squared error is {range_})."
            )
        if self.verdict == "another":
            return (
                f"the network does not seem to do what is declared, by which its squared error is {range_}; another "
                f"convention makes it {np.exp(self.best.gain):.3g} times smaller ({np.nanmin(self.best.ratio):.2g} to "
                f"{np.nanmax(self.best.ratio):.2g} times the linear one's): {self.best.name}."
            )
        return (
            f"none of {self.tried} conventions makes sense of this network: as declared, its squared error is "
            f"{range_}; check that it is trained, and on such images."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "declared": self.declared.to_dict(),
            "best": self.best.to_dict(),
            "others": [fit.to_dict() for fit in self.others],
            "levels": [*self.levels],
            "indices": [*self.indices],
            "tried": self.tried,
            "images": self.images,
            "evaluations": self.evaluations,
        }

    def __str__(self) -> str:
        rows = [self.sentence]
        shown = [("as declared", self.declared)]
        if self.best.differences:
            shown.append((f"best: {self.best.name}", self.best))
        shown += [(fit.name, fit) for fit in self.others]
        rows.append("squared error over the best linear denoiser's, by index of the declared schedule:")
        rows.append("  n        " + "".join(f"{n or '–':>8}" for n in self.indices))
        for name, fit in shown:
            cells = "".join("       –" if np.isnan(r) else f"{r:8.3g}" for r in fit.ratio)
            rows.append(f"           {cells}  {name}")
        rows.append(f"{self.tried} conventions, {self.images} images, {self.evaluations:,} network evaluations")
        return "\n".join(rows)


#: Above this ratio to the linear denoiser's error, whose moments are those of the images themselves, a mean is worse.
WORSE = 1.1


def fit_of(tried: Tried, declared: Tried, gain: tuple[float, float]) -> Fit:
    """What is kept of a trial."""
    convention = tried.convention
    return Fit(
        convention.plain(),
        tuple(convention.differences(declared.convention)),
        tried.residual.mean(1),
        tried.linear.mean(1),
        *gain,
    )


def _plain(values: Float64Array) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
