"""What deepinv's physics say of themselves: whether they are linear, their noise, and the basis that they are diagonal
in (`DecomposablePhysics`: A = U diag(s) Vᵀ)."""

from __future__ import annotations

import copy
from typing import Any

from .. import checks
from ..errors import InputError
from .linear_map import Map


def check_physics(physics: Any) -> None:
    """Refuse what is no linear physics of deepinv's."""
    linear = _physics_module().LinearPhysics
    name = type(physics).__name__
    checks.refuse(
        not isinstance(physics, linear),
        f"physics is a {name}, but a deepinv.physics.LinearPhysics is expected: restoration is for linear "
        "measurements.",
    )


def noise_of(physics: Any) -> Any:
    """σ_y of a physics; InputError for noise that is not Gaussian, or not known."""
    model = getattr(physics, "noise_model", None)
    name = type(model).__name__
    if model is None or name == "ZeroNoise":
        return 0.0
    checks.refuse(
        name != "GaussianNoise",
        f"the physics' noise model is {name}, but Gaussian noise is expected; give noise=, if Gaussian noise is near "
        "enough.",
    )
    sigma = model.sigma
    wrong = getattr(sigma, "numel", lambda: 1)() != 1
    checks.refuse(wrong, "the physics' σ is one for each image; give noise= as one number for all, or as variances.")
    return float(sigma)


def bases_of(physics: Any) -> list[tuple[Map, Map]]:
    """(Uᵀ, U) of a decomposable physics; nothing of others."""
    module = _physics_module()
    return [(physics.U_adjoint, physics.U)] if isinstance(physics, module.DecomposablePhysics) else []


def in_float64(physics: Any) -> tuple[Map, Map]:
    """(A, Aᵀ) of a copy of a physics in float64."""
    fine = copy.deepcopy(physics).double()  # .to(torch.float64) would take the imaginary part off complex numbers
    return fine.A, fine.A_adjoint


def _physics_module() -> Any:
    try:
        from deepinv import physics
    except ImportError as error:
        raise InputError(f"operators by deepinv need it: pip install deepinv ({error}).") from error
    return physics
