"""Mixtures with full covariances, against what is known of them otherwise: the Gaussian, isotropic components, the
Jacobian of the mean, scipy's densities, and the mixture that samples came from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.mixture import GaussianMixture

from diffusion_var import InputError, NoiseLevel, NoiseSchedule
from diffusion_var.models import mixture as module
from diffusion_var.models.oracles import GaussianDenoiser, MixtureDenoiser, fit_mixture
from diffusion_var.process.structure import Dct, dct_matrix, make_structure

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (3, 2, 2)
D = 12
INDICES = [1, 200, 600, 1000]
STRUCTURES = ["isotropic", "channel", "pixel", "dct"]


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(scale: float, seed: int) -> np.ndarray:
    root = scale * numbers(D, D, seed=seed) * np.exp(-0.3 * np.arange(D))
    return root @ root.T + 1e-4 * np.eye(D)


MEANS = 0.6 * numbers(3, *SHAPE, seed=0)
COVARIANCES = np.stack([covariance(scale, seed) for scale, seed in ((0.3, 1), (0.1, 2), (0.5, 3))])
WEIGHTS = np.array([0.2, 0.5, 0.3])


@pytest.fixture(scope="module")
def mixture() -> MixtureDenoiser:
    return MixtureDenoiser(SCHEDULE, MEANS, weights=WEIGHTS, covariances=COVARIANCES)


def noisy(model: MixtureDenoiser, n: int, count: int = 6, seed: int = 3) -> torch.Tensor:
    """x_n of the model itself, float64."""
    x_0 = model.sample(count, seed=seed).double()
    return float(SCHEDULE.alpha[n]) * x_0 + float(SCHEDULE.sigma[n]) * torch.from_numpy(numbers(*x_0.shape, seed=6))


@pytest.mark.parametrize("n", INDICES)
def test_one_component_is_the_gaussian(n: int) -> None:
    mean, variance = numbers(*SHAPE, seed=1), np.exp(numbers(*SHAPE, seed=2))
    basis = np.stack([Dct(SHAPE).inverse(torch.from_numpy(unit.reshape(SHAPE))).numpy().ravel() for unit in np.eye(D)])
    one = MixtureDenoiser(SCHEDULE, mean[None], covariances=(basis.T * variance.ravel() @ basis)[None])
    gaussian = GaussianDenoiser(SCHEDULE, mean, variance, basis="dct")
    x_t = noisy(one, n)
    torch.testing.assert_close(one(x_t, n).mean, gaussian(x_t, n).mean, rtol=1e-9, atol=1e-9)
    expected = torch.from_numpy(gaussian.posterior_variance(n)).expand(6, *SHAPE)
    torch.testing.assert_close(one.posterior_variance(x_t, n, "dct"), expected, rtol=1e-9, atol=1e-12)
    found = one.mean_posterior_covariance(n, count=3).numpy()
    np.testing.assert_allclose(found, basis.T * gaussian.posterior_variance(n).ravel() @ basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", INDICES)
def test_multiples_of_the_identity_are_isotropic_components(n: int) -> None:
    variances = np.array([0.05, 0.4, 0.01])
    plain = MixtureDenoiser(SCHEDULE, MEANS, variances, WEIGHTS)
    full = MixtureDenoiser(SCHEDULE, MEANS, weights=WEIGHTS, covariances=variances[:, None, None] * np.eye(D))
    x_t = noisy(plain, n)
    torch.testing.assert_close(full(x_t, n).mean, plain(x_t, n).mean, rtol=1e-10, atol=1e-10)
    alpha, sigma = float(SCHEDULE.alpha[n]), float(SCHEDULE.sigma[n])
    torch.testing.assert_close(full.responsibilities(x_t, alpha, sigma), plain.responsibilities(x_t, alpha, sigma))
    for structure in STRUCTURES:
        found, expected = (model.posterior_variance(x_t, n, structure) for model in (full, plain))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(full.posterior_covariance(x_t, n), plain.posterior_covariance(x_t, n))
    torch.testing.assert_close(full.mean_posterior_covariance(n, 9), plain.mean_posterior_covariance(n, 9))
    torch.testing.assert_close(full.log_prob(x_t), plain.log_prob(x_t), rtol=1e-10, atol=1e-10)
    for found, expected in zip(full.moments(), plain.moments(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", INDICES)
def test_covariance_is_the_jacobian_of_the_mean(mixture: MixtureDenoiser, n: int) -> None:
    """Cov[x_0|x_t] = (σ²/α) ∂x̂_0/∂x_t, the whole matrix."""
    x_t = noisy(mixture, n)
    found = mixture.posterior_covariance(x_t, n)
    for i in range(len(x_t)):
        jacobian = torch.autograd.functional.jacobian(lambda x: mixture(x, n).mean, x_t[i : i + 1]).reshape(D, D)
        expected = float(SCHEDULE.sigma[n] ** 2 / SCHEDULE.alpha[n]) * jacobian
        torch.testing.assert_close(found[i], expected, rtol=1e-8, atol=1e-10)
    assert float(torch.linalg.eigvalsh(found).min()) > 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_variance_in_a_structure_is_the_pooled_diagonal(
    mixture: MixtureDenoiser, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = np.eye(D)
    if structure == "dct":
        basis = np.kron(dct_matrix(3), np.kron(dct_matrix(2), dct_matrix(2)))
    x_t = noisy(mixture, 400)
    turned = torch.from_numpy(basis) @ mixture.posterior_covariance(x_t, 400) @ torch.from_numpy(basis.T)
    known = make_structure(structure, SHAPE)
    expected = known.pool(turned.diagonal(dim1=1, dim2=2).reshape(6, *SHAPE))
    expected = expected.view(6, 1, 1, 1) if structure == "isotropic" else expected
    for given in (structure, known):
        found = mixture.posterior_variance(x_t, 400, given)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(module, "_ROWS", 4)  # in parts, the last one shorter
    torch.testing.assert_close(mixture.posterior_variance(x_t, 400, structure), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [300, 700])
def test_mean_covariance_is_what_the_mean_leaves(mixture: MixtureDenoiser, n: int) -> None:
    """E Cov[x_0|x_t] = E (x_0 − x̂_0)(x_0 − x̂_0)ᵀ, by draws of x_0 and ε alone."""
    count = 40_000
    x_0 = mixture.sample(count, seed=11).double()
    x_t = float(SCHEDULE.alpha[n]) * x_0 + float(SCHEDULE.sigma[n]) * torch.from_numpy(numbers(*x_0.shape, seed=12))
    error = (x_0 - mixture(x_t, n).mean).flatten(1)
    products = error[:, :, None] * error[:, None, :]
    found = mixture.mean_posterior_covariance(n, count=20_000)
    spread = products.std(0) / count**0.5
    assert bool((products.mean(0) - found).abs().le(5 * spread + 1e-9).all())
    assert float((spread / found.diagonal().max()).max()) < 0.02  # the check is sharp
    # Rao–Blackwell: few draws of x_t tell the same.
    few = mixture.mean_posterior_covariance(n, count=500, seed=5)
    assert float((few - found).norm() / found.norm()) < 0.1


@pytest.mark.parametrize("n", [None, *INDICES, NoiseLevel(0.7, 0.3, 5.0)])
def test_density_is_scipys(mixture: MixtureDenoiser, n: Any) -> None:
    alpha, sigma = (1.0, 0.0) if n is None else SCHEDULE.coefficients(n, torch.zeros(1))
    x = numbers(5, *SHAPE, seed=8)
    parts = [
        np.log(w) + scipy.stats.multivariate_normal(alpha * m.ravel(), alpha**2 * c + sigma**2 * np.eye(D)).logpdf(f)
        for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        for f in [x.reshape(5, D)]
    ]
    expected = scipy.special.logsumexp(parts, axis=0)
    np.testing.assert_allclose(mixture.log_prob(x, n).numpy(), expected, rtol=1e-9)
    if n is None:
        np.testing.assert_allclose(mixture.density_bits(x), -expected / D / np.log(2), rtol=1e-9)


def test_density_of_8_bit_images_is_that_of_their_floats(mixture: MixtureDenoiser) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8))
    torch.testing.assert_close(mixture.log_prob(x), mixture.log_prob(x.double() / 127.5 - 1), rtol=1e-5, atol=1e-3)


def test_far_from_every_component_nothing_underflows(mixture: MixtureDenoiser) -> None:
    x = torch.full((1, *SHAPE), 1e3, dtype=torch.float64)
    assert bool(torch.isfinite(mixture.log_prob(x)).all())
    assert bool(torch.isfinite(mixture(x, 1).mean).all())


def test_moments_are_those_of_samples(mixture: MixtureDenoiser) -> None:
    mean, found = mixture.moments()
    flat = mixture.sample(50_000, seed=2).flatten(1).double().numpy()
    np.testing.assert_allclose(mean, WEIGHTS @ MEANS.reshape(3, D), rtol=1e-12)
    products = (flat - mean)[:, :, None] * (flat - mean)[:, None, :]
    assert (np.abs(products.mean(0) - found) < 5 * products.std(0) / 50_000**0.5).all()


def test_data_range_is_none_or_as_given(mixture: MixtureDenoiser) -> None:
    assert mixture.data_range is None
    ranged = MixtureDenoiser(SCHEDULE, MEANS, 0.1, data_range=(-1, 1))
    assert ranged.data_range == (-1.0, 1.0)
    assert ranged.clip is None


# ---- fitting ------------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_mixture_that_samples_came_from() -> None:
    true = MixtureDenoiser(SCHEDULE, 3 * MEANS, weights=WEIGHTS, covariances=COVARIANCES)
    images = true.sample(20_000, seed=4)
    found = fit_mixture(images, 3, regularisation=1e-6, most_images=20_000, rounds=50)
    order = [int(np.argmin([np.linalg.norm(3 * m - f) for f in found.means.numpy()])) for m in MEANS]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found.log_weights.exp().numpy()[order], WEIGHTS, atol=0.02)
    np.testing.assert_allclose(found.means.numpy()[order], 3 * MEANS, atol=0.03)
    covariances = found._parameters["covariances"].numpy()[order]
    assert np.linalg.norm(covariances - COVARIANCES) < 0.05 * np.linalg.norm(COVARIANCES)
    # No model is likelier, on average, for data of the true one than that itself; a good fit hardly less.
    held_out = true.sample(5_000, seed=9)
    worse = found.density_bits(held_out) - true.density_bits(held_out)
    assert -1e-3 < worse.mean() < 0.02


def test_a_fit_is_scikit_learns_with_the_regularisation_on_the_diagonal() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, *SHAPE), dtype=np.uint8))
    found = fit_mixture(images, 1, regularisation=0.25)
    flat = (images.float().flatten(1) / 127.5 - 1).numpy().astype(np.float64)
    np.testing.assert_allclose(found.means.numpy().ravel(), flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.moments()[1], np.cov(flat.T, ddof=0) + 0.25 * np.eye(D), atol=1e-6)
    several = fit_mixture(images, 2, regularisation=0.01, seed=3)
    seed = int(np.random.default_rng(3).integers(2**31))
    theirs = GaussianMixture(2, reg_covar=0.01, max_iter=8, tol=0.5, random_state=seed).fit(flat)
    np.testing.assert_allclose(several.means.numpy().reshape(2, D), theirs.means_, atol=1e-4)
    assert fit_mixture(images, 2, regularisation=0.01, seed=3).fingerprint == several.fingerprint


def test_a_fit_takes_evenly_spread_images_and_what_it_is_given() -> None:
    images = torch.from_numpy(numbers(90, *SHAPE, seed=1))
    images[1::2] += 100.0  # of 45 evenly spread, 0, 2.02, 4.04 …: the odd ones come late
    part = fit_mixture(images, 1, most_images=2)
    assert part.means.flatten().numpy() == pytest.approx((0.5 * (images[0] + images[89])).flatten().numpy())
    schedule = NoiseSchedule.cosine(50)
    other = fit_mixture(images, 1, schedule, data_range=(-1, 1))
    assert other.schedule is schedule
    assert other.data_range == (-1.0, 1.0)
    assert part.schedule.digest == SCHEDULE.digest


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MixtureDenoiser(SCHEDULE, MEANS), "give one of the two"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, 0.1, covariances=COVARIANCES), "give one of the two"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, covariances=COVARIANCES[0]), r"covariances has shape \(12, 12\)"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, covariances=COVARIANCES[:2]), r"but \(3, 12, 12\) is needed"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, covariances=-COVARIANCES), "no negative eigenvalue, but one has -"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, covariances=np.tril(COVARIANCES)), "must be symmetric"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, covariances=COVARIANCES * np.nan), "covariances must hold finite"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, weights=[1, 0, 1], covariances=COVARIANCES), "weights must be pos"),
        (lambda: MixtureDenoiser(SCHEDULE, MEANS, 0.1, data_range=(1, -1)), "data_range"),
        (lambda: fit_mixture(torch.zeros(3, *SHAPE), 4), "there are 3 images for 4 components"),
        (lambda: fit_mixture(torch.zeros(1, *SHAPE), 1), "there are 1 images for 1 components"),
        (lambda: fit_mixture(torch.zeros(5, *SHAPE), 1, regularisation=0.0), "regularisation=0.0 must be a positive"),
        (lambda: fit_mixture(torch.zeros(5, *SHAPE), 0), "components=0 must be a whole number"),
        (lambda: fit_mixture(torch.zeros(5, *SHAPE), 1, rounds=0), "rounds=0 must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_bad_calls_are_refused(mixture: MixtureDenoiser) -> None:
    with pytest.raises(InputError, match=r"x has shape \(2, 1, 2, 2\), but this mixture is of \(B, 3, 2, 2\)"):
        mixture.log_prob(torch.zeros(2, 1, 2, 2))
    with pytest.raises(InputError, match="structure 'fourier' is not known"):
        mixture.posterior_variance(torch.zeros(1, *SHAPE), 5, "fourier")
    points = MixtureDenoiser(SCHEDULE, MEANS, 0.0)
    with pytest.raises(InputError, match="variance of 0"):
        points.log_prob(torch.zeros(1, *SHAPE))
    assert bool(torch.isfinite(points.log_prob(torch.zeros(1, *SHAPE), 5)).all())
    flat = MixtureDenoiser(SCHEDULE, MEANS[:1], covariances=np.diag([1.0] * 11 + [0.0])[None])
    with pytest.raises(InputError, match="variance of 0"):
        flat.log_prob(torch.zeros(1, *SHAPE))
