"""Steps of second order at the price of the first: shares of the last evaluation and of the covariance [E25].

Given x_t, the exact step is x_s = c x_t + γ x_0 + λ z with x_0 ~ p(x_0|x_t). A mean alone, x̂_0 for x_0, loses what γ²
Cov[x_0|x_t] adds, which is of second order in the step. In distribution it can be given back in two ways:

    noise    γ² Cov[x_0|x_t] beside λ² I, as this package's covariances do: exact for Gaussian data, and as good as the
             covariance is that one has of *this* image
    drift    ½ γ h dx̂_0/dl, with l = log α/σ, h = l_s − l_t, and for the derivative the difference of x̂_0 to the last
             evaluation, along the path: DPM-Solver++(2M) where λ = 0, its SDE form where η = 1

and just as well by a share a of the second and 1 − a of the first, whatever λ is. What the difference errs grows with
h, and what a table errs in an image does not: of two errors e_drift ∝ h and e_noise, the least sum of squares has
a/(1 − a) = (e_noise/e_drift)², which "auto" takes for 1/h²:

    a = 1/(1 + h²).

The first step has no evaluation before it and goes without the drift, as DPM-Solver++'s does: one step of first order
leaves the whole of second. With all of the covariance it would be of second order too, and was worse: what the next
difference is taken to would then hold a whole step's noise. The last, to clean data, adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from .. import checks
from ..covariance.reverse import ReverseCovariance, StructuredCovariance, check_covariance
from ..covariance.wrapping import Wrapping
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ClippedEps, ReverseKernel
from ..process.level import NoiseLevel
from .sampler import Sampler

Share = float | Literal["auto"]


def width(kernel: ReverseKernel) -> float:
    """h = l_s − l_t of l = log α/σ; infinite from a level without signal, or to clean data."""
    if kernel.last or kernel.alpha_t == 0.0:
        return math.inf
    return 0.5 * (kernel.level_s.log_snr - kernel.level_t.log_snr)


def best_share(h: float) -> float:
    """a = 1/(1 + h²) [E25]."""
    return 1.0 / (1.0 + h**2)


def multistep_drift(kernel: ReverseKernel, mean: torch.Tensor, before: torch.Tensor, h_before: float) -> torch.Tensor:
    """½ γ h dx̂_0/dl with the difference of x̂_0 at this level and at the one before, which is h_before away [E25]."""
    slope = (mean - before) / h_before
    return 0.5 * kernel.gain * width(kernel) * slope


class RestOfCovariance(Wrapping):
    """λ² I + (1 − a) (Σ − λ² I) of another covariance's Σ: what the drift leaves of γ² Cov[x_0|x_t].

    Args:
        inner: the other covariance.
        share: a, or "auto".
    """

    def __init__(self, inner: ReverseCovariance, share: Share) -> None:
        super().__init__(inner)
        self.share: Share = share

    @property
    def name(self) -> str:
        return f"{self.inner.name}, multistep {self.share if isinstance(self.share, str) else format(self.share, 'g')}"

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "multistep": self.share}

    def share_at(self, kernel: ReverseKernel) -> float:
        """a of a step; 0 where its h is infinite."""
        h = width(kernel)
        if math.isinf(h):
            return 0.0
        return best_share(h) if isinstance(self.share, str) else self.share

    def changed(self, found: StructuredCovariance) -> StructuredCovariance:
        """Cov[x_0|x_t] itself, of which nothing is left out."""
        return found

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        found = super().__call__(posterior, kernel)
        a = self.share_at(kernel)
        if found is None or a == 0.0:
            return found
        extra = (found.variance.double() - kernel.lambda2).clamp_min(0.0)  # below λ² is rounding
        return StructuredCovariance(found.structure, (kernel.lambda2 + (1.0 - a) * extra).to(found.variance.dtype))


class MultistepSampler(Sampler):
    """A sampler whose steps take a share of their second order from the last evaluation, and the rest from the
    covariance; used like a `Sampler`, one evaluation a step.

    Args:
        denoiser, covariance, steps: see `Sampler`; steps evenly spaced in log-SNR are usual (`steps.log_snr_levels`).
        eta: 0 (the default) adds no noise but the covariance's.
        share: a, from 0 (`Sampler`'s own steps) to 1 (with η = 0 DPM-Solver++(2M), whatever the covariance); "auto":
            1/(1 + h²) of each step, for a mean that is nearly exact. Where the mean errs, more was better (0.75).
        final_noise_cap, clipped_eps, tau, low_start, capped_steps: see `Sampler`.

    Raises InputError as `Sampler` does, for a share that is none, and for covariances that say nothing of x_0 (β̃, β)
    where a share is theirs, or are known by products alone (`Lanczos`).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance,
        steps: int | Sequence[int] | Sequence[NoiseLevel],
        eta: float | None = None,
        final_noise_cap: float | None = None,
        clipped_eps: ClippedEps | None = None,
        tau: float | None = None,
        low_start: bool = False,
        capped_steps: int = 1,
        share: Share = "auto",
    ) -> None:
        self.share = check_share(share)
        check_covariance(covariance)
        checks.refuse(
            not covariance.knows_x_0 and share != 1.0,
            f"{covariance.name} says nothing of Cov[x_0|x_t], which has the rest of a share of {share}; take "
            "dv.Analytic(table), or a share of 1.",
        )
        checks.refuse(
            not covariance.diagonal,
            f"{covariance.name} is known by products alone, and a share leaves a covariance a part of its variances; "
            "take dv.Jacobian or dv.Analytic, or steps without a share.",
        )
        eta = 0.0 if eta is None and tau is None else eta
        self._rest = RestOfCovariance(covariance, self.share)
        own = (final_noise_cap, clipped_eps, tau, low_start, capped_steps)
        super().__init__(denoiser, self._rest, steps, eta, *own)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "multistep": self.share}

    def step_mean(
        self,
        kernel: ReverseKernel,
        x_t: torch.Tensor,
        posterior: Posterior,
        before: tuple[ReverseKernel, torch.Tensor] | None,
    ) -> torch.Tensor:
        found = super().step_mean(kernel, x_t, posterior, before)
        a = self._rest.share_at(kernel)
        if before is None or a == 0.0 or math.isinf(width(before[0])):
            return found
        return found + a * multistep_drift(kernel, posterior.mean, before[1], width(before[0]))


def check_share(share: Any, name: str = "share") -> Share:
    """A share as it was given, a number from 0 to 1 or "auto"; InputError for others."""
    if isinstance(share, str) and share == "auto":
        return "auto"
    return checks.number(name, share, 'a number from 0 to 1, or "auto"', least=0.0, most=1.0)
