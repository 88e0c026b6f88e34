"""The order of a step whose covariance is each image's own but for what bands leave out: the first, like a table's,
with a smaller error; the whole covariance has the second. In the plane, as `test_weak_order` on the line: what bands
tend to with many probes is in closed form, expectations are by Gauss–Hermite's rule and splines: nothing is random."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.interpolate import RectBivariateSpline

import diffusion_var as dv
from diffusion_var.process.kernel import reverse_kernels

MEANS = np.array([[-0.9, 0.4], [0.8, -0.2]])
COVARIANCES = np.array([[[0.10, 0.05], [0.05, 0.2]], [[0.36, -0.1], [-0.1, 0.15]]])
WEIGHTS = (0.4, 0.6)
FIRST, LAST, STEPS = -5.0, 3.0, (24, 48)  # log-SNR between which the steps are
AXIS = np.linspace(-4.5, 4.5, 61)
PLANE = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def mixture():
    schedule = dv.NoiseSchedule.linear(1000)
    means, covariances = MEANS.reshape(2, 1, 2), torch.from_numpy(COVARIANCES)
    return dv.oracles.MixtureDenoiser(schedule, means, covariances=covariances, weights=WEIGHTS)


def mean_of(u, level):
    """The mean of u over the exact density of x_t."""
    density = np.zeros(len(PLANE))
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        S = level.alpha**2 * covariance + level.sigma**2 * np.eye(2)
        r = PLANE - level.alpha * mean
        square = np.einsum("ni,ij,nj->n", r, np.linalg.inv(S), r)
        density += weight * np.exp(-0.5 * square) / (2 * math.pi * math.sqrt(np.linalg.det(S)))
    return float(u @ density) * (AXIS[1] - AXIS[0]) ** 2


def mean_after(mixture, covariance, kernels, f):
    """E f(x) of what the steps make of the exact x_t at the first level."""
    z, weight = hermegauss(7)
    noise = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    weights = np.outer(weight, weight).ravel() / weight.sum() ** 2
    u, x_t = f(PLANE), torch.from_numpy(PLANE).view(-1, 1, 2)
    units = [unit.expand(len(x_t), 1, 2).clone() for unit in torch.eye(2, dtype=torch.float64).view(2, 1, 2)]
    for kernel in reversed(kernels):
        posterior = mixture(x_t, kernel.level_t)
        found = covariance(posterior, kernel)
        root = torch.stack([found.colour(unit).view(-1, 2) for unit in units], 1).numpy()
        nodes = kernel.mean(x_t, posterior).view(-1, 1, 2).numpy() + noise @ root
        spline = RectBivariateSpline(AXIS, AXIS, u.reshape(len(AXIS), -1))
        u = spline.ev(*np.moveaxis(nodes.clip(AXIS[0], AXIS[-1]), -1, 0)) @ weights
    return mean_of(u, kernels[0].level_t)


def errors(mixture, covariance):
    """|E f(x) − exact| at η = 0, for f = cos(2 x_1 + x_2) + cos 1.5 x_2."""
    f = lambda x: np.cos(2.0 * x[:, 0] + x[:, 1]) + np.cos(1.5 * x[:, 1])  # noqa: E731
    found = []
    for count in STEPS:
        levels = [mixture.schedule.level_at(float(v)) for v in np.linspace(FIRST, LAST, count + 1)]
        kernels = reverse_kernels(mixture.schedule, levels, 0.0)[:-1]
        found.append(abs(mean_after(mixture, covariance, kernels, f) - mean_of(f(PLANE), levels[-1])))
    return found


@pytest.fixture(scope="module")
def of_table(mixture):
    return errors(mixture, dv.ExactCovariance(mixture, "dct", per_image=False, draws=20_000))


def test_a_tables_is_the_first(of_table):
    assert math.log2(of_table[0] / of_table[1]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("bands", ["isotropic", "dct"], ids=["one band", "a band of each coefficient"])
def test_that_of_bands_is_the_first_with_a_smaller_error(mixture, of_table, bands):
    found = errors(mixture, dv.ExactCovariance(mixture, bands))
    assert math.log2(found[0] / found[1]) == pytest.approx(1.0, abs=0.1)
    assert found[1] < 0.5 * of_table[1]


def test_that_of_the_whole_is_the_second(mixture, of_table):
    found = errors(mixture, dv.ExactCovariance(mixture))
    assert math.log2(found[0] / found[1]) == pytest.approx(2.0, abs=0.15)
    assert found[1] < 0.1 * of_table[1]
