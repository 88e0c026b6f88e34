"""Distances of small samples: the jackknife, against samples drawn again, and what is told apart."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_var.advice.distances import Difference, difference, distances, jackknife_error, paired


def normal(seed: int, count: int, d: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((count, d))


def test_the_jackknife_s_error_is_that_of_samples_drawn_again() -> None:
    reference = normal(99, 60, 4)
    found = [distances(normal(seed, 60, 4, 1.5), reference, 10) for seed in range(60)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.25)
    assert jackknife_error([1.0, 1.0, 1.0]) == 0.0


def test_differences_are_told_apart_where_there_are_some_and_seldom_where_not() -> None:
    """5 % of samples of one kind are told apart, and nearly all of two kinds that share their noise."""
    reference, none, some = normal(99, 60, 4), 0, 0
    for seed in range(50):
        x, y = normal(seed, 60, 4, 1.2), normal(1000 + seed, 60, 4, 1.2)
        here, there, wider = (distances(z, reference, 10) for z in (x, y, 1.2 * x))
        none += paired(here, there).told_apart()
        some += paired(wider, here).told_apart() and paired(wider, here).value > 0
    assert none <= 7
    assert some >= 45


def test_differences_without_errors() -> None:
    assert not difference(0.0, 0.0, 9).told_apart()
    assert difference(1.0, 0.0, 9).told_apart()
    assert difference(2.262157, 1.0, 9).p == pytest.approx(0.05, rel=1e-4)
    assert Difference(1.0, 1.0, 0.02).told_apart(2)
    assert not Difference(1.0, 1.0, 0.02).told_apart(3)
