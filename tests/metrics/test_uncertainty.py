"""The bootstrap interval and FID∞ against repeats with new images, where the true distance is known."""

import time

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffusion_var.errors import InputError
from diffusion_var.metrics import FeatureStatistics, frechet_distance, uncertainty
from diffusion_var.metrics.uncertainty import _Sample, bootstrap_interval, fid_infinity


class Gaussian:
    """Images' features N(mu, 1.21 diag λ) against the reference N(0, diag λ), λ_i = 1/i."""

    def __init__(self, dimension):
        self.variances = 1 / np.arange(1, dimension + 1)
        self.mean = 0.1 * np.sqrt(self.variances)
        self.reference = np.zeros(dimension), np.diag(self.variances)
        self.distance = np.square(self.mean).sum() + 0.01 * self.variances.sum()

    def draw(self, count, seed):
        noise = np.random.default_rng((77, seed)).normal(size=(count, len(self.mean)))
        return self.mean + 1.1 * np.sqrt(self.variances) * noise


def moments(x):
    return x.mean(axis=0), np.cov(x, rowvar=False)


def fids(gaussian, count, repeats):
    """FIDs of independent samples, computed from scratch."""
    samples = (moments(gaussian.draw(count, 10_000 + i)) for i in range(repeats))
    return np.array([frechet_distance(sample, gaussian.reference) for sample in samples])


def within_four_errors(rate, expected, repeats):
    return abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / repeats)


@pytest.mark.parametrize(
    ("count", "dimension", "rank"), [(50, 8, 8), (8, 20, 20), (30, 20, 5), (4, 20, 5), (12, 12, 12)]
)
def test_weighted_distances_equal_those_of_repeated_images(count, dimension, rank):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension,) * 2) + 3
    mixing = rng.normal(size=(dimension, rank))
    reference = rng.normal(size=dimension), mixing @ mixing.T
    sample = _Sample(x, reference)
    for weights in (np.ones(count), rng.integers(0, 4, count).astype(float), np.eye(count)[0] + np.eye(count)[2]):
        images = np.repeat(x, weights.astype(int), axis=0)
        expected = frechet_distance(moments(images), reference)
        assert sample.distance(weights) == pytest.approx(expected, rel=1e-6)


def test_slabs_make_no_difference(monkeypatch):
    x, reference = Gaussian(6).draw(100, 1), Gaussian(6).reference
    expected = bootstrap_interval(x, reference, repeats=20)
    monkeypatch.setattr(uncertainty, "ROWS", 7)
    assert bootstrap_interval(x, reference, repeats=20) == pytest.approx(expected, rel=1e-9)


def test_influences_equal_the_closed_form():
    """φ = 2 (μ − μ_b)·(x − μ) + (x − μ)ᵀ (1 − T)(x − μ), T the optimal transport map from images to reference."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    mixing = rng.normal(size=(6, 6))
    reference = rng.normal(size=6), mixing @ mixing.T
    mean, covariance = moments(x)
    root = sqrtm(reference[1]).real
    transport = root @ np.linalg.inv(sqrtm(root @ covariance @ root).real) @ root
    centred = x - mean
    expected = 2 * centred @ (mean - reference[0]) + np.einsum("ni,ij,nj->n", centred, np.eye(6) - transport, centred)
    np.testing.assert_allclose(_Sample(x, reference).influences(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("count", "dimension", "rank"), [(200, 6, 6), (10, 20, 20), (40, 20, 5)])
def test_influences_are_derivatives_with_respect_to_weights(count, dimension, rank):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension,) * 2)
    mixing = rng.normal(size=(dimension, rank))
    sample = _Sample(x, (rng.normal(size=dimension), mixing @ mixing.T))
    step = 1e-4
    change = [sample.distance(1 + step * unit) - sample.distance(1 - step * unit) for unit in np.eye(count)]
    slopes = np.array(change) / (2 * step)
    influences = sample.influences()
    # up to a constant and a factor of N/(N − 1) of one part
    np.testing.assert_allclose(
        (slopes - slopes.mean()) * count, influences - influences.mean(), atol=2.5 * np.abs(influences).max() / count
    )


@pytest.mark.parametrize("count", [120, 500])
def test_the_interval_covers_the_mean_fid_of_so_many_images(count):
    gaussian, repeats = Gaussian(4), 200
    expected = fids(gaussian, count, 2000).mean()
    inside = 0
    for seed in range(repeats):
        low, high = bootstrap_interval(gaussian.draw(count, seed), gaussian.reference, repeats=80, seed=seed)
        inside += low <= expected <= high
    assert within_four_errors(inside / repeats, 0.94, repeats)  # 80 repeats: the outermost quantiles fall short


def test_the_interval_is_around_the_fid_although_resampled_fids_are_not():
    gaussian = Gaussian(16)
    x = gaussian.draw(100, 1)
    value = frechet_distance(moments(x), gaussian.reference)
    low, high = bootstrap_interval(x, gaussian.reference, repeats=100)
    assert low < value < high
    rng = np.random.default_rng(4)
    resampled = [frechet_distance(moments(x[rng.integers(100, size=100)]), gaussian.reference) for _ in range(100)]
    assert np.quantile(resampled, 0.025) > value  # why plain percentiles are not used
    assert high - low == pytest.approx(np.subtract(*np.quantile(resampled, [0.975, 0.025])), rel=0.3)
    assert not low <= gaussian.distance <= high  # what it does not claim to cover: the FID of infinitely many images


def test_the_interval_is_as_wide_as_the_level_says():
    gaussian = Gaussian(8)
    spread = fids(gaussian, 600, 400).std()
    for level, width in ((0.95, 1.96), (0.68, 0.994)):
        intervals = [
            bootstrap_interval(gaussian.draw(600, seed), gaussian.reference, repeats=200, level=level)
            for seed in range(10)
        ]
        assert np.mean(np.diff(intervals)) / 2 == pytest.approx(width * spread, rel=0.15)


def test_too_few_images_make_it_too_wide_not_too_narrow():
    gaussian = Gaussian(24)
    distances = fids(gaussian, 30, 400)
    expected, spread = distances.mean(), distances.std()
    intervals = [bootstrap_interval(gaussian.draw(30, seed), gaussian.reference, repeats=60) for seed in range(60)]
    assert np.mean([low <= expected <= high for low, high in intervals]) > 0.95
    assert np.mean(np.diff(intervals)) / 2 > 1.96 * spread


@pytest.mark.parametrize(("dimension", "count"), [(4, 200), (16, 600)])
def test_fid_infinity_covers_the_distance_of_the_populations(dimension, count):
    gaussian, repeats = Gaussian(dimension), 150
    estimates = [fid_infinity(gaussian.draw(count, i), gaussian.reference, seed=i) for i in range(repeats)]
    values = np.array([each.value for each in estimates])
    errors = np.array([each.standard_error for each in estimates])
    bias = fids(gaussian, count, 200).mean() - gaussian.distance
    assert abs(values.mean() - gaussian.distance) < 0.25 * bias + 4 * values.std() / np.sqrt(repeats)
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    assert 0.86 < np.mean(np.abs(values - gaussian.distance) < 1.96 * errors) < 0.99


def test_fid_infinity_equals_a_line_through_its_sizes():
    """Fifteen sizes from N/10 to N, evenly spaced; where the FIDs are on one line, its value at 1/n = 0."""
    gaussian = Gaussian(10)
    x = gaussian.draw(300, 3)
    sizes = []

    class Line(_Sample):
        def distance(self, weights):
            assert set(np.unique(weights)) <= {0.0, 1.0}
            sizes.append(int(weights.sum()))
            return 2.5 + 30 / weights.sum()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(uncertainty, "_Sample", Line)
        estimate = fid_infinity(x, gaussian.reference)
    assert estimate.value == pytest.approx(2.5, rel=1e-9)
    assert len(sizes) == 15
    assert (sizes[0], sizes[-1]) == (30, 300)
    assert np.abs(np.diff(sizes, 2)).max() <= 1
    influences = _Sample(x, gaussian.reference).influences()
    assert estimate.standard_error == pytest.approx(influences.std(ddof=1) / np.sqrt(300), rel=1e-6)


def test_default_sizes_start_at_twice_the_dimension_where_there_are_images():
    for count, dimension, expected in ((2000, 10, 200), (300, 50, 100), (100, 80, 50), (8, 4, 4)):
        starts = []

        class Watched(_Sample):
            def distance(self, weights, starts=starts):
                starts.append(weights.sum())
                return super().distance(weights)

        gaussian = Gaussian(dimension)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(uncertainty, "_Sample", Watched)
            fid_infinity(gaussian.draw(count, 1), gaussian.reference, points=3)
        assert starts[0] == expected


def test_same_seed_same_numbers():
    gaussian = Gaussian(5)
    x = gaussian.draw(60, 1)
    for function in (bootstrap_interval, fid_infinity):
        assert function(x, gaussian.reference, seed=3) == function(x, gaussian.reference, seed=3)
        assert function(x, gaussian.reference, seed=3) != function(x, gaussian.reference, seed=4)
        statistics = FeatureStatistics.from_moments(*gaussian.reference)
        assert function(x, statistics, seed=3) == function(x, gaussian.reference, seed=3)


def test_is_quick():
    gaussian = Gaussian(64)
    x = gaussian.draw(2000, 1).astype(np.float32)
    start = time.process_time()
    low, high = bootstrap_interval(x, gaussian.reference, repeats=200)
    fid_infinity(x, gaussian.reference)
    assert time.process_time() - start < 10
    assert 0 < low < high


def test_repeated_images_and_constant_features():
    x = np.ones((20, 3))
    assert bootstrap_interval(x, (np.zeros(3), np.zeros((3, 3)))) == (3.0, 3.0)
    assert bootstrap_interval(x, (np.zeros(3), np.eye(3))) == pytest.approx((6.0, 6.0))
    estimate = fid_infinity(x, (np.zeros(3), np.eye(3)))
    assert (estimate.value, estimate.standard_error) == pytest.approx((6.0, 0.0), abs=1e-9)


def test_bad_input():
    gaussian = Gaussian(3)
    x = gaussian.draw(20, 1)
    for function in (bootstrap_interval, fid_infinity):
        with pytest.raises(InputError, match="1 images' features; expected at least"):
            function(x[:1], gaussian.reference)
        with pytest.raises(InputError, match="dimension 2 and the reference 3"):
            function(x[:, :2], gaussian.reference)
        with pytest.raises(InputError, match="images' features hold NaN"):
            function(np.where(x > 0, np.nan, x), gaussian.reference)
        with pytest.raises(InputError, match="the reference statistics: mu or sigma holds NaN"):
            function(x, (np.full(3, np.nan), np.eye(3)))
    with pytest.raises(InputError, match="repeats=5 must be a whole number of at least 20"):
        bootstrap_interval(x, gaussian.reference, repeats=5)
    with pytest.raises(InputError, match="level is 95"):
        bootstrap_interval(x, gaussian.reference, level=95)
    with pytest.raises(InputError, match="points=2 must be a whole number of at least 3"):
        fid_infinity(x, gaussian.reference, points=2)
    with pytest.raises(InputError, match="smallest=1 must be a whole number of at least 2"):
        fid_infinity(x, gaussian.reference, smallest=1)
    with pytest.raises(InputError, match="smallest is 19; expected at most 18"):
        fid_infinity(x, gaussian.reference, smallest=19)
