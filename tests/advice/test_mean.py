"""Lower bounds of the mean's error: tight for a shrunk mean, nothing for an exact one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.advice.mean import imperfection, in_words, share_of_error

SHAPE = (1, 8, 8)
SCHEDULE = dv.NoiseSchedule.linear(1000)
VARIANCE = np.geomspace(0.05, 2.0, 64).reshape(SHAPE)
EXACT = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, VARIANCE, basis="dct")
IMAGES = EXACT.sample(400)
INDICES = [1, 100, 300, 500, 700, 1000]


def shrunk(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.7 * EXACT(x, int(timestep[0]) + 1).mean


def measured(denoiser: dv.Denoiser) -> dv.VarianceTable:
    return dv.estimate(denoiser, IMAGES, 0.02, indices=INDICES, structures=["isotropic"], progress=False, batch_size=16)


def test_an_exact_mean_has_no_certain_error() -> None:
    rows = imperfection(measured(EXACT))
    assert [row.n for row in rows] == INDICES
    assert max(row.surely for row in rows) < 0.03
    assert "nothing says that the mean is wrong" in in_words(rows)


def test_the_error_of_a_shrunk_mean_is_found_whole() -> None:
    """e = −0.3 m and x̂_0 = 0.7 m: the bound is an equality, and m's variance is what v lacks of the data's."""
    rows = imperfection(measured(dv.Denoiser(shrunk, SCHEDULE, "sample", SHAPE, clip=None)))
    for row in rows:
        v = EXACT.posterior_variance(row.n)
        error = 0.09 * (VARIANCE - v).mean()
        true = error / (v.mean() + error)
        assert row.surely <= true + 0.02
        assert row.surely == pytest.approx(true, abs=0.25 * true + 0.02)  # less two standard errors of the difference
        assert row.residual == pytest.approx(v.mean() + error, rel=0.1)
    assert max(row.surely for row in rows) > 0.5


def test_the_share_by_hand() -> None:
    assert share_of_error(1.0, linear=0.75, data_variance=1.0, variance=3.0) == 0.25
    assert share_of_error(1.0, linear=2.0, data_variance=0.2, variance=1.0) == pytest.approx(0.16 / 0.8)
    assert share_of_error(1.0, linear=2.0, data_variance=1.0, variance=3.0) == 0.0
    assert share_of_error(0.0, linear=2.0, data_variance=1.0, variance=3.0) == 0.0
    assert share_of_error(1.0, linear=-1.0, data_variance=1.0, variance=3.0) == 1.0
