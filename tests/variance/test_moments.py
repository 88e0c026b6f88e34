"""Are the error bars right? Repeats over seeds (and indices) of a tiny, nonlinear, imperfect network."""

import warnings

import numpy as np
import pytest
import torch
from crooked import IMAGES, SCHEDULE, SHAPE, crooked_denoiser, truth

import diffusion_var as dv
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator
from diffusion_var.variance.estimators import ESTIMATORS
from diffusion_var.variance.moments import (
    SHARD,
    TARGETS,
    adjusted_covariance,
    adjusted_means,
    control_expectations,
    regression,
    shard_sums,
)
from diffusion_var.variance.population import Population
from diffusion_var.variance.shards import ShardEvaluator

INDICES = list(range(50, 1000, 100))


def tables(seeds, draws, structures=()):
    """One table per seed with exactly `draws` draws at each index."""
    for seed in seeds:
        budget = {"tolerance": 1e3} if draws == 256 else {"tolerance": 1e-9, "max_evaluations": draws * len(INDICES)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dv.DiffusionVarWarning)
            table = dv.estimate(
                crooked_denoiser(),
                IMAGES,
                seed=seed,
                indices=INDICES,
                structures=structures,
                batch_size=2048,
                progress=False,
                **budget,
            )
        assert (table.counts == draws).all()
        yield table


def test_intervals_cover_the_truth_in_95_percent():
    # 200 seeds × 10 indices: the binomial standard deviation of the coverage is 0.5 %.
    exact = {e: np.array([truth(n, e) for n in INDICES]) for e in ESTIMATORS}
    inside: dict[str, list] = {e: [] for e in ESTIMATORS}
    for table in tables(range(200), 256):
        for estimator in ESTIMATORS:
            value = np.array(
                [table.interpolation.value(estimator, "isotropic", table.schedule.level(n)) for n in INDICES]
            )
            error = np.array([table.standard_error(n, estimator) for n in INDICES])
            inside[estimator].append(np.abs(value - exact[estimator]) < 1.96 * error)
    for estimator in ESTIMATORS:
        assert 0.93 <= np.mean(inside[estimator]) <= 0.97, estimator


def test_error_falls_as_the_root_of_the_draws():
    exact = np.array([truth(n, "residual") for n in INDICES])
    rms = {
        draws: np.sqrt(
            np.mean([([t.posterior_variance(n) for n in INDICES] / exact - 1) ** 2 for t in tables(range(25), draws)])
        )
        for draws in (256, 4096)
    }
    # Two-sided: 250 repeats know each error to 4.5 %, so the slope to about 0.025.
    slope = np.log(rms[256] / rms[4096]) / np.log(4096 / 256)
    assert 0.42 < slope < 0.58


def test_relative_error_of_structures_is_the_rms_error_over_repeats():
    found = list(tables(range(40), 512, ("channel", "pixel", "dct")))
    for structure in ("channel", "pixel", "dct"):
        values = np.array([[t.posterior_variance(n, structure=structure) for n in INDICES] for t in found])
        exact = values.mean(0)
        actual = ((values - exact) / exact).reshape(len(found), len(INDICES), -1)
        actual = np.sqrt((actual**2).sum(0).mean(-1) / (len(found) - 1))
        reported = np.array([np.mean([t.relative_error(n, structure) for t in found]) for n in INDICES])
        assert abs(np.sqrt(np.mean((actual / reported) ** 2)) - 1) < 0.15, structure


def test_stopping_at_the_tolerance_meets_it():
    exact = np.array([truth(n, "residual") for n in INDICES])
    errors = []
    for seed in range(8):
        table = dv.estimate(
            crooked_denoiser(), IMAGES, 0.01, seed, INDICES, structures=(), batch_size=2048, progress=False
        )
        assert table.details["shortfall"] == []
        assert max(table.relative_error(n) for n in INDICES) <= 0.01
        errors += list([table.posterior_variance(n) for n in INDICES] / exact - 1)
    assert 0.006 < np.sqrt(np.mean(np.square(errors))) < 0.012


# ---- control variates ---------------------------------------------------------------------------------------------


def evaluated(structure_name, n, shards, images=IMAGES, denoiser=None):
    """(population statistics, structure, sums (S, 8, *v), covariances (S, 8, 8)) of `shards` shards at index n."""
    denoiser = denoiser or crooked_denoiser()
    population = Population(images, SHAPE, None)
    kinds = {name: make_structure(name, SHAPE) for name in dict.fromkeys(("isotropic", structure_name))}
    evaluator = ShardEvaluator(denoiser, population, None, 5, 4096, kinds)
    weights = dict.fromkeys(kinds)
    out = evaluator.sums([(n, shard) for shard in range(shards)], weights, 0).sums[structure_name]
    return population.statistics, kinds[structure_name], *out


@pytest.mark.parametrize("n", [30, 400, 900])
@pytest.mark.parametrize("structure_name", ["isotropic", "channel", "pixel", "dct"])
def test_expectations_of_the_controls_are_exact(structure_name, n):
    # The second data set has very unequal pixels, so that pixel and dct bases differ.
    images = IMAGES * np.linspace(0.2, 2.0, IMAGES[0].size, dtype=np.float32).reshape(SHAPE)
    data, structure, sums, _ = evaluated(structure_name, n, 1000, images)
    expected = control_expectations(data, structure, SCHEDULE.alpha[n], SCHEDULE.sigma[n])
    assert expected.shape == (3, *structure.variance_shape)
    controls = sums[:, len(TARGETS) :] / SHARD
    error = controls.std(0) / np.sqrt(len(controls))
    assert (np.abs(controls.mean(0) - expected) <= 4.5 * error).all()
    assert (error < 0.1 * expected).all()


@pytest.mark.parametrize("structure_name", ["isotropic", "channel", "pixel", "dct"])
def test_adjusted_means_vary_less_and_as_said(structure_name):
    n = 300
    data, structure, sums, covariances = evaluated(structure_name, n, 16 * 120)
    expected = control_expectations(data, structure, SCHEDULE.alpha[n], SCHEDULE.sigma[n])
    k, raw, adjusted, said = TARGETS.index("error_square"), [], [], []
    for part in range(120):
        rows = slice(16 * part, 16 * part + 16)
        means, covariance = sums[rows].mean(0) / SHARD, covariances[rows].mean(0)
        raw.append(means[k])
        adjusted.append(adjusted_means(means, covariance, expected)[k])
        said.append(adjusted_covariance(covariance, 16 * SHARD)[k, k])
    raw, adjusted = np.array(raw), np.array(adjusted)
    exact = np.array(sums).mean(0)[k] / SHARD
    assert np.abs(adjusted.mean(0) - exact).max() < 5 * raw.std(0).max() / np.sqrt(120)
    assert adjusted.var(0).mean() < 0.6 * raw.var(0).mean()
    # unweighted: the mean over elements of the elements' variances
    assert adjusted.var(0, ddof=1).mean() == pytest.approx(np.mean(said), rel=0.2 if raw.ndim > 1 else 0.35)


def test_the_cost_of_fitting_the_regression_is_counted():
    # Two shards only, where it is 24 %: Gaussian moments, of which the first depends on the controls.
    repeats, shards = 4000, 2
    draws = generator(6, "regression").standard_normal((repeats, shards, SHARD, 8))
    draws[..., 0] += draws[..., 5] - 0.5 * draws[..., 6]
    centred = draws - draws.mean(2, keepdims=True)
    covariances = np.einsum("rsik,rsil->rkl", centred, centred) / ((SHARD - 1) * shards)
    means = draws.mean((1, 2))
    adjusted = [adjusted_means(m, c, np.zeros(3))[0] for m, c in zip(means, covariances, strict=True)]
    said = [adjusted_covariance(c, SHARD * shards)[0, 0] for c in covariances]
    # The ratio is known to √(2/4000) = 2.2 %.
    assert np.var(adjusted) / np.mean(said) == pytest.approx(1.0, abs=0.08)
    assert np.var(adjusted) * SHARD * shards == pytest.approx(29 / 26, abs=0.08)


def test_shard_covariances_are_unbiased_and_weighted():
    values = generator(1, "shards").standard_normal((4 * SHARD, 8, 1, 2, 3)) * np.arange(1, 7).reshape(1, 1, 1, 2, 3)
    weights = generator(2, "weights").uniform(0.5, 2.0, (4, 1, 2, 3))
    sums, covariances = shard_sums(torch.from_numpy(values), torch.from_numpy(weights))
    grouped = values.reshape(4, SHARD, 8, 6)
    assert np.abs(sums.numpy().reshape(4, 8, 6) - grouped.sum(1)).max() < 1e-10
    for shard in range(4):
        per_element = [np.cov(grouped[shard, :, :, e].T) * weights.reshape(4, 6)[shard, e] for e in range(6)]
        assert np.abs(covariances[shard].numpy() - np.mean(per_element, 0)).max() < 1e-10


def test_regression_survives_useless_controls():
    draws = generator(4, "controls").standard_normal((200, 8))
    draws[:, 0] += 2.0 * draws[:, 5]
    draws[:, 6] = draws[:, 5]  # collinear
    draws[:, 7] = 0.0  # constant
    covariance = np.cov(draws.T)
    weights = regression(covariance)
    assert np.isfinite(weights).all()
    assert weights[0, 0] == pytest.approx(weights[0, 1])
    assert weights[0, 0] + weights[0, 1] == pytest.approx(2.0, abs=0.3)
    assert np.abs(weights[:, 2]).max() == 0.0
    adjusted = adjusted_covariance(covariance, 200)
    assert adjusted[0, 0] * 200 == pytest.approx(1.0, abs=0.35)
    assert np.abs(regression(np.zeros((8, 8)))).max() == 0.0
    assert np.isfinite(adjusted_covariance(np.zeros((8, 8)), 256)).all()


def test_constant_data_gives_finite_answers():
    table = dv.estimate(crooked_denoiser(), np.full((3, *SHAPE), 0.25), 1e3, indices=[500], progress=False)
    for structure in table.structures:
        value = table.posterior_variance(500, structure=structure)
        assert np.isfinite(value).all()
        assert np.isfinite(table.relative_error(500, structure))
        assert np.min(value) > 0.0
        # the bound of an exact mean on data that never varies
        assert np.max(table.posterior_variance(500, structure=structure, bounded=True)) == 0.0
