"""Where the Gaussian step is exact: Gaussian data that is independent in the basis of the structure (DESIGN §8.2).

Then x_s has exactly its own distribution for every s > 0, whatever K and η, and the images, the last step's means,
have variance l²/(l + σ_1²/α_1²). No structure that gives all elements one variance can do that.
"""

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.randomness import generator
from diffusion_var.sampling.noise import ImageNoise

SCHEDULE = dv.NoiseSchedule.linear(1000)
SHAPE = (1, 3, 4)
VARIANCE = generator(1, "variance").permutation(np.geomspace(0.01, 2.0, 12)).reshape(SHAPE)
COUNT = 6000
LOWEST = 30  # the smallest index visited: high enough for l/(l + σ²/α²) to matter
STEPS = {2: [LOWEST, 1000], 5: [LOWEST, 150, 400, 700, 1000], 10: [LOWEST, *range(100, 1001, 112)]}


@pytest.fixture(scope="module", params=["pixel", "dct"])
def model(request):
    """(basis name, denoiser, table): the table's value in that basis has no Monte Carlo error at all."""
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, VARIANCE, basis=request.param)
    images = denoiser.sample(400, seed=1).double()
    # a population with exactly these moments: whiten the sample
    z = denoiser.structure.forward(images - images.mean(0)).flatten(1)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / len(z))).T
    images = denoiser.structure.inverse((z * torch.from_numpy(VARIANCE.ravel()).sqrt()).reshape(-1, *SHAPE))
    indices = sorted({n for K, steps in STEPS.items() for n in [*steps, *dv.steps.linspace(SCHEDULE, K)]})
    table = dv.estimate(denoiser, images, 0.01, indices=indices, batch_size=1024, progress=False)
    for n in indices:
        exact = denoiser.posterior_variance(n)
        assert np.abs(table.posterior_variance(n, structure=request.param) / exact - 1).max() < 1e-3
    return request.param, denoiser, table


def worst(values, expected):
    """Largest deviation of the elements' second moments from those expected, in standard errors."""
    return float(np.abs(values.double().square().mean(0).numpy() / expected - 1).max() / np.sqrt(2 / len(values)))


def final_variance(n=LOWEST):
    return VARIANCE**2 / (VARIANCE + (SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 5, 10])
def test_own_structure_is_exact_and_no_other(model, K, eta):
    name, denoiser, table = model

    def images(covariance):
        sampler = dv.Sampler(denoiser, covariance, STEPS[K], eta)
        return denoiser.structure.forward(sampler.sample(COUNT, seed=3, batch_size=3000))

    assert worst(images(dv.Analytic(table, structure=name)), final_variance()) < 4
    others = [dv.FixedSmall(), dv.Analytic(table), dv.Analytic(table, structure="dct" if name == "pixel" else "pixel")]
    for other in [*others, *([dv.FixedLarge()] if eta == 1.0 else [])]:
        assert worst(images(other), final_variance()) > 4, other.name


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 10])
def test_every_state_on_the_way_is_exact(model, K, eta):
    name, denoiser, table = model
    sampler = dv.Sampler(denoiser, dv.Analytic(table, structure=name), STEPS[K], eta)
    noise = ImageNoise(5, range(COUNT), SHAPE, torch.device("cpu"))
    x = noise.prior()
    visited = []
    for kernel in sampler.kernels:
        posterior = denoiser(x, kernel.t)
        x = kernel.mean(x, posterior)
        visited.append((kernel.t, kernel.s))
        if kernel.s > 0:
            x = x + sampler.covariance(posterior, kernel).colour(noise.next())
            expected = SCHEDULE.alpha[kernel.s] ** 2 * VARIANCE + SCHEDULE.sigma[kernel.s] ** 2
            assert worst(denoiser.structure.forward(x), expected) < 4, kernel.s
    assert visited == list(zip(STEPS[K][::-1], [*STEPS[K][-2::-1], 0], strict=True))
    # and this loop, written out, is the sampler's
    assert float((x - sampler.sample(COUNT, seed=5, batch_size=COUNT)).abs().max()) < 1e-6


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 5, 10])
def test_even_steps_begin_at_index_one_and_are_exact_too(model, K, eta):
    name, denoiser, table = model
    sampler = dv.Sampler(denoiser, dv.Analytic(table, structure=name), K, eta)
    assert (sampler.steps[0], sampler.steps[-1], len(sampler.steps)) == (1, 1000, K)
    images = denoiser.structure.forward(sampler.sample(COUNT, seed=4, batch_size=3000))
    assert worst(images, final_variance(1)) < 4
