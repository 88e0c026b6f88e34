"""Precision, recall, density and coverage against torch-fidelity and against the papers' definitions, pair by pair."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from diffusion_var.errors import InputError
from diffusion_var.metrics import neighbours
from diffusion_var.metrics.neighbours import density_coverage, precision_recall


def features(count, dimension, seed, shift=0.0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(count, dimension)) + shift


def by_torch_fidelity(real, fake, k, parts):
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    options = {"prc_neighborhood": k, "save_cpu_ram": parts, "verbose": False}
    scores = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **options)
    return scores[KEY_METRIC_PRECISION], scores[KEY_METRIC_RECALL]


def radius(points, k):
    """The distance to the k-th nearest other point, by sorting."""
    return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(cdist(points, points))])


def by_definition(real, fake, k):
    """Precision, recall, density, coverage."""
    inside = cdist(fake, real) <= radius(real, k)
    back = cdist(real, fake) <= radius(fake, k)
    return inside.any(axis=1).mean(), back.any(axis=1).mean(), inside.sum() / (k * len(fake)), inside.any(axis=0).mean()


SETS = [
    (features(50, 2, 1), features(50, 2, 2)),
    (features(200, 8, 3), features(150, 8, 4, 0.7)),
    (features(150, 8, 5), features(200, 8, 6, 0.0, 0.3)),
    (features(300, 64, 7), features(300, 64, 8, 0.1, 1.05)),
    (features(100, 5, 9), features(100, 5, 10, 20.0)),
    (features(100, 5, 11, 1e4), features(120, 5, 12, 1e4)),
]


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("real_fake", SETS)
@pytest.mark.parametrize("parts", [True, False])
def test_precision_and_recall_equal_torch_fidelity(real_fake, k, parts):
    # torch-fidelity averages in float32
    assert precision_recall(*real_fake, k=k) == pytest.approx(by_torch_fidelity(*real_fake, k, parts), abs=1e-6)


FAR = (features(400, 5, 14, 1e7), features(120, 5, 15, 1e7))  # ‖x‖² alone would drown their distances


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("real_fake", [*SETS, FAR])
def test_all_four_equal_their_definitions(real_fake, k):
    measured = (*precision_recall(*real_fake, k=k), *density_coverage(*real_fake, k=k))
    assert measured == pytest.approx(by_definition(*real_fake, k), rel=1e-12)


def test_the_sets_tell_the_four_apart():
    scores = np.array([by_definition(*pair, 3) for pair in SETS])
    assert (np.abs(scores[:, :, None] - scores[:, None, :]).max(axis=0) + np.eye(4) > 0.05).all()


def test_default_neighbours_are_those_of_the_papers():
    real, fake = SETS[1]
    assert precision_recall(real, fake) == pytest.approx(by_definition(real, fake, 3)[:2])
    assert density_coverage(real, fake) == pytest.approx(by_definition(real, fake, 5)[2:])


def test_expectations_for_fakes_drawn_like_the_reals():
    # Naeem et al.: density 1, coverage 1 − Π (N − j)/(N + M − j).
    real_count, fake_count, k = 60, 90, 3
    scores = [density_coverage(features(60, 3, 2 * i), features(90, 3, 2 * i + 1), k) for i in range(300)]
    density, coverage = np.mean(scores, axis=0)
    error = np.std(scores, axis=0, ddof=1) / np.sqrt(300)
    j = np.arange(1, k + 1)
    assert abs(density - 1) < 4 * error[0]
    expected = 1 - np.prod((real_count - j) / (real_count + fake_count - j))
    assert abs(coverage - expected) < 4 * error[1]
    assert error.max() < 0.01


@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("dimension", [2, 33, 500])
@pytest.mark.parametrize("slab", [1, 300, 10**6])
def test_copies_and_repeats(shift, dimension, slab, monkeypatch):
    monkeypatch.setattr(neighbours, "SLAB", slab)  # sums of other shapes are rounded otherwise
    real = features(80, dimension, 13, shift).astype(np.float32)
    assert precision_recall(real, real) == (1.0, 1.0)
    # every ball holds its centre and k neighbours, the one on its surface included
    assert density_coverage(real, real, k=5) == pytest.approx((6 / 5, 1.0))
    assert density_coverage(real, real[::-1], k=5) == pytest.approx((6 / 5, 1.0))
    memorised = np.repeat(real[:1], 40, axis=0)
    precision, recall = precision_recall(real, memorised)
    assert (precision, recall) == (1.0, 1 / 80)  # the fakes' balls are points
    repeated = np.repeat(real[:20], 4, axis=0)  # the reals' balls are points
    assert precision_recall(repeated, real, k=3) == (20 / 80, 1.0)
    assert density_coverage(repeated, real, k=3) == pytest.approx((20 * 4 / (3 * 80), 1.0))


def test_does_not_depend_on_slabs_or_precision_or_units(monkeypatch):
    real, fake = (z.astype(np.float32) for z in SETS[1])
    expected = (*precision_recall(real, fake), *density_coverage(real, fake))
    monkeypatch.setattr(neighbours, "SLAB", 700)
    for scale in (1.0, 1e-6, 2.0**40):
        a, b = real.astype(float) * scale, fake.astype(float) * scale
        assert (*precision_recall(a, b), *density_coverage(a, b)) == expected


def test_bad_input():
    x = features(10, 3, 1)
    with pytest.raises(InputError, match="3 real features; k = 3 neighbours need at least 4"):
        precision_recall(x[:3], x)
    with pytest.raises(InputError, match="3 fake features; k = 3 neighbours need at least 4"):
        precision_recall(x, x[:3])
    assert precision_recall(x[:4], x[:4]) == (1.0, 1.0)
    with pytest.raises(InputError, match="5 real features; k = 5"):
        density_coverage(x[:5], x)
    assert density_coverage(x, x[:2])[1] > 0
    with pytest.raises(InputError, match="1 fake features"):
        density_coverage(x, x[:1])
    with pytest.raises(InputError, match="dimension 3 and the fake ones 2"):
        precision_recall(x, x[:, :2])
    with pytest.raises(InputError, match="fake features hold NaN"):
        density_coverage(x, np.where(x > 0, np.inf, x))
    with pytest.raises(InputError, match="k=0 must be a whole number of at least 1"):
        precision_recall(x, x, k=0)
    with pytest.raises(InputError, match="too large"):
        precision_recall(x * 1e200, x)
