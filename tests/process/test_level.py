"""Noise levels: what they are, how a schedule finds them on its grid and between, and what is no level."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.process.level import NoiseLevel

SCHEDULES = {
    "linear": dv.NoiseSchedule.linear(1000),
    "cosine": dv.NoiseSchedule.cosine(200),
    "vp_sde": dv.NoiseSchedule.vp_sde(100),
    "edm": dv.NoiseSchedule.edm(40),
    "flow": dv.NoiseSchedule.flow(50),
    "of its own": dv.NoiseSchedule(
        np.linspace(1.0, 0.2, 21), np.r_[0.0, np.geomspace(0.01, 3.0, 20)], np.arange(21) / 20
    ),
}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> dv.NoiseSchedule:
    return request.param


def test_a_level_of_the_grid_is_the_schedules_to_the_bit(schedule: dv.NoiseSchedule) -> None:
    for n in {0, 1, 2, schedule.num_steps // 2, schedule.num_steps}:
        level = schedule.level(n)
        assert (level.alpha, level.sigma) == (schedule.alpha[n], schedule.sigma[n])
        assert level.log_snr == schedule.log_snr[n]
        assert level.index == n
        assert math.isnan(level.timestep) if n == 0 else level.timestep == schedule.timestep[n]
        assert schedule.index_of(level) == n
        assert level.is_clean == (n == 0)
    assert schedule.index_of(NoiseLevel(0.5, 0.5, 3.0)) is None


def test_levels_between_have_the_schedules_scale(schedule: dv.NoiseSchedule) -> None:
    finite = schedule.num_steps - int(schedule.zero_terminal_snr)
    for n in (1, finite // 2, finite - 1):
        for weight in (0.1, 0.5, 0.9):
            log_snr = (1 - weight) * schedule.log_snr[n] + weight * schedule.log_snr[n + 1]
            level = schedule.level_at(float(log_snr))
            assert level.index is None
            assert level.log_snr == log_snr
            assert 2 * math.log(level.alpha / level.sigma) == pytest.approx(log_snr, rel=1e-12, abs=1e-12)
            assert min(schedule.alpha[n : n + 2]) <= level.alpha * (1 + 1e-12)
            assert level.alpha <= max(schedule.alpha[n : n + 2]) * (1 + 1e-12)
            assert schedule.sigma[n] < level.sigma < schedule.sigma[n + 1]
            low, high = sorted(schedule.timestep[n : n + 2])
            assert low < level.timestep < high
            if not np.allclose(schedule.timestep[1:] / schedule.sigma[1:], schedule.timestep[1] / schedule.sigma[1]):
                between = (1 - weight) * schedule.timestep[n] + weight * schedule.timestep[n + 1]
                assert level.timestep == pytest.approx(between, rel=1e-9)
            assert n < schedule.position(level) < n + 1
            for scale in (schedule.alpha**2 + schedule.sigma**2, schedule.alpha + schedule.sigma, schedule.alpha):
                if np.allclose(scale, 1.0):
                    break
            else:
                continue
            kept = {0: level.alpha**2 + level.sigma**2, 1: level.alpha + level.sigma, 2: level.alpha}
            assert any(abs(value - 1) < 1e-12 for value in kept.values())
    with pytest.raises(dv.InputError, match=r"log_snr=.* is outside \["):
        schedule.level_at(float(schedule.log_snr[1]) + 1.0)


def test_the_level_of_an_indexs_log_snr_is_the_indexs(schedule: dv.NoiseSchedule) -> None:
    for n in (1, schedule.num_steps // 2, schedule.num_steps):
        for off in (0.0, 5e-10):
            if math.isfinite(schedule.log_snr[n]):
                assert schedule.level_at(float(schedule.log_snr[n]) + off).index == n


def test_flow_levels_are_those_of_the_flow_schedule() -> None:
    schedule = SCHEDULES["flow"]
    for n in (0, 1, 20, 50):
        level = dv.NoiseLevel.flow(float(schedule.sigma[n]))
        assert (level.alpha, level.sigma) == pytest.approx((schedule.alpha[n], schedule.sigma[n]), abs=1e-15)
        assert n == 0 or level.timestep == pytest.approx(1000 * schedule.sigma[n])
    assert dv.NoiseLevel.flow(1.0).log_snr == -math.inf
    assert dv.NoiseLevel.flow(0.25, timestep_scale=1.0).timestep == 0.25


def test_edm_levels_are_those_of_the_edm_schedule() -> None:
    schedule = SCHEDULES["edm"]
    level = dv.NoiseLevel.edm(float(schedule.sigma[7]))
    assert (level.alpha, level.sigma) == (1.0, schedule.sigma[7])
    assert level.timestep == pytest.approx(schedule.timestep[7], rel=1e-12)
    assert dv.NoiseLevel.edm(0.0).is_clean


def test_coefficients_and_timesteps_are_one_rule_for_all_kinds_of_place() -> None:
    schedule, like = SCHEDULES["linear"], torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    levels = [schedule.level(n) for n in (5, 70, 900)]
    alpha, sigma = schedule.coefficients(torch.tensor([5, 70, 900]), like)
    same = schedule.coefficients(levels, like)
    assert torch.equal(alpha, same[0])
    assert torch.equal(sigma, same[1])
    assert alpha.shape == (3, 1, 1, 1)
    assert schedule.coefficients(70, like) == schedule.coefficients(levels[1], like)
    assert schedule.timesteps(levels, 3).tolist() == schedule.timesteps(torch.tensor([5, 70, 900]), 3).tolist()
    assert schedule.timesteps(70, 2).dtype == schedule.timesteps(levels[1], 2).dtype == torch.int64
    between = schedule.level_at(0.123)
    told = schedule.timesteps(between, 2)
    assert told.dtype == torch.float32
    assert told.tolist() == pytest.approx([between.timestep] * 2, rel=1e-6)


def test_names_of_levels() -> None:
    level = SCHEDULES["linear"].level(40)
    assert (str(level), level.name) == ("40", "index 40")
    assert str(dv.NoiseLevel(0.8, 0.6, 3.0)) == dv.NoiseLevel(0.8, 0.6, 3.0).name == "log SNR 0.5754"


def test_levels_are_values() -> None:
    assert SCHEDULES["linear"].level(40) == SCHEDULES["linear"].level(40)
    one = SCHEDULES["linear"].level(40)
    assert dv.NoiseLevel(one.alpha, one.sigma, one.timestep) == one  # index and log SNR tell no two apart
    assert len({one, dv.NoiseLevel(one.alpha, one.sigma, one.timestep), dv.NoiseLevel(0.5, 0.5, 1.0)}) == 2
    with pytest.raises(AttributeError):
        one.alpha = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dv.NoiseLevel(-0.1, 0.5, 1.0), "alpha=-0.1 must be a finite number of at least 0"),
        (lambda: dv.NoiseLevel(0.5, math.nan, 1.0), "sigma=nan must be a finite number of at least 0"),
        (lambda: dv.NoiseLevel(0.5, math.inf, 1.0), "sigma=inf"),
        (lambda: dv.NoiseLevel(0.0, 0.0), "alpha and sigma are both 0"),
        (lambda: dv.NoiseLevel(0.5, 0.5), "timestep=nan must be a finite number"),
        (lambda: dv.NoiseLevel(True, 0.5, 1.0), "alpha=True"),
        (lambda: dv.NoiseLevel("a", 0.5, 1.0), "alpha='a'"),  # type: ignore[arg-type]
        (lambda: dv.NoiseLevel.flow(1.5), r"t=1.5 is outside \[0, 1\]; a flow goes from clean data"),
        (lambda: dv.NoiseLevel.edm(-1.0), "sigma=-1.0"),
        (lambda: SCHEDULES["linear"].level(1001), "n=1001 is not an index"),
        (lambda: SCHEDULES["linear"].level(-1), "n=-1 is not an index"),
        (lambda: SCHEDULES["linear"].level_at(math.nan), "log_snr=nan is outside"),
        (lambda: SCHEDULES["linear"].level_at(True), "log_snr=True is outside"),
    ],
)
def test_what_is_no_level(make: Any, said: str) -> None:
    with pytest.raises(dv.InputError, match=said):
        make()
