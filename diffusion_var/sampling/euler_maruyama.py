"""The reverse SDE by Euler–Maruyama, with its own noise or the optimal one [E19].

The time reversal of dx = f x dn + g dw is dx = (f x − g² ∇log p) dn + g dw̄ (Anderson 1982; score SDE,
arXiv:2011.13456), where ∇log p = −ε̂/σ. A step of h = n_t − n_s indices is

    x_s = x_t − h (f_t x_t + g_t² ε̂/σ_t) + √h g_t z,

of weak order 1. Its noise, g² h, is that of an infinitely short step. Of a step that is not, the variance of x_s given
x_t is known: λ² + γ² Cov[x_0|x_t] at η = 1 [E2], since the SDE's levels are a Markov process. With a `covariance` that
replaces g² h, and what is left of the step's error is its mean's. That error is of the same order and of the other sign
(of variance 1 the VP-SDE's step makes 1 + (βh)²/4 with g² h, and 1 − (βh)²/4 − β′h²/2 with the optimal noise), so that
neither noise is the better one for all data; with E2's mean, which `Sampler` takes, the optimal one is exact for
Gaussian data. The last step, to clean data, is x̂_0, as everywhere here; where steps begin at or near n = 1 it is within
O(σ_1²) of the SDE's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import checks
from ..covariance.reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy, variance_tensor
from ..models.denoiser import Denoiser, check_denoiser
from ..models.posterior import Posterior
from ..models.prediction import eps_of_mean
from ..process.kernel import ClippedEps, ReverseKernel
from ..process.level import NoiseLevel
from ..process.sde import ScheduleSde, sde_of
from ..process.structure import Isotropic
from .sampler import Sampler


class SdeNoise(ReverseCovariance):
    """g_t² h: the noise of an Euler–Maruyama step of a schedule's reverse SDE [E19]."""

    knows_x_0 = False

    def __init__(self, sde: ScheduleSde) -> None:
        self.sde = sde

    @property
    def name(self) -> str:
        return "sde"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "schedule": self.sde.schedule.digest}

    def variance(self, kernel: ReverseKernel) -> float:
        """The one variance of a step."""
        n, _, diffusion2 = self.sde.at(kernel.level_t)
        return diffusion2 * (n - self.sde.at(kernel.level_s)[0])

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        return StructuredCovariance(
            Isotropic(image_shape(posterior)), variance_tensor(self.variance(kernel), posterior)
        )


class EulerMaruyama(Sampler):
    """Draws images by Euler–Maruyama steps of the reverse SDE; used like a `Sampler`.

    Args:
        denoiser: the model, whose schedule is the SDE's.
        covariance: the noise of each step; None: the SDE's own, g² h. `Analytic(table)` is the optimal one.
        steps, final_noise_cap, clipped_eps, low_start, capped_steps: see `Sampler`. The ε̂ of the score is, as there at
            η = 1, re-derived where x̂_0 is clipped, unless `clipped_eps` is "network".

    Raises InputError as `Sampler` does, and for steps from a level without signal, where f is infinite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        covariance: ReverseCovariance | None = None,
        steps: int | Sequence[int] | Sequence[NoiseLevel] = 25,
        final_noise_cap: float | None = None,
        clipped_eps: ClippedEps | None = None,
        low_start: bool = False,
        capped_steps: int = 1,
    ) -> None:
        check_denoiser(denoiser)
        self.sde = sde_of(denoiser.schedule)
        noise = SdeNoise(self.sde) if covariance is None else covariance
        cap: dict[str, Any] = {"final_noise_cap": final_noise_cap, "capped_steps": capped_steps}
        super().__init__(denoiser, noise, steps, clipped_eps=clipped_eps, low_start=low_start, **cap)
        levels = [kernel.level_t for kernel in noisy(self.kernels)]
        singular = [level.name for level in levels if not math.isfinite(self.sde.at(level)[1])]
        checks.refuse(
            bool(singular),
            f"the reverse SDE is singular at {checks.listing(singular, 1)}, where there is no signal or next to it; "
            "let the steps begin below.",
        )

    def mean(self, kernel: ReverseKernel, x_t: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        """x_t − h (f x_t + g² ε̂/σ_t) [E19]; at clean data x̂_0."""
        if kernel.last:
            return super().mean(kernel, x_t, posterior)
        n, drift, diffusion2 = self.sde.at(kernel.level_t)
        h = n - self.sde.at(kernel.level_s)[0]
        eps = posterior.eps
        if kernel.rederives_eps:
            eps = eps_of_mean(x_t, posterior.mean, kernel.alpha_t, kernel.sigma_t)
        return x_t * (1.0 - h * drift) - (h * diffusion2 / kernel.sigma_t) * eps
