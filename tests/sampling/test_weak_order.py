"""The order of a Gaussian step in its size: with a covariance that is right on average it is the first, with each
image's own the second, for such a step errs in third cumulants alone. On the line, without Monte Carlo.

E f(x) after all steps is found from the end: u(x_t) = E u(x_s) over the step's own Gaussian, by Gauss–Hermite's rule
and a spline of u on a grid, then its mean over the exact density of the first level. So nothing is random, and nothing
but the steps is wrong."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.interpolate import CubicSpline

import diffusion_var as dv
from diffusion_var.process.kernel import reverse_kernels

MEANS, VARIANCES, WEIGHTS = (-1.0, 0.9), (0.09, 0.36), (0.4, 0.6)
FIRST, LAST = -5.0, 3.0  # log-SNR between which the steps are
STEPS = (24, 48, 96)
GRID = np.linspace(-6.0, 6.0, 481)


@pytest.fixture(scope="module")
def mixture():
    schedule = dv.NoiseSchedule.linear(1000)
    return dv.oracles.MixtureDenoiser(schedule, np.reshape(MEANS, (2, 1, 1)), VARIANCES, WEIGHTS)


def density(x, level):
    """Of x_t."""
    spread = [level.alpha**2 * v + level.sigma**2 for v in VARIANCES]
    parts = zip(WEIGHTS, MEANS, spread, strict=True)
    return sum(w * np.exp(-((x - level.alpha * m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) for w, m, v in parts)


def mean_after(mixture, covariance, kernels, f):
    """E f(x) of what the steps make of the exact x_t at the first level."""
    z, weight = hermegauss(21)
    denoiser = covariance.prepare(mixture)
    u = f(GRID)
    x_t = torch.from_numpy(GRID).view(-1, 1, 1)
    for kernel in reversed(kernels):
        posterior = denoiser(x_t, kernel.level_t)
        found = covariance(posterior, kernel)
        std = torch.zeros_like(x_t) if found is None else found.colour(torch.ones_like(x_t))
        nodes = (kernel.mean(x_t, posterior) + std * torch.from_numpy(z)).numpy()[:, 0]
        u = CubicSpline(GRID, u)(nodes) @ weight / weight.sum()
    level = kernels[0].level_t
    return float(np.trapezoid(u * density(GRID, level), GRID))


def errors(mixture, covariance, eta):
    """|E f(x) − exact| after 24, 48 and 96 steps, for f = cos 2x."""
    f = lambda x: np.cos(2.0 * x)  # noqa: E731
    found = []
    for count in STEPS:
        levels = [mixture.schedule.level_at(float(v)) for v in np.linspace(FIRST, LAST, count + 1)]
        kernels = reverse_kernels(mixture.schedule, levels, eta)[:-1]
        exact = float(np.trapezoid(f(GRID) * density(GRID, levels[-1]), GRID))
        found.append(abs(mean_after(mixture, covariance, kernels, f) - exact))
    return np.array(found)


def orders(found):
    return np.log2(found[:-1] / found[1:])


def table(mixture, structure="isotropic"):
    return dv.ExactCovariance(mixture, structure, per_image=False, draws=20_000)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("fixed", [table, lambda mixture: dv.FixedSmall()], ids=["table", "λ² alone"])
def test_without_the_images_own_it_is_the_first(mixture, fixed, eta):
    assert orders(errors(mixture, fixed(mixture), eta)) == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("own", [dv.ExactCovariance, lambda _: dv.Lanczos(steps=1)], ids=["closed form", "Lanczos"])
def test_with_the_images_own_it_is_the_second(mixture, own, eta):
    """Known in closed form, or of the mean's derivative alone."""
    assert orders(errors(mixture, own(mixture), eta)) == pytest.approx([2.0, 2.0], abs=0.2)
