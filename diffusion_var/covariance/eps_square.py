"""A variance for every pixel of every image without any training: E9's SN with 1 in the place of E[ε²|x_t],

    v = (σ_t²/α_t²)(1 − ε̂²),      cut to [0, most].

It is what Extended-Analytic-DPM's code (arXiv:2206.07309) falls back to where there is no second network. Averaged over
x_t it is right for an exact mean (`score_norm`); at one x_t it is not: Var[ε|x_t] = E[ε²|x_t] − ε̂², and E[ε²|x_t] is 1
on average alone. Where ε̂² happens to be small it says σ²/α², as if x_0 were unknown, and where it is above 1 it says
nothing is. Its bound on the bundled digits is worse than that of one number a step.
"""

from __future__ import annotations

from typing import Any

from .. import checks
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.structure import Pixel
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy


class EpsSquare(ReverseCovariance):
    """λ² + γ² v with v = (σ_t²/α_t²)(1 − ε̂²), per pixel, cut to [0, most]; ε̂ as the network gives it.

    Args:
        most: the largest v in squared data units; 1, as published, is ((b − a)/2)² of data in [−1, 1]. None: no bound
            but σ_t²/α_t², which it never exceeds.
    """

    depends_on_image = True

    def __init__(self, most: float | None = 1.0) -> None:
        self.most = None if most is None else checks.positive("most", most, "a positive number, or None")

    @property
    def name(self) -> str:
        return "eps-square"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "most": self.most}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        silent = [kernel.level_t.name for kernel in noisy(kernels) if kernel.alpha_t == 0.0]
        checks.refuse(
            self.most is None and bool(silent),
            f"most=None leaves the variance without a bound at {checks.listing(silent, 1)}, which holds no signal; "
            "give the largest variance, 1 for data in [-1, 1].",
        )

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        missing = f"the covariance {self.name} needs what the network says of an image, but there is no posterior."
        eps = checks.given(posterior, missing).eps
        scale = (kernel.sigma_t / max(kernel.alpha_t, _NO_SIGNAL)) ** 2
        v = (scale * (1.0 - eps.square())).clamp(min=0.0, max=self.most)
        return StructuredCovariance(Pixel(image_shape(posterior)), kernel.lambda2 + kernel.gain**2 * v)


_NO_SIGNAL = 1e-12  # an α that leaves v at one of its bounds, without 0 times ∞
