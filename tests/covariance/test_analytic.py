"""Reverse covariances: against the equations, published numbers, and simulation of the step itself."""

import math

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.analytic import optimal_variance
from diffusion_var.covariance.reverse import StructuredCovariance
from diffusion_var.models.posterior import Posterior
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator

SCHEDULE = dv.NoiseSchedule.linear(1000)
STEPS = [(1000, 889), (556, 445), (750, 250), (501, 500), (2, 1)]


def by_hand(t, s, eta):
    """(λ², γ, c, β) in the plain, cancelling form of the papers."""
    a, b = SCHEDULE.alpha**2, SCHEDULE.sigma**2
    beta = b[t] - a[t] / a[s] * b[s]
    lambda2 = eta**2 * beta * b[s] / b[t]
    c = math.sqrt(b[s] - lambda2)
    return lambda2, SCHEDULE.alpha[s] - c * SCHEDULE.alpha[t] / SCHEDULE.sigma[t], c, beta


# ---- the fixed choices, and Analytic on numbers of others ---------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fixed_choices_against_the_equations(t, s, eta):
    kernel = dv.ReverseKernel(SCHEDULE, t, s, eta)
    lambda2, _, _, beta = by_hand(t, s, eta)
    small = dv.FixedSmall()(None, kernel)
    if eta == 0.0:
        assert small is None
    else:
        assert float(small.variance) == pytest.approx(lambda2, rel=1e-6)
    if eta == 1.0:
        assert float(dv.FixedLarge()(None, kernel).variance) == pytest.approx(beta, rel=1e-6)
    else:
        with pytest.raises(dv.InputError, match=f"eta=1 only, but eta={eta}"):
            dv.FixedLarge()(None, kernel)
        with pytest.raises(dv.InputError, match="eta=1 only"):
            dv.FixedLarge().check(None, [kernel])


#: (t, s, η, variance) for data i.i.d. N(0, 0.25), an exact network and the linear schedule, computed independently.
PUBLISHED = [
    (1000, 889, 1.0, 0.8795933282761563),
    (1000, 889, 0.5, 0.21992249335837957),
    (556, 445, 1.0, 0.6276283064375792),
    (556, 445, 0.5, 0.16126955051164507),
    (556, 445, 0.0, 0.006854664722941196),
    (750, 250, 1.0, 0.6045749880928442),
    (750, 250, 0.5, 0.23729223745424066),
    (750, 250, 0.0, 0.11684466362932223),
    (501, 500, 1.0, 0.010053625418928958),
    (501, 500, 0.0, 5.755535546328699e-07),
]


@pytest.mark.parametrize(("t", "s", "eta", "expected"), PUBLISHED)
def test_analytic_against_published_formulas(t, s, eta, expected):
    a, b = SCHEDULE.alpha[1:] ** 2, SCHEDULE.sigma[1:] ** 2
    table = dv.VarianceTable.from_moments(SCHEDULE, eps_square=b / (a * 0.25 + b))
    covariance = dv.Analytic(table, "score_norm")
    assert covariance.variance(dv.ReverseKernel(SCHEDULE, t, s, eta)) == pytest.approx(expected, rel=1e-9)
    found = covariance(None, dv.ReverseKernel(SCHEDULE, t, s, eta))
    assert float(found.variance) == pytest.approx(expected, rel=1e-6)


def test_analytic_adds_gain_times_the_tables_value():
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, generator(1, "l").uniform(0.1, 2.0, (3, 2, 2)), basis="dct")
    table = dv.estimate(denoiser, denoiser.sample(500), 1e3, indices=[2, 556], progress=False)
    for structure in ("isotropic", "channel", "pixel", "dct"):
        for estimator in ("residual", "score_norm", "data_variance"):
            for eta in (0.0, 0.5, 1.0):
                lambda2, gamma, _, _ = by_hand(556, 445, eta)
                v = table.posterior_variance(556, estimator, structure)
                found = dv.Analytic(table, estimator, structure).variance(dv.ReverseKernel(SCHEDULE, 556, 445, eta))
                expected = lambda2 + gamma**2 * v
                assert np.abs(found - expected).max() < 1e-9 * np.max(expected)
                assert found.shape == make_structure(structure, (3, 2, 2)).variance_shape


def test_what_is_left_of_x_0_is_the_tables_value():
    """Cov[x_0|x_t] itself, of the step to clean data; on the grid and off it, scaled where it is scaled."""
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, generator(1, "l").uniform(0.1, 2.0, (3, 2, 2)), basis="dct")
    table = dv.estimate(denoiser, denoiser.sample(500), 1e3, indices=[2, 556, 1000], progress=False)
    zero = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for level in (SCHEDULE.level(556), SCHEDULE.level_at(-1.3)):
        for structure in ("isotropic", "channel", "pixel", "dct"):
            analytic = dv.Analytic(table, structure=structure)
            v = torch.from_numpy(np.asarray(table.posterior_variance(level, structure=structure)))
            for covariance, factor in ((analytic, 1.0), (dv.Scaled(analytic, 0.3), 0.3)):
                found = covariance.posterior_covariance(dv.Posterior(zero, zero), level)
                assert found.structure.name == structure
                torch.testing.assert_close(found.variance, factor * v, rtol=1e-12, atol=0)


def test_beta_tilde_and_beta_know_nothing_of_x_0():
    zero = torch.zeros(2, 3, 2, 2)
    for covariance in (dv.FixedSmall(), dv.FixedLarge(), dv.Scaled(dv.FixedLarge(), 2.0)):
        assert not covariance.knows_x_0
        with pytest.raises(dv.InputError, match=r"beta.* says how much noise a step adds, and nothing of Cov\[x_0"):
            covariance.posterior_covariance(dv.Posterior(zero, zero), SCHEDULE.level(3))


def test_analytic_refuses_what_does_not_fit():
    table = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(1000, 0.9))
    with pytest.raises(dv.InputError, match="Analytic needs a VarianceTable, but got str"):
        dv.Analytic("t.safetensors")
    with pytest.raises(dv.InputError, match="cannot give the estimator 'residual'"):
        dv.Analytic(table)
    with pytest.raises(dv.InputError, match="no structure 'dct'"):
        dv.Analytic(table, "score_norm", "dct")
    with pytest.raises(dv.InputError, match="'norm' is not known"):
        dv.Analytic(table, "norm")


# ---- as a matrix --------------------------------------------------------------------------------------------------


def test_a_structured_covariance_is_the_matrix_it_says():
    structure = make_structure("dct", (3, 2, 3))
    variance = torch.from_numpy(generator(2, "v").uniform(0.1, 3.0, (3, 2, 3)))
    covariance = StructuredCovariance(structure, variance)
    eye = torch.eye(18, dtype=torch.float64).reshape(18, 3, 2, 3)
    root = covariance.colour(eye).reshape(18, 18).numpy()
    matrix = root @ root.T
    basis = structure.forward(eye).reshape(18, 18).numpy()  # rows: images of the unit vectors
    assert np.abs(matrix - basis @ np.diag(variance.numpy().ravel()) @ basis.T).max() < 1e-12
    assert float(covariance.log_det()) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12)
    x = generator(3, "x").normal(size=(4, 18))
    quadratic = covariance.quadratic(torch.from_numpy(x.reshape(4, 3, 2, 3))).numpy()
    assert np.abs(quadratic - np.einsum("bi,ij,bj->b", x, np.linalg.inv(matrix), x)).max() < 1e-10
    capped = covariance.capped(0.5)
    assert np.linalg.eigvalsh(capped.colour(eye).reshape(18, 18).numpy())[-1] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("choice", ["beta_tilde", "beta", "analytic-isotropic"])
def test_a_scalar_covariance_knows_the_dimensions_of_the_image(choice):
    table = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(1000, 0.9))
    choices = [dv.FixedSmall(), dv.FixedLarge(), dv.Analytic(table, "score_norm")]
    covariance = next(c for c in choices if c.name == choice)
    x = torch.ones(2, 3, 4, 5, dtype=torch.float64)
    found = covariance(Posterior(x, x), dv.ReverseKernel(SCHEDULE, 750, 250))
    assert found.variance.dtype == torch.float64
    assert float(found.log_det()) == pytest.approx(60 * math.log(float(found.variance)))
    assert float(found.quadratic(x)[0]) == pytest.approx(60 / float(found.variance))


# ---- the step itself, simulated -----------------------------------------------------------------------------------

SHAPE = (1, 2, 3)
CENTRES = np.array([-0.7, 0.7])[:, None, None, None] * generator(4, "centres").uniform(0.6, 1.3, (2, *SHAPE))


def clipped_model(prediction):
    """(denoiser, population): bimodal data, its exact mean, and clipping tight enough to act at most draws."""
    mixture = dv.oracles.MixtureDenoiser(SCHEDULE, CENTRES, 0.03)

    def network(x_t, timestep):
        n = timestep.long() + 1
        mean = mixture(x_t, n).mean
        if prediction == "sample":
            return mean
        alpha, sigma = mixture.schedule.coefficients(n, x_t)
        return (x_t - alpha * mean) / sigma

    denoiser = dv.Denoiser(network, SCHEDULE, prediction, SHAPE, clip=(-0.55, 0.6), data_range=None)
    return denoiser, mixture.sample(3000, seed=2)


def simulate(denoiser, images, t, s, eta, clipped_eps, count=60_000, seed=1):
    """x_s ~ q(x_s|x_t, x_0) less the step's mean, both written out here: (count, C, H, W) float64."""
    stream = generator(seed, "simulation")
    x_0 = images[torch.from_numpy(stream.integers(len(images), size=count))].double()
    eps, noise = (torch.from_numpy(stream.standard_normal(x_0.shape)) for _ in range(2))
    alpha_t, sigma_t, alpha_s = SCHEDULE.alpha[t], SCHEDULE.sigma[t], SCHEDULE.alpha[s]
    lambda2, _, c, _ = by_hand(t, s, eta)
    x_t = alpha_t * x_0 + sigma_t * eps
    x_s = alpha_s * x_0 + c * (x_t - alpha_t * x_0) / sigma_t + math.sqrt(lambda2) * noise
    posterior = denoiser(x_t, t)
    assert 0.05 < ((posterior.mean == -0.55) | (posterior.mean == 0.6)).double().mean() < 0.98
    eps_hat = posterior.eps if clipped_eps == "network" else (x_t - alpha_t * posterior.mean) / sigma_t
    mean = alpha_s * posterior.mean + c * eps_hat
    kernel = dv.ReverseKernel(SCHEDULE, t, s, eta, clipped_eps)
    assert float((kernel.mean(x_t, posterior) - mean).abs().max()) < 1e-9
    return x_s - mean


CLIPPED_STEPS = [(300, 200, 0.0), (300, 200, 0.5), (300, 200, 1.0), (500, 150, 0.0), (150, 100, 1.0), (150, 20, 0.3)]


@pytest.fixture(scope="module", params=["sample", "epsilon"])
def clipped(request):
    denoiser, images = clipped_model(request.param)
    indices = sorted({t for t, _, _ in CLIPPED_STEPS})
    table = dv.estimate(denoiser, images, 0.004, indices=indices, batch_size=1024, progress=False)
    return denoiser, images, table


@pytest.mark.parametrize("clipped_eps", ["network", "rederived"])
@pytest.mark.parametrize(("t", "s", "eta"), CLIPPED_STEPS)
def test_covariance_with_clipping_is_what_simulation_finds(clipped, t, s, eta, clipped_eps):
    denoiser, images, table = clipped
    deviations = simulate(denoiser, images, t, s, eta, clipped_eps)
    kernel = dv.ReverseKernel(SCHEDULE, t, s, eta, clipped_eps)
    for structure in ("isotropic", "channel", "pixel", "dct"):
        basis = table.structure(structure)
        values = basis.pool(basis.forward(deviations).square())
        found = dv.Analytic(table, structure=structure).variance(kernel)
        # The table's part is known to its relative error (that of E r²; the other moments go with it).
        errors = np.hypot(
            values.std(0).numpy() / math.sqrt(len(values)),
            table.relative_error(t, structure) * (found - kernel.lambda2),
        )
        assert (np.abs(found - values.mean(0).numpy()) <= 4 * errors).all(), structure
        assert (errors < 0.05 * found).all()


def test_clipping_conventions_differ_and_the_default_follows_eta(clipped):
    _, _, table = clipped
    analytic = dv.Analytic(table)
    for eta, default, other in ((0.5, "network", "rederived"), (1.0, "rederived", "network")):
        kernels = {c: dv.ReverseKernel(SCHEDULE, 300, 200, eta, c) for c in (default, other, None)}
        found = {c: float(analytic.variance(kernel)) for c, kernel in kernels.items()}
        assert found[None] == found[default]
        assert abs(found[other] / found[default] - 1) > 0.02
    # Published convention for the estimators of an exact mean: λ² + γ² v whatever ε̂ is used.
    kernel = dv.ReverseKernel(SCHEDULE, 500, 150, 0.5, "network")
    v = table.posterior_variance(500, "data_variance")
    assert dv.Analytic(table, "data_variance").variance(kernel) == pytest.approx(
        kernel.lambda2 + kernel.gain**2 * v, rel=1e-12
    )


def test_optimal_variance_is_never_below_the_forward_noise():
    kernel = dv.ReverseKernel(SCHEDULE, 500, 150, 0.5, "network")
    gamma, c = kernel.gain, kernel.eps_gain
    assert optimal_variance(kernel, 0.3, 0.1, 0.2) == pytest.approx(
        kernel.lambda2 + 0.3 * gamma**2 - 0.2 * gamma * c + 0.2 * c**2
    )
    assert optimal_variance(kernel, 0.0, 0.1, 0.0) == kernel.lambda2
    ddpm = dv.ReverseKernel(SCHEDULE, 500, 150, 1.0)
    assert optimal_variance(ddpm, 0.3, 0.1, 0.2) == pytest.approx(ddpm.lambda2 + ddpm.gain**2 * 0.3)


@pytest.mark.parametrize("structure", ["isotropic", "pixel", "dct"])
@pytest.mark.parametrize(("t", "s", "eta", "clipped_eps"), [(300, 200, 0.5, "network"), (500, 150, 1.0, "rederived")])
def test_moving_the_optimal_variance_either_way_costs_likelihood(clipped, structure, t, s, eta, clipped_eps):
    denoiser, images, table = clipped
    deviations = simulate(denoiser, images, t, s, eta, clipped_eps, seed=2)
    variance = dv.Analytic(table, structure=structure).variance(dv.ReverseKernel(SCHEDULE, t, s, eta, clipped_eps))
    basis = table.structure(structure)

    def nll(factor):
        covariance = StructuredCovariance(basis, torch.from_numpy(np.asarray(factor * variance)).expand(*SHAPE))
        return 0.5 * (covariance.log_det() + covariance.quadratic(deviations)) / math.prod(SHAPE)

    best = nll(1.0)
    for factor in (0.8, 1.25):
        worse = nll(factor) - best  # the same random numbers
        expected = 0.5 * (math.log(factor) + 1 / factor - 1)
        assert float(worse.mean()) > 4 * float(worse.std()) / math.sqrt(len(worse))
        assert float(worse.mean()) == pytest.approx(expected, rel=0.25)
