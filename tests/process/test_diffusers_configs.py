"""Schedules of diffusers' schedulers: against what the schedulers compute, and against exact arithmetic."""

from collections.abc import Mapping
from typing import Any

import mpmath
import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
)

from diffusion_var import NoiseSchedule

EPS32 = float(np.finfo(np.float32).eps)
from_diffusers = NoiseSchedule.from_diffusers

BETAS = {
    "linear": {"beta_schedule": "linear"},
    "linear, own ends": {"beta_schedule": "linear", "beta_start": 3e-4, "beta_end": 0.01, "num_train_timesteps": 300},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "cosine, 250": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 250},
    "trained_betas": {"trained_betas": np.geomspace(1e-4, 0.3, 40).tolist(), "num_train_timesteps": 40},
}
KINDS = (DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler)
CASES = [(kind, name) for kind in KINDS for name in BETAS] + [(DDPMScheduler, "sigmoid")]


def config_of(name: str) -> dict[str, Any]:
    return {"beta_schedule": "sigmoid", "beta_end": 0.01} if name == "sigmoid" else BETAS[name]


def exact_betas(config: Mapping[str, Any]) -> list[mpmath.mpf]:
    """β_1…β_N by the published formulas, in mpmath's precision."""
    if "trained_betas" in config:
        return [mpmath.mpf(beta) for beta in config["trained_betas"]]
    N, name = config.get("num_train_timesteps", 1000), config["beta_schedule"]
    start, end = mpmath.mpf(config.get("beta_start", 1e-4)), mpmath.mpf(config.get("beta_end", 0.02))
    if name == "sigmoid":
        return [start + (end - start) / (1 + mpmath.exp(6 - mpmath.mpf(12 * k) / (N - 1))) for k in range(N)]
    if name == "squaredcos_cap_v2":
        angle = [(mpmath.mpf(k) / N + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2 for k in range(N + 1)]
        bar = [mpmath.cos(a) ** 2 for a in angle]
        return [min(1 - bar[k + 1] / bar[k], mpmath.mpf("0.999")) for k in range(N)]
    power = 2 if name == "scaled_linear" else 1
    low, high = mpmath.root(start, power), mpmath.root(end, power)
    return [(low + (high - low) * k / (N - 1)) ** power for k in range(N)]


def exact_levels(config: Mapping[str, Any], zero_terminal_snr: bool = False) -> tuple[list[float], list[float]]:
    """(α, σ) at n = 1…N; rescaled by algorithm 1 of arXiv:2305.08891 if asked for."""
    with mpmath.workdps(50):
        roots, product = [], mpmath.mpf(1)
        for beta in exact_betas(config):
            product *= 1 - beta
            roots.append(mpmath.sqrt(product))
        if zero_terminal_snr:
            roots = [(a - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for a in roots]
        return [float(a) for a in roots], [float(mpmath.sqrt(1 - a * a)) for a in roots]


# ---- betas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_betas_are_the_schedulers(kind: type, name: str) -> None:
    scheduler = kind(**config_of(name))
    schedule = from_diffusers(scheduler)
    theirs = scheduler.alphas_cumprod.double().numpy()
    assert schedule.num_steps == len(theirs)
    # What float32 leaves of a cumulative product: one rounding of each 1 - beta and of each product.
    beta = 1 - (schedule.alpha[1:] / schedule.alpha[:-1]) ** 2
    allowed = np.cumsum(EPS32 / (1 - beta) + EPS32)
    assert (np.abs(theirs / schedule.alpha[1:] ** 2 - 1) <= allowed).all()
    np.testing.assert_array_equal(schedule.timestep[1:], np.arange(len(theirs)))
    if hasattr(scheduler, "sigmas"):
        sigmas = np.sort(scheduler.sigmas.double().numpy())[-len(theirs) :]
        # They take 1 - alphas_cumprod in float32: 1.7e-4 of sigma squared is lost at n = 1.
        lost = allowed + (schedule.alpha[1:] ** 2 * allowed + EPS32) / schedule.sigma[1:] ** 2
        assert (np.abs(sigmas / (schedule.sigma / schedule.alpha)[1:] - 1) <= lost).all()


@pytest.mark.parametrize("name", [*BETAS, "sigmoid"])
def test_betas_against_exact_arithmetic(name: str) -> None:
    config = config_of(name)
    schedule = from_diffusers(DDPMScheduler(**config))
    alpha, sigma = exact_levels(config)
    np.testing.assert_allclose(schedule.alpha[1:], alpha, rtol=1e-11, atol=0)
    np.testing.assert_allclose(schedule.sigma[1:], sigma, rtol=1e-12, atol=0)


def test_the_float32_trap() -> None:
    """1 - alphas_cumprod in float32 is wrong by 1.7e-4 of its value at n = 1; here it is exact."""
    naive = float(1 - DDPMScheduler().alphas_cumprod[0])
    ours = from_diffusers(DDPMScheduler()).sigma[1] ** 2
    assert ours == pytest.approx(1e-4, rel=1e-14, abs=0)
    assert abs(naive / ours - 1) > 1e-5


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_rescaled_betas_have_zero_terminal_snr(kind: type, name: str) -> None:
    scheduler = kind(**BETAS[name], rescale_betas_zero_snr=True)
    schedule = from_diffusers(scheduler)
    theirs = scheduler.alphas_cumprod.double().numpy()
    # Theirs ends at 2**-24 in solvers that divide by alpha; the relative error of float32 grows towards the end.
    np.testing.assert_allclose(theirs[:-1], schedule.alpha[1:-1] ** 2, rtol=1e-4, atol=0)
    assert theirs[-1] <= 2**-24
    assert schedule.alpha[-1] == 0.0
    assert schedule.sigma[-1] == 1.0


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "trained_betas"])
def test_rescaled_betas_against_exact_arithmetic(name: str) -> None:
    schedule = from_diffusers(DDIMScheduler(**BETAS[name], rescale_betas_zero_snr=True))
    alpha, sigma = exact_levels(BETAS[name], zero_terminal_snr=True)
    if name != "cosine":  # the first level is where it was: its beta is a number of the config
        beta = {"linear": 1e-4, "scaled_linear": 0.00085, "trained_betas": 1e-4}[name]
        assert schedule.sigma[1] ** 2 == pytest.approx(beta, rel=1e-12, abs=0)
    np.testing.assert_allclose(schedule.sigma[1:], sigma, rtol=1e-12, atol=0)
    np.testing.assert_allclose(schedule.alpha[1:-1], alpha[:-1], rtol=1e-9, atol=0)
    assert schedule.alpha[-1] == alpha[-1] == 0.0


@pytest.mark.parametrize(
    "options",
    [{"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}, {"steps_offset": 1}, {"final_sigmas_type": "zero"}],
)
def test_options_of_a_solver_change_nothing(options: dict[str, Any]) -> None:
    """They choose which levels are visited, not which there are."""
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        assert from_diffusers(kind(**options)) == NoiseSchedule.linear(1000)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_continuous_timesteps(prediction: str) -> None:
    """With v-prediction Euler tells the network ln(σ/α)/4 at the same levels; with others it ignores the option."""
    scheduler = EulerDiscreteScheduler(timestep_type="continuous", prediction_type=prediction)
    schedule, linear = from_diffusers(scheduler), NoiseSchedule.linear(1000)
    np.testing.assert_allclose(schedule.timestep[1:], scheduler.timesteps.flip(0).double().numpy(), atol=5e-5)
    np.testing.assert_array_equal(schedule.sigma, linear.sigma)
    np.testing.assert_array_equal(schedule.alpha, linear.alpha)
    if prediction == "v_prediction":
        np.testing.assert_allclose(schedule.timestep[1:], np.log((linear.sigma / linear.alpha)[1:]) / 4, atol=1e-14)


# ---- flow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("N", [1000, 37])
def test_flow(kind: type, shift: float, N: int) -> None:
    scheduler = kind(num_train_timesteps=N, shift=shift)
    schedule = from_diffusers(scheduler)
    assert schedule.num_steps == N
    np.testing.assert_allclose(schedule.sigma[1:], scheduler.sigmas.flip(0).double().numpy(), rtol=5e-7)
    np.testing.assert_allclose(schedule.timestep[1:], scheduler.timesteps.flip(0).double().numpy(), rtol=5e-7)
    np.testing.assert_allclose(schedule.alpha, 1 - schedule.sigma, atol=1e-15)
    assert schedule.alpha[N] == 0.0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_solver_with_flow_sigmas(shift: float) -> None:
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", num_train_timesteps=100
    )
    schedule = from_diffusers(scheduler)
    scheduler.set_timesteps(99)  # the solver leaves out the level without signal: these are n = 99…1
    np.testing.assert_allclose(schedule.sigma[1:-1], scheduler.sigmas[:-1].flip(0).double().numpy(), rtol=5e-7)
    # They cut to whole numbers what the network is told.
    behind = schedule.timestep[1:-1] - scheduler.timesteps.flip(0).double().numpy()
    assert (behind > -1e-9).all()
    assert (behind < 1 + 1e-9).all()


def test_dynamic_shifting_leaves_the_training_levels_even() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    schedule = from_diffusers(scheduler)
    assert schedule == NoiseSchedule.flow(1000)
    np.testing.assert_allclose(schedule.sigma[1:], scheduler.sigmas.flip(0).double().numpy(), rtol=5e-7)


# ---- EDM and VE -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("levels", ["karras", "exponential"])
@pytest.mark.parametrize("N", [7, 1000])
@pytest.mark.parametrize("ends", [{}, {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0}])
def test_edm(kind: type, levels: str, N: int, ends: dict[str, float]) -> None:
    scheduler = kind(sigma_schedule=levels, num_train_timesteps=N, **ends)
    schedule = from_diffusers(scheduler)
    scheduler.set_timesteps(N)  # before, EDMEuler has one level more than it has training steps
    np.testing.assert_allclose(schedule.sigma[1:], scheduler.sigmas[:-1].flip(0).double().numpy(), rtol=3e-6)
    np.testing.assert_allclose(schedule.timestep[1:], scheduler.timesteps.flip(0).double().numpy(), atol=1e-6)
    assert (schedule.alpha == 1.0).all()
    assert schedule.prior_std == pytest.approx(ends.get("sigma_max", 80.0), rel=1e-12)


@pytest.mark.parametrize("N", [10, 2000])
def test_ve(N: int) -> None:
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=N, sigma_min=0.02, sigma_max=300.0)
    schedule = from_diffusers(scheduler)
    np.testing.assert_allclose(schedule.sigma[1:], scheduler.discrete_sigmas.double().numpy(), rtol=2e-6)
    np.testing.assert_allclose(schedule.sigma[2:] / schedule.sigma[1:-1], 15000.0 ** (1 / (N - 1)), rtol=1e-12)
    assert schedule.sigma[1] == pytest.approx(0.02, rel=1e-12)
    assert schedule.prior_std == schedule.sigma[N] == pytest.approx(300.0, rel=1e-12)
    assert (schedule.alpha == 1.0).all()
    np.testing.assert_array_equal(schedule.timestep[1:], schedule.sigma[1:])  # the network is told sigma itself
