"""Exact denoisers: data distributions whose E[x_0|x_t] is known in closed form.

    Gaussian  x_0 ~ N(μ, Bᵀ diag(l) B):  x̂_0 = μ + Bᵀ κ B (x_t − α μ),  κ = α l/(α² l + σ²),
                                         Cov = Bᵀ diag(l σ²/(α² l + σ²)) B
    mixture   Σ_j w_j N(m_j, l_j I):     responsibilities r_j(x_t), then the Gaussians' own formulas
    finite set of images:                r_j ∝ exp(−‖x_t − α x_j‖²/2σ²), x̂_0 = Σ_j r_j x_j

They are what the estimator, the samplers and the likelihood are tested against, and what a user tries an idea on.
Images may be (C, *spatial) of any shape. Parameters are kept in float64; results have the dtype of x_t. None of them
clips.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..data.containers import stacked
from ..errors import InputError
from ..process.level import NoiseLevel
from ..process.linear import linear_gain, linear_mmse
from ..process.schedule import NoiseSchedule
from ..process.structure import make_structure
from ..randomness import generator
from .denoiser import Denoiser, Place
from .identity import ModelIdentity


class ExactDenoiser(Denoiser):
    """A denoiser computed from the data's distribution; subclasses give `exact_mean` and `sample`."""

    exact = True

    def __init__(self, schedule: NoiseSchedule, shape: Sequence[int], device: torch.device | str | None = None) -> None:
        super().__init__(self._no_network, schedule, "sample", shape, clip=None, device=device)
        self._parameters: dict[str, torch.Tensor] = {}

    @staticmethod
    def _no_network(*_: Any) -> torch.Tensor:
        raise NotImplementedError("an exact denoiser has no network")

    def _keep(self, name: str, values: npt.ArrayLike | torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        square = array.ndim == 1 < len(shape) and len(array) == shape[0] == shape[-1] > 1
        checks.refuse(
            square,
            f"{name} has shape {array.shape}, which of images {shape} could be the channels or the last axis; give it "
            f"all {len(shape)} axes, with 1 where the values are shared.",
        )
        try:
            tensor = torch.from_numpy(np.broadcast_to(array.astype(np.float64), shape).copy()).to(self.device)
        except ValueError:
            raise InputError(f"{name} has shape {array.shape}, but {shape} is needed.") from None
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} must hold finite numbers only.")
        self._parameters[name] = tensor
        return tensor

    @abstractmethod
    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        """E[x_0|x_t] in float64; alpha and sigma are floats or (B, 1, …) tensors."""

    @abstractmethod
    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """`count` images of the data distribution, (count, C, *spatial) float32, on the CPU."""

    def _predict(self, x_t: torch.Tensor, n: Place, condition: Any) -> tuple[torch.Tensor, None]:
        x = x_t.double()
        return self.exact_mean(x, *self.schedule.coefficients(n, x)).to(x_t.dtype), None

    def _network_facts(self, beside: ModelIdentity | None, keep: bool) -> dict[str, Any]:
        return {"network": self._own_fingerprint}

    @cached_property
    def _own_fingerprint(self) -> str | None:
        content = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self._parameters.items()):
            content.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
        return content.hexdigest()


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


class MixtureDenoiser(ExactDenoiser):
    """A mixture of J isotropic Gaussians.

    Args:
        means: (J, C, *spatial).
        variances: (J,) or one number, at least 0.
        weights: (J,) positive, normalised here; None: equal.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: npt.ArrayLike | torch.Tensor,
        variances: npt.ArrayLike | torch.Tensor,
        weights: npt.ArrayLike | torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        shape = tuple(np.shape(means))
        checks.refuse(len(shape) < 2, f"means must have shape (J, C, *spatial), but it has {shape}.")
        super().__init__(schedule, shape[1:], device)
        count = shape[0]
        self.means = self._keep("means", means, shape)
        self.variances = self._keep("variances", variances, (count,))
        raw = self._keep("weights", np.ones(count) if weights is None else weights, (count,))
        wrong = bool((self.variances < 0).any() or (raw <= 0).any())
        checks.refuse(wrong, "variances must be at least 0 and weights positive.")
        self.log_weights = (raw / raw.sum()).log()

    def responsibilities(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        """P(component j | x_t), (B, J), from log-densities (no underflow)."""
        alpha, sigma = self._columns(alpha, sigma)
        total = alpha**2 * self.variances + sigma**2
        x, m = x_t.flatten(1), self.means.flatten(1)
        # ‖x − α m‖² expanded: memory B × J instead of B × J × d
        distance = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ m.T) + alpha**2 * m.square().sum(1)
        logits = self.log_weights - 0.5 * distance / total - 0.5 * math.prod(self.shape) * total.log()
        r: torch.Tensor = logits.softmax(dim=1)
        return r

    def _columns(self, *values: Any) -> list[torch.Tensor]:
        """Floats or (B, 1, …) tensors as float64 columns, to meet the (B, J) of the components."""
        return [torch.as_tensor(a, dtype=torch.float64, device=self.device).reshape(-1, 1) for a in values]

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        r = self.responsibilities(x_t, alpha, sigma)
        alpha, sigma = self._columns(alpha, sigma)
        k = linear_gain(self.variances, alpha, sigma)
        # Σ_j r_j (m_j + k_j (x_t − α m_j))
        centre = (r * (1 - k * alpha)) @ self.means.flatten(1)
        mean: torch.Tensor = centre + (r * k).sum(1, keepdim=True) * x_t.flatten(1)
        return mean.view_as(x_t)

    def posterior_variance(self, x_t: torch.Tensor, n: int | NoiseLevel) -> torch.Tensor:
        """diag Cov[x_0|x_t], (B, C, *spatial) float64: Σ_j r_j (variance within j + (mean of j − x̂_0)²)."""
        x = x_t.double()
        alpha, sigma = self.schedule.coefficients(n, x)
        r = self.responsibilities(x, alpha, sigma)
        within = r @ linear_mmse(self.variances, alpha, sigma)
        k, m = linear_gain(self.variances, alpha, sigma)[:, None], self.means.flatten(1)
        each = m + k * (x.flatten(1)[:, None] - alpha * m)
        mean = self.exact_mean(x, alpha, sigma).flatten(1)
        between = (r[..., None] * (each - mean[:, None]).square()).sum(1)
        variance: torch.Tensor = within[:, None] + between
        return variance.view_as(x)

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        count, seed = checks.whole("count", count, least=1), checks.seed(seed)
        stream = generator(seed, "mixture data")
        j = torch.from_numpy(stream.choice(len(self.means), size=count, p=self.log_weights.exp().cpu().numpy()))
        noise = torch.from_numpy(stream.standard_normal((count, *self.shape)))
        std = self.variances.cpu()[j].sqrt().view(-1, *(1,) * len(self.shape))
        return (self.means.cpu()[j] + std * noise).float()


class EmpiricalDenoiser(MixtureDenoiser):
    """The ideal denoiser of a finite set of images (M, C, *spatial): a mixture of points of equal weight."""

    def __init__(self, schedule: NoiseSchedule, images: Any, device: torch.device | str | None = None) -> None:
        super().__init__(schedule, stacked(images), 0.0, device=device)
