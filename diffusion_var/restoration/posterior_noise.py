"""Noise of a step that knows the measurement: N(0, λ² I + γ² Cov[x_0|x_t, y]), by Matheron's rule.

For Gaussian x_0|x_t ~ N(x̂_0, Σ) it is Cov[x_0|x_t, y] = Σ − Σ Aᵀ S⁻¹ A Σ. A draw of it needs no factor of it: with
e ~ N(0, Σ) and n ~ N(0, R),

    e − Σ Aᵀ S⁻¹ (A e + n) ~ N(0, Σ − Σ Aᵀ S⁻¹ A Σ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .. import checks
from ..covariance.eps_square import EpsSquare
from ..covariance.reverse import NoiseSource, ReverseCovariance, StructuredCovariance
from ..covariance.wrapping import Wrapping
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from .jacobian import NetworkJacobian
from .measurement import Measurement
from .solver import Solution, Solver
from .system import System

Product = Callable[[torch.Tensor], torch.Tensor]


class Conditioned(Protocol):
    """What is asked of the denoiser (`ConditionedDenoiser`) whose steps the noise is of."""

    measurement: Measurement
    given_covariance: Any
    solver: Solver | None

    def system_at(self, posterior: Posterior, level: NoiseLevel) -> tuple[StructuredCovariance, System]: ...
    def conditioned_on(self) -> dict[str, Any]: ...
    def counted(self, found: Solution) -> Solution: ...


@dataclass(frozen=True)
class ConditionedNoise(StructuredCovariance):
    """λ² I + γ² (Σ − Σ Aᵀ S⁻¹ A Σ); `structure` and `variance` are Σ's. It can be drawn from, and multiplied with."""

    kernel: ReverseKernel
    apply: Product
    gain: Product  # Σ Aᵀ S⁻¹, of (B, *m)
    of_measurement: Product  # R^{1/2}
    shape: tuple[int, ...]

    def draw(self, noise: NoiseSource) -> torch.Tensor:
        white, e = noise.next(), self.structure.colour(self.variance, noise.next())
        n = self.of_measurement(noise.beside(self.shape).to(e))
        return math.sqrt(self.kernel.lambda2) * white + self.kernel.gain * (e - self.gain(self.apply(e) + n))

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        known = self.structure.matvec(self.variance, x)
        return self.kernel.lambda2 * x + self.kernel.gain**2 * (known - self.gain(self.apply(known)))

    def _only_drawn(self, *_: Any, **__: Any) -> Any:
        raise InputError(
            "the noise of a conditioned step is drawn, and has no root, inverse or determinant here; a final_noise_cap "
            "cannot cut it either: leave the cap out."
        )

    colour = solve = log_det = inverse_trace = quadratic = capped = _only_drawn


class PosteriorNoise(ReverseCovariance):
    """The covariance of a conditioned denoiser's steps; see `ConditionedDenoiser.posterior_noise`."""

    depends_on_image = True

    def __init__(self, denoiser: Conditioned) -> None:
        given = denoiser.given_covariance
        products = isinstance(given, NetworkJacobian) or not given.diagonal
        checks.refuse(
            products or denoiser.measurement.decoder is not None,
            "the noise of a conditioned step needs a covariance that can be drawn from and a measurement of what is "
            "denoised, but not the network's Jacobian, nor one through a decoder; take dv.Analytic.",
        )
        inner = given
        while isinstance(inner, Wrapping):
            inner = inner.inner
        checks.refuse(
            isinstance(inner, EpsSquare),
            "the noise of a conditioned step is made where ε̂ follows y, and eps-square would take it for the model's "
            "own; take dv.Analytic, or leave the posterior noise out.",
        )
        self._denoiser = denoiser

    @property
    def name(self) -> str:
        return f"{self._denoiser.given_covariance.name}, given y"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **self._denoiser.conditioned_on()}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        checks.refuse(
            id(denoiser) != id(self._denoiser),
            "this noise is of one conditioned denoiser's steps, but the sampler has another; ask that one for its "
            "posterior_noise().",
        )

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        posterior = checks.given(posterior, f"{self.name} follows the image, so that it needs a posterior.")
        known, system = self._denoiser.system_at(posterior, kernel.level_t)

        def gain(w: torch.Tensor) -> torch.Tensor:
            found = self._denoiser.counted(system.solve(w, self._denoiser.solver))
            return known.matvec(system.linear.adjoint(found.u))

        noise, shape = self._denoiser.measurement.noise, self._denoiser.measurement.shape
        return ConditionedNoise(
            known.structure,
            known.variance,
            kernel,
            system.linear.apply,
            gain,
            noise.draw,
            shape,
        )
