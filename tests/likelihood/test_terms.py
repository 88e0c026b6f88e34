"""The terms of the bound against torch.distributions: the prior's, and each step's of every structure."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_bounds import SCHEDULE, SHAPE, Told
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import diffusion_var as dv
from diffusion_var.covariance.reverse import StepCovariances
from diffusion_var.likelihood.terms import BoundTerms, Evaluation, prior_kl
from diffusion_var.process.structure import STRUCTURE_NAMES, make_structure


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULE, dv.NoiseSchedule.edm(40), dv.NoiseSchedule.edm(10, sigma_max=3.0), dv.NoiseSchedule.flow(20)],
    ids=["linear", "edm", "edm to 3", "flow"],
)
def test_prior_term(schedule: dv.NoiseSchedule) -> None:
    x_0 = torch.from_numpy(np.random.default_rng(1).normal(0.2, 1.0, (5, *SHAPE)))
    prior = Independent(Normal(torch.zeros(SHAPE).double(), schedule.prior_std), 3)
    for n in {1, schedule.num_steps // 2, schedule.num_steps}:
        alpha, sigma = float(schedule.alpha[n]), float(schedule.sigma[n])
        expected = kl_divergence(Independent(Normal(alpha * x_0, sigma), 3), prior)
        torch.testing.assert_close(prior_kl(x_0, alpha, sigma, schedule.prior_std), expected, rtol=1e-9, atol=1e-9)


def crooked(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.3 * x_t) + 0.2 * x_t.flip(-1)


@pytest.mark.parametrize("name", STRUCTURE_NAMES)
@pytest.mark.parametrize(
    ("eta", "clip", "clipped_eps"),
    [
        (1.0, None, None),
        (0.3, None, None),
        (1.0, (-0.5, 0.5), None),
        (0.3, (-0.5, 0.5), None),
        (1.0, (-0.5, 0.5), "network"),
        (0.3, (-0.5, 0.5), "rederived"),
    ],
)
def test_every_steps_term_is_torchs_kl_of_the_two_gaussians(name: str, eta: float, clip: Any, clipped_eps: Any) -> None:
    """q(x_s|x_t,x_0) of [E1], written out, against N(the sampler's mean, Σ as a whole matrix), in float64."""
    shape = (3, 2, 3)
    d, structure, stream = math.prod(shape), make_structure(name, shape), np.random.default_rng(5)
    denoiser = dv.Denoiser(crooked, SCHEDULE, shape=shape, clip=clip)
    raw = torch.from_numpy(stream.uniform(0.5, 2.0, structure.variance_shape or (1, 1, 1)))
    kernels = [dv.ReverseKernel(SCHEDULE, t, s, eta, clipped_eps) for t, s in ((600, 599), (600, 250), (600, 1))]
    covariance = Told(structure, lambda kernel: kernel.beta * raw.numpy())
    terms = BoundTerms(
        denoiser,
        [Evaluation(SCHEDULE.level(600), tuple(enumerate(kernels)))],
        StepCovariances(covariance),
    )
    x_0, eps = (torch.from_numpy(stream.normal(0, 0.7, (4, *shape))) for _ in range(2))
    x_t = float(SCHEDULE.alpha[600]) * x_0 + float(SCHEDULE.sigma[600]) * eps
    posterior = denoiser(x_t, 600)
    found = terms.at(terms.evaluations[0], x_0, eps, posterior)
    assert found.shape == (4, 3)
    assert found.dtype == torch.float64
    basis = structure.forward(torch.eye(d, dtype=torch.float64).reshape(d, *shape))
    for column, kernel in enumerate(kernels):
        ratio = math.sqrt(SCHEDULE.sigma[kernel.s] ** 2 - kernel.lambda2) / SCHEDULE.sigma[600]
        q_mean = SCHEDULE.alpha[kernel.s] * x_0 + ratio * (x_t - SCHEDULE.alpha[600] * x_0)
        q = MultivariateNormal(q_mean.flatten(1), kernel.lambda2 * torch.eye(d, dtype=torch.float64))
        matrix = structure.inverse(kernel.beta * raw * basis).reshape(d, d)
        p = MultivariateNormal(kernel.mean(x_t, posterior).flatten(1), matrix)
        torch.testing.assert_close(found[:, column], kl_divergence(q, p), rtol=1e-7, atol=1e-7)
