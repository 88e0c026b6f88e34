"""Measurements for tests: exact Gaussian data, covariances that are known, operators, and their dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import diffusion_var as dv
from diffusion_var.process.linear import linear_mmse
from diffusion_var.process.structure import Structure, make_structure

SCHEDULE = dv.NoiseSchedule.linear(1000)
SHAPE = (3, 4, 6)
Operator = Callable[[torch.Tensor], torch.Tensor]


class Known(dv.ReverseCovariance):
    """λ² I + γ² Bᵀ diag(l σ²/(α² l + σ²)) B: that of Gaussian data with variances l of a structure's shape."""

    def __init__(self, structure: Structure, variance: Any) -> None:
        self.structure, self.data_variance = structure, np.asarray(variance, dtype=np.float64)

    @property
    def name(self) -> str:
        return f"known-{self.structure.name}"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "variance": self.data_variance.tolist()}

    def __call__(self, posterior: Any, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        v = linear_mmse(self.data_variance, kernel.alpha_t, kernel.sigma_t)
        variance = torch.from_numpy(np.asarray(kernel.lambda2 + kernel.gain**2 * v))
        return dv.StructuredCovariance(self.structure, variance if posterior is None else variance.to(posterior.mean))


class Constant(dv.ReverseCovariance):
    """The same Σ at every level, whatever it is; one for each image where the variances have a batch in front."""

    def __init__(self, structure: Structure, variance: torch.Tensor) -> None:
        self.structure, self.variance = structure, variance
        self.depends_on_image = variance.ndim > len(structure.shape)

    @property
    def name(self) -> str:
        return f"constant-{self.structure.name}"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, posterior: Any, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        variance = kernel.lambda2 + kernel.gain**2 * self.variance.double()
        return dv.StructuredCovariance(self.structure, variance if posterior is None else variance.to(posterior.mean))


def gaussian(name: str, shape: tuple[int, ...] = SHAPE, schedule: dv.NoiseSchedule = SCHEDULE) -> tuple[Any, Known]:
    """Gaussian data whose covariance is of a structure, and that covariance."""
    structure = make_structure(name, shape)
    rng = np.random.default_rng(7)
    variance = np.exp(rng.uniform(-3.0, 0.0, structure.variance_shape))
    basis: Any = "dct" if name == "dct" else "pixel"
    mean = rng.uniform(-0.5, 0.5, shape)
    return dv.oracles.GaussianDenoiser(schedule, mean, variance, shape=shape, basis=basis), Known(structure, variance)


def dense(structure: Structure, variance: Any) -> np.ndarray:
    """Σ as a matrix (d, d)."""
    eye = torch.eye(structure.d, dtype=torch.float64).reshape(-1, *structure.shape)
    return structure.matvec(torch.as_tensor(variance, dtype=torch.float64), eye).flatten(1).numpy()


def matrix_of(operator: Operator, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A as a matrix (m, d)."""
    d = int(np.prod(shape))
    return operator(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).numpy().T


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# ---- operators, of (B, *SHAPE) or of any images ---------------------------------------------------------------------


def random_rows(m: int, shape: tuple[int, ...] = SHAPE) -> Operator:
    """m weighted sums of all elements."""
    weights = normal(m, int(np.prod(shape)), seed=3) / np.sqrt(np.prod(shape))
    return lambda x: x.flatten(1) @ weights.T.to(x)


def masked(shape: tuple[int, ...] = SHAPE) -> Operator:
    """Two thirds of the elements; 0 elsewhere."""
    mask = torch.from_numpy(np.random.default_rng(4).uniform(size=shape) < 0.67)
    return lambda x: x * mask.to(x)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Means of 2 × 2 pixels."""
    return F.avg_pool2d(x, 2)


def decimated(x: torch.Tensor) -> torch.Tensor:
    """Every second pixel."""
    return x[..., ::2, ::2]


def mirrored_blur(x: torch.Tensor) -> torch.Tensor:
    """A blur whose kernel is symmetric, of images that go on mirrored at their edges (half a pixel off, as the DCT-II
    has them)."""
    weights = torch.tensor([0.25, 0.5, 0.25]).to(x)
    padded = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    x = sum(w * padded[..., k : k + x.shape[-2], :] for k, w in enumerate(weights))
    padded = torch.cat([x[..., :1], x, x[..., -1:]], -1)
    return sum(w * padded[..., k : k + x.shape[-1]] for k, w in enumerate(weights))


def circular_blur(x: torch.Tensor) -> torch.Tensor:
    """A blur of images that go on from the other edge, with a kernel that is not symmetric."""
    return 0.5 * x + 0.3 * x.roll(1, -1) + 0.2 * x.roll(-1, -2)


def grey(x: torch.Tensor) -> torch.Tensor:
    """The mean of the channels."""
    return x.mean(1, keepdim=True)


OPERATORS: dict[str, Operator] = {
    "rows": random_rows(9),
    "mask": masked(),
    "means": halved,
    "decimated": decimated,
    "mirrored": mirrored_blur,
    "circular": circular_blur,
    "grey": grey,
}


def measured(
    operator: Operator, images: torch.Tensor, std: float = 0.1, seed: int = 5, **options: Any
) -> dv.Measurement:
    """Measurements of images, with white noise."""
    clean = operator(images)
    y = clean + std * normal(*clean.shape, seed=seed).to(clean)
    return dv.Measurement(y, operator, **{"noise": std, **options})
