"""The network's Jacobian as Σ: exact for exact Gaussian data, cut where it is not positive, and what it costs."""

from typing import Any

import numpy as np
import pytest
import torch
from measurements import SCHEDULE, SHAPE, dense, gaussian, halved, masked, matrix_of, measured, normal
from naive_restoration import gaussian_given_both

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.restoration.jacobian import NetworkCovariance

GUIDANCE = pytest.mark.parametrize("guidance", ["I", "II"])


@GUIDANCE
@pytest.mark.parametrize("operator", [halved, masked()])
@pytest.mark.parametrize("name", ["pixel", "dct"])
def test_of_gaussian_data_it_is_exact(name: str, operator: Any, guidance: Any) -> None:
    """With as many products as S has dimensions, both types are the mean given x_t and y."""
    base, known = gaussian(name)
    images = base.sample(2, seed=1).double()
    measurement, matrix = measured(operator, images), matrix_of(operator)
    den = dv.ConditionedDenoiser(base, dv.NetworkJacobian(len(matrix)), measurement, guidance)
    prior = dense(known.structure, known.data_variance)
    for n in (50, 300, 800):
        alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
        x_t = alpha * images + sigma * normal(2, *SHAPE)
        found = den(x_t, n).mean
        for i in range(2):
            x, y = x_t[i].flatten().numpy(), measurement.y[i].flatten().numpy()
            mean_0, R = base.mean.flatten().numpy(), 0.01 * np.eye(len(matrix))
            expected, _ = gaussian_given_both(mean_0, prior, alpha, sigma, x, matrix, R, y)
            assert np.abs(found[i].flatten().numpy() - expected).max() < 1e-8
    assert den.counts()[1:3] == [0, 0]
    solved = dv.ConditionedDenoiser(base, known, measurement, guidance, dv.restoration.ConjugateGradients(1e-10, 500))
    torch.testing.assert_close(den.residual(x_t, 800), solved.residual(x_t, 800), rtol=1e-7, atol=0)
    density = dv.ConditionedDenoiser(base, known, measurement, guidance).log_likelihood(x_t, 800)
    torch.testing.assert_close(den.log_likelihood(x_t, 800), density, rtol=1e-7, atol=0)


def test_its_products_are_those_of_the_transpose() -> None:
    base = dv.oracles.MixtureDenoiser(SCHEDULE, normal(4, *SHAPE, seed=1), 0.3)
    level, x = SCHEDULE.level(400), normal(1, *SHAPE).requires_grad_()
    covariance = NetworkCovariance(base(x, 400).mean, x, level)
    J = torch.autograd.functional.jacobian(lambda z: base(z.view(1, *SHAPE), 400).mean.flatten(), x.detach().flatten())
    v = normal(1, *SHAPE, seed=2)
    expected = level.sigma**2 / level.alpha * (J.T @ v.flatten())
    for _ in range(2):  # the graph stays
        found = covariance.matvec(v)
        assert float((found.flatten() - expected).abs().max()) < 1e-12
        assert not found.requires_grad


class Backwards:
    """A network with a Jacobian that is not positive; its passes are counted."""

    def __init__(self, sign: float) -> None:
        self.sign, self.forwards, self.backwards = sign, 0, 0

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if x.requires_grad:
            x.register_hook(self._count)
        return self.sign * torch.tanh(x)

    def _count(self, _: torch.Tensor) -> None:
        self.backwards += 1


@GUIDANCE
def test_eigenvalues_that_are_not_positive_are_cut_counted_and_said(guidance: Any) -> None:
    """S of −tanh is negative: raised to the noise's variance it leaves finite samples; conjugate gradients alone would
    stop at once."""
    images = normal(2, *SHAPE, seed=2).float()
    for sign, negative in ((1.0, 0), (-1.0, 2)):
        network = Backwards(sign)
        base = dv.Denoiser(network, SCHEDULE, shape=SHAPE, prediction="sample", clip=None)
        den = dv.ConditionedDenoiser(base, dv.NetworkJacobian(4), measured(halved, images), guidance)
        assert bool(torch.isfinite(den(normal(2, *SHAPE).float(), 300).mean).all())
        solves, _, cut, products = den.counts()
        assert (solves, cut, products) == (2, negative, 8)
        assert network.forwards == 1
        # Products with S are backward passes; type II takes one more for Σ Aᵀ u, type I for its own.
        assert network.backwards == 5
    with pytest.warns(
        UserWarning,
        match="of 2 solves .* more iterations, dv.NetworkJacobian.* and 2 met a direction in which S is not positive",
    ):
        den.report()


@GUIDANCE
def test_what_is_raised_is_raised_to_the_noises_least_variance(guidance: Any) -> None:
    """S of x̂_0 = −x_t is below the noise in every direction: S⁻¹ is then that of the noise alone."""
    base = dv.Denoiser(lambda x, t: -x, SCHEDULE, shape=SHAPE, prediction="sample", clip=None)
    images, x_t = normal(2, *SHAPE, seed=2), normal(2, *SHAPE, seed=3)
    measurement = measured(halved, images)
    den = dv.ConditionedDenoiser(base, dv.NetworkJacobian(4), measurement, guidance)
    r = measurement.y - halved(-x_t)
    expected = r.square().flatten(1).mean(1) / 0.01
    torch.testing.assert_close(den.residual(x_t, 300), expected, rtol=1e-9, atol=0)


def test_images_in_a_sampler_are_finite_and_do_not_depend_on_the_batches() -> None:
    base, _ = gaussian("dct")
    den = dv.ConditionedDenoiser(base, dv.NetworkJacobian(18), measured(halved, base.sample(3, seed=1)))
    sampler = dv.Sampler(den, dv.FixedSmall(), [1, 60, 300, 900], eta=1.0)
    whole = sampler.sample(5, batch_size=5)
    assert float((sampler.sample(5, batch_size=2) - whole).abs().max()) < 1e-3
    assert float((halved(whole) - den.measurement.y[torch.arange(5) % 3]).abs().mean()) < 0.3


@pytest.mark.parametrize("iterations", [0, -1, 2.5, True, "5"])
def test_iterations_that_are_refused(iterations: Any) -> None:
    with pytest.raises(InputError, match="iterations"):
        dv.NetworkJacobian(iterations)


def test_what_it_is_called() -> None:
    assert dv.NetworkJacobian().identity() == {"name": "jacobian-5"}
    assert dv.NetworkJacobian(3).identity() != dv.NetworkJacobian(4).identity()
