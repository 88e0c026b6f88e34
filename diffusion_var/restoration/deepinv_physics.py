"""What deepinv's physics say of themselves: whether they are linear, their noise, and the basis that they are diagonal
in (`DecomposablePhysics`: A = U diag(s) Vᵀ)."""

from __future__ import annotations

import copy
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from .. import checks
from ..errors import InputError
from .linear_map import Map


def check_physics(physics: Any) -> None:
    """Refuse what is no linear physics of deepinv's."""
    linear = deepinv_module("deepinv.physics").LinearPhysics
    name = type(physics).__name__
    checks.refuse(
        not isinstance(physics, linear),
        f"physics is a {name}, but a deepinv.physics.LinearPhysics is expected: restoration is for linear "
        "measurements.",
    )


def noise_of(physics: Any, who: str = "the physics") -> float | None:
    """σ_y of a physics, None where it says nothing of noise; InputError for noise that is not Gaussian, or another of
    each image."""
    module, model = deepinv_module("deepinv.physics"), getattr(physics, "noise_model", None)
    if model is None or isinstance(model, module.ZeroNoise):
        return None
    checks.refuse(
        type(model) is not module.GaussianNoise,
        f"{who} has deepinv's {type(model).__name__}, but Gaussian noise is expected; give it a GaussianNoise, or none "
        "and noise= apart.",
    )
    several = model.sigma.numel() != 1
    checks.refuse(several, f"{who} has a standard deviation of noise that is one for each image; give one for all.")
    return float(model.sigma)


def bases_of(physics: Any) -> list[tuple[Map, Map]]:
    """(Uᵀ, U) of a decomposable physics; nothing of others."""
    decomposable = deepinv_module("deepinv.physics").DecomposablePhysics
    return [(physics.U_adjoint, physics.U)] if isinstance(physics, decomposable) else []


def in_float64(physics: Any) -> tuple[Map, Map] | None:
    """(A, Aᵀ) of a copy of a physics in float64; None for one that cannot be copied."""
    try:
        fine = copy.deepcopy(physics).double()  # .to(torch.float64) would take the imaginary part off complex numbers
        if getattr(fine, "dtype", None) == torch.float32:
            fine.dtype = torch.float64  # what CompressedSensing's adjoint makes of y
    except Exception:  # of whatever it holds: a tensor with a graph, a file, a lock
        return None
    return fine.A, fine.A_adjoint


def deepinv_module(module: str) -> ModuleType:
    """A module of deepinv's, which takes seconds to import; InputError where it is absent."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"this needs deepinv, which cannot be imported ({error}); install it: "
            "pip install 'diffusion-var[restoration]', or give an operator of your own."
        ) from error
