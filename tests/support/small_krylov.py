"""A mixture of few dimensions for tests of Krylov spaces: its table, its own matrices, and derivatives by matrices."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch

import diffusion_var as dv
from diffusion_var.models.oracles import MixtureDenoiser
from diffusion_var.process.kernel import ReverseKernel

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
SHAPE, D = (3, 2, 2), 12
RNG = np.random.default_rng(0)
ROOTS = RNG.standard_normal((3, D, D)) * np.array([0.2, 0.05, 0.3])[:, None, None]
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1) + 1e-3 * np.eye(D)
MIXTURE = MixtureDenoiser(
    SCHEDULE,
    0.7 * RNG.standard_normal((3, *SHAPE)),
    weights=[1, 2, 1],
    covariances=COVARIANCES,
)
INDICES = [1, 2, 5, 10, 20, 40, 60, 80, 100]
EYE = torch.eye(D, dtype=torch.float64)


def measure(model: Any, count: int = 4000) -> dv.VarianceTable:
    images = model.sample(count, seed=1)
    return dv.estimate(model, images, 0.05, indices=INDICES, structures=("isotropic", "dct"), progress=False)


@cache
def table() -> dv.VarianceTable:
    return measure(MIXTURE)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def noisy_images(model: Any, n: int, count: int, seed: int = 3) -> torch.Tensor:
    clean = model.sample(count, seed=seed).double()
    return float(SCHEDULE.alpha[n]) * clean + float(SCHEDULE.sigma[n]) * noise(*clean.shape, seed=n)


def at(covariance: dv.Lanczos, model: Any, x_t: torch.Tensor, n: int, s: int, eta: float = 1.0) -> Any:
    """Σ of a step, and the step."""
    kernel = ReverseKernel(SCHEDULE, n, s, eta)
    return covariance(covariance.prepare(model)(x_t, n), kernel), kernel


class Dense:
    """A derivative whose products are with given matrices, (B, d, d)."""

    def __init__(self, matrices: torch.Tensor) -> None:
        self.matrices, self.products = matrices, 0

    def times(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return (self.matrices.to(v) @ v.flatten(1)[..., None])[..., 0].view_as(v)

    def rows(self, part: Any) -> "Dense":
        return Dense(self.matrices[part])


def by_matrices(covariance: dv.Lanczos, x_t: torch.Tensor, n: int, s: int) -> Any:
    """Σ of a step of the mixture at η = 1, by products with its own matrices: those of its derivative, and quick."""
    posterior = MIXTURE(x_t, n)
    derivative: Any = Dense(MIXTURE.posterior_covariance(x_t, n))
    return covariance(dataclasses.replace(posterior, jacobian=derivative), ReverseKernel(SCHEDULE, n, s))


def exact(model: Any, x_t: torch.Tensor, n: int, kernel: ReverseKernel) -> torch.Tensor:
    """Σ of a mixture as matrices, (B, d, d)."""
    known = model.posterior_covariance(x_t, n)
    return kernel.lambda2 * torch.eye(known.shape[1], dtype=torch.float64) + kernel.gain**2 * known


def root(covariance: Any, count: int) -> torch.Tensor:
    """What `colour` does, as matrices (B, d, d): a linear map if it takes as many steps as there are dimensions."""
    units = EYE.view(D, 1, *SHAPE).expand(D, count, *SHAPE)
    return torch.stack([covariance.colour(unit).flatten(1) for unit in units], 2)


def crooked(count: int, scale: float = 1.0) -> tuple[dv.Posterior, Dense]:
    """A posterior whose derivative is noise, and that derivative."""
    jacobian = Dense(scale * noise(count, D, D, seed=9))
    mean = noise(count, *SHAPE)
    return dv.Posterior(mean, noise(count, *SHAPE, seed=1), jacobian=jacobian), jacobian  # type: ignore[arg-type]
