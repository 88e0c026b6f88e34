"""The Fréchet distance of small samples, against the harness's; the jackknife, against samples drawn again."""

from __future__ import annotations

import numpy as np
import pytest

import diffusion_var as dv
from diffusion_var.advice.distances import Difference, difference, distances, frechet, jackknife_error, paired


def normal(seed: int, count: int, d: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((count, d))


@pytest.mark.parametrize(("count", "others", "d"), [(100, 80, 7), (20, 30, 50), (5, 40, 12)])
def test_it_is_the_harness_s_distance(count: int, others: int, d: int) -> None:
    a, b = normal(0, count, d, 1.3) + 0.2, normal(1, others, d)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    assert frechet(a, b) == pytest.approx(dv.metrics.frechet_distance(*moments), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)


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
