"""Exact denoisers: Tweedie's formulas by autograd on independently written densities, Monte Carlo, and moments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from torch import distributions

from diffusion_var import InputError, NoiseSchedule, oracles

SCHEDULE = NoiseSchedule.linear(1000)
INDICES = [1, 60, 400, 1000]
LogDensity = Callable[[torch.Tensor, float, float], torch.Tensor]


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def dense_dct(shape: tuple[int, int, int]) -> torch.Tensor:
    d = int(np.prod(shape))
    basis = scipy.fft.dctn(np.eye(d).reshape(d, *shape), axes=(1, 2, 3), norm="ortho").reshape(d, d)
    return torch.from_numpy(basis.T.copy())  # column i is the transform of unit vector i


@dataclass
class Case:
    """A denoiser, its density at noise level (α, σ) by torch.distributions, and the moments of its data."""

    denoiser: oracles.ExactDenoiser
    log_density: LogDensity
    mean: np.ndarray
    covariance: np.ndarray


def gaussian(basis: str, shape: tuple[int, int, int]) -> Case:
    mean, variance = numbers(*shape, seed=1), np.exp(numbers(*shape, seed=2))
    d = mean.size
    rotation = torch.eye(d, dtype=torch.float64) if basis == "pixel" else dense_dct(shape)
    covariance = rotation.T @ torch.from_numpy(np.diag(variance.ravel())) @ rotation

    def log_density(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(d, dtype=torch.float64)
        centre = alpha * torch.from_numpy(mean.ravel())
        return distributions.MultivariateNormal(centre, covariance_matrix=noisy).log_prob(x.flatten(1))

    denoiser = oracles.GaussianDenoiser(SCHEDULE, mean, variance, basis=basis)
    return Case(denoiser, log_density, mean.ravel(), covariance.numpy())


def mixture(variances: Any, weights: Any = None, count: int = 3) -> Case:
    means = numbers(count, 2, 1, 3, seed=4)
    flat, l = means.reshape(count, -1), np.broadcast_to(np.asarray(variances, float), (count,))
    w = np.full(count, 1 / count) if weights is None else np.asarray(weights) / np.sum(weights)

    def log_density(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        scale = torch.from_numpy(np.sqrt(alpha**2 * l + sigma**2))[:, None].expand(flat.shape)
        parts = distributions.Independent(distributions.Normal(alpha * torch.from_numpy(flat), scale), 1)
        which = distributions.Categorical(probs=torch.from_numpy(w))
        return distributions.MixtureSameFamily(which, parts).log_prob(x.flatten(1))

    centre = w @ flat
    covariance = np.diag(np.full(flat.shape[1], w @ l)) + (flat - centre).T @ np.diag(w) @ (flat - centre)
    kind = oracles.MixtureDenoiser
    denoiser = kind(SCHEDULE, means, variances, weights) if np.any(l) else oracles.EmpiricalDenoiser(SCHEDULE, means)
    return Case(denoiser, log_density, centre, covariance)


def dense_mixture() -> Case:
    count, shape = 3, (2, 1, 3)
    means, w = numbers(count, *shape, seed=4), np.array([0.3, 0.5, 0.2])
    roots = numbers(count, 6, 6, seed=5) * np.array([0.3, 0.1, 0.4])[:, None, None]
    covariances = roots @ roots.transpose(0, 2, 1) + 1e-3 * np.eye(6)
    flat = means.reshape(count, -1)

    def log_density(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        noisy = alpha**2 * torch.from_numpy(covariances) + sigma**2 * torch.eye(6, dtype=torch.float64)
        parts = distributions.MultivariateNormal(alpha * torch.from_numpy(flat), covariance_matrix=noisy)
        which = distributions.Categorical(probs=torch.from_numpy(w))
        return distributions.MixtureSameFamily(which, parts).log_prob(x.flatten(1))

    centre = w @ flat
    covariance = np.einsum("j,jde->de", w, covariances) + (flat - centre).T @ np.diag(w) @ (flat - centre)
    denoiser = oracles.MixtureDenoiser(SCHEDULE, means, weights=7 * w, covariances=covariances)
    return Case(denoiser, log_density, centre, covariance)


CASES = {
    "gaussian, pixel": gaussian("pixel", (2, 3, 1)),
    "gaussian, dct": gaussian("dct", (3, 2, 2)),
    "mixture": mixture([0.05, 0.4, 0.01], [1.0, 2.0, 0.5]),
    "mixture, one variance": mixture(0.2),
    "finite set": mixture(0.0, count=4),
    "mixture, full covariances": dense_mixture(),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestEveryExactDenoiser:
    def noisy(self, case: Case, n: int, count: int = 5) -> torch.Tensor:
        """x_n of the model itself, float64."""
        x_0 = case.denoiser.sample(count, seed=3).double()
        eps = torch.from_numpy(numbers(*x_0.shape, seed=6))
        return float(SCHEDULE.alpha[n]) * x_0 + float(SCHEDULE.sigma[n]) * eps

    @pytest.mark.parametrize("n", INDICES)
    def test_mean_is_tweedies(self, case: Case, n: int) -> None:
        """x̂_0 = (x_t + σ² ∇ log p_t(x_t))/α."""
        alpha, sigma = float(SCHEDULE.alpha[n]), float(SCHEDULE.sigma[n])
        x_t = self.noisy(case, n).requires_grad_()
        (score,) = torch.autograd.grad(case.log_density(x_t, alpha, sigma).sum(), x_t)
        expected = (x_t.detach() + sigma**2 * score) / alpha
        posterior = case.denoiser(x_t.detach(), n)
        torch.testing.assert_close(posterior.mean, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(posterior.eps, -sigma * score, rtol=1e-9, atol=1e-9)
        assert posterior.range is None

    def test_the_index_may_differ_within_a_batch(self, case: Case) -> None:
        x_t = self.noisy(case, 300, len(INDICES))
        together = case.denoiser(x_t, torch.tensor(INDICES)).mean
        for i, n in enumerate(INDICES):
            torch.testing.assert_close(together[i], case.denoiser(x_t[i : i + 1], n).mean[0], rtol=1e-12, atol=1e-12)

    def test_dtype_follows_the_input(self, case: Case) -> None:
        x_t = self.noisy(case, 400)
        single = case.denoiser(x_t.float(), 400)
        assert single.mean.dtype == single.eps.dtype == torch.float32
        torch.testing.assert_close(single.mean.double(), case.denoiser(x_t, 400).mean, rtol=1e-4, atol=1e-5)

    def test_no_clipping_and_no_data_range(self, case: Case) -> None:
        assert case.denoiser.clip is None
        assert case.denoiser.data_range is None

    def test_samples_have_the_models_moments(self, case: Case) -> None:
        count = 20_000
        x = case.denoiser.sample(count, seed=1)
        assert x.shape == (count, *case.denoiser.shape)
        assert x.dtype == torch.float32
        flat = x.flatten(1).double().numpy()
        error = np.sqrt(np.diag(case.covariance) / count)
        assert (np.abs(flat.mean(0) - case.mean) < 5 * error).all()
        centred = flat - case.mean
        products = centred[:, :, None] * centred[:, None, :]
        error = products.std(0) / np.sqrt(count)
        assert (np.abs(products.mean(0) - case.covariance) < 5 * error).all()

    def test_samples_follow_the_seed_alone(self, case: Case) -> None:
        torch.manual_seed(0)
        first = case.denoiser.sample(4, seed=1)
        torch.manual_seed(1)
        assert torch.equal(case.denoiser.sample(4, seed=1), first)
        assert not torch.equal(case.denoiser.sample(4, seed=2), first)

    @pytest.mark.parametrize("n", INDICES)
    def test_posterior_variance_is_second_order_tweedie(self, case: Case, n: int) -> None:
        """Cov[x_0|x_t] = (σ²/α) ∂x̂_0/∂x_t, in the denoiser's own basis."""
        alpha, sigma = float(SCHEDULE.alpha[n]), float(SCHEDULE.sigma[n])
        x_t = self.noisy(case, n, 1)
        d = case.mean.size
        jacobian = torch.autograd.functional.jacobian(lambda x: case.denoiser(x, n).mean, x_t).reshape(d, d)
        covariance = sigma**2 / alpha * jacobian
        if isinstance(case.denoiser, oracles.GaussianDenoiser):
            if case.denoiser.structure.name == "dct":
                basis = dense_dct(case.denoiser.shape)
                covariance = basis @ covariance @ basis.T
                off = covariance - torch.diag(torch.diag(covariance))
                assert float(off.abs().max()) < 1e-9
            found = torch.from_numpy(case.denoiser.posterior_variance(n))
        else:
            found = case.denoiser.posterior_variance(x_t, n)
        torch.testing.assert_close(found.flatten(), torch.diag(covariance), rtol=1e-9, atol=1e-9)


# ---- one by one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", INDICES)
def test_gaussian_posterior_variance_formula(n: int) -> None:
    variance = np.array([[[0.0, 1e-3, 0.25, 4.0]]])
    denoiser = oracles.GaussianDenoiser(SCHEDULE, 0.0, variance)
    found = denoiser.posterior_variance(n)
    assert found.shape == (1, 1, 4)
    with np.errstate(divide="ignore"):
        precision = 1 / variance + SCHEDULE.alpha[n] ** 2 / SCHEDULE.sigma[n] ** 2
    np.testing.assert_allclose(found, 1 / precision, rtol=1e-10)


@pytest.mark.parametrize("n", [150, 350])
def test_mixture_posterior_by_monte_carlo(n: int) -> None:
    """Mean and variance of x_0 | x_t by weighting draws of x_0 with p(x_t | x_0): no formula of the mixture is used."""
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    means = numbers(3, 1, 1, 2, seed=4)
    denoiser = oracles.MixtureDenoiser(SCHEDULE, means, [0.05, 0.4, 0.01], [1.0, 2.0, 0.5])
    x_0 = denoiser.sample(200_000, seed=9).double().numpy().reshape(-1, 2)
    x_t = alpha * means.mean(axis=0) + 0.3 * sigma
    weight = np.exp(-((x_t.reshape(1, 2) - alpha * x_0) ** 2).sum(1) / (2 * sigma**2))
    weight /= weight.sum()
    mean = weight @ x_0
    square = (x_0 - mean) ** 2
    variance = weight @ square
    mean_error, variance_error = (np.sqrt((weight**2) @ (a - c) ** 2) for a, c in ((x_0, mean), (square, variance)))
    given = torch.from_numpy(x_t)[None]
    found_mean = denoiser(given, n).mean.numpy().ravel()
    found_variance = denoiser.posterior_variance(given, n).numpy().ravel()
    assert (mean_error < 0.05 * np.sqrt(variance)).all()  # the check is sharp
    assert (variance_error < 0.05 * variance).all()
    assert (np.abs(found_mean - mean) < 4 * mean_error).all()
    assert (np.abs(found_variance - variance) < 4 * variance_error).all()


def test_finite_set_at_little_noise_gives_the_image_back() -> None:
    images = numbers(6, 3, 4, 4, seed=0).clip(-1, 1)
    denoiser = oracles.EmpiricalDenoiser(SCHEDULE, images)
    x_0 = torch.from_numpy(images)
    noisy = float(SCHEDULE.alpha[1]) * x_0 + float(SCHEDULE.sigma[1]) * torch.from_numpy(numbers(*images.shape, seed=1))
    torch.testing.assert_close(denoiser(noisy, 1).mean, x_0, rtol=0, atol=1e-6)
    assert float(denoiser.posterior_variance(noisy, 1).max()) < 1e-6
    assert float(denoiser.posterior_variance(noisy, 1).min()) >= 0


def test_finite_set_at_full_noise_gives_the_average() -> None:
    images = numbers(6, 1, 2, 2, seed=0)
    schedule = NoiseSchedule.from_betas([0.1, 1.0])
    denoiser = oracles.EmpiricalDenoiser(schedule, images)
    x_t = torch.from_numpy(numbers(2, 1, 2, 2, seed=1))
    expected = torch.from_numpy(images.mean(0)).expand(2, 1, 2, 2)
    torch.testing.assert_close(denoiser(x_t, 2).mean, expected, rtol=1e-12, atol=1e-12)
    spread = torch.from_numpy(images.var(0)).expand(2, 1, 2, 2)
    torch.testing.assert_close(denoiser.posterior_variance(x_t, 2), spread, rtol=1e-12, atol=1e-12)


def test_responsibilities_do_not_underflow() -> None:
    means = np.stack([np.zeros((1, 40, 40)), np.full((1, 40, 40), 100.0)])
    denoiser = oracles.MixtureDenoiser(SCHEDULE, means, 1e-4)
    x_t = torch.full((1, 1, 40, 40), 49.0, dtype=torch.float64)
    r = denoiser.responsibilities(x_t, 1.0, 0.01)
    assert r.tolist() == [[1.0, 0.0]]


def test_shape_argument_stretches_the_parameters() -> None:
    denoiser = oracles.GaussianDenoiser(SCHEDULE, 0.5, 0.25, shape=(3, 4, 4))
    assert denoiser.shape == (3, 4, 4)
    assert denoiser.variance.shape == denoiser.mean.shape == (3, 4, 4)
    per_channel = oracles.GaussianDenoiser(SCHEDULE, 0.0, torch.tensor([1.0, 2.0, 3.0])[:, None, None], (3, 4, 4))
    assert per_channel.variance[:, 2, 1].tolist() == [1.0, 2.0, 3.0]


def test_fingerprints_tell_models_apart() -> None:
    one = np.ones((1, 2, 2))
    models = [
        oracles.GaussianDenoiser(SCHEDULE, 0.0, one),
        oracles.GaussianDenoiser(SCHEDULE, 0.0, one, basis="dct"),
        oracles.GaussianDenoiser(SCHEDULE, 0.1, one),
        oracles.GaussianDenoiser(SCHEDULE, 0.0, 2 * one),
        oracles.MixtureDenoiser(SCHEDULE, one[None], 1.0),
        oracles.MixtureDenoiser(SCHEDULE, one[None], 0.0),
        oracles.EmpiricalDenoiser(SCHEDULE, one[None]),
        oracles.MixtureDenoiser(SCHEDULE, one[None], covariances=np.eye(4)[None]),
        oracles.MixtureDenoiser(SCHEDULE, one[None], covariances=2 * np.eye(4)[None]),
    ]
    assert len({model.fingerprint for model in models}) == len(models)
    assert oracles.GaussianDenoiser(SCHEDULE, 0.0, one).fingerprint == models[0].fingerprint


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: oracles.GaussianDenoiser(SCHEDULE, 0.0, -np.ones((1, 2, 2))), "variance must be at least 0"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, np.nan, np.ones((1, 2, 2))), "mean must hold finite numbers"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, 0.0, np.full((1, 2, 2), np.inf)), "variance must hold finite"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, np.zeros((2, 2, 2)), np.ones((1, 2, 2))), "mean has shape"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, 0.0, 1.0), "shape must be"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones((1, 2, 2)), basis="fourier"), "basis='fourier'"),
        (lambda: oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones((4, 2, 2)), basis="dct"), "channel rotation"),
        (lambda: oracles.MixtureDenoiser(SCHEDULE, np.zeros(4), 1.0), "means must have shape"),
        (lambda: oracles.MixtureDenoiser(SCHEDULE, np.zeros((3, 1, 2, 2)), -1.0), "variances must be at least 0"),
        (lambda: oracles.MixtureDenoiser(SCHEDULE, np.zeros((3, 1, 2, 2)), [1.0, 1.0]), "variances has shape"),
        (lambda: oracles.MixtureDenoiser(SCHEDULE, np.zeros((3, 1, 2, 2)), 1.0, [1, 0, 1]), "weights positive"),
        (lambda: oracles.MixtureDenoiser(SCHEDULE, np.zeros((3, 1, 2, 2)), 1.0, [1, np.nan, 1]), "weights must hold"),
        (lambda: oracles.EmpiricalDenoiser(SCHEDULE, np.zeros(4)), "means must have shape"),
        (lambda: oracles.EmpiricalDenoiser(SCHEDULE, np.full((2, 1, 2, 2), np.nan)), "means must hold finite"),
    ],
)
def test_bad_parameters_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_bad_calls_are_refused() -> None:
    denoiser = oracles.GaussianDenoiser(SCHEDULE, 0.0, np.ones((1, 2, 2)))
    with pytest.raises(InputError, match="x_t has shape"):
        denoiser(torch.zeros(2, 3, 2, 2), 5)
    with pytest.raises(InputError, match="n=0 is not an index"):
        denoiser(torch.zeros(2, 1, 2, 2), 0)
    with pytest.raises(InputError, match="n=1001 is not an index"):
        denoiser.posterior_variance(1001)
