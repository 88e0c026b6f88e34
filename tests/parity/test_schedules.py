"""Noise schedules against their published formulas, with 60 digits; and step lists."""

import numpy as np
import parity_cases as cases
import pytest
from make_golden import SCHEDULE_PLACES, golden
from parity_table import agree, differ
from published_schedules import analytic_linear, analytic_power, ddim_quadratic, edm_sigmas, respaced, vp_sde

import diffusion_var as dv

GOLDEN = golden("schedules")
STEPS = golden("steps")


#: The cosine schedule's β as published, 1 − f(n/N)/f((n−1)/N), has itself lost digits.
TOLERANCES = {"linear": 1e-13, "scaled_linear": 1e-13, "cosine": 1e-11}


@pytest.mark.parametrize("name", TOLERANCES)
def test_alpha_and_sigma(name):
    schedule = getattr(dv.NoiseSchedule, name)(1000)
    stored = GOLDEN[name]
    agree(
        f"schedules, alpha²: {name}",
        schedule.alpha[SCHEDULE_PLACES] ** 2,
        stored["alpha_bar"],
        TOLERANCES[name],
        "each",
    )
    agree(
        f"schedules, sigma²: {name}", schedule.sigma[SCHEDULE_PLACES] ** 2, stored["beta_bar"], TOLERANCES[name], "each"
    )


@pytest.mark.parametrize("name", TOLERANCES)
def test_what_published_codes_lose_of_sigma(name):
    """1 less a running product loses digits at small n: all of them below 1e-13 in float64, and 1e-4 in float32."""
    exact = GOLDEN[name]["beta_bar"]
    differ(f"sigma² as 1 − cumprod in float64, relative: {name}", GOLDEN[name]["running"], exact, 1e-15, 1e-10)
    differ(f"sigma² as 1 − cumprod in float32, relative: {name}", GOLDEN[name]["float32"], exact, 1e-5, 1e-2)


def test_vp_sde():
    schedule = dv.NoiseSchedule.vp_sde(1000)
    agree("schedules, vp_sde: alpha", schedule.alpha[SCHEDULE_PLACES], GOLDEN["vp_sde"]["alpha"], 1e-12, "each")
    agree("schedules, vp_sde: sigma", schedule.sigma[SCHEDULE_PLACES], GOLDEN["vp_sde"]["sigma"], 1e-10, "each")
    alpha, _ = vp_sde(50, 0.2, 15.0)
    agree("schedules, vp_sde: alpha, other ends", dv.NoiseSchedule.vp_sde(50, 0.2, 15.0).alpha, alpha, 1e-12, "each")


def test_edm():
    agree("schedules, EDM: sigma", dv.NoiseSchedule.edm(18).sigma[:0:-1], GOLDEN["edm"], 1e-12, "each")
    levels = dv.steps.karras(dv.NoiseSchedule.edm(100), 18)
    agree("schedules, EDM: Karras steps", [level.sigma / level.alpha for level in levels], edm_sigmas(18), 1e-9, "each")


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


@pytest.mark.parametrize("place", range(len(cases.RESPACINGS)))
def test_respaced_steps_are_improved_ddpm_s(place):
    N, sections = cases.RESPACINGS[place]
    assert [n - 1 for n in dv.steps.respaced(N, sections)] == STEPS["respaced"][place]


@pytest.mark.parametrize("N", [11, 100, 257, 1000])
def test_respaced_steps_for_every_number_of_them(N):
    counts = range(1, N + 1, 1 + N // 300)
    own = [[n - 1 for n in dv.steps.respaced(N, K)] for K in counts]
    assert own == [respaced(N, [K]) for K in counts]


@pytest.mark.parametrize("power", [2, 3])
def test_power_steps_are_analytic_dpm_s(power):
    for place, (N, K) in enumerate(cases.STEP_LISTS):
        assert dv.steps.power(N, K, power) == STEPS[f"power{power}"][place]
    for K in range(2, 101):
        assert dv.steps.power(100, K, power) == moved_down(analytic_power(100, K, power), 100)


def moved_down(steps, N):
    """Their list, which moves repetitions up beyond N where there is no room: then the last are moved down again."""
    return [min(n, N - (len(steps) - 1 - k)) for k, n in enumerate(steps)]


def test_even_steps_are_within_one_of_analytic_dpm_s():
    """Theirs are sums of a stride from index 1, rounded; errors of the sums, and halves, decide otherwise than in
    `linspace` (which is what its formula says) at three in ten of all K, and than in `respaced` (sums from timestep 0)
    at one in twenty, by one index."""
    counts = range(2, 1001)
    published = [analytic_linear(1000, K) for K in counts]
    for rule, low, high in ((dv.steps.linspace, 0.25, 0.35), (dv.steps.respaced, 0.03, 0.08)):
        pairs = [(rule(1000, K), steps) for K, steps in zip(counts, published, strict=True)]
        assert max(abs(a - b) for own, other in pairs for a, b in zip(own, other, strict=True)) == 1
        assert low < np.mean([own != other for own, other in pairs]) < high
    for (N, K), steps in zip(cases.STEP_LISTS, STEPS["linear"], strict=True):
        assert steps == analytic_linear(N, K)
