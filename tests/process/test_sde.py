"""The coefficients of a schedule's SDE against closed forms."""

import numpy as np
import pytest

import diffusion_var as dv
from diffusion_var.process.sde import sde_of


def test_the_vp_sdes_are_exact() -> None:
    N = 500
    t = np.arange(1, N + 1) / N
    beta = (0.1 + 19.9 * t) / N  # per index
    found = sde_of(dv.NoiseSchedule.vp_sde(N))
    np.testing.assert_allclose(found.drift, -beta / 2, rtol=1e-8)
    np.testing.assert_allclose(found.diffusion2, beta, rtol=1e-8)


def test_a_flows_are_exact() -> None:
    N = 200
    t = np.arange(1, N) / N
    found = sde_of(dv.NoiseSchedule.flow(N))
    np.testing.assert_allclose(found.drift[:-1], -1 / (1 - t) / N, rtol=1e-9)
    np.testing.assert_allclose(found.diffusion2[:-1], 2 * t / (1 - t) / N, rtol=1e-9)
    assert found.drift[-1] == -np.inf


@pytest.mark.parametrize("schedule", [dv.NoiseSchedule.linear(1000), dv.NoiseSchedule.edm(400)], ids=["linear", "edm"])
def test_others_to_second_order(schedule: dv.NoiseSchedule) -> None:
    """f and g² add up to the schedule: ∫ f = log α, and σ² solves dσ²/dn = 2 f σ² + g²."""
    found = sde_of(schedule)
    n = np.arange(1, schedule.num_steps + 1)
    total = np.concatenate([[0.0], np.cumsum((found.drift[1:] + found.drift[:-1]) / 2)])  # trapezoidal
    np.testing.assert_allclose(total, np.log(schedule.alpha[1:] / schedule.alpha[1]), atol=2e-5)
    sigma2 = schedule.sigma[1:] ** 2
    slope = 2 * found.drift * sigma2 + found.diffusion2
    grown = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2)])
    np.testing.assert_allclose(grown[n >= 60], (sigma2 - sigma2[0])[n >= 60], rtol=2e-3)


def test_between_two_indices() -> None:
    schedule = dv.NoiseSchedule.vp_sde(100)
    sde = sde_of(schedule)
    assert sde.at(schedule.level(40)) == (40.0, sde.drift[39], sde.diffusion2[39])
    half = schedule.level_at(float(schedule.log_snr[40:42].mean()))
    n, drift, diffusion2 = sde.at(half)
    assert n == pytest.approx(40.5)
    assert drift == pytest.approx(sde.drift[39:41].mean())
    assert diffusion2 == pytest.approx(sde.diffusion2[39:41].mean())


def test_too_few_indices_are_refused() -> None:
    with pytest.raises(dv.InputError, match="a schedule of 2 indices has no derivatives"):
        sde_of(dv.NoiseSchedule.linear(2))
    assert np.isfinite(sde_of(dv.NoiseSchedule.linear(3)).drift).all()
