"""What is refused as a network, a device or a precision, where a denoiser is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checks
from ..errors import InputError
from ..process.schedule import NoiseSchedule
from ..unwrapping import unwrapped

_EXPECTED = "a network (a torch module, or a function of x_t and timestep)"


def check_network(network: Any) -> None:
    """Refuse what is no network, and say where the network is: pipelines, state dicts, paths, classes, denoisers."""
    kind = type(network).__name__
    found = f"the class {network.__name__}" if isinstance(network, type) else f"a {kind}"
    hint = ""
    if isinstance(network, str | Path):
        hint = "; read a model with dv.Denoiser.from_pretrained(path)"
    elif isinstance(network, Mapping):
        hint = "; if it is a state dict, load it into its module (module.load_state_dict) and pass that"
    elif isinstance(network, type):
        hint = "; pass an instance"
    elif part := next(
        (name for name in ("unet", "transformer") if hasattr(network, name) and _is_pipeline(network)), ""
    ):
        hint = f"; pass its network (pipe.{part}) and its scheduler (pipe.scheduler)"
    elif hasattr(network, "require_condition"):
        hint = "; it is a denoiser already"
    wrong = bool(hint) or not callable(network)
    checks.refuse(wrong, f"network must be {_EXPECTED}, but got {found}{hint}.")


def _is_pipeline(value: Any) -> bool:
    return hasattr(value, "scheduler") and not isinstance(value, torch.nn.Module)


def check_convention(network: Any, prediction: str, schedule: NoiseSchedule) -> None:
    """Refuse EDM's wrappers (EDMPrecond, VPPrecond, …) in any other convention than theirs: F's would give NaN."""
    network = unwrapped(network)
    if not hasattr(network, "round_sigma"):
        return
    told = np.array_equal(schedule.timestep[1:], schedule.sigma[1:]) and bool((schedule.alpha == 1.0).all())
    checks.refuse(
        prediction != "sample" or not told,
        f"the network is one of EDM's wrappers (a {type(network).__name__}, which has round_sigma): it takes σ and "
        "returns x̂_0; use NoiseSchedule.edm(told='sigma') and Denoiser(…, prediction='sample').",
    )


def check_autocast(autocast: Any) -> torch.dtype | None:
    """Refuse what autocast does not know."""
    wrong = autocast not in (None, torch.bfloat16, torch.float16)
    checks.refuse(wrong, f"autocast={autocast!r} must be torch.bfloat16, torch.float16 or None.")
    found: torch.dtype | None = autocast
    return found


def check_conditional(conditional: Any) -> bool | None:
    """Refuse what is neither yes, no nor unknown."""
    wrong = conditional is not None and not checks.is_bool(conditional)
    checks.refuse(wrong, f"conditional={checks.brief(conditional)} must be True, False or None (not known).")
    return None if conditional is None else bool(conditional)


def checked_device(device: Any) -> torch.device:
    """A device of any form."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"device={checks.brief(device)} is not a device; use 'cpu', 'cuda' or 'cuda:0'.") from None


def move(network: torch.nn.Module, device: torch.device) -> None:
    """Move a network to a device, in place; InputError where it cannot go there."""
    try:
        network.to(device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"the network cannot be moved to device={str(device)!r} ({reason}); use one that this machine has, and "
            "load the network's weights first."
        ) from error
