"""Exact denoisers: data distributions whose E[x_0|x_t] is known in closed form.

    Gaussian  x_0 ~ N(μ, Bᵀ diag(l) B):  x̂_0 = μ + Bᵀ κ B (x_t − α μ),  κ = α l/(α² l + σ²),
                                         Cov = Bᵀ diag(l σ²/(α² l + σ²)) B
    mixture   Σ_j w_j N(m_j, C_j):       responsibilities r_j(x_t), then the Gaussians' own formulas [E24] (`mixture`)
    finite set of images:                r_j ∝ exp(−‖x_t − α x_j‖²/2σ²), x̂_0 = Σ_j r_j x_j

They are what the estimator, the samplers and the likelihood are tested against, and what a user tries an idea on: a
mixture that is fitted to images (`fit_mixture`) is a model of them without a network, whose mean has no error.
Images may be (C, *spatial) of any shape. Parameters are kept in float64; results have the dtype of x_t. None of them
clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..data.containers import stacked
from ..process.level import NoiseLevel
from ..process.linear import linear_gain, linear_mmse
from ..process.schedule import NoiseSchedule
from ..process.structure import make_structure
from ..randomness import generator
from .exact import ExactDenoiser
from .mixture import MixtureDenoiser
from .mixture_fit import fit_mixture

__all__ = ["EmpiricalDenoiser", "ExactDenoiser", "GaussianDenoiser", "MixtureDenoiser", "fit_mixture"]


class GaussianDenoiser(ExactDenoiser):
    """Gaussian data with a diagonal covariance in the pixel or the dct basis.

    Args:
        mean: broadcastable to (C, *spatial), in pixels.
        variance: broadcastable to (C, *spatial), at least 0, in the basis.
        shape: (C, *spatial); None: the shape of `variance`.
        basis: "pixel" or "dct".
        rotation: of the dct basis, orthonormal (C, C); None: its default (see `process.structure.Dct`).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        mean: npt.ArrayLike | torch.Tensor,
        variance: npt.ArrayLike | torch.Tensor,
        shape: Sequence[int] | None = None,
        basis: Literal["pixel", "dct"] = "pixel",
        device: torch.device | str | None = None,
        rotation: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__(schedule, tuple(np.shape(variance)) if shape is None else shape, device)
        checks.one_of("basis", basis, ("pixel", "dct"))
        self.structure = make_structure(basis, self.shape, rotation)
        self.mean = self._keep("mean", mean, self.shape)
        self.variance = self._keep("variance", variance, self.shape)
        checks.refuse(bool((self.variance < 0).any()), "variance must be at least 0 everywhere.")
        self._parameters["basis"] = torch.tensor([float(basis == "dct")])
        if rotation is not None:
            self._keep("rotation", rotation, (self.shape[0],) * 2)

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        weight = linear_gain(self.variance, alpha, sigma)
        return self.mean + self.structure.inverse(weight * self.structure.forward(x_t - alpha * self.mean))

    def posterior_variance(self, n: int | NoiseLevel) -> npt.NDArray[np.float64]:
        """Var[x_0|x_n] per element of the basis, (C, *spatial): l σ²/(α² l + σ²) [E5]; n: an index, or a level."""
        level = n if isinstance(n, NoiseLevel) else self.schedule.level(self.schedule.check_index(n))
        return np.asarray(linear_mmse(self.variance.cpu().numpy(), level.alpha, level.sigma))

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        count, seed = checks.whole("count", count, least=1), checks.seed(seed)
        noise = torch.from_numpy(generator(seed, "gaussian data").standard_normal((count, *self.shape)))
        images: torch.Tensor = self.mean.cpu() + self.structure.colour(self.variance.cpu(), noise)
        return images.float()


class EmpiricalDenoiser(MixtureDenoiser):
    """The ideal denoiser of a finite set of images (M, C, *spatial): a mixture of points of equal weight."""

    def __init__(self, schedule: NoiseSchedule, images: Any, device: torch.device | str | None = None) -> None:
        super().__init__(schedule, stacked(images), 0.0, device=device)
