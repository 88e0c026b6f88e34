"""A linear map of images and its adjoint, both of batches: any callable, once it has been seen to be one.

The adjoint of a map that is given none is its vector-Jacobian product, which for a linear map is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import checks
from ..errors import InputError
from ..process.structure import Shape
from ..randomness import generator, normal

Map = Callable[[torch.Tensor], torch.Tensor]
#: Relative differences that rounding explains, of float32 and of float64.
_ROUNDING = {torch.float32: 2e-3, torch.float64: 1e-8}


class LinearMap(NamedTuple):
    """`apply`: A, of (B, C, *spatial); `adjoint`: Aᵀ, of (B, *m)."""

    apply: Map
    adjoint: Map


def with_adjoint(apply: Map, image_shape: Shape) -> Map:
    """Aᵀ of a linear A by a vector-Jacobian product; InputError where A cannot be differentiated."""

    def adjoint(u: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode can be differentiated nowhere.
            at = torch.zeros((len(u), *image_shape), dtype=u.dtype, device=u.device)
            try:
                found: torch.Tensor = torch.func.vjp(apply, at)[1](u.clone())[0]
            except RuntimeError as error:
                raise InputError(f"A cannot be differentiated by torch ({_line(error)}); give its adjoint=.") from error
        return found.detach()

    return adjoint


def checked(apply: Map, adjoint: Map, image_shape: Shape, measured_shape: Shape, like: torch.Tensor) -> torch.Tensor:
    """Which elements of y (*m) the map sees; InputError for a map that is not linear, mixes the images of a batch, is
    random or of another shape, and for an adjoint that is not its own."""
    rounding = _ROUNDING.get(like.dtype, _ROUNDING[torch.float32])
    u, v = (_probe(k, image_shape, like) for k in range(2))
    w = _probe(2, measured_shape, like)
    seen = _called(apply, "A", u, measured_shape, like)
    size = float(seen.norm())
    if not torch.isfinite(seen).all():
        raise InputError("A gives NaN or infinite values of finite images; check the operator.")

    def far(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm()) / max(size, 1e-30)

    checks.refuse(size == 0.0, "A gives 0 of every image, so that nothing was measured; check the operator.")
    nothing = _called(apply, "A", torch.zeros_like(u), measured_shape, like)
    offset = float(nothing.norm()) / max(size, 1e-30)
    _refuse(offset > rounding, f"A(0) is {offset:.2g} of A(u)", "take what it adds off y, and out of A")
    again = far(_called(apply, "A", u, measured_shape, like), seen)
    checks.refuse(again > rounding, f"A is random: it gives another result each time (by {again:.2g}); fix its seed.")
    twice = far(_called(apply, "A", 2 * u, measured_shape, like), 2 * seen)
    _refuse(twice > rounding, f"A(2u) differs from 2 A(u) by {twice:.2g} of A(u)", _LINEAR)
    both = far(_called(apply, "A", u + v, measured_shape, like), seen + _called(apply, "A", v, measured_shape, like))
    _refuse(both > rounding, f"A(u + v) differs from A(u) + A(v) by {both:.2g} of A(u)", _LINEAR)
    alone = far(_called(apply, "A", u[:1], measured_shape, like), seen[:1])
    checks.refuse(
        alone > rounding,
        f"A of one image depends on the others of the batch (by {alone:.2g}); it must treat each by itself.",
    )
    pulled = _called(adjoint, "the adjoint", w, image_shape, like)
    left, right = (seen.double() * w.double()).sum(), (u.double() * pulled.double()).sum()
    apart = float((left - right).abs()) / max(size * float(w.norm()), 1e-30)
    checks.refuse(
        apart > rounding,
        f"the adjoint is not A's: ⟨Au, w⟩ = {float(left):.6g}, but ⟨u, Aᵀw⟩ = {float(right):.6g}; leave it out "
        "(adjoint=None), and it is found by differentiation.",
    )
    return (seen != 0).any(0)


_LINEAR = "restoration is for linear measurements; linearise it, or measure something linear"


def _refuse(wrong: bool, found: str, remedy: str) -> None:
    checks.refuse(wrong, f"A is not linear: {found}; {remedy}.")


def _probe(k: int, shape: Shape, like: torch.Tensor) -> torch.Tensor:
    return normal(generator(0, "probe of a measurement", k), 2, *shape).to(like)


def _called(call: Map, who: str, x: torch.Tensor, shape: Shape, like: torch.Tensor) -> torch.Tensor:
    """What a map gives of two images; InputError where it raises, or gives another thing than (B, *shape)."""
    try:
        found: Any = call(x.clone())
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{who} fails on a tensor of shape {tuple(x.shape)} ({_line(error)}); it must take "
            f"batches of any size, in {like.dtype}."
        ) from error
    wanted = (len(x), *shape)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != wanted:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"{who} gives {what} of {tuple(x.shape)}, but {wanted} is expected, as y and the model have.")
    if found.dtype != like.dtype or found.device.type != like.device.type:
        raise InputError(
            f"{who} gives {found.dtype} on {found.device} of {like.dtype} on {like.device}; it must keep both."
        )
    return found.detach()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0][:200]}" if lines else "")
