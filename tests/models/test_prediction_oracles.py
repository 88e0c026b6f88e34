"""One oracle in four parametrisations: the same variances, and the same samples.

The data is a Gaussian mixture, whose exact mean is known for every schedule. Each network below inverts its own
parametrisation of that mean exactly, on a schedule of its own with the SNR grid of the others, s = σ/α. In the
variable x/α all four are one process, so that tables and samples agree beyond what statistics ask for.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance

N, SHAPE, SIGMA_DATA = 40, (1, 2, 2), 0.7
MEANS = np.random.default_rng(1).normal(0.0, 1.0, (3, *SHAPE))
VARIANCES, WEIGHTS = (0.05, 0.2, 0.1), (0.5, 0.3, 0.2)
KINDS = ("epsilon", "v_prediction", "flow", "edm")
INDICES = [1, 12, 22, 30, 40]
COUNT = 4000


@cache
def schedule(kind: str) -> dv.NoiseSchedule:
    """The grid s of EDM's schedule in the coordinates of each kind of model; told are the indices themselves."""
    s = dv.NoiseSchedule.edm(N, sigma_min=0.05, sigma_max=20.0).sigma
    alpha = {"edm": np.ones(N + 1), "flow": 1 / (1 + s)}.get(kind, 1 / np.sqrt(1 + s**2))
    # Every kind begins from pure noise of its last level, which is the same x/α for all.
    return dv.NoiseSchedule(alpha, alpha * s, np.arange(N + 1.0), prior_std=float(alpha[N] * s[N]))


def mixture(grid: dv.NoiseSchedule) -> dv.oracles.MixtureDenoiser:
    return dv.oracles.MixtureDenoiser(grid, MEANS, VARIANCES, WEIGHTS)


def model(kind: Any, grid: dv.NoiseSchedule | None = None) -> dv.Denoiser:
    """A denoiser whose network predicts F of its parametrisation for the exact mean; timestep n is index n."""
    grid = schedule(kind) if grid is None else grid
    exact = mixture(grid)

    def network(shown: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        n = timestep.double().round().long()
        alpha, sigma = (torch.tensor(level)[n][:, None, None, None] for level in (grid.alpha, grid.sigma))
        total = sigma**2 + (alpha * SIGMA_DATA) ** 2
        x_t = shown.double() * total.sqrt() if kind == "edm" else shown.double()
        x_0 = exact.exact_mean(x_t, alpha, sigma)
        eps = (x_t - alpha * x_0) / sigma
        if kind == "edm":
            s = sigma / alpha
            skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
            return (x_0 - skip * x_t / alpha) * (s**2 + SIGMA_DATA**2).sqrt() / (s * SIGMA_DATA)
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x_0, "flow": eps - x_0}[kind]

    return dv.Denoiser(network, grid, kind, SHAPE, clip=None, sigma_data=SIGMA_DATA)


@cache
def images() -> torch.Tensor:
    return mixture(schedule("edm")).sample(2000, seed=3)


@cache
def table(kind: str, seed: int = 0) -> dv.VarianceTable:
    return dv.estimate(model(kind), images(), 0.02, seed=seed, indices=INDICES, progress=False)


# ---- the network and the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["epsilon", "flow", "edm"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_invert_their_parametrisation(kind: str, coordinates: str) -> None:
    """What the other tests stand on, in float64; on the others' schedules too, where α² + σ² or α + σ is not 1."""
    grid = schedule(coordinates)
    denoiser, exact = model(kind, grid), mixture(grid)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((6, *SHAPE)))
    for n in (1, 20, N):
        x_t = x * float(grid.sigma[n])
        posterior = denoiser(x_t, n)
        torch.testing.assert_close(posterior.mean, exact(x_t, n).mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(posterior.eps, exact(x_t, n).eps, rtol=1e-9, atol=1e-9)


def test_all_schedules_have_one_signal_to_noise_ratio() -> None:
    for kind in KINDS:
        assert np.abs(schedule(kind).log_snr[1:] - schedule("edm").log_snr[1:]).max() < 1e-12
    assert len({schedule(kind).digest for kind in KINDS}) == 3  # epsilon and v are both variance-preserving


@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_tables_agree_beyond_their_errors(kind: str, structure: str) -> None:
    """The same seed draws the same x_0 and ε, and what is left is float32's rounding."""
    one, other = table("epsilon"), table(kind)
    data = float(one.data.pixel_variance.max())
    for n in INDICES:
        for estimator in ("residual", "score_norm", "data_variance"):
            a, b = (np.asarray(t.posterior_variance(n, estimator, structure, False)) for t in (one, other))
            # score_norm is the difference of s² and s² E ε̂², data_variance that of the data's variance and the mean's
            minuend = {"score_norm": float(schedule("edm").sigma[n]) ** 2, "data_variance": data}.get(estimator, 0.0)
            assert np.abs(a - b).max() <= 1e-6 * max(minuend, np.abs(a).max())
        assert np.array_equal(one.counts, other.counts)
        assert one.standard_error(n) == pytest.approx(other.standard_error(n), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_agree_within_their_errors_from_other_draws(kind: str) -> None:
    one, other = table("edm"), table(kind, seed=7)
    for n in INDICES:
        a, b = one.posterior_variance(n), other.posterior_variance(n)
        error = np.hypot(one.standard_error(n), other.standard_error(n))
        assert 1e-9 < abs(a - b) <= 4 * error
        assert 0 < error < 0.04 * a
    # Against the posterior variance itself, by brute force with numbers of its own.
    n, exact = 22, mixture(schedule(kind))
    x_0 = images().double().repeat(4, 1, 1, 1)
    eps = torch.from_numpy(np.random.default_rng(6).standard_normal(tuple(x_0.shape)))
    x_t = schedule(kind).alpha[n] * x_0 + schedule(kind).sigma[n] * eps
    each = (x_0 - exact(x_t, n).mean).square().mean((1, 2, 3))
    error = np.hypot(other.standard_error(n), float(each.std()) / np.sqrt(len(each)))
    assert abs(other.posterior_variance(n) - float(each.mean())) <= 4 * error


# ---- samples ------------------------------------------------------------------------------------------------------


def samples(kind: str, eta: float, covariance: ReverseCovariance, seed: int) -> torch.Tensor:
    sampler = dv.Sampler(model(kind), covariance, 10, eta)
    return sampler.sample(COUNT, seed=seed, batch_size=1000).double().flatten(1)


@pytest.mark.parametrize("structure", ["isotropic", "dct"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_from_the_same_numbers_are_the_same(eta: float, structure: str) -> None:
    found = {}
    for kind in KINDS:
        sampler = dv.Sampler(model(kind), dv.Analytic(table(kind), structure=structure), 10, eta)
        found[kind] = sampler.sample(200, seed=1, batch_size=200)
    for kind in KINDS[1:]:
        assert float((found[kind] - found["epsilon"]).abs().max()) < 1e-4
    assert float(found["edm"].std()) > 0.5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_one_mean_and_covariance(eta: float) -> None:
    """From other numbers for each kind, within 4.5 standard errors of a difference."""
    found = [samples(kind, eta, dv.Analytic(table(kind)), seed) for seed, kind in enumerate(KINDS)]

    def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and products about the pooled mean, with their standard errors."""
        centred = x - torch.cat(found).mean(0)
        values = torch.cat([x, (centred[:, :, None] * centred[:, None]).flatten(1)], 1)
        return values.mean(0), values.std(0) / np.sqrt(len(values))

    first, first_error = moments(found[0])
    for other in found[1:]:
        mean, error = moments(other)
        assert float(((mean - first) / torch.hypot(error, first_error)).abs().max()) <= 4.5
    # and they are samples of the data, if not exactly so in ten steps
    data = mixture(schedule("edm")).sample(COUNT, seed=4).double().flatten(1)
    for x in found:
        assert float((x.mean(0) - data.mean(0)).abs().max()) < 0.1
        assert float((torch.cov(x.T) - torch.cov(data.T)).abs().max()) < 0.25 * float(torch.cov(data.T).abs().max())


# ---- rectified flow's own schedule, which ends without signal -----------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_schedule_that_ends_without_signal(shift: float) -> None:
    grid = dv.NoiseSchedule.flow(N, shift)
    assert grid.alpha[N] == 0.0
    # The same α and σ, told the indices.
    denoiser = model("flow", dv.NoiseSchedule(grid.alpha, grid.sigma, np.arange(N + 1.0)))
    found = dv.estimate(denoiser, images(), 0.05, indices=[1, 10, 25, 39, 40], progress=False)
    for structure in found.structures:
        for n in range(1, N + 1):
            for estimator in ("residual", "score_norm", "data_variance"):
                values = np.asarray(found.posterior_variance(n, estimator, structure))
                assert np.isfinite(values).all()
                assert (values >= 0).all()
            assert np.isfinite(found.relative_error(n, structure))
    assert "nan" not in found.summary()
    # Where nothing is known of x_0 its variance is the data's.
    variance = found.data.pixel_variance
    assert found.posterior_variance(N) == pytest.approx(variance.mean(), rel=1e-3)
    assert np.abs(found.posterior_variance(N, structure="pixel") / variance - 1).max() < 0.02
    # score_norm says nothing there, so that its bound answers: the linear denoiser's, which is the same.
    assert np.abs(found.posterior_variance(N, "score_norm", "pixel") / variance - 1).max() < 1e-6
    for eta in (0.0, 1.0):
        x = dv.Sampler(denoiser, dv.Analytic(found), 20, eta).sample(COUNT, seed=2, batch_size=1000)
        gap = x.double().mean(0) - images().double().mean(0)
        assert torch.isfinite(x).all()
        assert float(gap.abs().max()) < 0.1
        assert np.abs(x.double().var(0).numpy() / variance - 1).max() < 0.15
