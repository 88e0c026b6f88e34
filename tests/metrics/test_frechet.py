"""The Fréchet distance against independent computations, over sizes, ranks and conditioning."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.linalg import sqrtm, svdvals

from diffusion_var.errors import InputError
from diffusion_var.metrics.frechet import SMALL, factor, frechet_distance, frechet_of_rows
from diffusion_var.metrics.statistics import FeatureStatistics


def features(count, dimension, seed):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, dimension)) @ (np.eye(dimension) + 0.4 * rng.normal(size=(dimension,) * 2))
        + rng.normal()
    )


def moments(x):
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def by_data(x, y):
    """The distance from the data themselves: the nuclear norm of the product of the centred data, no covariance."""
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    return np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + (a**2).sum() + (b**2).sum() - 2 * svdvals(a @ b.T).sum()


def total(*pairs):
    return sum(np.trace(sigma) for _, sigma in pairs)


@pytest.mark.parametrize("dimension", [1, 2, 7, 30, 90])
@pytest.mark.parametrize("ratio", ["2", "half", "d-1", "d", "d+1", "d+2", "5d"])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_equals_the_distance_from_the_data_at_every_rank(dimension, ratio, spread):
    count = {
        "2": 2, "half": dimension // 2 + 2, "d-1": dimension - 1, "d": dimension, "d+1": dimension + 1,
        "d+2": dimension + 2, "5d": 5 * dimension,
    }[ratio]  # fmt: skip
    count = max(count, 2)
    scale = np.exp(spread * np.random.default_rng(9).normal(size=dimension))  # features in very different units
    x, y = scale * features(count, dimension, 1), scale * features(count + 5, dimension, 2)
    a, b = moments(x), moments(y)
    assert frechet_distance(a, b) == pytest.approx(by_data(x, y), abs=1e-12 * total(a, b), rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-12 * total(a, b), rel=1e-12)


@pytest.mark.parametrize("dimension", [2, 10, 64, 200])
def test_equals_the_matrix_square_root_where_that_is_accurate(dimension):
    (mean_a, a), (mean_b, b) = (moments(features(10 * dimension, dimension, seed)) for seed in (3, 4))
    expected = np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance((mean_a, a), (mean_b, b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("exponent", [0, 3, 9])
def test_closed_form_for_diagonal_covariances_in_any_units(exponent):
    rng = np.random.default_rng(5)
    a, b = 10.0 ** rng.uniform(-2 * exponent, exponent, (2, 40))
    mean_a, mean_b = rng.normal(size=(2, 40))
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance((mean_a, np.diag(a)), (mean_b, np.diag(b))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decades", [4, 8, 10])
def test_ill_conditioned_covariances_with_a_common_basis(decades):
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    a, b = np.logspace(0, -decades, 20), rng.permutation(np.logspace(0, -decades, 20))
    pair = [(np.zeros(20), basis * values @ basis.T) for values in (a, b)]
    assert frechet_distance(*pair) == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-9)


def test_singular_covariances_whose_cholesky_factor_exists_by_luck():
    # With as many images as features one eigenvalue is 0 up to rounding: its sign, and so Cholesky's success, is luck.
    for seed in range(40):
        x, y = features(8, 8, seed), features(50, 8, seed + 1000)
        a, b = moments(x), moments(y)
        assert frechet_distance(a, b) == pytest.approx(by_data(x, y), abs=1e-12 * total(a, b)), seed


def test_constant_and_repeated_features():
    x, y = features(50, 4, 1), features(60, 4, 2)
    x, y = (np.column_stack([z, np.full(len(z), 2.0), z[:, 0], z[:, 1] - z[:, 2]]) for z in (x, y))
    a, b = moments(x), moments(y)
    assert frechet_distance(a, b) == pytest.approx(by_data(x, y), rel=1e-12)
    still = (np.zeros(7), np.zeros((7, 7)))
    assert frechet_distance(still, a) == pytest.approx(np.square(a[0]).sum() + np.trace(a[1]), rel=1e-12)
    assert frechet_distance(still, (np.full(7, 3.0), np.zeros((7, 7)))) == 63.0


@pytest.mark.parametrize(("count", "others", "d"), [(100, 80, 7), (20, 30, 50), (5, 40, 12)])
def test_of_rows_it_is_the_distance_of_their_moments(count, others, d):
    a = 1.3 * np.random.default_rng(0).standard_normal((count, d)) + 0.2
    b = np.random.default_rng(1).standard_normal((others, d))
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    assert frechet_of_rows(a, b) == pytest.approx(frechet_distance(*moments), rel=1e-9)
    assert frechet_of_rows(a, a) == pytest.approx(0.0, abs=1e-9)


def test_factors_have_the_numerical_rank():
    for count, rank in ((5, 4), (20, 19), (21, 20), (100, 20)):
        _, sigma = moments(features(count, 20, 7))
        root = factor(sigma)
        assert root.shape == (20, rank)
        np.testing.assert_allclose(root @ root.T, sigma, atol=1e-13 * np.trace(sigma))


def test_zero_for_equals_and_never_negative():
    for count in (3, 200):
        mean, sigma = moments(features(count, 10, 8))
        assert frechet_distance((mean, sigma), (mean.copy(), sigma.copy())) == 0.0
        almost = sigma * (1 + 1e-15)
        assert 0 <= frechet_distance((mean, sigma), (mean, almost)) < 1e-12 * np.trace(sigma)
        assert frechet_distance((mean, sigma), (mean + 1, sigma)) == pytest.approx(10, rel=1e-12)


def test_takes_statistics_and_pairs():
    x, y = features(40, 5, 1), features(50, 5, 2)
    statistics = [FeatureStatistics(5).update(z) for z in (x, y)]
    assert frechet_distance(*statistics) == pytest.approx(by_data(x, y), rel=1e-12)
    assert frechet_distance(statistics[0], moments(y)) == pytest.approx(by_data(x, y), rel=1e-12)


def test_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="dimensions 2 and 3"):
        frechet_distance((np.zeros(2), np.eye(2)), (np.zeros(3), np.eye(3)))
    with pytest.raises(InputError, match=r"second statistics.*\(3, 3\)"):
        frechet_distance((np.zeros(2), np.eye(2)), (np.zeros(2), np.eye(3)))
    with pytest.raises(InputError, match="negative eigenvalue"):
        frechet_distance((np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])), (np.zeros(2), np.eye(2)))
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(FeatureStatistics(2).update(np.zeros((1, 2))), (np.zeros(2), np.eye(2)))


def by_pytorch_fid(a, b, monkeypatch):
    """pytorch-fid 0.3.0; the `disp=False` it passes to scipy's sqrtm is deprecated, and gone in scipy 1.18."""
    from pytorch_fid import fid_score

    class Linalg:
        @staticmethod
        def sqrtm(matrix, disp=False):
            return sqrtm(matrix), None

    monkeypatch.setattr(fid_score, "linalg", Linalg)
    return fid_score.calculate_frechet_distance(*a, *b)


def by_torch_fidelity(a, b):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return fid_statistics_to_metric(*({"mu": mu, "sigma": sigma} for mu, sigma in (a, b)), False)[KEY_METRIC_FID]


@pytest.mark.parametrize("dimension", [2, 8, 64, SMALL - 1, SMALL, 300])
@pytest.mark.parametrize("ratio", [2, 8])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_equals_the_other_libraries_at_full_rank(dimension, ratio, spread, monkeypatch):
    scale = np.exp(spread * np.random.default_rng(9).normal(size=dimension))
    a, b = (moments(scale * features(ratio * dimension + 3, dimension, seed)) for seed in (11, 12))
    value = frechet_distance(a, b)
    assert value == pytest.approx(by_pytorch_fid(a, b, monkeypatch), rel=1e-6)
    assert value == pytest.approx(by_torch_fidelity(a, b), rel=1e-6)


def test_equals_torch_fidelity_from_the_same_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics

    x, y = features(300, 20, 13), features(400, 20, 14)
    theirs = (fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y))
    expected = by_torch_fidelity(*((each["mu"], each["sigma"]) for each in theirs))
    ours = [FeatureStatistics(20).update(part) for part in (x, y)]
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dimension", [SMALL, 320])
@pytest.mark.parametrize("counts", [("3d", "2d"), ("half", "half"), ("half", "3d"), ("d", "3d"), ("2", "3d")])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_large_matrices_equal_the_distance_from_the_data(dimension, counts, spread):
    sizes = {"2": 2, "half": dimension // 2, "d": dimension, "2d": 2 * dimension, "3d": 3 * dimension}
    scale = np.exp(spread * np.random.default_rng(9).normal(size=dimension))
    x, y = (scale * features(sizes[count], dimension, seed) for seed, count in enumerate(counts))
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(by_data(x, y), rel=1e-9)


def without(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(scipy.linalg, name, refuse)


def test_well_conditioned_large_matrices_need_no_singular_values(monkeypatch):
    rng = np.random.default_rng(15)
    a, b = (moments(rng.normal(size=(4 * SMALL, SMALL)) + shift) for shift in (0, 0.1))
    expected = np.square(a[0] - b[0]).sum() + np.trace(a[1] + b[1] - 2 * sqrtm(a[1] @ b[1]).real)
    with monkeypatch.context() as patched:
        without("svdvals", patched)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("decades", [4, 6, 8, 9.5])
@pytest.mark.parametrize("change", [1e-2, 1e-5])
def test_singular_values_take_over_where_the_roots_of_eigenvalues_lose(decades, change):
    # One basis, so the distance is known; the eigenvalues of the product fall over 2 × `decades` decades.
    rng = np.random.default_rng(16)
    basis = np.linalg.qr(rng.normal(size=(SMALL + 20,) * 2))[0]
    a = np.logspace(0, -decades, SMALL + 20)
    b = a * (1 + change * rng.normal(size=a.size)) ** 2
    pair = [(np.zeros(a.size), basis * values @ basis.T) for values in (a, b)]
    expected = np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-7, abs=1e-13)


def test_eigenvalues_that_cannot_be_trusted_are_left_for_singular_values(monkeypatch):
    """Features in units that differ by many decades: the eigenvalues lose 1e-7, the singular values nothing."""
    scale = np.exp(4 * np.random.default_rng(17).normal(size=SMALL))
    x, y = (scale * features(3 * SMALL, SMALL, seed) for seed in (18, 19))
    a, b = moments(x), moments(y)
    assert frechet_distance(a, b) == pytest.approx(by_data(x, y), rel=1e-10)
    without("svdvals", monkeypatch)
    with pytest.raises(AssertionError, match="svdvals was called"):
        frechet_distance(a, b)


def test_a_clear_rank_needs_no_eigenvectors_and_an_unclear_one_does(monkeypatch):
    few = moments(features(30, 60, 20))[1]
    with monkeypatch.context() as patched:
        without("eigh", patched)
        root = factor(few)
    assert root.shape == (60, 29)
    np.testing.assert_allclose(root @ root.T, few, atol=1e-13 * np.trace(few))
    rounded = few.astype(np.float32).astype(np.float64)  # eigenvalues of ±1e-7 where there should be 0
    root = factor(0.5 * (rounded + rounded.T))
    np.testing.assert_allclose(root @ root.T, few, atol=1e-5 * np.diagonal(few).max())
    assert frechet_distance((np.zeros(60), rounded), (np.zeros(60), few)) < 1e-5 * np.trace(few)


def test_a_spectrum_that_ends_nowhere_is_cut_by_its_eigenvalues(monkeypatch):
    basis = np.linalg.qr(np.random.default_rng(23).normal(size=(40, 40)))[0]
    values = np.logspace(0, -17, 40)
    smooth = basis * values @ basis.T
    b = np.random.default_rng(24).permutation(values)
    pair = [(np.zeros(40), smooth), (np.zeros(40), basis * b @ basis.T)]
    assert frechet_distance(*pair) == pytest.approx(np.square(np.sqrt(values) - np.sqrt(b)).sum(), rel=1e-5)
    without("eigh", monkeypatch)
    with pytest.raises(AssertionError, match="eigh was called"):
        factor(smooth)


def test_eigenvalues_are_of_the_smaller_product(monkeypatch):
    sizes = []
    eigvalsh = scipy.linalg.eigvalsh

    def watched(matrix, **options):
        sizes.append(len(matrix))
        return eigvalsh(matrix, **options)

    monkeypatch.setattr(scipy.linalg, "eigvalsh", watched)
    few, many = (moments(features(count, SMALL + 60, 25)) for count in (SMALL + 11, 3 * SMALL))
    assert frechet_distance(few, many) == pytest.approx(frechet_distance(many, few), rel=1e-9)
    assert sizes == [SMALL + 10] * 2


def test_statistics_of_few_images_in_a_large_dimension():
    for count in (2, 3, 40):
        x, y = features(count, 400, 21), features(1000, 400, 22)
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(by_data(x, y), rel=1e-11)
        with_constants = [np.column_stack([z, np.full((len(z), 3), 0.1), z[:, :5]]) for z in (x, y)]
        expected = by_data(*with_constants)
        assert frechet_distance(*(moments(z) for z in with_constants)) == pytest.approx(expected, rel=1e-11)
