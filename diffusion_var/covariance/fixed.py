"""The two fixed choices of DDPM (arXiv:2006.11239, §3.2), one number a step: the optimum for data that are a single
point, and for data that are white noise.

    FixedSmall   λ² I = η² β̃ I   no more noise than the forward process has given x_0; nothing at η = 0 (DDIM)
    FixedLarge   β I             the forward noise of the step; for η = 1 only
"""

from __future__ import annotations

from abc import abstractmethod

from .. import checks
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.structure import Isotropic
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, variance_tensor


class _Fixed(ReverseCovariance):
    knows_x_0 = False

    @abstractmethod
    def variance(self, kernel: ReverseKernel) -> float:
        """The one variance of a step."""

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        variance = self.variance(kernel)
        if variance == 0.0:
            return None
        return StructuredCovariance(Isotropic(image_shape(posterior)), variance_tensor(variance, posterior))


class FixedSmall(_Fixed):
    """λ², which is η² β̃: no more noise than the forward process has given x_0 (DDPM's β̃; nothing for DDIM)."""

    @property
    def name(self) -> str:
        return "beta_tilde"

    def variance(self, kernel: ReverseKernel) -> float:
        return kernel.lambda2


class FixedLarge(_Fixed):
    """β_{t|s}: the forward noise of the step; for η = 1 only."""

    @property
    def name(self) -> str:
        return "beta"

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        for kernel in kernels:
            self.variance(kernel)

    def variance(self, kernel: ReverseKernel) -> float:
        check_ddpm(kernel, "FixedLarge (variance beta)", "use FixedSmall or Analytic, or eta=1")
        return kernel.beta


def check_ddpm(kernel: ReverseKernel, what: str, advice: str) -> None:
    """Refuse a step of another forward process than DDPM's."""
    found = f"eta={kernel.eta}" if kernel.tau is None else f"tau={kernel.tau:g}"
    checks.refuse(not kernel.is_ddpm, f"{what} is defined for eta=1 only, but {found}; {advice}.")
