"""ΠGDM's constant (Song et al., ICLR 2023): what is left unknown of white noise of variance l,

    Cov[x_0|x_t] = l σ²/(α² l + σ²) I          r_t² = σ²/(σ² + 1) where α = l = 1,

the error of the best linear denoiser [E5]. It needs no table, and is the guess that a measured one is compared with.
"""

from __future__ import annotations

from typing import Any

from .. import checks
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.linear import linear_mmse
from ..process.structure import Isotropic
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, variance_tensor


class PiGDM(ReverseCovariance):
    """λ² + γ² l σ²/(α² l + σ²), one number a step.

    Args:
        data_variance: l, in squared data units; 1 as published.
    """

    def __init__(self, data_variance: float = 1.0) -> None:
        self.data_variance = checks.positive("data_variance", data_variance)

    @property
    def name(self) -> str:
        return "pigdm"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "data_variance": self.data_variance}

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        v = linear_mmse(self.data_variance, kernel.alpha_t, kernel.sigma_t)
        variance = variance_tensor(kernel.lambda2 + kernel.gain**2 * v, posterior)
        return StructuredCovariance(Isotropic(image_shape(posterior)), variance)
