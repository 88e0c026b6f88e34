"""Gaussian data whose likelihood bound is a formula, for any covariance that is diagonal in the data's basis.

The images have exactly the population's mean and covariance. Every term of the bound is quadratic in (x_0, ε) there, so
that their average differs from the expectation by the noise alone: `noise_error` is the error to compare with.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance, variance_tensor
from diffusion_var.process.structure import Structure

SHAPE = (1, 4, 4)
SCHEDULE = dv.NoiseSchedule.linear(1000)
VARIANCE = np.random.default_rng(1).permutation(np.geomspace(0.01, 2.0, 16)).reshape(SHAPE)
MEAN = np.random.default_rng(2).uniform(-0.5, 0.5, SHAPE)

Variances = Callable[[dv.ReverseKernel], npt.ArrayLike]


def gaussian(basis: str, schedule: dv.NoiseSchedule = SCHEDULE) -> dv.oracles.GaussianDenoiser:
    return dv.oracles.GaussianDenoiser(schedule, MEAN, VARIANCE, basis=basis)


class Told(ReverseCovariance):
    """The covariance with these variances in a structure."""

    def __init__(self, structure: Structure, variances: Variances) -> None:
        self.structure, self.variances = structure, variances

    @property
    def name(self) -> str:
        return f"told-{self.structure.name}"

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> StructuredCovariance:
        return StructuredCovariance(self.structure, variance_tensor(np.array(self.variances(kernel)), posterior))


def optimum(denoiser: dv.oracles.GaussianDenoiser) -> Variances:
    """λ² + γ² v_t of each element of the data's basis."""
    return lambda kernel: kernel.lambda2 + kernel.gain**2 * denoiser.posterior_variance(kernel.t)


def exact_images(denoiser: dv.oracles.GaussianDenoiser, count: int, seed: int = 0) -> torch.Tensor:
    """(count, C, H, W) float32 with the denoiser's own mean and covariance."""
    z = np.random.default_rng(seed).standard_normal((count, math.prod(denoiser.shape)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / count)).T
    white = torch.from_numpy(z.reshape(count, *denoiser.shape))
    return (denoiser.mean + denoiser.structure.inverse(denoiser.variance.sqrt() * white)).float()


def in_bits(nats: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(nats) / (math.log(2) * math.prod(SHAPE))


def prior_std(schedule: dv.NoiseSchedule, n: int) -> float:
    """Of noise that a run from n begins with: where x_n is wider or narrower than x_N, so is its prior."""
    widths = np.sqrt(schedule.alpha**2 + schedule.sigma**2)
    return float(schedule.prior_std * widths[n] / widths[-1])


def prior_nats(schedule: dv.NoiseSchedule, n: int) -> float:
    """E KL(q(x_n|x_0) ‖ p(x_n)) over the data."""
    square = float((VARIANCE + MEAN**2).sum()) if schedule.alpha[n] else 0.0
    alpha, sigma, std = schedule.alpha[n], schedule.sigma[n], prior_std(schedule, n)
    d = math.prod(SHAPE)
    return 0.5 * (alpha**2 * square + d * sigma**2) / std**2 - 0.5 * d - d * math.log(sigma / std)


def marginal_prior_nats(denoiser: dv.oracles.GaussianDenoiser, n: int) -> float:
    """KL(q(x_n) ‖ p(x_n)), by torch.distributions, in the basis, where both are diagonal."""
    schedule = denoiser.schedule
    q = torch.distributions.Normal(
        schedule.alpha[n] * denoiser.structure.forward(denoiser.mean),
        (schedule.alpha[n] ** 2 * denoiser.variance + schedule.sigma[n] ** 2).sqrt(),
    )
    p = torch.distributions.Normal(torch.zeros(SHAPE).double(), prior_std(schedule, n))
    return float(torch.distributions.kl_divergence(q, p).sum())


def entropy_nats() -> float:
    return float(0.5 * np.log(2 * math.pi * math.e * VARIANCE).sum())


def bound_terms(
    denoiser: dv.oracles.GaussianDenoiser, steps: list[int], variances: Variances, eta: float, decoder: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """(K + 1,) bits/dim: the expectation of every term, for the variances of a step and those of the decoder, both in
    the data's basis (or numbers)."""
    schedule, falling = denoiser.schedule, steps[::-1]
    terms = [prior_nats(schedule, falling[0])]
    for t, s in pairwise(falling):
        kernel = dv.ReverseKernel(schedule, t, s, eta)
        own, error = np.broadcast_to(variances(kernel), SHAPE), kernel.gain**2 * denoiser.posterior_variance(t)
        terms.append(0.5 * float((np.log(own / kernel.lambda2) - 1 + (kernel.lambda2 + error) / own).sum()))
    last = np.broadcast_to(decoder, SHAPE)
    terms.append(0.5 * float((np.log(2 * math.pi * last) + denoiser.posterior_variance(falling[-1]) / last).sum()))
    return in_bits(terms)
