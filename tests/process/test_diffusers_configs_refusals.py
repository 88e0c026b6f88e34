"""Schedulers, configs and dicts: what a scheduler may be given as, and what is refused."""

from typing import Any

import diffusers
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

from diffusion_var import InputError, NoiseSchedule
from diffusion_var.process.diffusers_configs import SUPPORTED

from_diffusers = NoiseSchedule.from_diffusers

KINDS = (DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler)


# ---- what is given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.01), NoiseSchedule.scaled_linear(1000, 1e-4, 0.01)),
        (DDPMScheduler(trained_betas=[0.1, 0.2]), NoiseSchedule.from_betas([0.1, 0.2])),
        (FlowMatchEulerDiscreteScheduler(50, shift=2.0), NoiseSchedule.flow(50, 2.0, timestep_scale=50.0)),
        (FlowMatchHeunDiscreteScheduler(50, shift=2.0), NoiseSchedule.flow(50, 2.0, timestep_scale=50.0)),
        (EDMEulerScheduler(num_train_timesteps=50), NoiseSchedule.edm(50)),
        (EDMDPMSolverMultistepScheduler(sigma_schedule="exponential"), NoiseSchedule.edm(1000, rho=np.inf)),
        (ScoreSdeVeScheduler(), from_diffusers(ScoreSdeVeScheduler())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scheduler_config_and_dict_give_the_same(scheduler: Any, expected: NoiseSchedule) -> None:
    """The config of a scheduler that was not loaded from a file has no _class_name: its keys must do."""
    config = dict(scheduler.config)
    assert "_class_name" not in config
    for given in (scheduler, scheduler.config, config, {**config, "_class_name": type(scheduler).__name__}):
        assert from_diffusers(given) == expected
    assert from_diffusers(DDPMScheduler(beta_end=0.019)) != expected


@pytest.mark.parametrize(
    "kind", [*KINDS, FlowMatchEulerDiscreteScheduler, EDMEulerScheduler, EDMDPMSolverMultistepScheduler]
)
def test_what_a_config_does_not_say_is_its_classs_default(kind: type) -> None:
    scheduler, least = kind(), {"_class_name": kind.__name__, "num_train_timesteps": 1000}
    if "beta_schedule" in scheduler.config:
        least["beta_schedule"] = "linear"
    assert from_diffusers(least) == from_diffusers(scheduler)


def test_score_sde_by_default_ends_at_1348() -> None:
    schedule = from_diffusers({"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000})
    assert schedule == from_diffusers(ScoreSdeVeScheduler())
    np.testing.assert_allclose(schedule.sigma[[1, 2000]], [0.01, 1348.0], rtol=1e-12)


def test_supported_schedulers_exist() -> None:
    """Names that diffusers does not know would be promises to nobody."""
    theirs = set(SUPPORTED) - {"AnalyticScheduler", "AnalyticFlowScheduler"}
    assert all(hasattr(diffusers, name) for name in theirs)


def sentence(scheduler: Any) -> str:
    with pytest.raises(InputError) as caught:
        from_diffusers(scheduler)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("given", ["scheduler", "config with a name"])
@pytest.mark.parametrize(
    "name", ["CMStochasticIterativeScheduler", "RePaintScheduler", "DDIMInverseScheduler", "IPNDMScheduler"]
)
def test_unsupported_schedulers_are_named_and_the_supported_ones_listed(name: str, given: str) -> None:
    scheduler = getattr(diffusers, name)()
    message = sentence(scheduler if given == "scheduler" else {**scheduler.config, "_class_name": name})
    assert f"the scheduler {name} is not supported" in message
    assert all(supported in message for supported in SUPPORTED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (diffusers.CMStochasticIterativeScheduler().config, "of this config .* is not supported.* EDMEulerScheduler,"),
        (diffusers.CogVideoXDDIMScheduler(snr_shift_scale=-1.0), "snr_shift_scale"),
        (DDPMScheduler(beta_schedule="laplace"), "beta_schedule is 'laplace', .* linear, scaled_linear,"),
        ({**FlowMatchEulerDiscreteScheduler().config, "invert_sigmas": 2}, "invert_sigmas=2"),
        ({"beta_schedule": "linear"}, "num_train_timesteps, but got dict; .* DDPMScheduler,"),
        ({"num_train_timesteps": 10}, "of this config .* is not supported.* DDPMScheduler,"),
        ({"num_train_timesteps": 0, "beta_schedule": "linear"}, "num_train_timesteps=0"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 5}, "beta_schedule is None"),
        ("linear", "but got str; .* DDPMScheduler,"),
        (None, "but got NoneType"),
        (np.ones(3), "but got ndarray"),
    ],
)
def test_from_diffusers_refuses(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_diffusers(given)
    sentence(given)


# ---- numbers that are none ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "change"),
    [
        (DDPMScheduler, {"num_train_timesteps": "many"}),
        (DDPMScheduler, {"num_train_timesteps": 2.5}),
        (DDPMScheduler, {"beta_start": None}),
        (DDPMScheduler, {"beta_end": float("nan")}),
        (EDMEulerScheduler, {"sigma_max": "80"}),
        (EDMEulerScheduler, {"rho": True}),
    ],
)
def test_numbers_that_are_none_are_named(scheduler: Any, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"the config has {next(iter(change))}="):
        NoiseSchedule.from_diffusers({**scheduler().config, **change})


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "LCMScheduler", "TCDScheduler", "DDIMScheduler"])
def test_missing_ends_are_those_of_the_class(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    config = {k: v for k, v in scheduler.config.items() if k not in ("beta_start", "beta_end")}
    assert NoiseSchedule.from_diffusers({**config, "_class_name": name}) == NoiseSchedule.from_diffusers(scheduler)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(1), NoiseSchedule.flow(10), NoiseSchedule.edm(10)])
def test_zero_terminal_snr_is_for_variance_preserving_schedules(schedule: NoiseSchedule) -> None:
    with pytest.raises(InputError, match="variance-preserving schedules of at least two levels"):
        schedule.with_zero_terminal_snr()
