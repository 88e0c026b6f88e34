"""The estimator against denoisers whose posterior variance is known in closed form, or by brute force."""

import numpy as np
import pytest
import torch
from crooked import IMAGES, crooked_denoiser
from naive import naive_posterior_variance
from populations import elementwise_in, exact_population

import diffusion_var as dv
from diffusion_var.process.structure import Dct, make_structure
from diffusion_var.randomness import generator
from diffusion_var.variance.estimators import ESTIMATORS

SCHEDULE = dv.NoiseSchedule.linear(1000)
INDICES = [3, 60, 250, 500]
STRUCTURES = ("isotropic", "channel", "pixel", "dct")


def gaussian_case(shape, basis_name):
    """(denoiser, basis, element variances, images) with moments that are exactly the denoiser's."""
    channels = shape[0]
    stream = generator(1, "gaussian case", channels)
    scale = np.linspace(2.0, 0.5, channels).reshape(-1, *(1,) * (len(shape) - 1))
    variance = stream.uniform(0.05, 1.5, shape) * scale
    mean = stream.normal(size=shape)
    basis = make_structure("pixel", shape)
    if basis_name == "dct":
        turned = channels not in (1, 3) or len(shape) == 1
        basis = Dct(shape, np.linalg.qr(stream.normal(size=(channels, channels)))[0] if turned else None)
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, mean, variance)
    denoiser.structure = basis
    return denoiser, basis, variance, exact_population(400, mean, variance, basis)


@pytest.mark.parametrize("basis_name", ["pixel", "dct"])
@pytest.mark.parametrize(
    "shape", [(1, 4, 3), (3, 4, 3), (4, 4, 3), (6,), (2, 7), (3, 2, 2, 3)], ids=lambda shape: "×".join(map(str, shape))
)
def test_gaussian_data_equals_the_formula(shape, basis_name):
    """Images, vectors, signals and videos."""
    denoiser, basis, variance, images = gaussian_case(shape, basis_name)
    table = dv.estimate(denoiser, images, tolerance=0.003, indices=INDICES, progress=False, max_evaluations=20_000)
    assert table.details["shortfall"] == []
    for i, n in enumerate(INDICES):
        alpha, sigma, count = SCHEDULE.alpha[n], SCHEDULE.sigma[n], table.counts[i]
        kappa = alpha * variance / (alpha**2 * variance + sigma**2)
        v = (1 - kappa * alpha) ** 2 * variance + (kappa * sigma) ** 2
        # Standard errors of single elements without control variates (a squared Gaussian has variance 2 E²).
        raw = {
            "residual": v,
            "score_norm": (sigma / alpha) ** 2 * (sigma**2 / (alpha**2 * variance + sigma**2)),
            "data_variance": kappa * alpha * variance,
        }
        for name in STRUCTURES:
            structure = table.structure(name)
            expected = elementwise_in(structure, basis, v)
            for estimator in ESTIMATORS:
                value = table.posterior_variance(n, estimator, name, bounded=False)
                if name == "isotropic":
                    error = 4 * table.standard_error(n, estimator) + 2e-5 * expected
                else:
                    error = 5 * np.sqrt(2 / count) * elementwise_in(structure, basis, raw[estimator])
                assert np.abs(value - expected).max() <= np.max(error), (n, estimator, name)
                assert np.shape(value) == structure.variance_shape
            # The residual's own error is known more closely.
            value = table.posterior_variance(n, "residual", name)
            relative = np.sqrt(np.mean((value / expected - 1) ** 2))
            assert relative <= 2.5 * table.relative_error(n, name) + 2e-5, (n, name)


def test_linear_denoiser_in_the_dct_basis_leaves_no_noise():
    denoiser, _, _, images = gaussian_case((3, 4, 3), "dct")
    table = dv.estimate(denoiser, images, tolerance=0.5, indices=INDICES, progress=False)
    for n in INDICES:
        exact = denoiser.posterior_variance(n)
        assert table.posterior_variance(n) == pytest.approx(exact.mean(), rel=1e-5)
        assert np.abs(table.posterior_variance(n, structure="dct") / exact - 1).max() < 1e-4


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_estimators_agree_for_an_exact_nonlinear_mean(kind):
    # A finite population is exact for the empirical denoiser alone; the mixture's is large.
    centres = generator(3, "centres").normal(size=(5, 1, 2, 3)) * (1.0 if kind == "mixture" else 0.4)
    if kind == "mixture":
        denoiser = dv.oracles.MixtureDenoiser(SCHEDULE, centres, 0.2)
        images = denoiser.sample(40_000, seed=1)
    else:
        denoiser, images = dv.oracles.EmpiricalDenoiser(SCHEDULE, centres), centres
    indices = [100, 350, 500]
    table = dv.estimate(denoiser, images, tolerance=0.02, indices=indices, progress=False, structures=("pixel",))
    for n in indices:
        values = {e: table.posterior_variance(n, e, bounded=False) for e in ESTIMATORS}
        errors = {e: table.standard_error(n, e) for e in ESTIMATORS}
        population = 4 * values["residual"] / np.sqrt(len(images)) if kind == "mixture" else 0.0
        for other in ("score_norm", "data_variance"):
            gap = abs(values[other] - values["residual"])
            assert gap <= 4 * np.hypot(errors[other], errors["residual"]) + population, (n, other)
    # They agree about something: the data is far from Gaussian.
    assert table.posterior_variance(100) < 0.8 * table.interpolation.linear("isotropic", table.schedule.level(100))


def test_residual_is_right_for_a_biased_mean_and_the_others_are_not():
    mixture = dv.oracles.MixtureDenoiser(SCHEDULE, generator(3, "centres").normal(size=(5, 1, 2, 3)), 0.2)

    class Biased(dv.oracles.MixtureDenoiser):
        def exact_mean(self, x_t, alpha, sigma):
            return 0.7 * super().exact_mean(x_t, alpha, sigma) + 0.2

    biased = Biased(SCHEDULE, mixture.means, 0.2)
    images = mixture.sample(2000, seed=1)
    n = 300
    table = dv.estimate(biased, images, tolerance=0.01, indices=[n], progress=False)
    # Brute force: every image 20 times, nothing shared with the estimator.
    x_0 = images.repeat(20, 1, 1, 1)
    eps = torch.from_numpy(generator(9, "brute force").standard_normal(x_0.shape, dtype=np.float32))
    mean = biased(SCHEDULE.alpha[n] * x_0 + SCHEDULE.sigma[n] * eps, n).mean
    squares = (x_0 - mean).double().square()
    brute, brute_error = squares.mean(), squares.mean((1, 2, 3)).std() / np.sqrt(len(x_0))
    error = np.hypot(table.standard_error(n), float(brute_error))
    assert abs(table.posterior_variance(n) - float(brute)) <= 4 * error
    pixel = table.posterior_variance(n, structure="pixel")
    assert np.abs(pixel - squares.mean(0).numpy()).max() <= 6 * np.sqrt(6) * error
    for other in ("score_norm", "data_variance"):
        gap = abs(table.posterior_variance(n, other, bounded=False) - float(brute))
        assert gap > 10 * np.hypot(error, table.standard_error(n, other)), other


def test_conditions_reach_the_network_with_their_image():
    images = np.array([-0.5, 0.5])[:, None, None, None] * np.ones((2, 1, 2, 2))

    def knows_the_answer(x_t, timestep, condition):
        return condition[:, None, None, None].to(x_t.dtype).expand_as(x_t)

    denoiser = dv.Denoiser(knows_the_answer, SCHEDULE, prediction="sample", shape=(1, 2, 2))
    told = dv.estimate(denoiser, images, indices=[500], conditions=np.array([-0.5, 0.5]), progress=False)
    assert told.posterior_variance(500) < 1e-10
    misled = dv.estimate(denoiser, images, indices=[500], conditions=np.array([0.5, -0.5]), progress=False)
    assert misled.posterior_variance(500) == pytest.approx(1.0, rel=1e-6)
    with pytest.raises(dv.InputError, match="3 entries for 2 images"):
        dv.estimate(denoiser, images, indices=[500], conditions=np.zeros(3), progress=False)


# ---- the plain loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 300, 800])
def test_the_residual_is_the_plain_loops(n):
    """Imperfect mean, uneven images: without control variates, batches and shards."""
    model = crooked_denoiser()
    table = dv.estimate(model, IMAGES, 0.005, indices=[n], structures=("isotropic",), progress=False)
    draws = 3000
    plain = naive_posterior_variance(model, np.asarray(IMAGES, dtype=np.float64), n, draws, seed=1)
    spread = table.moments["isotropic"].draw_variance("error_square")[0] ** 0.5
    error = np.hypot(spread / draws**0.5, table.standard_error(n))
    assert abs(plain - table.posterior_variance(n)) < 4 * error
    assert error < 0.1 * plain
