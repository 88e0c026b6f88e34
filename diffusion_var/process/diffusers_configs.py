"""The noise schedule that a diffusers scheduler stands for, read from its config alone and computed in float64.

What counts is which noise levels the network was trained on, not which of them a solver visits: Euler and DPM-Solver
schedulers of a network trained by DDPM give DDPM's schedule, and options such as `use_karras_sigmas` change nothing.

    betas    DDPM, DDIM, PNDM, Euler, DPM-Solver, UniPC, SA-Solver and kin: beta_schedule or trained_betas,
             rescale_betas_zero_snr; of CogVideoX with snr_shift_scale
    flow     FlowMatchEuler, Heun and LCM, LTXEulerAncestralRF, and the kin above with use_flow_sigmas; of Mochi
             (invert_sigmas) the network is told N (1 − t)
    trigflow SCM: α = cos t, σ = sin t σ_d; the network is told t
    EDM      EDMEuler, EDMDPMSolverMultistep, CosineDPMSolverMultistep (told 2/π atan σ): α = 1
    VE       ScoreSdeVe: α = 1, σ geometric; the network is told σ itself
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import checks
from ..errors import InputError
from .schedule import NoiseSchedule

Config = Mapping[str, Any]

# Their SNR is divided by snr_shift_scale, 3 where the config does not say.
_SHIFTED_CLASSES = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
_BETA_CLASSES = (
    *("AnalyticScheduler", "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"),
    *("PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
    *("LCMScheduler", "TCDScheduler", "SASolverScheduler", *_SHIFTED_CLASSES),
)
_FLOW_CLASSES = (
    *("AnalyticFlowScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    *("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"),
)
_TRIGFLOW_CLASSES = ("SCMScheduler",)
_COSINE_CLASS = "CosineDPMSolverMultistepScheduler"
_EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", _COSINE_CLASS)
_VE_CLASSES = ("ScoreSdeVeScheduler",)
# Their β go from one to the other where the config does not say; those of the others from 1e-4 to 0.02.
_LATENT_CLASSES = (
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"),
    *("LCMScheduler", "TCDScheduler", *_SHIFTED_CLASSES),
)
_LATENT_ENDS = (0.00085, 0.012)
SUPPORTED = (*_BETA_CLASSES, *_FLOW_CLASSES, *_TRIGFLOW_CLASSES, *_EDM_CLASSES, *_VE_CLASSES)


def config_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config as a plain dict with `_class_name` (None where only a bare dict is given)."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or "num_train_timesteps" not in config:
        raise InputError(
            "from_diffusers needs a diffusers scheduler or its config with num_train_timesteps, but got "
            f"{_class_name(config) or type(scheduler).__name__}; the supported schedulers are {', '.join(SUPPORTED)}."
        )
    name = _class_name(config) or (None if config is scheduler else type(scheduler).__name__)
    return {**config, "_class_name": name}


def _class_name(config: Any) -> str | None:
    return config.get("_class_name") if isinstance(config, Mapping) else None


def family_of(config: Config) -> str:
    """ "betas", "flow", "inverted flow", "trigflow", "edm" or "ve"; by the class if it is named, else by the keys."""
    name = config.get("_class_name")
    if name in _BETA_CLASSES or (name is None and _has_betas(config)):
        return "flow" if switch(config, "use_flow_sigmas") else "betas"
    if name in _TRIGFLOW_CLASSES:
        return "trigflow"
    by_key = (
        ("flow", _FLOW_CLASSES, "shift"),
        ("edm", _EDM_CLASSES, "sigma_schedule"),
        ("ve", _VE_CLASSES, "sampling_eps"),
    )
    for family, classes, key in by_key:
        if name in classes or (name is None and key in config):
            return "inverted flow" if family == "flow" and switch(config, "invert_sigmas") else family
    raise InputError(
        f"the scheduler {name or 'of this config (no beta_schedule, no _class_name)'} is not supported; the supported "
        f"ones are {', '.join(SUPPORTED)}; for others, build the NoiseSchedule by hand."
    )


def _has_betas(config: Config) -> bool:
    return "beta_schedule" in config or config.get("trained_betas") is not None


def number(config: Config, key: str, default: float) -> float:
    """A number of a config, or the default where the key is missing; InputError for anything else."""
    value = config.get(key, default)
    if not checks.is_number(value) or not math.isfinite(value):
        raise InputError(f"the config has {key}={value!r}, but a number is expected there; mend it.")
    return float(value)


def switch(config: Config, key: str, default: bool = False) -> bool:
    """A switch of a config, or the default where the key is missing or null; InputError for anything else."""
    value = config.get(key)
    if value is not None and not checks.is_bool(value):
        raise InputError(f"the config has {key}={checks.brief(value)}, but true or false is expected there; mend it.")
    return default if value is None else bool(value)


def _numbers(config: Config, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        return np.asarray(config[key], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        found = checks.brief(config[key])
        raise InputError(f"the config has {key}={found}, but a list of numbers is expected there; mend it.") from error


def _num_levels(config: Config) -> int:
    steps = number(config, "num_train_timesteps", math.nan)
    if not checks.is_whole(steps) or steps < 1:
        raise InputError(f"the config has num_train_timesteps={steps:g}, but a whole number of at least 1 is expected.")
    return int(steps)


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler, of its config, or of the config as a plain dict.

    Raises InputError, naming the scheduler, for one whose noise levels are not known here.
    """
    config = config_of(scheduler)
    return _FAMILIES[family_of(config)](config)


def _betas(config: Config) -> NoiseSchedule:
    schedule = _trained_betas(config)
    shifts = config.get("_class_name") in _SHIFTED_CLASSES
    if (scale := number(config, "snr_shift_scale", 3.0 if shifts else 1.0)) != 1.0:
        schedule = _with_snr_over(schedule, checks.positive("snr_shift_scale", scale))
    if switch(config, "rescale_betas_zero_snr"):
        schedule = schedule.with_zero_terminal_snr()
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        # Networks with EDM's timestep on variance-preserving inputs (CosXL, Stable Video Diffusion).
        timestep = np.concatenate([[0.0], -schedule.log_snr[1:] / 8])
        schedule = NoiseSchedule(schedule.alpha, schedule.sigma, timestep)
    return schedule


def _with_snr_over(schedule: NoiseSchedule, scale: float) -> NoiseSchedule:
    """A variance-preserving schedule with its SNR divided by a scale, ᾱ/(scale + (1 − scale) ᾱ), without
    cancellation."""
    log_snr = schedule.log_snr[1:] - math.log(scale)
    alpha, sigma = (np.exp(-0.5 * np.logaddexp(0.0, sign * log_snr)) for sign in (-1.0, 1.0))
    return NoiseSchedule.from_levels(alpha, sigma, schedule.timestep[1:])


def _trained_betas(config: Config) -> NoiseSchedule:
    if config.get("trained_betas") is not None:
        return NoiseSchedule.from_betas(_numbers(config, "trained_betas"))
    # No default for the name: a scheduler of another kind has none, and must not pass for linear.
    steps, name = _num_levels(config), config.get("beta_schedule")
    ends = _LATENT_ENDS if config.get("_class_name") in _LATENT_CLASSES else (1e-4, 0.02)
    start, end = number(config, "beta_start", ends[0]), number(config, "beta_end", ends[1])
    if name == "linear":
        return NoiseSchedule.linear(steps, start, end)
    if name == "scaled_linear":
        return NoiseSchedule.scaled_linear(steps, start, end)
    if name == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(steps)
    if name == "sigmoid":
        return NoiseSchedule.from_betas(start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))))
    raise InputError(
        f"the scheduler's beta_schedule is {name!r}, but the supported ones are linear, scaled_linear, "
        "squaredcos_cap_v2 and sigmoid (or trained_betas); build the NoiseSchedule by hand."
    )


def _flow(config: Config) -> NoiseSchedule:
    # A dynamic shift moves the levels that a solver visits with the image size; training's grid is even.
    shift = 1.0 if switch(config, "use_dynamic_shifting") else config.get("flow_shift", config.get("shift"))
    steps = _num_levels(config)
    return NoiseSchedule.flow(steps, float(1.0 if shift is None else shift), timestep_scale=steps)


def _inverted_flow(config: Config) -> NoiseSchedule:
    """The network is told what the others are told of the signal in the place of the noise: N α."""
    flow = _flow(config)
    return NoiseSchedule(flow.alpha, flow.sigma, _num_levels(config) * flow.alpha)


def _trigflow(config: Config) -> NoiseSchedule:
    """t even from 0 to π/2 (sCM, arXiv:2410.11081)."""
    steps = _num_levels(config)
    t = 0.5 * math.pi * np.arange(steps + 1) / steps
    return NoiseSchedule(np.sin(t[::-1]), number(config, "sigma_data", 0.5) * np.sin(t), t)


def _edm(config: Config) -> NoiseSchedule:
    cosine = config.get("_class_name") == _COSINE_CLASS
    ends = (0.3, 500.0) if cosine else (0.002, 80.0)
    low, high = number(config, "sigma_min", ends[0]), number(config, "sigma_max", ends[1])
    kind = config.get("sigma_schedule", "exponential" if cosine else "karras")
    schedule = NoiseSchedule.edm(
        _num_levels(config), low, high, math.inf if kind == "exponential" else number(config, "rho", 7.0)
    )
    if not cosine:
        return schedule
    told = 2.0 / math.pi * np.arctan(schedule.sigma)
    return NoiseSchedule(schedule.alpha, schedule.sigma, told, schedule.prior_std)


def _ve(config: Config) -> NoiseSchedule:
    low, high = number(config, "sigma_min", 0.01), number(config, "sigma_max", 1348.0)
    geometric = NoiseSchedule.edm(_num_levels(config), low, high, math.inf)
    return NoiseSchedule(geometric.alpha, geometric.sigma, geometric.sigma, geometric.prior_std)


_FAMILIES: dict[str, Callable[[Config], NoiseSchedule]] = {
    "betas": _betas,
    "flow": _flow,
    "inverted flow": _inverted_flow,
    "trigflow": _trigflow,
    "edm": _edm,
    "ve": _ve,
}
