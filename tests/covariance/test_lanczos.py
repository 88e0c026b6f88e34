"""Krylov draws and likelihoods of each image's whole covariance: against the dense matrix, of exact and of crooked
derivatives, in the sampler, the bound and restoration."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.krylov import KrylovSpace
from diffusion_var.models.oracles import MixtureDenoiser
from diffusion_var.process.kernel import ReverseKernel

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
SHAPE, D = (3, 2, 2), 12
RNG = np.random.default_rng(0)
ROOTS = RNG.standard_normal((3, D, D)) * np.array([0.2, 0.05, 0.3])[:, None, None]
MIXTURE = MixtureDenoiser(
    SCHEDULE,
    0.7 * RNG.standard_normal((3, *SHAPE)),
    weights=[1, 2, 1],
    covariances=ROOTS @ ROOTS.transpose(0, 2, 1) + 1e-3 * np.eye(D),
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


def exact(model: Any, x_t: torch.Tensor, n: int, kernel: ReverseKernel) -> torch.Tensor:
    """Σ of a mixture as matrices, (B, d, d)."""
    known = model.posterior_covariance(x_t, n)
    return kernel.lambda2 * torch.eye(known.shape[1], dtype=torch.float64) + kernel.gain**2 * known


def root(covariance: Any, count: int) -> torch.Tensor:
    """What `colour` does, as matrices (B, d, d): a linear map if it takes as many steps as there are dimensions."""
    units = EYE.view(D, 1, *SHAPE).expand(D, count, *SHAPE)
    return torch.stack([covariance.colour(unit).flatten(1) for unit in units], 2)


# ---- functions of a matrix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [3, 8, 11])
def test_a_space_as_large_as_it_can_be_knows_every_function(columns: int) -> None:
    """f(M) b and bᵀ f(M) b of dense matrices; beyond d = 8 the space is spent, and nothing changes."""
    d, known = 8, torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    roots = noise(3, d, d)
    roots[0, :, 1:] = 0.0
    known_of_one = torch.where(torch.arange(3)[:, None] == 1, torch.ones(d), known)  # M = 1 + rank 1: spent after two
    P = roots @ roots.mT
    b = noise(3, d, seed=5)
    b[2] = 0.0
    space = KrylovSpace(b, known, lambda v: (P @ v[..., None])[..., 0]).grow(columns)
    assert known_of_one.shape == (3, d)
    M = torch.diag(known) + P
    values, vectors = torch.linalg.eigh(M)
    for f in (torch.sqrt, torch.log, torch.reciprocal):
        expected = (vectors * f(values)[:, None]) @ vectors.mT @ b[..., None]
        found, form = space.times(f), space.form(f)
        if columns >= d:
            torch.testing.assert_close(found, expected[..., 0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(form, (b * expected[..., 0]).sum(1), rtol=1e-9, atol=1e-9)
        else:
            assert float((found - expected[..., 0]).norm()) > 1e-3
        assert not bool(found[2].any())
    assert space.open(1e-6).tolist() == [columns < d, columns < d, False]
    assert space.counted.tolist() == [min(columns, d)] * 2 + [0]
    assert not bool(space.cut.any())
