"""The variance from ε̂ alone: its formula, that its mean over x_t is right, and that it is poor for any one x_t."""

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE

import diffusion_var as dv
from diffusion_var.testing import CovarianceContract

DATA = np.exp(np.random.default_rng(1).uniform(-3, 0, (1, 4, 4)))
MODEL = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, DATA)


class TestEpsSquare(CovarianceContract):
    @pytest.fixture(params=[1.0, None])
    def covariance(self, request: pytest.FixtureRequest) -> dv.ReverseCovariance:
        return dv.EpsSquare(request.param)


@pytest.mark.parametrize("most", [0.5, 1.0, None])
def test_the_formula(most: float | None) -> None:
    kernel = dv.ReverseKernel(SCHEDULE, 90, 50, 0.5)
    eps = torch.tensor([[0.0, 0.3], [-0.9, 2.0]], dtype=torch.float64).view(1, 1, 2, 2)
    found = dv.EpsSquare(most)(dv.Posterior(torch.zeros_like(eps), eps), kernel)
    ratio = kernel.sigma_t**2 / kernel.alpha_t**2
    v = np.clip(ratio * (1 - eps.numpy() ** 2), 0, most)
    np.testing.assert_allclose(found.variance.numpy(), kernel.lambda2 + kernel.gain**2 * v, rtol=1e-12)
    assert (v == (ratio if most is None else most)).any() == (most is None or most < ratio)


def test_its_mean_is_right_and_its_values_are_not() -> None:
    """Gaussian data: the variance is the same at every x_t; uncut, the mean is right, and the spread of its size."""
    n = 60
    exact = MODEL.posterior_variance(n)
    kernel = dv.ReverseKernel(SCHEDULE, n, 20)
    x_0 = MODEL.sample(20_000, seed=1).double()
    x_t = SCHEDULE.alpha[n] * x_0 + SCHEDULE.sigma[n] * torch.from_numpy(
        np.random.default_rng(2).normal(size=x_0.shape)
    )
    eps = MODEL(x_t, n).eps.numpy()
    uncut = (SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2 * (1 - eps**2)
    error = uncut.std(0) / np.sqrt(len(uncut))
    assert (np.abs(uncut.mean(0) - exact) < 4.5 * error).all()
    assert (uncut.std(0) > 0.2 * exact).all()
    assert np.median(uncut.std(0) / exact) > 0.5
    found = dv.EpsSquare(None)(MODEL(x_t, n), kernel).variance.numpy()
    np.testing.assert_allclose(found, kernel.lambda2 + kernel.gain**2 * np.maximum(uncut, 0), rtol=1e-6)


def test_it_is_poor() -> None:
    """On Gaussian data of one variance, where one number a step is exact, it costs a tenth of a bit and more."""
    model = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.full((1, 4, 4), 0.1))
    data, steps = model.sample(500, seed=3), [1, 10, 30, 60, 100]
    table = dv.estimate(
        model, model.sample(400, seed=4), 0.05, indices=steps, structures=("isotropic",), progress=False
    )
    costs = {
        c.name: dv.density_bound(model, c, data, steps) for c in (dv.Analytic(table), dv.EpsSquare(), dv.FixedLarge())
    }
    gap = costs["eps-square"].value - costs["analytic-isotropic"].value
    assert gap > 0.1
    assert gap > 5 * costs["eps-square"].standard_error


def test_a_level_without_signal() -> None:
    schedule = dv.NoiseSchedule.flow(10)
    model = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full((1, 2, 2), 0.5))
    assert bool(torch.isfinite(dv.Sampler(model, dv.EpsSquare(), 4).sample(3)).all())
    with pytest.raises(dv.InputError, match="most=None leaves the variance without a bound at index 10"):
        dv.Sampler(model, dv.EpsSquare(None), 4)
    with pytest.raises(dv.InputError, match="there is no posterior"):
        dv.EpsSquare()(None, dv.ReverseKernel(SCHEDULE, 3, 2))
