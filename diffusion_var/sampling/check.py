"""A short check of a model and its table: where β̃, β and the optimal variance put too little or too much noise.

By the law of total variance x_s has, at every index s of a right sampler, the variance of q(x_s):

    E‖x_s − α_s μ‖²/d = α_s² Var x_0 + σ_s².

A few images are drawn with each choice, and the variance of their x_s is compared with that; beside it stands the
cause, the variance of the step's noise divided by the optimal one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.fixed import FixedLarge, FixedSmall
from ..covariance.reverse import ReverseCovariance
from ..errors import InputError
from ..models.denoiser import Denoiser, check_denoiser
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.steps import resolve
from ..variance.table import VarianceTable
from .sampler import Sampler

_ROWS = 10
_NOTEWORTHY = 0.01  # of the optimal variance
_SIGNS = {"beta_tilde": "β̃", "beta": "β", "analytic": "analytic"}


@dataclass(frozen=True)
class CheckedStep:
    """One step t → s; by choice (beta_tilde, beta, analytic).

    Attributes:
        t, s: the indices; None off the schedule's grid.
        name: of the step, for people.
        expected: α_s² Var x_0 + σ_s², squared data units.
        total: variance of x_s in the run, divided by `expected`.
        noise: variance of the step's noise, divided by the optimal one; empty for the step to 0, which adds none.
    """

    t: int | None
    s: int | None
    name: str
    expected: float
    total: dict[str, float]
    noise: dict[str, float]


@dataclass(frozen=True)
class VarianceCheck:
    """What `check` found; printed as at most 20 lines."""

    steps: list[CheckedStep] = field(repr=False)
    images: int

    def __str__(self) -> str:
        rows = [
            f"{len(self.steps)} DDPM steps, {self.images} images: the noise of each step in units of the optimal one,",
            "and the total variance of x_s in units of the data's own at that noise level (1 is right for both)",
            "  step             " + "".join(f"{sign:>10} noise    total" for sign in _SIGNS.values()),
        ]
        shown = sorted({int(k) for k in np.linspace(0, len(self.steps) - 1, _ROWS + 1).round()})
        for step in (self.steps[k] for k in shown):
            noise = {name: f"{step.noise[name]:.3f}" if step.noise else "none" for name in _SIGNS}
            cells = "".join(f"{noise[name]:>16} {step.total[name]:8.3f}" for name in _SIGNS)
            rows.append(f"  {step.name:<17}{cells}")
        return "\n".join([*rows, *(self._verdict(name) for name in _SIGNS)])

    def _verdict(self, name: str) -> str:
        noisy = [step for step in self.steps if step.noise]
        end = self.steps[-1].total[name]
        text = f"{_SIGNS[name]}: images end with {end:.2f} of the data's variance"
        if name == "analytic" or not noisy:
            return text + "."
        low, high = (pick(noisy, key=lambda step: step.noise[name]) for pick in (min, max))
        parts = []
        if low.noise[name] < 1 - _NOTEWORTHY:
            parts.append(f"too little noise, down to {low.noise[name]:.2g} of the optimum from {low.name}")
        if high.noise[name] > 1 + _NOTEWORTHY:
            parts.append(f"too much noise, up to {high.noise[name]:.2g} times the optimum from {high.name}")
        return f"{text}; {', and '.join(parts)}." if parts else text + "."


def check(
    table: VarianceTable,
    denoiser: Denoiser,
    steps: int | Sequence[int] | Sequence[NoiseLevel] = 10,
    count: int = 64,
    seed: int = 0,
    structure: str = "isotropic",
    conditions: Any = None,
    batch_size: int = 64,
    show: bool = True,
) -> VarianceCheck:
    """Draw a few images (η = 1) with β̃, β and the table's variance; print where there is too little or too much noise.

    Args:
        table: made for this denoiser and from images.
        denoiser: the model.
        steps: number of steps, indices, or noise levels.
        count: images to draw with each; the totals have a relative error of a few per cent with 64.
        seed: of every random number; the three runs share theirs.
        structure: of the analytic covariance.
        conditions: None, or one per image, as `Sampler.stream` takes them.
        batch_size: images at once.
        show: print the result.

    Raises InputError for a table that does not fit, or of published arrays (they know no data).
    """
    if not isinstance(table, VarianceTable) or not isinstance(denoiser, Denoiser):
        raise InputError(
            f"check takes a variance table and its denoiser, but got {type(table).__name__} and "
            f"{type(denoiser).__name__}."
        )
    check_denoiser(denoiser, "check")
    table.check(denoiser)
    if table.data is None:
        raise InputError("this table was made from published arrays and knows no data to compare with; estimate one.")
    count, batch_size = (checks.whole(k, v, least=1) for k, v in (("count", count), ("batch_size", batch_size)))
    choices: dict[str, ReverseCovariance] = {
        "beta_tilde": FixedSmall(),
        "beta": FixedLarge(),
        "analytic": Analytic(table, structure=structure),
    }
    indices = resolve(denoiser.schedule, steps)
    kernels = Sampler(denoiser, choices["analytic"], indices).kernels
    totals = {
        name: _total_variances(Sampler(denoiser, choice, indices), table, count, seed, conditions, batch_size)
        for name, choice in choices.items()
    }
    found = [_step(table, k, {name: totals[name][k.level_s] for name in choices}) for k in kernels]
    result = VarianceCheck(found, count)
    if show:
        print(result)
    return result


def _total_variances(
    sampler: Sampler, table: VarianceTable, images: int, seed: int, conditions: Any, batch_size: int
) -> dict[NoiseLevel, float]:
    """E‖x_s − α_s μ‖²/d of one run, by s."""
    assert table.data is not None
    mean = torch.from_numpy(table.data.mean)
    sums: dict[NoiseLevel, float] = {}

    def visit(kernel: ReverseKernel, x: torch.Tensor) -> None:
        centred = x.double() - kernel.alpha_s * mean.to(x.device)
        square = float(centred.square().flatten(1).mean(1).sum())
        sums[kernel.level_s] = sums.get(kernel.level_s, 0.0) + square

    for _ in sampler.stream(range(images), seed, batch_size, conditions, visit=visit):
        pass
    return {s: total / images for s, total in sums.items()}


def _step(table: VarianceTable, kernel: ReverseKernel, totals: dict[str, float]) -> CheckedStep:
    assert table.data is not None
    expected = kernel.alpha_s**2 * float(table.data.pixel_variance.mean()) + kernel.sigma_s**2
    noise: dict[str, float] = {}
    if not kernel.last:
        best = float(Analytic(table).variance(kernel))
        noise = {"beta_tilde": kernel.beta_tilde / best, "beta": kernel.beta / best, "analytic": 1.0}
    total = {name: value / expected if expected else math.nan for name, value in totals.items()}
    return CheckedStep(kernel.t, kernel.s, str(kernel), expected, total, noise)
