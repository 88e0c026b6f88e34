"""Reverse covariances: which Gaussian a reverse step draws from, given the posterior and the kernel.

    FixedSmall   λ² I = η² β̃ I                      DDPM's lower choice; with η = 0, DDIM
    FixedLarge   β I  (η = 1 only)                   DDPM's upper choice
    Analytic     λ² I + γ² Cov[x_0|x_t]  from a table  Analytic-DPM and Extended-Analytic-DPM, any structure

(and, depending on the image, `learned.LearnedRange` and `head.Head`).

Where x̂_0 is clipped and a step uses the network's own ε̂, the error of its mean is γ r − c δ, so that the optimum is
λ² + γ² E r² − 2 γ c E rδ + c² E δ² (DESIGN §2.3); the table holds the three moments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.structure import Isotropic, Shape, Structure
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StructuredCovariance:
    """Σ = Bᵀ diag(variance) B: a structure and its variances, (), (C, 1, 1), (C, H, W), or with a batch in front."""

    structure: Structure
    variance: torch.Tensor

    def colour(self, noise: torch.Tensor) -> torch.Tensor:
        """Σ^{1/2} noise, (B, C, H, W)."""
        return self.structure.colour(self.variance, noise)

    def log_det(self) -> torch.Tensor:
        """log det Σ in nats."""
        return self.structure.log_det(self.variance)

    def inverse_trace(self) -> torch.Tensor:
        """tr Σ⁻¹."""
        return self.structure.inverse_trace(self.variance)

    def quadratic(self, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image."""
        return self.structure.quadratic(self.variance, x)

    def capped(self, limit: float) -> StructuredCovariance:
        """No variance above `limit`: then no pixel's is, since the basis is orthonormal."""
        return StructuredCovariance(self.structure, self.variance.clamp(max=limit))


def mean_error_variance(kernel: ReverseKernel, error: Any, cross: Any, shift: Any) -> Any:
    """γ² E r² − 2 γ c E rδ + c² E δ²: the mean square error of the step's mean as it is used (DESIGN §2.3).

    With ε̂ re-derived δ vanishes and it is γ² v (eq. 2). Negative estimates are cut at 0, the case v = 0.
    """
    gamma, c = kernel.gain, 0.0 if kernel.rederives_eps else kernel.eps_gain
    return np.maximum(gamma**2 * error - 2.0 * gamma * c * cross + c**2 * shift, 0.0)


def optimal_variance(kernel: ReverseKernel, error: Any, cross: Any, shift: Any) -> Any:
    """λ² plus `mean_error_variance`: the optimal variance of the step's mean as it is used (DESIGN §2.3)."""
    return kernel.lambda2 + mean_error_variance(kernel, error, cross, shift)


class ReverseCovariance(ABC):
    """A choice of reverse covariance; maps (posterior, kernel) to a `StructuredCovariance`."""

    #: Whether the covariance depends on x_t through the posterior; if not, a sampler computes it once per step.
    depends_on_image = False

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables and plots."""

    def identity(self) -> dict[str, Any]:
        """What tells it from others, JSON-serialisable: kept beside what was computed with it."""
        return {"name": self.name}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:  # noqa: B027 (nothing to check is fine)
        """Refuse, with InputError, a denoiser or steps that this covariance does not fit."""

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with whatever its posteriors must hold for this covariance, such as the trunk's features."""
        return denoiser

    def report(self) -> None:  # noqa: B027 (nothing to report is fine)
        """Warn of what had to be mended since the last report; called at the end of a run."""

    @abstractmethod
    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        """The covariance of x_s given x_t, or None where it is exactly zero. Float32 on the posterior's device, or the
        CPU without one (allowed where `depends_on_image` is false; then only `colour` is sure to know the shape)."""


class _Fixed(ReverseCovariance):
    @abstractmethod
    def variance(self, kernel: ReverseKernel) -> float:
        """The one variance of a step."""

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        variance = self.variance(kernel)
        if variance == 0.0:
            return None
        return StructuredCovariance(Isotropic(image_shape(posterior)), variance_tensor(np.asarray(variance), posterior))


class FixedSmall(_Fixed):
    """λ² = η² β̃: no more noise than the forward process has given x_0 (DDPM's β̃; nothing for DDIM)."""

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
        if kernel.eta != 1.0:
            raise InputError(
                f"FixedLarge (variance beta) is defined for eta=1 only, but eta={kernel.eta}; "
                "use FixedSmall or Analytic, or eta=1."
            )
        return kernel.beta


class Analytic(ReverseCovariance):
    """The optimal covariance, from a variance table.

    Args:
        table: a `VarianceTable`.
        estimator: "residual" (right for the mean in use), "score_norm" or "data_variance".
        structure: "isotropic", "channel", "pixel" or "dct".
        bounded: see `VarianceTable.posterior_variance`.
    """

    def __init__(
        self,
        table: VarianceTable,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        bounded: bool | None = None,
    ) -> None:
        if not isinstance(table, VarianceTable):
            raise InputError(
                f"Analytic needs a VarianceTable, but got {type(table).__name__}; "
                "load one with VarianceTable.load(path)."
            )
        table.posterior_variance(int(table.indices[0]), estimator, structure, bounded)  # refuses unknown names now
        self.table, self.estimator, self.structure, self.bounded = table, estimator, structure, bounded

    @property
    def name(self) -> str:
        return f"analytic-{self.structure}"

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "table": self.table.digest,
            "estimator": self.estimator,
            "structure": self.structure,
            "bounded": self.bounded,
        }

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self.table.check(denoiser)
        for kernel in kernels:
            if kernel.s > 0:  # the last step adds no noise, so its index need not have been measured
                self.variance(kernel)

    def moments(self, kernel: ReverseKernel) -> tuple[Any, Any, Any]:
        """(E r², E rδ, E δ²) of a step, as `optimal_variance` takes them."""
        if self.estimator == "residual" and not kernel.rederives_eps:
            error, cross, shift = self.table.clipping_moments(kernel.t, self.structure)
            if self.bounded:
                error = self.table.posterior_variance(kernel.t, "residual", self.structure, True)
            return error, cross, shift
        return self.table.posterior_variance(kernel.t, self.estimator, self.structure, self.bounded), 0.0, 0.0

    def variance(self, kernel: ReverseKernel) -> Float64Array:
        """Σ's variances for a step, float64: (), (C, 1, 1) or (C, H, W)."""
        return np.asarray(optimal_variance(kernel, *self.moments(kernel)))

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        # Published arrays do not know the shape of an image; the posterior does.
        known = self.table.shape is not None
        structure = self.table.structure(self.structure) if known else Isotropic(image_shape(posterior))
        return StructuredCovariance(structure, variance_tensor(self.variance(kernel), posterior))


def image_shape(posterior: Posterior | None) -> Shape:
    """(C, H, W) of an image; without a posterior (1, 1, 1), which is enough to colour noise but not for log_det."""
    return (1, 1, 1) if posterior is None else cast(Shape, tuple(posterior.mean.shape[-3:]))


def variance_tensor(variance: Float64Array, posterior: Posterior | None) -> torch.Tensor:
    """Cast once, at the sampler's edge; a scalar is given the three axes that structures sum over."""
    array = variance.reshape(1, 1, 1) if variance.ndim == 0 else variance
    like = None if posterior is None else posterior.mean
    dtype = torch.float32 if like is None else like.dtype
    return torch.from_numpy(np.ascontiguousarray(array)).to(device=None if like is None else like.device, dtype=dtype)
