"""What is refused in a scheduler's step, and in what training loops ask of a scheduler."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..covariance.reverse import StructuredCovariance
from ..errors import InputError


def check_step(model_output: Any, sample: Any, variance_noise: Any) -> None:
    """Refuse what are not (B, C, …) of floats, and of one batch and size; channels are the variance_type's business."""
    for name, value in (("sample", sample), ("model_output", model_output)):
        checks.instance(name, value, torch.Tensor, "a tensor of floats")
        checks.refuse(not value.is_floating_point(), f"{name} is {value.dtype}, but floats are expected.")
    mine, theirs = (tuple(tensor.shape) for tensor in (sample, model_output))
    if len(mine) < 2 or mine[:1] + mine[2:] != theirs[:1] + theirs[2:]:
        raise InputError(
            f"model_output has shape {theirs} for a sample of shape {mine}; expected (B, C, …) of the same batch and "
            "size."
        )
    if variance_noise is not None:
        check_alike("variance_noise", variance_noise, "sample", sample)


def check_covariance_of_step(covariance: Any, noise: bool, shape: tuple[int, ...]) -> None:
    """Refuse what is no covariance of a step, one of other samples, and one of a step without noise."""
    if covariance is None:
        return
    found: StructuredCovariance = checks.instance(
        "covariance",
        covariance,
        StructuredCovariance,
        "a step's own, as covariance(posterior, scheduler.kernel(timestep)) gives it, or None",
    )
    checks.refuse(
        not found.diagonal,
        "covariance is known by its products alone (dv.Lanczos), but the log-probability of a step needs all of it; "
        "give one of dv.Jacobian, or sample with dv.Sampler.",
    )
    checks.refuse(not noise, "covariance has no meaning with noise=False; leave out one of the two.")
    own = tuple(found.structure.shape)
    checks.refuse(own != shape, f"covariance is of samples {own}, but these are {shape}; give one of the same.")


def check_alike(name: str, value: Any, other: str, expected: Any) -> None:
    """Refuse what is no tensor of another's shape."""
    checks.instance(other, expected, torch.Tensor, "a tensor")
    checks.instance(name, value, torch.Tensor, "a tensor")
    shape, wanted = tuple(value.shape), tuple(expected.shape)
    checks.refuse(shape != wanted, f"{name} has shape {shape}, but {other} has {wanted}; give one of the same.")


def check_generator(generator: Any, batch: int, device: torch.device) -> None:
    """Refuse what is no generator, or list of one for each image, that can draw on the device."""
    listed = generator if isinstance(generator, list | tuple) else [] if generator is None else [generator]
    for one in listed:
        checks.instance("generator", one, torch.Generator, "a torch.Generator, a list of one for each image, or None")
        checks.refuse(
            one.device.type not in ("cpu", device.type),
            f"generator is on {one.device}, but the noise is drawn on {device}; use one of that device, or of the CPU.",
        )
    wrong = isinstance(generator, list | tuple) and len(listed) not in (1, batch)
    checks.refuse(wrong, f"generator is a list of {len(listed)} for {batch} images; give one for each.")


def timesteps_of(timesteps: Any, batch: int, N: int) -> torch.Tensor:
    """(B,) timesteps on the CPU, from one for all images or one for each."""
    try:
        found = torch.as_tensor(timesteps).cpu().reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"timesteps={checks.brief(timesteps)} must be whole numbers from 0 to {N - 1}.") from None
    whole = found.dtype is not torch.bool and bool((found == found.round()).all())
    if len(found) not in (1, batch) or not whole or not bool(((found >= 0) & (found < N)).all()):
        raise InputError(
            f"timesteps={checks.brief(found.tolist())} must be whole numbers from 0 to {N - 1}, one for all of {batch} "
            "images or one for each."
        )
    return found.long().expand(batch)


def one_timestep(timestep: Any) -> Any:
    """One timestep, from a number, a tensor holding one, or several that are equal."""
    whole = checks.is_bool(timestep) or isinstance(timestep, int)
    if isinstance(timestep, torch.Tensor):
        whole = not timestep.is_floating_point()
        different = timestep.numel() != 1 and (timestep.numel() == 0 or bool((timestep != timestep.flatten()[0]).any()))
        checks.refuse(
            different,
            f"timestep={checks.brief(timestep.flatten().tolist())} must be one for all images; take a step for each in "
            "turn.",
        )
        timestep = timestep.flatten()[0]
    checks.refuse(
        whole or not checks.is_number(timestep),
        f"timestep={checks.brief(timestep)} must be one of scheduler.timesteps, not the index of a loop.",
    )
    return timestep


def check_unused(s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> None:
    """Refuse Euler's options, which FlowMatchEulerDiscreteScheduler takes and does nothing with."""
    given = {
        "s_churn": (s_churn, 0.0),
        "s_tmin": (s_tmin, 0.0),
        "s_tmax": (s_tmax, math.inf),
        "s_noise": (s_noise, 1.0),
    }
    wrong = [f"{name}={checks.brief(value)}" for name, (value, default) in given.items() if value != default]
    checks.refuse(
        bool(wrong),
        f"{', '.join(wrong)} has no meaning for a flow's steps; leave it out, and set the noise by eta or tau.",
    )
