"""A measurement at a mean: A x̂_0 and A; through a decoder D, A D(x̂_0) and the derivative A ∂D there."""

from __future__ import annotations

import torch

from .linear_map import LinearMap
from .measurement import Measurement


def at_mean(measurement: Measurement, mean: torch.Tensor) -> tuple[torch.Tensor, LinearMap]:
    """What would be measured at `mean` (B, …), and the linear map that it changes by.

    Through a decoder a product with the map is a pass forward (`torch.func.jvp`), and one with its adjoint a pass back.
    """
    if measurement.decoder is None:
        linear = measurement.map_of(tuple(mean.shape[1:]))
        return linear.apply(mean), linear
    decode, A = measurement.decoder, measurement.A

    def measured(z: torch.Tensor) -> torch.Tensor:
        return A(decode(z))

    with torch.enable_grad():
        value, pull, *_ = torch.func.vjp(measured, mean)

    def apply(direction: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = torch.func.jvp(measured, (mean,), (direction,))[1]
        return moved.detach()

    def adjoint(u: torch.Tensor) -> torch.Tensor:
        back: torch.Tensor = pull(u)[0]
        return back.detach()

    return value.detach(), LinearMap(apply, adjoint)
