"""Parts of a set that differ by more than chance, and those that do not."""

from typing import Any

import numpy as np
import pytest

from diffusion_var.variance.order import differing_parts, order_warning


def facts(count: int, seed: int = 0, kinds: int = 4) -> np.ndarray[Any, Any]:
    """Skew, as contrasts are."""
    return np.random.default_rng(seed).gamma(0.5, size=(count, kinds))


def test_a_random_order_is_told_once_in_ten_thousand() -> None:
    counts = np.random.default_rng(1).integers(80, 3000, 2000)
    assert sum(differing_parts(facts(count, seed)) is not None for seed, count in enumerate(counts)) <= 2


@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("count", [80, 5000])
def test_an_order_by_any_fact_is_told(count: int, column: int) -> None:
    given = facts(count)
    means = differing_parts(given[given[:, column].argsort()])
    assert means is not None
    assert (np.diff(means[:, column]) > 0).all()


def test_classes_one_after_the_other_are_told() -> None:
    given = facts(600) + np.repeat([[0.0], [0.5], [0.0]], 200, axis=0)
    assert "the images are in an order" in str(order_warning(given))


def test_a_difference_that_does_not_matter_is_not_told() -> None:
    """Of a million images the least trend is beyond chance."""
    trend = 0.05 * np.linspace(-1, 1, 10**6)[:, None]
    assert differing_parts(facts(10**6, kinds=1) + trend) is None


@pytest.mark.parametrize("count", [1, 2, 79])
def test_small_sets_are_not_divided(count: int) -> None:
    assert differing_parts(np.sort(facts(count), axis=0)) is None


def test_images_that_are_all_the_same() -> None:
    assert differing_parts(np.ones((200, 2))) is None
