"""The noise of a measurement, n ~ N(0, R): white, of a variance for each element, or of any structure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import checks
from ..covariance.reverse import StructuredCovariance
from ..errors import InputError
from ..randomness import generator, normal

if TYPE_CHECKING:
    from ..process.structure import Shape


class MeasurementNoise:
    """R of one measurement (*m).

    Args:
        noise: a standard deviation, or variances that broadcast to (*m), or a `StructuredCovariance` of (*m).
        shape: (*m).
        like: a tensor whose device variances get.

    Attributes: `variance`, R's diagonal, () or (*m) float64, None where R has a structure.
    Raises InputError for what is below 0, not finite, or of another shape.
    """

    def __init__(self, noise: float | torch.Tensor | StructuredCovariance, shape: Shape, like: torch.Tensor) -> None:
        self.shape, self.structured = shape, None
        self.variance: torch.Tensor | None = None
        if isinstance(noise, StructuredCovariance):
            _check_structured(noise, shape)
            self.structured = StructuredCovariance(noise.structure, noise.variance.double().to(like.device))
        elif isinstance(noise, torch.Tensor) and noise.ndim > 0:
            self.variance = _variances(noise, shape).to(like.device)
        else:
            sigma = noise.item() if isinstance(noise, torch.Tensor) else noise
            expected = "a standard deviation of at least 0, a tensor of variances, or a StructuredCovariance"
            std = checks.number("noise", sigma, expected, least=0.0)
            self.variance = torch.tensor(std**2, dtype=torch.float64, device=like.device)

    @property
    def is_white(self) -> bool:
        """Whether R = σ_y² I."""
        return self.variance is not None and self.variance.ndim == 0

    @property
    def least(self) -> float:
        """The least variance of R."""
        known = self.structured.variance if self.variance is None and self.structured is not None else self.variance
        assert known is not None
        return float(known.min())

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """R u, (B, *m)."""
        if self.structured is not None:
            return self.structured.structure.matvec(self.structured.variance.to(u.dtype), u)
        assert self.variance is not None
        return self.variance.to(u.dtype) * u

    def solve(self, u: torch.Tensor) -> torch.Tensor:
        """R⁻¹ u, (B, *m), where no variance is 0."""
        if self.structured is not None:
            return self.structured.structure.solve(self.structured.variance.to(u.dtype), u)
        assert self.variance is not None
        return u / self.variance.to(u.dtype)

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """R^{1/2} of standard normal noise (B, *m)."""
        if self.structured is not None:
            return self.structured.structure.colour(self.structured.variance.to(noise.dtype), noise)
        assert self.variance is not None
        return self.variance.sqrt().to(noise.dtype) * noise

    def of_row(self, seed: int, row: int, like: torch.Tensor) -> torch.Tensor:
        """A draw n for one measurement, (1, *m): that of a row is the same whoever asks."""
        return self.draw(normal(generator(seed, "noise of a measurement", row), 1, *self.shape).to(like))

    def to(self, device: torch.device | str) -> MeasurementNoise:
        """The same, elsewhere."""
        made = MeasurementNoise.__new__(MeasurementNoise)
        made.shape, made.structured = self.shape, self.structured
        made.variance = None if self.variance is None else self.variance.to(device)
        if self.structured is not None:
            made.structured = StructuredCovariance(self.structured.structure, self.structured.variance.to(device))
        return made

    @property
    def digest(self) -> str:
        """SHA-256 of R's numbers."""
        known: Any = self.variance if self.structured is None else self.structured.variance
        kind = "white" if self.structured is None else self.structured.structure.name
        array = np.ascontiguousarray(known.double().cpu().numpy())
        return hashlib.sha256(f"{kind}{array.shape}".encode() + array.tobytes()).hexdigest()


def _variances(noise: torch.Tensor, shape: Shape) -> torch.Tensor:
    try:
        found = noise.detach().double().expand(shape).clone()
    except RuntimeError:
        raise InputError(
            f"noise has shape {tuple(noise.shape)}, but variances must broadcast to y's elements, {shape}."
        ) from None
    _check_values(found)
    return found


def _check_structured(noise: StructuredCovariance, shape: Shape) -> None:
    found = noise.structure.shape
    checks.refuse(found != shape, f"the noise's structure is of {found}, but y's elements are {shape}.")
    checks.refuse(
        noise.variance.ndim > len(noise.structure.variance_shape),
        f"the noise's variances have shape {tuple(noise.variance.shape)}, one R an image, but one for all is expected; "
        "measure images of other noise apart.",
    )
    _check_values(noise.variance)


def _check_values(variance: torch.Tensor) -> None:
    checks.refuse(
        not bool(torch.isfinite(variance).all()) or bool((variance < 0).any()),
        "noise holds variances that are below 0 or not finite; elements that were not measured are left out by A.",
    )
