"""diffusers' schedulers and what networks of theirs predict: x̂_0 of a network's output is what the scheduler itself
makes of it, at the levels and timesteps that it visits."""

import importlib
import math
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.models.prediction import mean_and_eps, network_input
from diffusion_var.models.pretrained.conventions import prediction_of
from diffusion_var.process.diffusers_configs import config_of

SHAPE = (2, 3, 4, 4)
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction", "num_train_timesteps": 100}
SOLVERS = ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver"]


def normal(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(SHAPE)).float()


X, OUT = normal(0), normal(1)


def ours(scheduler: Any, level: dv.NoiseLevel, x: torch.Tensor = X, out: torch.Tensor = OUT) -> torch.Tensor:
    """x̂_0 by the config alone."""
    config = config_of(scheduler)
    sigma_data = float(config.get("sigma_data", 0.5))
    return mean_and_eps(prediction_of(config), out, x, level.alpha, level.sigma, sigma_data)[0]


def made(name: str, **options: Any) -> tuple[Any, dv.NoiseSchedule]:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    return scheduler, dv.NoiseSchedule.from_diffusers(scheduler)


# ---- flow -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_of_flows(name: str) -> None:
    """`convert_model_output` at levels that they visit, which lie on the schedule."""
    scheduler, schedule = made(name, **FLOW)
    assert schedule.matches(dv.NoiseSchedule.flow(100, 3.0, timestep_scale=100))
    scheduler.set_timesteps(25)
    for index in (0, 10, 24):
        scheduler._step_index = index
        sigma = float(scheduler.sigmas[index])
        level = schedule.level_at(2 * math.log((1 - sigma) / sigma))
        assert level.sigma == pytest.approx(sigma, rel=1e-9)
        theirs = scheduler.convert_model_output(OUT, sample=X)
        torch.testing.assert_close(ours(scheduler, level), theirs, rtol=1e-5, atol=1e-5)
        assert -0.01 <= level.timestep - float(scheduler.timesteps[index]) < 1  # they cut to whole numbers


@pytest.mark.parametrize(
    "name", ["FlowMatchLCM", "FlowMatchHeunDiscrete", "LTXEulerAncestralRF", "FlowMatchEulerDiscrete"]
)
def test_the_last_step_of_a_flow_is_x_0(name: str) -> None:
    scheduler, schedule = made(name)
    assert schedule == dv.NoiseSchedule.flow(1000)
    last = {"FlowMatchHeunDiscrete": -3}.get(name, -1)  # of Heun's two the first, from the level before
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[last]
    sigma = float(t) / 1000
    level = dv.NoiseLevel.flow(sigma)
    scheduler.set_begin_index(len(scheduler.timesteps) + last)
    prev = scheduler.step(OUT, t, X).prev_sample
    end = float(scheduler.sigmas[len(scheduler.timesteps) + last + 1])
    mean = ours(scheduler, level)
    theirs = mean if end == 0 else X + (end - sigma) * OUT  # Euler's
    torch.testing.assert_close(prev, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, X - sigma * OUT)


def test_a_shift_that_ltx_has_from_another_config() -> None:
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    scheduler = diffusers.LTXEulerAncestralRFScheduler.from_config(config)
    assert dv.NoiseSchedule.from_diffusers(scheduler) == dv.NoiseSchedule.flow(1000, 3.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_inverted_sigmas(shift: float) -> None:
    """Mochi: σ and timesteps rise with the signal, and the network's flow goes to the data."""
    scheduler, schedule = made("FlowMatchEulerDiscrete", invert_sigmas=True, shift=shift, num_train_timesteps=50)
    plain = dv.NoiseSchedule.flow(50, shift)
    np.testing.assert_array_equal([schedule.alpha, schedule.sigma], [plain.alpha, plain.sigma])
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 50, 50))
    np.testing.assert_allclose(schedule.timestep[50:0:-1], scheduler.timesteps.numpy(), atol=2e-5)
    np.testing.assert_allclose(schedule.alpha[50:0:-1], scheduler.sigmas[:-1].numpy(), atol=1e-6)
    assert prediction_of(config_of(scheduler)) == "flow_to_data"
    scheduler.set_begin_index(49)
    theirs = scheduler.step(OUT, scheduler.timesteps[-1], X).prev_sample
    torch.testing.assert_close(ours(scheduler, schedule.level(1)), theirs)


# ---- others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_trigflow(sigma_data: float) -> None:
    scheduler, schedule = made("SCM", sigma_data=sigma_data, num_train_timesteps=8)
    assert schedule.alpha[8] == 0.0
    assert schedule.prior_std == pytest.approx(max(1.0, sigma_data))
    scheduler.set_timesteps(8, max_timesteps=math.pi / 2, intermediate_timesteps=None)
    np.testing.assert_allclose(schedule.timestep[8:0:-1], scheduler.timesteps[:-1].numpy(), rtol=1e-6)
    for index in (0, 3, 7):
        scheduler.set_begin_index(index)
        scheduler._step_index = None
        theirs = scheduler.step(OUT, scheduler.timesteps[index], X).pred_original_sample
        torch.testing.assert_close(ours(scheduler, schedule.level(8 - index)), theirs, rtol=1e-5, atol=1e-6)


def test_trigflow_of_unit_data_is_a_velocity() -> None:
    mine = mean_and_eps("trigflow", OUT, X, 0.8, 0.6, 1.0)
    for a, b in zip(mine, mean_and_eps("v_prediction", OUT, X, 0.8, 0.6), strict=True):
        torch.testing.assert_close(a, b)


def stable_audio(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Stable Audio's scheduler; it wants torchsde, of which what is tested here uses nothing."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    return module.CosineDPMSolverMultistepScheduler(**options)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("levels", ["exponential", "karras"])
def test_stable_audio(kind: str, levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheduler preconditions as EDM does: v_prediction is edm_v, and the network is told 2/π atan σ."""
    scheduler = stable_audio(monkeypatch, prediction_type=kind, sigma_schedule=levels)
    schedule = dv.NoiseSchedule.from_diffusers(scheduler)
    np.testing.assert_allclose(schedule.sigma[:0:-1], scheduler.sigmas[:-1].numpy(), rtol=1e-4)
    np.testing.assert_allclose(schedule.timestep[:0:-1], scheduler.timesteps.numpy(), atol=1e-6)
    assert prediction_of(config_of(scheduler)) == {"v_prediction": "edm_v", "epsilon": "edm"}[kind]
    for n in (1, 500, 1000):
        level = schedule.level(n)
        shown = network_input("edm_v", X, level.alpha, level.sigma, 1.0)
        torch.testing.assert_close(shown, scheduler.precondition_inputs(X, level.sigma))
        scheduler._step_index = 1000 - n
        theirs = scheduler.convert_model_output(OUT, sample=X)
        torch.testing.assert_close(ours(scheduler, level), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CogVideoXDDIM", "CogVideoXDPM"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_cogvideox_divides_the_snr(name: str, rescaled: bool) -> None:
    kind = "v_prediction" if rescaled else "epsilon"
    options = {"rescale_betas_zero_snr": rescaled, "prediction_type": kind, "clip_sample": False}
    scheduler, schedule = made(name, snr_shift_scale=2.5, **options)
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alpha[1:] ** 2, theirs, rtol=2e-4, atol=1e-9)
    if rescaled:
        assert schedule.alpha[-1] == 0.0
    else:
        plain = dv.NoiseSchedule.scaled_linear(1000)
        np.testing.assert_allclose(schedule.log_snr[1:], plain.log_snr[1:] - math.log(2.5), rtol=1e-12)
    # Defaults of the class count where a config does not say.
    bare = {"_class_name": f"{name}Scheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
    assert dv.NoiseSchedule.from_diffusers(bare) == made(name)[1]
    if name == "CogVideoXDDIM":
        scheduler.set_timesteps(10)
        step = scheduler.step(OUT, 500, X, return_dict=True)
        torch.testing.assert_close(
            ours(scheduler, schedule.level(501)), step.pred_original_sample, rtol=1e-3, atol=1e-4
        )


def test_sa_solver_by_betas() -> None:
    scheduler, schedule = made("SASolver")
    assert schedule == dv.NoiseSchedule.linear(1000)
    assert prediction_of(config_of(scheduler)) == "epsilon"
    scheduler.set_timesteps(10)
    scheduler._step_index = 0
    assert float(scheduler.timesteps[0]) == schedule.timestep[1000]
    theirs = scheduler.convert_model_output(OUT, sample=X)
    torch.testing.assert_close(ours(scheduler, schedule.level(1000)), theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "options", "known"),
    [
        ("UniPCMultistep", {"use_flow_sigmas": True}, "flow_prediction"),
        ("SCM", {"prediction_type": "sample"}, "trigflow"),
        ("EDMEuler", {"prediction_type": "sample"}, "epsilon, v_prediction"),
    ],
)
def test_another_prediction_is_refused(name: str, options: dict[str, Any], known: str) -> None:
    with pytest.raises(InputError, match=f"prediction_type is '.*', but the supported ones are {known}"):
        prediction_of(config_of(made(name, **options)[0]))


def test_an_analytic_scheduler_is_not_made_of_a_shifted_snr() -> None:
    config = diffusers.CogVideoXDDIMScheduler(clip_sample=False).config
    table = dv.VarianceTable.from_moments(dv.NoiseSchedule.from_diffusers(config), eps_square=np.full(1000, 0.5))
    with pytest.raises(InputError, match="schedules that are given by betas"):
        dv.AnalyticScheduler.from_table(table, config, estimator="score_norm")
    with pytest.raises(InputError, match="a shifted SNR"):
        dv.AnalyticScheduler.from_config(config)


def test_flow_solvers_and_inverted_ones_get_the_analytic_flow_scheduler() -> None:
    """Also by a table of a network that says x_0 − ε; SCM and EDM have none."""
    shape = (1, 4, 4)
    gaussian = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.flow(20), 0.0, 0.5 * np.ones(shape))
    table = dv.estimate(gaussian, gaussian.sample(400, seed=1).float(), 0.1, structures=("isotropic",), progress=False)
    for scheduler in (
        diffusers.UniPCMultistepScheduler(**FLOW),
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        diffusers.FlowMatchLCMScheduler(),
    ):
        made_of = dv.analytic_scheduler(replace(table, prediction="flow"), scheduler)
        assert type(made_of).__name__ == "AnalyticFlowScheduler"
    other = replace(table, prediction="flow_to_data")
    assert dv.analytic_scheduler(other, diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)) is not None
    for scheduler in (diffusers.SCMScheduler(), diffusers.EDMEulerScheduler()):
        with pytest.raises(InputError, match="no analytic scheduler fits"):
            dv.analytic_scheduler(replace(table, prediction="flow"), scheduler)
