"""Noise schedules against their published formulas, with 60 digits; and step lists."""

import numpy as np
import parity_cases as cases
import pytest
from make_golden import SCHEDULE_PLACES, golden
from parity_table import agree, differ
from published_schedules import analytic_linear, ddim_quadratic, edm_sigmas, vp_sde

import diffusion_var as dv

GOLDEN = golden("schedules")
STEPS = golden("steps")


#: The cosine schedule's β as published, 1 − f(n/N)/f((n−1)/N), has itself lost digits.
TOLERANCES = {"linear": 1e-13, "scaled_linear": 1e-13, "cosine": 1e-11}


@pytest.mark.parametrize("name", TOLERANCES)
def test_alpha_and_sigma(name):
    schedule = getattr(dv.NoiseSchedule, name)(1000)
    stored = GOLDEN[name]
    agree(f"alpha², {name}", schedule.alpha[SCHEDULE_PLACES] ** 2, stored["alpha_bar"], TOLERANCES[name], "each")
    agree(f"sigma², {name}", schedule.sigma[SCHEDULE_PLACES] ** 2, stored["beta_bar"], TOLERANCES[name], "each")


@pytest.mark.parametrize("name", TOLERANCES)
def test_what_published_codes_lose_of_sigma(name):
    """1 less a running product loses digits at small n: all of them below 1e-13 in float64, and 1e-4 in float32."""
    exact = GOLDEN[name]["beta_bar"]
    differ(f"sigma² as 1 − cumprod in float64, {name}", GOLDEN[name]["running"], exact, 1e-15, 1e-10)
    differ(f"sigma² as 1 − cumprod in float32, {name}", GOLDEN[name]["float32"], exact, 1e-5, 1e-2)


def test_vp_sde():
    schedule = dv.NoiseSchedule.vp_sde(1000)
    agree("alpha, vp_sde", schedule.alpha[SCHEDULE_PLACES], GOLDEN["vp_sde"]["alpha"], 1e-12, "each")
    agree("sigma, vp_sde", schedule.sigma[SCHEDULE_PLACES], GOLDEN["vp_sde"]["sigma"], 1e-10, "each")
    alpha, _ = vp_sde(50, 0.2, 15.0)
    agree("alpha, vp_sde of other ends", dv.NoiseSchedule.vp_sde(50, 0.2, 15.0).alpha, alpha, 1e-12, "each")


def test_edm():
    agree("sigma, EDM", dv.NoiseSchedule.edm(18).sigma[:0:-1], GOLDEN["edm"], 1e-12, "each")
    levels = dv.steps.karras(dv.NoiseSchedule.edm(100), 18)
    agree("sigma/alpha, Karras steps", [level.sigma / level.alpha for level in levels], edm_sigmas(18), 1e-9, "each")


# ---- step lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(len(cases.STEP_LISTS)))
def test_quadratic_steps_are_ddim_s(place):
    """But for repetitions, which are moved up, and the last, where the square of their rounded root may fall short."""
    N, K = cases.STEP_LISTS[place]
    own, published = dv.steps.quadratic(N, K), STEPS["quadratic"][place]
    assert published == ddim_quadratic(N, K)
    repeated = K - len(set(published))
    assert own[:-1] == published[:-1] or repeated > 0
    assert own[-1] - published[-1] in (0, 1)
    assert all(0 <= a - b <= repeated for a, b in zip(own[:-1], published[:-1], strict=True))


@pytest.mark.parametrize("place", range(len(cases.STEP_LISTS)))
def test_even_steps_are_analytic_dpm_s_within_one(place):
    """They add a stride up and round; halves, and rounding of the sum, fall otherwise."""
    N, K = cases.STEP_LISTS[place]
    own, published = dv.steps.linspace(N, K), STEPS["linear"][place]
    assert published == analytic_linear(N, K)
    assert np.abs(np.array(own) - np.array(published)).max() <= 1
