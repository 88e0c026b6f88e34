"""deepinv's methods are given what they ask for: a denoiser in [0, 1] that is the closed form of Gaussian data, on the
schedule's grid and off it, the same measurement in that range, and as many evaluations as are counted."""

import deepinv
import numpy as np
import pytest
import rivals
import torch

import diffusion_var as dv

SHAPE, SIGMA = (2, 4, 4), 0.05


@pytest.fixture(scope="module")
def gaussian() -> dv.oracles.GaussianDenoiser:
    """Gaussian data in [−1, 1], more or less, of which every element has a mean and a variance of its own."""
    rng = np.random.default_rng(0)
    mean, variance = rng.uniform(-0.5, 0.5, SHAPE), rng.uniform(0.01, 0.1, SHAPE)
    return dv.oracles.GaussianDenoiser(dv.NoiseSchedule.linear(1000), mean, variance)


def blur(sigma: float = SIGMA) -> deepinv.physics.BlurFFT:
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16.0
    return deepinv.physics.BlurFFT(SHAPE, kernel, noise_model=deepinv.physics.GaussianNoise(sigma))


def sensing() -> deepinv.physics.CompressedSensing:
    noise = deepinv.physics.GaussianNoise(SIGMA)
    return deepinv.physics.CompressedSensing(20, SHAPE, rng=torch.Generator().manual_seed(0), noise_model=noise)


def noisy(physics, images: torch.Tensor) -> torch.Tensor:
    y = physics.A(images)
    return y + SIGMA * torch.from_numpy(np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32))


@pytest.mark.parametrize("sigma", [0.0123, 0.3, torch.tensor(2.0), torch.tensor([[0.7]]), torch.full((5,), 0.05)])
def test_the_denoiser_is_the_closed_form(gaussian, sigma):
    """E[u|u + σ z] of u = (x_0 + 1)/2, whose mean is (μ + 1)/2 and whose variance a quarter of x_0's."""
    model = rivals.AsDeepinv(gaussian)
    noisy = torch.from_numpy(np.random.default_rng(2).uniform(-0.5, 1.5, (5, *SHAPE)))
    one = float(torch.as_tensor(sigma).flatten()[0])
    mean, variance = (gaussian.mean + 1.0) / 2.0, gaussian.variance / 4.0
    expected = mean + variance / (variance + one**2) * (noisy - mean)
    assert (model(noisy, sigma) - expected).abs().max() < 2e-6
    assert model.evaluations == 1


def test_data_of_another_range(gaussian):
    denoiser = dv.Denoiser(lambda x, t: torch.zeros_like(x), gaussian.schedule, "sample", SHAPE, clip=(0.0, 4.0))
    model = rivals.AsDeepinv(denoiser)
    assert model.level(0.1).sigma / model.level(0.1).alpha == pytest.approx(0.4)
    assert float(model(torch.full((1, *SHAPE), 0.5), 0.1).abs().max()) == 0.0


def test_levels_beyond_the_schedule_are_its_last(gaussian):
    model = rivals.AsDeepinv(gaussian)
    assert [model.level(sigma).index for sigma in (0.0, 1e-5, 1e3)] == [1, 1, 1000]
    with pytest.raises(ValueError, match="one noise level a batch"):
        model.level(torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("physics", [blur(), sensing()])
def test_the_measurement_is_the_same_in_the_other_range(physics):
    images = torch.from_numpy(np.random.default_rng(3).uniform(0.0, 4.0, (3, *SHAPE))).float()
    y = noisy(physics, images)
    unit, measured = rivals.in_unit_range(physics, y, (0.0, 4.0), SHAPE)
    assert (unit.A(images / 4.0) - physics.A(images) / 4.0).abs().max() < 1e-6
    assert (measured - unit.A(images / 4.0) - (y - physics.A(images)) / 4.0).abs().max() < 1e-6
    assert float(unit.noise_model.sigma) == pytest.approx(SIGMA / 4.0)
    assert float(physics.noise_model.sigma) == pytest.approx(SIGMA)  # the one that is given stays as it is
    shifted, there = rivals.in_unit_range(physics, y - physics.A(torch.ones(1, *SHAPE)), (-1.0, 3.0), SHAPE)
    assert (there - measured).abs().max() < 1e-6
    assert shifted.noise_model.sigma == unit.noise_model.sigma


@pytest.mark.parametrize("name", list(rivals.METHODS))
def test_methods_restore(gaussian, name):
    """With an eighth of the numbers missing and 30 evaluations, as counted, they come nearer to the truth than the mean
    of the data (two draws of what is missing differ by a quarter of the variance); the same twice; and torch's own
    generator stays where it was."""
    mask = torch.ones(SHAPE)
    mask[:, 1, 2:] = 0.0
    physics = deepinv.physics.Inpainting(SHAPE, mask, noise_model=deepinv.physics.GaussianNoise(SIGMA))
    images = gaussian.sample(16, seed=1)
    y, before = noisy(physics, images) * mask, torch.get_rng_state()
    settings = {"dps": {"weight": 3.0, "guidance": "annealed"}}.get(name, rivals.GRIDS[name][0])
    found, runs = rivals.restore(name, gaussian, physics, y, 30, seed=3, **settings)
    assert runs == 30
    assert (found - images).square().mean() < 0.5 * gaussian.variance.mean()
    again, _ = rivals.restore(name, gaussian, physics, y, 30, seed=3, **settings)
    other, _ = rivals.restore(name, gaussian, physics, y, 30, seed=4, **settings)
    assert torch.equal(found, again)
    assert (found - other).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), before)


def test_pigdm_draws_from_the_posterior_of_its_own_data():
    """Where the data's variance is the one that ΠGDM assumes, 1 of images in [0, 1], many steps of it end in the exact
    posterior: mean and variance of every element, to 4 standard errors."""
    shape, count = (1, 2, 2), 4000
    denoiser = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.linear(1000), 0.0, np.full(shape, 4.0))
    mask = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    physics = deepinv.physics.Inpainting(shape, mask, noise_model=deepinv.physics.GaussianNoise(2.0))
    y = (mask * torch.tensor([[[3.0, 0.0], [-1.0, 0.5]]]))[None].repeat(count, 1, 1, 1)
    found, _ = rivals.restore("pigdm", denoiser, physics, y, 300, weight=1.0)
    variance = torch.where(mask > 0, 2.0, 4.0)  # 1/(1/4 + 1/4), or the data's
    mean = torch.where(mask > 0, y[0] / 2.0, 0.0)
    deviation = found.double()
    assert ((deviation.mean(0) - mean).abs() < 4 * (variance / count).sqrt() + 0.02).all()
    assert ((deviation.var(0) / variance - 1).abs() < 4 * (2 / count) ** 0.5 + 0.02).all()


def test_ddrm_wants_singular_values():
    assert rivals.fits("ddrm", blur())
    assert not rivals.fits("ddrm", sensing())
    assert rivals.fits("diffpir", sensing())


def test_ddrm_levels_end_without_noise(gaussian, monkeypatch):
    seen = []
    monkeypatch.setattr(rivals.AsDeepinv, "level", lambda self, sigma: seen.append(float(sigma)) or self.known)
    monkeypatch.setattr(rivals.AsDeepinv, "known", gaussian.schedule.level(500), raising=False)
    physics = blur()
    y = noisy(physics, gaussian.sample(2))
    for levels in ("linear", "schedule"):
        rivals.restore("ddrm", gaussian, physics, y, 5, eta=0.85, etab=1.0, levels=levels)
    alpha, sigma = gaussian.schedule.alpha[1000], gaussian.schedule.sigma[1000]
    assert seen[0] == 1.0
    assert seen[5] == pytest.approx(sigma / alpha / 2.0)
    assert seen[4] == seen[9] == 0.0
    assert all(np.diff(seen[:5]) < 0)
    assert all(np.diff(seen[5:]) < 0)
