"""The kernel distance against torch-fidelity's and against its definition; its standard error against repeats."""

import numpy as np
import pytest
import torch

from diffusion_var.errors import InputError
from diffusion_var.metrics import kid as kernel
from diffusion_var.metrics.kid import kernel_distance


def features(count, dimension, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, dimension)) + shift


def by_definition(x, y):
    """The unbiased estimate, element by element."""
    k = lambda u, v: (float(u @ v) / len(u) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    within = lambda z: sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j)  # noqa: E731
    across = sum(k(u, v) for u in x for v in y)
    return within(x) / (n * (n - 1)) + within(y) / (m * (m - 1)) - 2 * across / (n * m)


def by_torch_fidelity(x, y, size):
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    options = {"kid_subsets": 1, "kid_subset_size": size, "verbose": False}
    return kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), **options)[KEY_METRIC_KID_MEAN]


@pytest.mark.parametrize("count", [2, 5, 100, 1500])
@pytest.mark.parametrize("dimension", [1, 7, 64])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_one_block_equals_torch_fidelity(count, dimension, shift):
    x, y = features(count, dimension, 1), features(count, dimension, 2, shift)
    expected = by_torch_fidelity(x, y, count)
    assert kernel_distance(x, y, block_size=count).value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equals_the_definition():
    x, y = features(9, 3, 3), features(9, 3, 4, 0.3)
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y), rel=1e-12)


def test_blocks_are_drawn_without_replacement_from_both_sides():
    # With blocks of all but one of 6 images, each is the definition's value for one choice of who is left out.
    x, y = features(6, 3, 5), features(6, 3, 6)
    values = [by_definition(np.delete(x, i, axis=0), np.delete(y, j, axis=0)) for i in range(6) for j in range(6)]
    seen = set()
    for seed in range(60):
        value = kernel_distance(x, y, blocks=1, block_size=5, seed=seed).value
        nearest = int(np.argmin(np.abs(np.array(values) - value)))
        assert value == pytest.approx(values[nearest], rel=1e-10)
        seen.add(nearest)
    assert len(seen) > 15  # of 36; both sides vary
    many = kernel_distance(x, y, blocks=4000, block_size=5).value
    assert many == pytest.approx(np.mean(values), abs=4 * np.std(values) / np.sqrt(4000))


def test_is_unbiased_at_any_block_size():
    x, y = features(1500, 4, 7), features(1500, 4, 8, 0.3)
    everything = kernel_distance(x, y, block_size=1500)
    for size in (10, 100, 500):
        part = kernel_distance(x, y, blocks=200, block_size=size)
        assert abs(part.value - everything.value) < 4 * part.standard_error


def test_depends_on_the_seed_alone_and_not_on_slabs_or_precision(monkeypatch):
    x, y = features(400, 5, 9).astype(np.float32), features(300, 5, 10).astype(np.float32)
    first = kernel_distance(x, y, blocks=5, block_size=200)
    assert first == kernel_distance(x, y, blocks=5, block_size=200)
    assert first.value != kernel_distance(x, y, blocks=5, block_size=200, seed=1).value
    assert first == kernel_distance(x.astype(float), y.astype(float), blocks=5, block_size=200)
    monkeypatch.setattr(kernel, "ROWS", 7)
    small = kernel_distance(x, y, blocks=5, block_size=200)
    assert small.value == pytest.approx(first.value, rel=1e-10)
    assert small.standard_error == pytest.approx(first.standard_error, rel=1e-10)
    swapped = kernel_distance(y, x, block_size=300, blocks=5)
    assert swapped.standard_error == pytest.approx(
        kernel_distance(x, y, block_size=300, blocks=5).standard_error, rel=0.1
    )


@pytest.mark.parametrize(
    ("counts", "blocks", "size", "shift"),
    [
        ((200, 200), 20, 50, 0.5),  # 1,000 draws of 200 images: blocks overlap
        ((200, 200), 1, 200, 0.5),
        ((60, 500), 20, 1000, 0.5),  # the whole of the smaller side in each block
        ((500, 60), 20, 1000, 0.5),
        ((300, 300), 2, 30, 0.5),  # few small blocks: most of the error is the drawing
    ],
)
def test_the_standard_error_is_that_of_new_images(counts, blocks, size, shift):
    estimates = []
    for seed in range(200):
        x, y = features(counts[0], 5, 2 * seed), features(counts[1], 5, 2 * seed + 1, shift)
        estimates.append(kernel_distance(x, y, blocks=blocks, block_size=size))
    spread = np.std([each.value for each in estimates], ddof=1)
    stated = np.sqrt(np.mean([each.standard_error**2 for each in estimates]))
    assert 0.85 < stated / spread < 1.25  # 200 repeats tell the spread to 5 % (one standard error)


def test_the_standard_error_is_too_large_rather_than_too_small_for_equal_distributions():
    estimates = [kernel_distance(features(200, 5, 2 * seed), features(200, 5, 2 * seed + 1)) for seed in range(100)]
    spread = np.std([each.value for each in estimates], ddof=1)
    assert 0.9 < np.mean([each.standard_error for each in estimates]) / spread < 2.5
    assert abs(np.mean([each.value for each in estimates])) < 4 * spread / 10


def test_bad_input():
    x = features(10, 3, 1)
    with pytest.raises(InputError, match="1 second features; expected at least 2"):
        kernel_distance(x, x[:1])
    with pytest.raises(InputError, match="dimension 3 and the second ones 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(InputError, match="first features hold NaN"):
        kernel_distance(np.where(x > 0, np.nan, x), x)
    with pytest.raises(InputError, match=r"second features have shape \(10,\)"):
        kernel_distance(x, x[:, 0])
    with pytest.raises(InputError, match="not an array of numbers"):
        kernel_distance([["a"]], x)
    with pytest.raises(InputError, match="blocks=0 must be a whole number of at least 1"):
        kernel_distance(x, x, blocks=0)
    with pytest.raises(InputError, match=r"block_size=2.5 must be"):
        kernel_distance(x, x, block_size=2.5)
    with pytest.raises(InputError, match="too large"):
        kernel_distance(x * 1e60, x * 1e60)
